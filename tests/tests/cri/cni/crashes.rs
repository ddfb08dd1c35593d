//! Daemons that are killed while plugins work, and nodes that restart: nothing is attached twice, and nothing is left.

use coracle_proto::runtime::v1 as cri;
use coracle_tests::procs;

use super::{end, scripted};
use crate::site::{Pod, eventually};

#[tokio::test]
async fn a_daemon_killed_during_add_comes_back_to_a_node_without_that_pod() {
    let mut daemon = scripted(30, "1.0.0").await;
    let place = daemon.cni();
    // It goes on after its daemon and would take the lease after DEL has given it back.
    place
        .does("two", "ADD", "sleep 2; : > $dir/too-late")
        .unwrap();
    let (cri, config) = (daemon.cri(), daemon.pod("unborn"));
    let pending = tokio::spawn(async move { cri.run_pod(&config).await });
    let calls = place.plugins().join("calls");
    eventually("the second plugin works", || {
        std::fs::read_to_string(&calls).is_ok_and(|calls| calls.contains("ADD two"))
    })
    .await;
    // Whoever runs elsewhere may say of itself what it likes.
    let pod = place.entries().pop().unwrap();
    let mut stranger = std::process::Command::new("sleep")
        .arg("600")
        .env("CNI_CONTAINERID", pod.trim_end_matches(".asked"))
        .spawn()
        .unwrap();
    daemon.kill();
    assert!(pending.await.unwrap().is_err());
    assert_eq!(place.leases().len(), 1);
    daemon.restart().await.unwrap();
    eventually("the pod is given back", || place.entries().is_empty()).await;
    assert!(
        stranger.try_wait().unwrap().is_none(),
        "a stranger's process was killed"
    );
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    assert_eq!(
        place.commands(),
        ["ADD one", "ADD two", "DEL two", "DEL one"]
    );
    assert!(daemon.cri().list_pods(None).await.unwrap().is_empty());
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    assert!(place.leases().is_empty());
    assert!(
        !place.plugins().join("too-late").exists(),
        "the plugin outlived its daemon"
    );
    place.does("two", "ADD", "").unwrap();
    let pod = Pod::run(&daemon, "unborn").await;
    end(&pod).await;
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_daemon_killed_during_del_goes_on_with_it() {
    let mut daemon = scripted(30, "1.0.0").await;
    let place = daemon.cni();
    let pod = Pod::run(&daemon, "half-gone").await;
    place.calls();
    place.does("one", "DEL", "sleep 1000").unwrap();
    let (cri, id) = (daemon.cri(), pod.id.clone());
    let pending = tokio::spawn(async move { cri.stop_pod(&id).await });
    let calls = place.plugins().join("calls");
    eventually("the last plugin works", || {
        std::fs::read_to_string(&calls).is_ok_and(|calls| calls.contains("DEL one"))
    })
    .await;
    daemon.kill();
    assert!(pending.await.unwrap().is_err());
    for process in procs::of_scratch(daemon.scratch()) {
        if process.command.contains("sleep 1000") {
            procs::kill(process.pid);
        }
    }
    place.does("one", "DEL", "").unwrap();
    place.calls();
    daemon.restart().await.unwrap();
    eventually("the pod is given back", || place.entries().is_empty()).await;
    // What the pod had may have been compared with what it was given just before.
    let mut commands = place.commands();
    commands.retain(|command| !command.starts_with("CHECK"));
    assert_eq!(commands, ["DEL two", "DEL one"]);
    let status = pod.cri.pod_status(&pod.id).await.unwrap();
    assert_eq!(status.state(), cri::PodSandboxState::SandboxNotready);
    end(&pod).await;
    assert!(place.commands().is_empty());
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn after_a_restart_of_the_daemon_pods_are_checked_and_garbage_is_named() {
    let mut daemon = scripted(10, "1.1.0").await;
    let place = daemon.cni();
    let pod = Pod::run(&daemon, "stays").await;
    let before = pod.cri.pod_status(&pod.id).await.unwrap();
    place
        .does(
            "two",
            "CHECK",
            r#"echo '{"code": 100, "msg": "the route is gone"}'; exit 1"#,
        )
        .unwrap();
    place.calls();
    daemon.restart().await.unwrap();
    eventually("the pod was checked", || {
        daemon.log().contains("the route is gone")
    })
    .await;
    let calls = place.commands();
    let expected = ["GC one", "GC two", "CHECK one", "CHECK two"];
    let sent: Vec<&String> = calls
        .iter()
        .filter(|call| !call.starts_with("STATUS"))
        .collect();
    assert_eq!(sent, expected);
    let valid = &place.input("one", "GC").unwrap()["cni.dev/valid-attachments"];
    assert_eq!(valid[0]["containerID"], pod.id.as_str());
    assert_eq!(pod.cri.pod_status(&pod.id).await.unwrap(), before);
    end(&pod).await;
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn after_a_reboot_pods_are_given_back_even_if_plugins_are_not_up_yet() {
    let mut daemon = scripted(10, "1.0.0").await;
    let place = daemon.cni();
    let pod = Pod::run(&daemon, "before").await;
    place.calls();
    daemon.kill();
    for process in procs::of_scratch(daemon.scratch()) {
        procs::kill(process.pid);
    }
    eventually("nothing runs", || {
        procs::of_scratch(daemon.scratch()).is_empty()
    })
    .await;
    for mount in daemon.scratch().mounts().iter().rev() {
        rustix::mount::unmount(mount.as_str(), rustix::mount::UnmountFlags::DETACH).unwrap();
    }
    std::fs::remove_dir_all(daemon.scratch().dir().join("run")).unwrap();
    let up = place.plugins().join("up");
    place
        .does("one", "DEL", &format!("[ -e {} ] || exit 1", up.display()))
        .unwrap();
    daemon.boot_anew().await.unwrap();
    let status = pod.cri.pod_status(&pod.id).await.unwrap();
    assert_eq!(status.state(), cri::PodSandboxState::SandboxNotready);
    eventually("the second plugin is asked", || place.leases().len() == 1).await;
    let calls = place.calls();
    assert!(calls.contains(&format!("DEL two {} ", pod.id)), "{calls:?}");
    assert!(place.input("two", "DEL").unwrap()["prevResult"]["ips"].is_array());
    end(&pod).await;
    std::fs::write(up, "").unwrap();
    eventually("the pod is given back", || place.entries().is_empty()).await;
    assert!(place.leases().is_empty());
    daemon.finish().await.unwrap();
}
