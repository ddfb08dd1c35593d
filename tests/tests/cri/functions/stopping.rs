//! How a function ends: what is under way has its answer, what comes later none.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use coracle_tests::client::{TIMEOUT, container};

use super::{ended, functions, run, start};
use crate::site::{Pod, ended_soon, eventually};

#[tokio::test]
async fn a_stop_drains_what_is_under_way_and_takes_nothing_new() {
    let (daemon, image) = functions().await;
    let function = run(&daemon, &image, "draining", &[]).await;
    // An idle connection is no reason to wait.
    let at = function.at;
    let mut idle = TcpStream::connect(at).unwrap();
    idle.set_read_timeout(Some(TIMEOUT)).unwrap();
    idle.write_all(b"GET /hello HTTP/1.1\r\nHost: f\r\n\r\n")
        .unwrap();
    assert_ne!(idle.read(&mut [0; 512]).unwrap(), 0);
    let mut asked = function.under_way(&daemon, "/sleep/5000").await;
    let (cri, id) = (daemon.cri(), function.id.clone());
    let begun = Instant::now();
    let stopping = tokio::spawn(async move { cri.stop(&id, 100).await });
    eventually("the listener is closed", || TcpStream::connect(at).is_err()).await;
    assert!(asked.is_waiting(), "it was closed behind the last answer");
    assert_eq!(asked.answer(), (200, "slept\n".to_owned()));
    stopping.await.unwrap().unwrap();
    ended_soon(begun);
    // By an end or a reset, but closed.
    let read = idle.read_to_end(&mut Vec::new());
    assert!(read.is_ok() || read.is_err_and(|e| e.kind() != ErrorKind::WouldBlock));
    let status = function.pod.cri.status(&function.id).await.unwrap();
    ended(&status, 0, "Completed");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn an_idle_function_stops_at_once() {
    let (daemon, image) = functions().await;
    let function = run(&daemon, &image, "idle", &[]).await;
    let begun = Instant::now();
    function.pod.cri.stop(&function.id, 100).await.unwrap();
    ended_soon(begun);
    daemon.finish().await.unwrap();
}

/// Both kinds of servers: one process, and one behind the process that holds its socket.
#[tokio::test]
async fn guests_that_are_not_done_are_ended_before_the_grace_is_over_and_say_where() {
    let (daemon, image) = functions().await;
    for (name, sleeps) in [("busy", false), ("drowsy", true)] {
        let mut config = daemon.pod(name);
        if sleeps {
            let annotation = ("coracle.dev/idle-seconds".into(), "60".into());
            config.annotations.extend([annotation]);
        }
        let pod = Pod::run_config(&daemon, config).await;
        let busy = start(pod, &container("function", &image, &[]), 8080).await;
        let spinning = busy.under_way(&daemon, "/spin").await;
        let waiting = busy.under_way(&daemon, "/sleep/50000").await;
        let begun = Instant::now();
        busy.pod.cri.stop(&busy.id, 5).await.unwrap();
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(4_400), "{name}: {took:?}");
        assert_eq!(spinning.answer().0, 503, "{name}");
        assert_eq!(waiting.answer().0, 0, "{name}");
        let status = busy.pod.cri.status(&busy.id).await.unwrap();
        ended(&status, 143, "Error");
        for said in ["2 requests under way", "terminationGracePeriodSeconds"] {
            assert!(status.message.contains(said), "{status:?}");
        }
        let log = daemon.output(name, "function", "stderr").unwrap();
        assert_eq!(log.lines().count(), 2, "{log}");
        let all = log
            .lines()
            .all(|line| line.contains("grace period is over"));
        assert!(all, "{log}");
        for said in ["wasm trap: interrupt", "handle"] {
            assert!(log.contains(said), "{name}: no {said} in {log}");
        }
    }
    daemon.finish().await.unwrap();
}
