//! ExecSync: programs in running containers, Linux and Wasm, and what happens to them after a timeout or a lost caller.

use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;
use coracle_tests::daemon::{Daemon, Options, UNIFIED};
use coracle_tests::procs;
use tonic::{Code, Status};

use crate::linux::shell;
use crate::site::{self, Pod, ended_soon, eventually, refused, tool};

/// ExecSync's reply with its streams as text.
#[derive(Debug)]
pub struct ExecOutput {
    pub out: String,
    pub err: String,
    pub code: i32,
}

/// ExecSync. Errors: what the daemon says.
pub async fn exec(pod: &Pod, id: &str, cmd: &[&str], timeout: i64) -> Result<ExecOutput, Status> {
    let reply = exec_bytes(pod, id, cmd, timeout).await?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(ExecOutput {
        out: text(reply.stdout),
        err: text(reply.stderr),
        code: reply.exit_code,
    })
}

async fn exec_bytes(
    pod: &Pod,
    id: &str,
    cmd: &[&str],
    timeout: i64,
) -> Result<cri::ExecSyncResponse, Status> {
    let request = cri::ExecSyncRequest {
        container_id: id.into(),
        cmd: cmd.iter().map(|arg| (*arg).to_owned()).collect(),
        timeout,
    };
    let mut runtime = pod.cri.runtime.clone();
    runtime
        .exec_sync(request)
        .await
        .map(tonic::Response::into_inner)
}

