//! What a function's callers feel of other pods that take what they can.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use coracle_tests::client::{TIMEOUT, container};
use coracle_tests::daemon::Daemon;

use super::{Function, annotated, functions, start};
use crate::site::{Pod, eventually};

/// Requests of one measurement.
const REQUESTS: usize = 150;
/// Connections that one neighbour is given.
const CONNECTIONS: usize = 800;

/// A function with a share of the processors and no more than half of one.
async fn limited(daemon: &Daemon, image: &str, name: &str, shares: i64) -> Function {
    let annotations = [("deadline-seconds", "1")];
    let pod = Pod::run_config(daemon, annotated(daemon, name, &annotations)).await;
    let mut config = container("function", image, &[]);
    let resources = config.linux.as_mut().unwrap().resources.as_mut().unwrap();
    resources.memory_limit_in_bytes = 96 << 20;
    (
        resources.cpu_shares,
        resources.cpu_period,
        resources.cpu_quota,
    ) = (shares, 100_000, 50_000);
    start(pod, &config, 8080).await
}

/// The answer to a GET over a connection of its own; nothing if there is none in time.
fn get(at: SocketAddr, path: &str, patience: Duration) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&at, patience).ok()?;
    stream.set_read_timeout(Some(patience)).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: f\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// The slowest but one in a hundred of some requests.
fn p99(at: SocketAddr) -> Duration {
    let mut took: Vec<Duration> = (0..REQUESTS)
        .map(|_| {
            let begun = Instant::now();
            let answer = get(at, "/hello", TIMEOUT).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            begun.elapsed()
        })
        .collect();
    took.sort();
    took[REQUESTS * 99 / 100]
}

/// A client that sends one request after the other until `over`.
fn caller(at: SocketAddr, path: &'static str, over: &Arc<AtomicBool>) -> JoinHandle<usize> {
    let over = over.clone();
    std::thread::spawn(move || {
        let mut sent = 0;
        while !over.load(Ordering::Relaxed) {
            let _ = get(at, path, Duration::from_secs(2));
            sent += 1;
        }
        sent
    })
}

#[tokio::test]
async fn neighbours_that_take_what_they_can_leave_a_function_its_latency() {
    let (daemon, image) = functions().await;
    let quiet = limited(&daemon, &image, "quiet", 1024).await;
    let before = (0..3).map(|_| p99(quiet.at)).min().unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let (mut noisy, mut callers) = (Vec::new(), Vec::new());
    for (name, path, count) in [
        ("spinning", "/spin", 8),
        ("allocating", "/alloc/60", 2),
        ("logging", "/flood", 2),
        ("crowded", "/hello", 0),
    ] {
        let function = limited(&daemon, &image, name, 128).await;
        callers.extend((0..count).map(|_| caller(function.at, path, &over)));
        noisy.push(function);
    }
    let crowded = noisy.last().unwrap().at;
    // The kernel's queue is full before all of them are in; each says half a head.
    let crowd: Vec<TcpStream> = (0..CONNECTIONS)
        .map_while(|_| {
            let mut stream = TcpStream::connect_timeout(&crowded, Duration::from_secs(2)).ok()?;
            stream.write_all(b"GET /hello HTTP/1.1\r\nHost: ").ok()?;
            Some(stream)
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Twice, and some turns of the scheduler on a machine with two processors. What else the machine does makes single
    // measurements longer; neighbours that cost more than this cost it in all of them.
    let most = before * 2 + Duration::from_millis(20);
    let mut among = Vec::new();
    while among.len() < 20 && among.last().is_none_or(|last| *last > most) {
        among.push(p99(quiet.at));
    }
    let logged = daemon.container_log("logging", "function");
    let logged = || std::fs::metadata(&logged).unwrap().len();
    eventually("much is logged", || logged() > 16 << 20).await;
    over.store(true, Ordering::Relaxed);
    for caller in callers {
        assert!(caller.join().unwrap() > 0);
    }
    assert!(crowd.len() > 400, "only {} connections", crowd.len());
    drop(crowd);
    let best = among.iter().min().unwrap();
    assert!(*best <= most, "{among:?}, before {before:?}");
    daemon.finish().await.unwrap();
}
