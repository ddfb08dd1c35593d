//! Plugins that hang, die, lie and flood: each costs the requests that wait for it, and nothing else.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::plugin::{Plugin, socket};
use super::{names, plugins, plugins_with};
use crate::site::{Pod, SOON, daemon_with, ended_soon, eventually, tool};
use coracle_tests::client::{TIMEOUT, container};

#[tokio::test]
async fn a_plugin_that_hangs_costs_its_own_requests_only_and_is_left_out() {
    let daemon = daemon_with(plugins_with("request_timeout_s = 20\n")).await;
    let flags = ["-hang", "CreateContainer", "-only", "hung"];
    let plugin = Plugin::start(&daemon, "hanger", &flags).await;
    let pod = Pod::run(&daemon, "hang").await;
    let other = Pod::run(&daemon, "other").await;
    let running = other.tool(&["sleep"]).await;
    let began = Instant::now();
    let hung = {
        let (cri, id, config) = (pod.cri.clone(), pod.id.clone(), pod.config.clone());
        tokio::spawn(async move {
            let config = cri
                .create(&id, &container("hung", tool(), &["sleep"]), &config)
                .await;
            (config, Instant::now())
        })
    };
    eventually("the plugin has the request", || {
        let events = plugin.events();
        events
            .iter()
            .any(|event| event["container"]["name"] == "hung")
    })
    .await;
    // Nothing of this waits for the plugin, which has its hands full.
    other.cri.status(&running).await.unwrap();
    other.cri.list(None).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(15));
    let (created, at) = hung.await.unwrap();
    created.unwrap();
    let took = at - began;
    assert!(
        took > Duration::from_secs(19) && took < Duration::from_secs(60),
        "{took:?}"
    );
    plugin.wait_for("Ended").await;
    let began = Instant::now();
    pod.start(&container("after", tool(), &["sleep"])).await;
    assert!(began.elapsed() < Duration::from_secs(15));
    assert!(daemon.log().contains("did not answer CreateContainer"));
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_plugin_that_dies_in_the_middle_is_left_out_at_once() {
    let daemon = daemon_with(plugins()).await;
    for event in [
        "RunPodSandbox",
        "CreateContainer",
        "StartContainer",
        "StopContainer",
    ] {
        let mut plugin = Plugin::start(&daemon, "mortal", &["-die", event]).await;
        let began = Instant::now();
        let pod = Pod::run(&daemon, &format!("dies-{}", event.to_lowercase())).await;
        let id = pod.tool(&["sleep"]).await;
        pod.cri.stop(&id, 0).await.unwrap();
        pod.cri.remove_pod(&pod.id).await.unwrap();
        ended_soon(began);
        eventually("the plugin has ended", || plugin.has_ended()).await;
    }
    daemon.finish().await.unwrap();
}

/// A chunk of the multiplexed stream.
fn chunk(connection: u32, bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap();
    [&connection.to_be_bytes()[..], &length.to_be_bytes(), bytes].concat()
}

/// A ttrpc message.
fn message(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap();
    [
        &length.to_be_bytes()[..],
        &stream.to_be_bytes(),
        &[kind, 0],
        payload,
    ]
    .concat()
}

/// A ttrpc request of a plugin.
fn request(method: &str, payload: &[u8]) -> Vec<u8> {
    let field = |number: u8, bytes: &[u8]| {
        [
            &[number << 3 | 2, u8::try_from(bytes.len()).unwrap()],
            bytes,
        ]
        .concat()
    };
    let service = field(1, b"nri.pkg.api.v1alpha1.Runtime");
    [service, field(2, method.as_bytes()), field(3, payload)].concat()
}

#[tokio::test]
async fn lies_end_the_connection_and_pods_go_on() {
    let daemon = daemon_with(plugins()).await;
    let register = request("RegisterPlugin", b"\x0a\x04liar\x12\x0210");
    let lies: [Vec<u8>; 9] = [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0xff; 64],
        chunk(0, b"reserved"),
        chunk(7, b"no such connection"),
        [1u32.to_be_bytes(), u32::MAX.to_be_bytes()].concat(),
        chunk(1, &[0xff; 10]),
        chunk(2, &message(3, 1, b"data")),
        chunk(2, &message(1, 1, &[0xff; 20])),
        chunk(1, &message(2, 99, b"")),
    ];
    for lie in &lies {
        let mut stream = UnixStream::connect(socket(&daemon)).await.unwrap();
        stream.write_all(lie).await.unwrap();
        let mut rest = Vec::new();
        let end = stream.read_to_end(&mut rest);
        let end = tokio::time::timeout(SOON, end).await;
        assert!(end.is_ok(), "{lie:?}: it is still connected");
    }
    // One that registers and then answers with nonsense.
    let mut stream = UnixStream::connect(socket(&daemon)).await.unwrap();
    let both = [
        chunk(2, &message(1, 1, &register)),
        chunk(1, &message(2, 1, &[0xff; 30])),
    ]
    .concat();
    stream.write_all(&both).await.unwrap();
    let mut answers = Vec::new();
    let end = stream.read_to_end(&mut answers);
    let end = tokio::time::timeout(SOON, end).await;
    assert!(end.is_ok(), "it is still connected");
    let pod = Pod::run(&daemon, "after").await;
    pod.tool(&["sleep"]).await;
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_flood_and_silent_connections_hold_little_and_harm_nobody() {
    let daemon = daemon_with(plugins_with("request_timeout_s = 60\n")).await;
    let plugin = Plugin::start(&daemon, "good", &[]).await;
    let mut silent = Vec::new();
    // More than are taken at a time: the rest is refused at once.
    for _ in 0..100 {
        silent.push(UnixStream::connect(socket(&daemon)).await.unwrap());
    }
    // One sends requests without an end and reads nothing.
    let mut flood = silent.swap_remove(0);
    let one = chunk(2, &message(1, 1, &request("UpdateContainers", b"")));
    let flood = tokio::spawn(async move { while flood.write_all(&one).await.is_ok() {} });
    let began = Instant::now();
    let pod = Pod::run(&daemon, "flooded").await;
    pod.tool(&["sleep"]).await;
    ended_soon(began);
    assert!(names(&plugin.events()).contains(&"PostStartContainer"));
    // Those that do not register are let go after five seconds.
    let mut first = silent.remove(0);
    let mut rest = Vec::new();
    let end = first.read_to_end(&mut rest);
    let end = tokio::time::timeout(TIMEOUT, end).await;
    assert!(end.is_ok(), "a connection that registers nothing stays");
    tokio::time::timeout(TIMEOUT, flood).await.unwrap().unwrap();
    drop((plugin, silent));
    daemon.finish().await.unwrap();
}
