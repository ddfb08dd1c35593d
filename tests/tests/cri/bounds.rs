//! Bounds on what tenants can make the daemon do or hold: output, messages, threads, descriptors, disk.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::{TIMEOUT, container};
use coracle_tests::daemon::Daemon;
use coracle_tests::fuse::StallingDir;
use coracle_tests::procs::Role;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::linux::shell::{self, host_dir, mount, sh};
use crate::site::{self, Pod, eventually, refused, tool};
use crate::streaming::memory_kib;

const MIB: usize = 1 << 20;

async fn exec(pod: &Pod, id: &str, script: String) -> Result<cri::ExecSyncResponse, Status> {
    let request = cri::ExecSyncRequest {
        container_id: id.into(),
        cmd: vec!["/bin/sh".into(), "-c".into(), script],
        timeout: 60,
    };
    let reply = pod.cri.runtime.clone().exec_sync(request).await;
    reply.map(tonic::Response::into_inner)
}

/// T26: 40 at a time once took 955 MiB.
#[tokio::test]
async fn the_output_of_all_execs_together_is_bounded_and_one_beyond_it_gets_an_error() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "output").await;
    let id = pod.start(&sh("main", "sleep 1000")).await;
    // Whoever has written holds its room for a while, so that many do at the same time.
    let much = format!("head -c {} /dev/zero; sleep 3", 15 * MIB);
    let before = memory_kib(daemon.pid(), "VmRSS:");
    let pod = Arc::new(pod);
    let mut calls = JoinSet::new();
    for _ in 0..40 {
        let (pod, id, much) = (Arc::clone(&pod), id.clone(), much.clone());
        calls.spawn(async move { exec(&pod, &id, much).await });
    }
    let calls = calls.join_all();
    let small = async {
        // A probe meanwhile has what it needs.
        for round in 0..10 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let printed = exec(&pod, &id, "head -c 10240 /dev/zero".into()).await;
            assert_eq!(printed.unwrap().stdout.len(), 10_240, "round {round}");
        }
    };
    let mut most = before;
    let watch = async {
        loop {
            most = most.max(memory_kib(daemon.pid(), "VmRSS:"));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let replies = tokio::select! {
        (replies, ()) = async { tokio::join!(calls, small) } => replies,
        () = watch => unreachable!(),
    };
    let mut short = 0;
    for reply in replies {
        match reply {
            Ok(reply) => assert_eq!(reply.stdout.len(), 15 * MIB),
            Err(status) => {
                short += 1;
                let expected = [&id, "exec.sync_output_bytes", "code 0"];
                refused::<()>(Err(status), Code::ResourceExhausted, &expected);
            }
        }
    }
    assert!(short > 0, "600 MiB fitted 64");
    let grown = most.saturating_sub(before);
    assert!(grown < 192 * 1024, "the daemon grew by {grown} KiB");
    // All of it was given back.
    let alone = exec(&pod, &id, much).await.unwrap();
    assert_eq!(alone.stdout.len(), 15 * MIB);
    daemon.finish().await.unwrap();
}

/// T26: ten of one pod once left others 16 KiB.
#[tokio::test]
async fn the_output_of_one_namespaces_execs_leaves_room_for_that_of_others() {
    let daemon = shell::daemon().await;
    let greedy = Arc::new(Pod::run(&daemon, "greedy").await);
    let mut config = daemon.pod("honest");
    config.metadata.as_mut().unwrap().namespace = "honest".into();
    let honest = Pod::run_config(&daemon, config).await;
    let own = honest.start(&sh("own", "sleep 1000")).await;
    let id = greedy.start(&sh("main", "sleep 1000")).await;
    let much = format!("head -c {} /dev/zero; touch /tmp/$$; sleep 1000", 15 * MIB);
    let mut calls = JoinSet::new();
    for _ in 0..10 {
        let (pod, id, much) = (Arc::clone(&greedy), id.clone(), much.clone());
        calls.spawn(async move { exec(&pod, &id, much).await });
    }
    let written = "while [ $(ls /tmp | wc -l) -lt 10 ]; do sleep 0.1; done".to_owned();
    exec(&greedy, &id, written).await.unwrap();
    let printed = exec(&honest, &own, format!("head -c {} /dev/zero", 8 * MIB)).await;
    assert_eq!(printed.unwrap().stdout.len(), 8 * MIB);
    calls.shutdown().await;
    daemon.finish().await.unwrap();
}

/// 75 of them once made a greeting that no daemon could read.
#[tokio::test]
async fn hundreds_of_traps_while_the_daemon_is_away_leave_the_keeper_within_reach() {
    const MANY: usize = 300;
    let mut daemon = site::daemon().await;
    let pod = Pod::run(&daemon, "traps").await;
    let dir = host_dir(&daemon, "signal");
    let mut ids = Vec::new();
    for number in 0..MANY {
        let mut config = container(&format!("t{number}"), tool(), &["trap-when", "/signal/now"]);
        config.mounts = vec![mount(&dir, "/signal", true)];
        ids.push(pod.start(&config).await);
    }
    let running = pod.tool(&["sleep"]).await;
    daemon.kill();
    std::fs::write(dir.join("now"), "").unwrap();
    eventually("all have trapped", || {
        daemon.processes(Role::Guest).len() == 1
    })
    .await;
    daemon.restart().await.unwrap();
    let deadline = Instant::now() + TIMEOUT;
    for id in &ids {
        let status = loop {
            let status = pod.cri.status(id).await.unwrap();
            if status.state() == cri::ContainerState::ContainerExited || Instant::now() > deadline {
                break status;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (134, "WasmTrap")
        );
        assert!(
            status.message.contains("a_function_whose_name") && status.message.len() > 3000,
            "{}",
            status.message
        );
    }
    assert!(!daemon.log().contains("the keeper does not answer"));
    // The keeper is in reach: it starts another and tells how it ends.
    let (status, _) = pod
        .finish(&daemon, &container("after", tool(), &["exit", "3"]))
        .await;
    assert_eq!(status.exit_code, 3);
    pod.cri.stop(&running, 0).await.unwrap();
    daemon.finish().await.unwrap();
}

/// Threads of the daemon that resolve paths.
fn path_threads(daemon: &Daemon) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let names = tasks
        .flatten()
        .map(|task| std::fs::read_to_string(task.path().join("comm")));
    names
        .filter(|name| matches!(name, Ok(name) if name == "paths\n"))
        .count()
}

fn device(path: &std::path::Path) -> cri::Device {
    cri::Device {
        container_path: "/dev/x".into(),
        host_path: path.display().to_string(),
        permissions: "r".into(),
    }
}

#[tokio::test]
async fn creates_that_hang_on_a_dead_filesystem_hold_up_nobody_else() {
    let daemon = shell::daemon().await;
    let dead = host_dir(&daemon, "dead");
    let stalling = StallingDir::mount(&dead).unwrap();
    let stuck = Pod::run(&daemon, "stuck").await;
    let neighbour = Pod::run(&daemon, "neighbour").await;
    let to_stop = neighbour.start(&sh("stopped", "sleep 1000")).await;
    stalling.die();
    let stuck = Arc::new(stuck);
    let mut creates = JoinSet::new();
    for number in 0..100 {
        let mut config = sh(&format!("c{number}"), "true");
        let path = dead.join(format!("v{number}"));
        match number % 2 {
            0 => config.mounts = vec![mount(&path, "/v", false)],
            _ => config.devices = vec![device(&path)],
        }
        let (pod, begun) = (Arc::clone(&stuck), Instant::now());
        creates.spawn(async move { (number, pod.create(&config).await, begun.elapsed()) });
    }
    let others = async {
        eventually("something hangs", || stalling.unanswered() > 0).await;
        let begun = Instant::now();
        let pod = Pod::run(&daemon, "other").await;
        let data = host_dir(&daemon, "data");
        let mut config = sh("fine", "echo fine > /data/file");
        config.mounts = vec![mount(&data, "/data", false)];
        let (status, _) = pod.finish(&daemon, &config).await;
        assert_eq!(status.exit_code, 0);
        assert!(data.join("file").exists());
        pod.cri.list(None).await.unwrap();
        let stats = cri::ListContainerStatsRequest::default();
        let mut runtime = pod.cri.runtime.clone();
        runtime.list_container_stats(stats).await.unwrap();
        pod.cri.stop(&to_stop, 0).await.unwrap();
        // A path is waited for ten seconds.
        assert!(
            begun.elapsed() < Duration::from_secs(9),
            "{:?}",
            begun.elapsed()
        );
    };
    let (created, ()) = tokio::join!(creates.join_all(), others);
    for (number, result, took) in created {
        let refusal = result.unwrap_err();
        assert!(took < TIMEOUT, "{number}: {took:?}");
        let by_name = refusal.message().contains(&format!("v{number}"));
        let codes = [Code::DeadlineExceeded, Code::ResourceExhausted];
        assert!(by_name && codes.contains(&refusal.code()), "{refusal}");
    }
    // One more is refused at once, and costs no thread.
    let threads = path_threads(&daemon);
    let begun = Instant::now();
    let mut late = sh("late", "true");
    late.mounts = vec![mount(&dead.join("late"), "/v", false)];
    let expected = [dead.to_str().unwrap(), "wait for its filesystem"];
    refused(
        stuck.create(&late).await,
        Code::ResourceExhausted,
        &expected,
    );
    let mut late = sh("late-device", "true");
    late.devices = vec![device(&dead.join("late"))];
    refused(
        stuck.create(&late).await,
        Code::ResourceExhausted,
        &expected,
    );
    assert!(begun.elapsed() < Duration::from_secs(9));
    assert!(path_threads(&daemon) <= threads.max(1));
    drop(stalling);
    eventually("the threads are free again", || path_threads(&daemon) < 3).await;
    let (status, _) = stuck.finish(&daemon, &sh("again", "true")).await;
    assert_eq!(status.exit_code, 0);
    daemon.finish().await.unwrap();
}

/// Processor time of a process. Ticks of 10 ms.
pub fn ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let fields = fields.split(' ').skip(11).take(2);
    fields.map(|field| field.parse::<u64>().unwrap()).sum()
}

