//! How a function ends: what is under way has its answer, what comes later none.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::{ended, functions, raw, run};
use crate::site::eventually;

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
async fn an_idle_function_stops_at_once_and_a_busy_one_when_its_grace_is_over() {
    let (daemon, image) = functions().await;
    let function = run(&daemon, &image, "idle", &[]).await;
    let begun = Instant::now();
    function.pod.cri.stop(&function.id, 30).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2));
    let busy = run(&daemon, &image, "busy", &[]).await;
    let asked = busy.begin("/spin");
    tokio::time::sleep(Duration::from_millis(200)).await;
    let begun = Instant::now();
    busy.pod.cri.stop(&busy.id, 1).await.unwrap();
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_millis(900) && took < Duration::from_secs(4),
        "{took:?}"
    );
    assert_eq!(asked.answer().0, 0);
    let status = busy.pod.cri.status(&busy.id).await.unwrap();
    assert_eq!(status.exit_code, 137, "{status:?}");
    daemon.finish().await.unwrap();
}
