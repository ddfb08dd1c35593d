//! Functions that sleep while the kubelet probes them: who is answered by a doorman, and who has the guest.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;
use coracle_tests::daemon::Daemon;

use super::idle::{asleep, processes, status, wakes};
use super::{Function, curl, ended, functions_with, start};
use crate::site::{Pod, ended_soon, eventually};

/// Awake for long enough that a client that is slow to begin finds it so.
const CONFIG: &str = "[handlers.coracle.http]\nidle_s = 4\nprobes_wake = false\n\
    [handlers.coracle-strict.http]\nidle_s = 4\nprobes_wake = false\n";

/// Status and body of a probe, as the kubelet asks.
fn probe(function: &Function, path: &str) -> (u16, String) {
    let close = "Connection: close";
    curl(&["-A", "kube-probe/1.37", "-H", close, &function.url(path)])
}

/// A function that has answered a probe at `path` and sleeps.
async fn probed(daemon: &Daemon, image: &str, name: &str, path: &str) -> Function {
    let pod = Pod::run(daemon, name).await;
    let function = start(pod, &container("function", image, &[]), 8080).await;
    probe(&function, path);
    asleep(daemon, &function).await;
    function
}

#[tokio::test]
async fn probes_leave_a_function_asleep_and_requests_wake_it() {
    let (daemon, image) = functions_with(CONFIG).await;
    let function = probed(&daemon, &image, "guarded", "/hello").await;
    for _ in 0..40 {
        assert_eq!(probe(&function, "/hello"), (200, "asleep\n".to_owned()));
        // A tcpSocket probe says nothing.
        drop(TcpStream::connect(function.at).unwrap());
    }
    asleep(&daemon, &function).await;
    assert_eq!(wakes(&daemon, &function), (0, 0));
    let status = function.pod.cri.status(&function.id).await.unwrap();
    assert_eq!(status.state(), cri::ContainerState::ContainerRunning);
    // Whoever wants the guest has it, and the kubelet's probes then have it, too.
    for round in 1..4 {
        assert_eq!(function.get("/hello").1, "hello from a function\n");
        assert_eq!(probe(&function, "/hello").1, "hello from a function\n");
        eventually("the wake is counted and timed", || {
            let (count, latency) = wakes(&daemon, &function);
            count == round && latency > 0
        })
        .await;
        asleep(&daemon, &function).await;
        assert_eq!(probe(&function, "/hello").1, "asleep\n");
    }
    asleep(&daemon, &function).await;
    function.pod.cri.stop(&function.id, 30).await.unwrap();
    let status = function.pod.cri.status(&function.id).await.unwrap();
    ended(&status, 0, "Completed");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn nobody_vouches_for_a_function_that_was_not_asked_or_was_not_well() {
    let (daemon, image) = functions_with(CONFIG).await;
    let pod = Pod::run(&daemon, "unasked").await;
    let function = start(pod, &container("function", &image, &[]), 8080).await;
    let probes = [("/hello", 200), ("/nowhere", 404), ("/nowhere", 404)];
    for (before, (path, code)) in (0..).zip(probes) {
        asleep(&daemon, &function).await;
        if before == 1 {
            assert_eq!(probe(&function, path), (200, "asleep\n".to_owned()));
            // Somebody else wakes it, and meanwhile a probe goes wrong.
            assert_eq!(function.get("/hello").0, 200);
        }
        let (found, body) = probe(&function, path);
        assert_eq!(found, code, "{body}");
        eventually("it was woken", || wakes(&daemon, &function).0 == before + 1).await;
    }
    // Once all is well there it is vouched for again.
    asleep(&daemon, &function).await;
    assert_eq!(probe(&function, "/hello").1, "hello from a function\n");
    asleep(&daemon, &function).await;
    assert_eq!(probe(&function, "/hello").1, "asleep\n");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_storm_of_requests_and_probes_is_answered_whole_and_so_is_a_slow_client() {
    let (daemon, image) = functions_with(CONFIG).await;
    let function = probed(&daemon, &image, "stormy", "/hello").await;
    let at = function.at;
    for _ in 0..3 {
        asleep(&daemon, &function).await;
        let before = wakes(&daemon, &function).0;
        let clients: Vec<_> = (0..120)
            .map(|number| {
                let url = function.url("/hello");
                std::thread::spawn(move || match number % 3 {
                    0 => curl(&["-A", "kube-probe/1.37", &url]).0,
                    _ => status(at),
                })
            })
            .collect();
        for client in clients {
            assert_eq!(client.join().unwrap(), 200);
        }
        // One for all of them; one more for whoever comes when the others had been silent for long enough.
        let more = wakes(&daemon, &function).0 - before;
        assert!((1..=4).contains(&more), "{more} wakes");
    }
    // Who connects and takes its time, and who sends a head in pieces.
    for pieces in [
        &["GET /hello HTTP/1.1\r\nHost: f\r\nConnection: close\r\n\r\n"][..],
        &[
            "GET /he",
            "llo HTTP/1.1\r\nHost: f\r\nConnection: ",
            "close\r\n\r\n",
        ],
    ] {
        asleep(&daemon, &function).await;
        let mut slow = TcpStream::connect(at).unwrap();
        for piece in pieces {
            tokio::time::sleep(Duration::from_millis(1_300)).await;
            slow.write_all(piece.as_bytes()).unwrap();
        }
        let mut answer = String::new();
        slow.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("\nhello from a function\n"), "{answer}");
    }
    // HTTP/2 is for the guest.
    asleep(&daemon, &function).await;
    let h2 = ["--http2-prior-knowledge", "-A", "kube-probe/1.37"];
    let url = function.url("/hello");
    let (code, body) = curl(&[&h2[..], &[&url]].concat());
    assert_eq!((code, body.as_str()), (200, "hello from a function\n"));
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_stop_while_the_doorman_waits_ends_the_function_at_once() {
    let (daemon, image) = functions_with(CONFIG).await;
    let cri = daemon.cri();
    let config = daemon.pod("strict");
    let id = cri.run_pod_with(&config, "coracle-strict").await.unwrap();
    let pod = Pod { cri, config, id };
    let function = start(pod, &container("function", &image, &[]), 8080).await;
    probe(&function, "/hello");
    asleep(&daemon, &function).await;
    assert_eq!(probe(&function, "/hello").1, "asleep\n");
    asleep(&daemon, &function).await;
    let silent = TcpStream::connect(function.at).unwrap();
    eventually("the doorman waits", || {
        let mut all = processes(&daemon, &function).into_iter();
        all.any(|process| process.command.ends_with(" doorman"))
    })
    .await;
    let begun = Instant::now();
    function.pod.cri.stop(&function.id, 100).await.unwrap();
    ended_soon(begun);
    let status = function.pod.cri.status(&function.id).await.unwrap();
    ended(&status, 0, "Completed");
    drop(silent);
    daemon.finish().await.unwrap();
}