#[tokio::test]
async fn a_daemon_out_of_descriptors_logs_it_does_not_spin_and_recovers() {
    let daemon = site::daemon().await;
    let pid = daemon.pid();
    let cri = daemon.cri();
    // Connected from here on.
    cri.wait_ready(TIMEOUT).await.unwrap();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count() as u64;
    let process = Pid::from_raw(pid);
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    let limit = |current| Rlimit { current, maximum };
    let before = prlimit(process, Resource::Nofile, limit(Some(open + 8))).unwrap();
    let held: Vec<_> = (0..200)
        .map(|_| UnixStream::connect(daemon.socket()).unwrap())
        .collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let began = ticks(pid);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let spent = ticks(pid) - began;
    assert!(spent < 40, "{spent} ticks in 2 s of having no descriptors");
    let run = cri.run_pod(&daemon.pod("none-left")).await;
    refused(run, Code::ResourceExhausted, &["Too many open files"]);
    drop(held);
    // Nobody has to help: a new client is served.
    let ready = daemon.cri().wait_ready(TIMEOUT).await;
    ready.unwrap();
    prlimit(process, Resource::Nofile, before).unwrap();
    let records = daemon.scratch().dir().join("root/pods");
    eventually("what the failed pod has left is removed", || {
        std::fs::read_dir(&records).unwrap().count() == 0
    })
    .await;
    let pod = Pod::run(&daemon, "after").await;
    let (status, _) = pod
        .finish(&daemon, &container("show", tool(), &["show"]))
        .await;
    assert_eq!(status.exit_code, 0);
    daemon.finish().await.unwrap();
}