#[tokio::test]
async fn output_and_exit_code_of_a_program_are_returned() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "exec").await;
    let mut config = shell::sh("main", "sleep 1000");
    config.envs.push(cri::KeyValue {
        key: "COLOUR".into(),
        value: b"green".to_vec(),
    });
    config.working_dir = "/tmp".into();
    let id = pod.start(&config).await;
    let script = "echo out; echo err >&2; echo $COLOUR; pwd; exit 7";
    let output = exec(&pod, &id, &["/bin/sh", "-c", script], 10)
        .await
        .unwrap();
    assert_eq!(output.out, "out\ngreen\n/tmp\n");
    assert_eq!((output.err.as_str(), output.code), ("err\n", 7));
    let killed = exec(&pod, &id, &["/bin/sh", "-c", "kill -9 $$"], 10)
        .await
        .unwrap();
    assert_eq!(killed.code, 137);
    // Found by PATH, too.
    assert_eq!(exec(&pod, &id, &["true"], 0).await.unwrap().code, 0);
    let absent = exec(&pod, &id, &["no-such-program"], 10).await;
    refused(
        absent,
        Code::FailedPrecondition,
        &["no-such-program", "not found"],
    );
    refused(
        exec(&pod, &id, &[], 10).await,
        Code::InvalidArgument,
        &["cmd"],
    );
    pod.cri.stop(&id, 0).await.unwrap();
    let late = exec(&pod, &id, &["true"], 10).await;
    refused(late, Code::FailedPrecondition, &[&id, "exited"]);
    let unknown = exec(&pod, &"0".repeat(64), &["true"], 10).await;
    refused(unknown, Code::NotFound, &["container"]);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_program_out_of_time_dies_with_all_it_started_and_nothing_else() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "exec-late").await;
    let id = pod
        .start(&shell::sh("main", "sleep 1001 & sleep 1000"))
        .await;
    let begun = Instant::now();
    let script = "(sleep 1002 & exec sleep 1003) & setsid sleep 1004 & sleep 1005";
    let late = exec(&pod, &id, &["/bin/sh", "-c", script], 1).await;
    refused(late, Code::DeadlineExceeded, &["1s", &id]);
    ended_soon(begun);
    // The call has returned, so they are gone, not going.
    let left = exec(&pod, &id, &["ps"], 10).await.unwrap();
    let sleeps = |seconds: &str| left.out.contains(&format!("sleep {seconds}"));
    assert!(sleeps("1000") && sleeps("1001"), "{}", left.out);
    assert!(
        !["1002", "1003", "1004", "1005"].into_iter().any(sleeps),
        "{}",
        left.out
    );
    assert_eq!(
        pod.cri.status(&id).await.unwrap().state(),
        cri::ContainerState::ContainerRunning
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_grandchild_that_holds_the_pipe_does_not_hold_the_call() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "exec-held").await;
    let id = pod.start(&shell::sh("main", "sleep 1000")).await;
    let begun = Instant::now();
    let output = exec(&pod, &id, &["/bin/sh", "-c", "sleep 1006 & echo done"], 100)
        .await
        .unwrap();
    assert_eq!((output.out.as_str(), output.code), ("done\n", 0));
    ended_soon(begun);
    // As everywhere, what it left in the background stays until its container ends.
    let left = exec(&pod, &id, &["ps"], 10).await.unwrap();
    assert!(left.out.contains("sleep 1006"), "{}", left.out);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn output_without_end_is_cut_and_the_daemon_stays_small() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "exec-flood").await;
    let id = pod.start(&shell::sh("main", "sleep 1000")).await;
    let before = rss_kib(daemon.pid());
    let script = "head -c 20000000 /dev/zero; head -c 18000000 /dev/zero >&2; exit 4";
    let reply = exec_bytes(&pod, &id, &["/bin/sh", "-c", script], 60)
        .await
        .unwrap();
    assert_eq!(reply.exit_code, 4, "it ran to its end");
    let (out, err) = (reply.stdout.len(), reply.stderr.len());
    assert!(
        out <= 16 << 20 && err <= 16 << 20 && out + err > 15 << 20,
        "{out} {err}"
    );
    let grown = rss_kib(daemon.pid()).saturating_sub(before);
    assert!(grown < 128 * 1024, "the daemon grew by {grown} KiB");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_wasm_container_runs_its_own_module_again_in_the_same_jail() {
    let daemon = site::daemon().await;
    let pod = Pod::run(&daemon, "exec-wasm").await;
    let id = pod.start(&container("main", tool(), &["sleep"])).await;
    let written = exec(&pod, &id, &["tool", "write", "/tmp-file", "left here"], 10)
        .await
        .unwrap();
    assert_eq!(written.code, 0, "{written:?}");
    let read = exec(&pod, &id, &["tool", "read", "/tmp-file"], 10)
        .await
        .unwrap();
    assert!(read.out.contains("left here"), "{read:?}");
    assert_eq!(
        exec(&pod, &id, &["tool", "exit", "9"], 10)
            .await
            .unwrap()
            .code,
        9
    );
    let trapped = exec(&pod, &id, &["tool", "trap"], 10).await.unwrap();
    assert_ne!(trapped.code, 0);
    let late = exec(&pod, &id, &["tool", "spin"], 1).await;
    refused(late, Code::DeadlineExceeded, &["1s"]);
    assert_eq!(
        pod.cri.status(&id).await.unwrap().state(),
        cri::ContainerState::ContainerRunning
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn an_exec_does_not_outlive_its_daemon() {
    outlives_nobody(shell::daemon().await, ["1007", "1008", "1009", "1010"]).await;
}

/// Where the kernel kills no cgroup as a whole.
#[tokio::test]
async fn on_pure_v1_an_exec_does_not_outlive_its_daemon_either() {
    let is_hybrid = std::path::Path::new(UNIFIED).join("cgroup.procs").exists();
    if shell::on_peer() || !is_hybrid {
        return;
    }
    let options = Options {
        pure_v1: true,
        ..Options::default()
    };
    let daemon = shell::daemon_with(options).await;
    outlives_nobody(daemon, ["1017", "1018", "1019", "1020"]).await;
}

async fn outlives_nobody(mut daemon: Daemon, seconds: [&str; 4]) {
    let [first, second, third, fourth] = seconds;
    let pod = Pod::run(&daemon, "exec-orphan").await;
    let id = pod.start(&shell::sh("main", "sleep 1000")).await;
    let script = format!("setsid sleep {first} & sleep {second}");
    let command = ["/bin/sh", "-c", &*script];
    let request = exec(&pod, &id, &command, 0);
    let lost = tokio::time::timeout(Duration::from_millis(500), request).await;
    assert!(lost.is_err(), "it ended by itself: {lost:?}");
    // A client that goes away gives its exec up.
    eventually("the exec of a client that left is gone", || {
        !runs(&format!("sleep {first}")) && !runs(&format!("sleep {second}"))
    })
    .await;
    let pod_again = pod.cri.clone();
    let request = tokio::spawn({
        let (id, mut runtime) = (id.clone(), pod_again.runtime.clone());
        let script = format!("setsid sleep {third} & sleep {fourth}");
        async move {
            let cmd = ["/bin/sh", "-c", &script].map(str::to_owned);
            let request = cri::ExecSyncRequest {
                container_id: id,
                cmd: cmd.to_vec(),
                timeout: 0,
            };
            runtime.exec_sync(request).await.map(drop)
        }
    });
    eventually("the exec runs", || {
        runs(&format!("sleep {third}")) && runs(&format!("sleep {fourth}"))
    })
    .await;
    daemon.kill();
    assert!(request.await.unwrap().is_err());
    eventually("the exec of a daemon that died is gone", || {
        !runs(&format!("sleep {third}")) && !runs(&format!("sleep {fourth}"))
    })
    .await;
    daemon.restart().await.unwrap();
    assert_eq!(
        daemon.cri().status(&id).await.unwrap().state(),
        cri::ContainerState::ContainerRunning
    );
    daemon.finish().await.unwrap();
}

/// Address-space layout randomisation works for an attacker who has one leak if all processes are forks of one.
#[tokio::test]
async fn under_coracle_strict_an_exec_has_an_address_space_layout_of_its_own() {
    let daemon = site::daemon().await;
    let config = daemon.pod("strict");
    let cri = daemon.cri();
    let id = cri.run_pod_with(&config, "coracle-strict").await.unwrap();
    let pod = Pod { cri, config, id };
    let id = pod.start(&container("main", tool(), &["sleep"])).await;
    let title = format!("coracle exec {}", &id[..12]);
    let others = procs::of_scratch(daemon.scratch());
    let others: Vec<_> = others.iter().filter_map(|p| code_base(p.pid)).collect();
    assert!(others.len() >= 3, "daemon, spawner, keeper: {others:?}");
    let running = exec(&pod, &id, &["tool", "sleep"], 100);
    // Until it has executed itself again it looks like its keeper.
    let found = eventually("an exec whose layout no other process has", || {
        let processes = procs::of_scratch(daemon.scratch());
        let exec = processes.iter().find(|p| p.command.starts_with(&title));
        exec.and_then(|process| code_base(process.pid))
            .is_some_and(|base| !others.contains(&base))
    });
    tokio::select! {
        ended = running => panic!("it has ended: {ended:?}"),
        () = found => {}
    }
    daemon.finish().await.unwrap();
}

/// Where a process's program is mapped: the lowest of its mappings.
fn code_base(pid: i32) -> Option<String> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    Some(maps.lines().next()?.split('-').next()?.to_owned())
}

/// Whether a process with exactly these words runs on the machine.
pub fn runs(args: &str) -> bool {
    let wanted: Vec<u8> = args
        .split(' ')
        .flat_map(|arg| [arg.as_bytes(), b"\0"].concat())
        .collect();
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .any(|entry| std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| line == wanted))
}

/// Resident memory of a process.
fn rss_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap()
}
