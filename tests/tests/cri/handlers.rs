//! Handlers of the operator's own, and names of other runtimes that lead to Coracle's.

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;
use coracle_tests::daemon::{Daemon, Options};
use rustix::process::{Pid, Signal, kill_process};
use tonic::Code;

use crate::linux::shell::{self, on_peer, run, sh};
use crate::site::{Pod, eventually, refused, tool};

const CONFIG: &str = "[handlers.coracle]\naliases = [\"runc\"]\nrlimits = { nofile = \"100:200\", core = \"0\" }\n\
                      [handlers.edge]\nkind = \"wasm\"\negress = \"none\"\naliases = [\"spin\"]\n";

async fn run_with(daemon: &Daemon, name: &str, handler: &str) -> Result<Pod, tonic::Status> {
    let (cri, config) = (daemon.cri(), daemon.pod(name));
    let id = cri.run_pod_with(&config, handler).await?;
    Ok(Pod { cri, config, id })
}

#[tokio::test]
async fn pods_of_other_runtimes_and_of_own_handlers_run_and_outlive_their_names() {
    if on_peer() {
        return; // It has other names.
    }
    let mut daemon = shell::daemon_with(Options {
        config: CONFIG.into(),
        ..Options::default()
    })
    .await;
    let mut runtime = daemon.cri().runtime.clone();
    let status = runtime.status(cri::StatusRequest { verbose: false }).await;
    let status = status.unwrap().into_inner();
    let names: Vec<&str> = status
        .runtime_handlers
        .iter()
        .map(|one| one.name.as_str())
        .collect();
    assert_eq!(
        names,
        [
            "",
            "coracle",
            "runc",
            "coracle-wasm",
            "coracle-strict",
            "edge",
            "spin"
        ]
    );

    let runc = run_with(&daemon, "switched", "runc").await.unwrap();
    let limits = run(
        &daemon,
        &runc,
        &sh("limits", "ulimit -Sn; ulimit -Hn; ulimit -c"),
    )
    .await;
    limits.says(&["100", "200", "0"]);
    let id = runc.tool(&["sleep"]).await;
    let spin = run_with(&daemon, "spun", "spin").await.unwrap();
    refused(
        spin.create(&sh("linux", "true")).await,
        Code::InvalidArgument,
        &["handler \"spin\" runs WebAssembly only"],
    );
    spin.tool(&["show"]).await;
    for (pod, handler) in [(&runc, "runc"), (&spin, "spin")] {
        let listed = pod.cri.pod_status(&pod.id).await.unwrap();
        assert_eq!(listed.runtime_handler, handler);
    }
    refused(
        run_with(&daemon, "unknown", "crun").await.map(|pod| pod.id),
        Code::InvalidArgument,
        &["\"crun\"", "\"runc\"", "\"edge\""],
    );
    // The handlers go; their pods stay, also over a restart, and can have new containers.
    let text = std::fs::read_to_string(daemon.config_path()).unwrap();
    std::fs::write(daemon.config_path(), text.replace(CONFIG, "")).unwrap();
    let pid = Pid::from_raw(daemon.pid()).unwrap();
    kill_process(pid, Signal::HUP).unwrap();
    eventually("the reload", || daemon.log().contains("read again")).await;
    for attempt in ["reloaded", "restarted"] {
        refused(
            run_with(&daemon, attempt, "runc").await.map(|pod| pod.id),
            Code::InvalidArgument,
            &["\"runc\""],
        );
        let listed = runc.cri.pod_status(&runc.id).await.unwrap();
        assert_eq!(listed.runtime_handler, "runc");
        let config = container(attempt, tool(), &["show"]);
        let (ended, _) = spin.finish(&daemon, &config).await;
        assert_eq!(ended.exit_code, 0);
        // Not weaker than before.
        let config = sh(
            &format!("limits-{attempt}"),
            "ulimit -Sn; ulimit -Hn; ulimit -c",
        );
        let limits = run(&daemon, &runc, &config).await;
        limits.says(&["100", "200", "0"]);
        daemon.restart().await.unwrap();
    }
    let running = runc.cri.status(&id).await.unwrap();
    assert_eq!(running.state, cri::ContainerState::ContainerRunning as i32);
    daemon.finish().await.unwrap();
}