/// Bytes that all files below a directory take.
fn size(directory: &Path) -> u64 {
    let mut sum = 0;
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let facts = entry.metadata().unwrap();
        sum += match facts.is_dir() {
            true => size(&entry.path()),
            false => std::os::unix::fs::MetadataExt::blocks(&facts) * 512,
        };
    }
    sum
}

#[tokio::test]
async fn what_a_container_writes_to_its_pods_files_is_its_own_and_is_counted() {
    const WRITTEN: u64 = 8 << 20;
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "files").await;
    let script = format!(
        "for f in hosts hostname resolv.conf; do head -c {WRITTEN} /dev/zero >> /etc/$f || exit 1; done; \
         echo written; sleep 1000"
    );
    let (run, root) = (
        daemon.scratch().dir().join("run"),
        daemon.scratch().dir().join("root"),
    );
    let before = size(&root.join("pods"));
    let id = pod.start(&sh("writes", &script)).await;
    pod.wait_log(&daemon, "writes", "written").await;
    assert!(
        size(&run) < WRITTEN,
        "{} bytes in the run directory",
        size(&run)
    );
    let request = cri::ContainerStatsRequest {
        container_id: id.clone(),
    };
    let mut counted = 0;
    for _ in 0..600 {
        let mut runtime = pod.cri.runtime.clone();
        let stats = runtime.container_stats(request.clone()).await.unwrap();
        let layer = stats.into_inner().stats.unwrap().writable_layer.unwrap();
        counted = layer.used_bytes.unwrap().value;
        if counted >= 3 * WRITTEN {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(counted >= 3 * WRITTEN, "{counted}");
    // A sibling has its own.
    let (status, text) = pod
        .finish(
            &daemon,
            &sh("sibling", "wc -c < /etc/hosts; head -n 1 /etc/hosts"),
        )
        .await;
    assert_eq!(status.exit_code, 0);
    assert!(text.contains("localhost"), "{text}");
    pod.cri.stop(&id, 0).await.unwrap();
    pod.cri.remove(&id).await.unwrap();
    let left = size(&root.join("pods")).saturating_sub(before);
    assert!(left < WRITTEN, "{left} bytes stay");
    daemon.finish().await.unwrap();
}
