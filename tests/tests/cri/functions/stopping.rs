//! How a function ends: what is under way has its answer, what comes later none.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use coracle_tests::client::container;

use super::{ended, functions, raw, run, start};
use crate::site::{Pod, eventually};

#[tokio::test]
async fn a_stop_drains_what_is_under_way_and_takes_nothing_new() {
    let (daemon, image) = functions().await;
    let function = run(&daemon, &image, "draining", &[]).await;
    let asked = function.begin("/sleep/1500");
    // An idle connection is no reason to wait.
    let at = function.at;
    let idle = std::thread::spawn(move || {
        let request = "GET /hello HTTP/1.1\r\nHost: f\r\n\r\n";
        raw(at, request, Duration::from_secs(10))
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (cri, id) = (daemon.cri(), function.id.clone());
    let begun = Instant::now();
    let stopping = tokio::spawn(async move { cri.stop(&id, 20).await });
    eventually("the listener is closed", || TcpStream::connect(at).is_err()).await;
    assert!(begun.elapsed() < Duration::from_millis(900));
    assert_eq!(asked.answer(), (200, "slept\n".to_owned()));
    stopping.await.unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(4));
    assert!(idle.join().unwrap().1);
    let status = function.pod.cri.status(&function.id).await.unwrap();
    ended(&status, 0, "Completed");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn an_idle_function_stops_at_once() {
    let (daemon, image) = functions().await;
    let function = run(&daemon, &image, "idle", &[]).await;
    let begun = Instant::now();
    function.pod.cri.stop(&function.id, 30).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2));
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
        let spinning = busy.begin("/spin");
        let waiting = busy.begin("/sleep/20000");
        tokio::time::sleep(Duration::from_millis(400)).await;
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
