//! Connections to a pod's ports, through the daemon.

use coracle_tests::streaming::spdy::{Incoming, Outgoing, Session};
use coracle_tests::streaming::websocket::Socket;
use coracle_tests::streaming::{Url, upgrade};
use tokio::sync::mpsc;

use super::forward_url;
use crate::linux::shell;
use crate::site::{Pod, eventually};

/// Ways to speak SPDY for port-forward.
#[derive(Clone, Copy, Debug)]
pub enum Carrier {
    Plain,
    Tunnel,
}

pub const CARRIERS: [Carrier; 2] = [Carrier::Plain, Carrier::Tunnel];

/// Opens a session.
pub async fn session(pod: &Pod, carrier: Carrier) -> Session {
    let url = Url::parse(&forward_url(pod, &[]).await.unwrap()).unwrap();
    match carrier {
        Carrier::Plain => Session::open(&url, "portforward.k8s.io").await.unwrap(),
        Carrier::Tunnel => {
            let socket = Socket::open(&url, "SPDY/3.1+portforward.k8s.io")
                .await
                .unwrap();
            Session::over(socket.tunnel())
        }
    }
}

/// One forwarded connection: data both ways, and why it failed.
pub struct Pair {
    pub outgoing: Outgoing,
    pub incoming: Incoming,
    pub error: Incoming,
}

/// Opens a pair as client-go does.
pub async fn pair(session: &Session, port: u16, request: &str) -> Pair {
    let port = port.to_string();
    let headers = |kind| {
        [
            ("streamtype", kind),
            ("port", port.as_str()),
            ("requestid", request),
        ]
    };
    let error = session.stream(&headers("error")).await.unwrap();
    let (done, error) = error.split();
    done.end().await.unwrap();
    let data = session.stream(&headers("data")).await.unwrap();
    let (outgoing, incoming) = data.split();
    Pair {
        outgoing,
        incoming,
        error,
    }
}

/// A pod with servers: 7000 says back what it hears, 7001 its checksum, 7002 sends 3,000,000 bytes; nobody is at 7009.
pub async fn servers(daemon: &coracle_tests::daemon::Daemon) -> Pod {
    let pod = Pod::run(daemon, "servers").await;
    let script = "nc -ll -p 7000 -e cat & nc -ll -p 7001 -e sha256sum & nc -ll -p 7002 -e head -c 3000000 /dev/zero & \
        while ! netstat -ltn | grep -q :7000 || ! netstat -ltn | grep -q :7001 || ! netstat -ltn | grep -q :7002; \
        do sleep 0.05; done; echo ready; wait";
    pod.start(&shell::sh("main", script)).await;
    pod.wait_log(daemon, "main", "ready").await;
    pod
}

#[tokio::test]
async fn bytes_go_both_ways_and_each_side_ends_by_itself() {
    let daemon = shell::daemon().await;
    let pod = servers(&daemon).await;
    for carrier in CARRIERS {
        let session = session(&pod, carrier).await;
        let mut echo = pair(&session, 7000, "0").await;
        echo.outgoing.send(b"there and back").await.unwrap();
        assert_eq!(
            echo.incoming.next().await.unwrap(),
            b"there and back",
            "{carrier:?}"
        );
        // The end of what the client says is the end of what the pod hears, and only then is the checksum said.
        let mut sum = pair(&session, 7001, "1").await;
        sum.outgoing.send(b"abc").await.unwrap();
        sum.outgoing.end().await.unwrap();
        let output = String::from_utf8(sum.incoming.rest().await).unwrap();
        assert!(
            output.starts_with("ba7816bf8f01cfea414140de5dae2223"),
            "{carrier:?}: {output}"
        );
        // The pod says all and leaves, the client only listens.
        let mut flood = pair(&session, 7002, "2").await;
        assert_eq!(flood.incoming.rest().await.len(), 3_000_000, "{carrier:?}");
        flood.outgoing.reset().await.unwrap();
        assert_eq!(flood.error.rest().await, b"", "{carrier:?}");
        echo.outgoing.end().await.unwrap();
        assert_eq!(echo.incoming.rest().await, b"", "{carrier:?}");
        assert_eq!(echo.error.rest().await, b"", "{carrier:?}");
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_port_without_a_listener_is_reported_and_breaks_no_other() {
    let daemon = shell::daemon().await;
    let pod = servers(&daemon).await;
    for carrier in CARRIERS {
        let session = session(&pod, carrier).await;
        let mut echo = pair(&session, 7000, "a").await;
        let mut refused = pair(&session, 7009, "b").await;
        let why = String::from_utf8(refused.error.rest().await).unwrap();
        assert!(
            why.contains("7009") && why.contains(&pod.id),
            "{carrier:?}: {why}"
        );
        assert_eq!(refused.incoming.rest().await, b"");
        echo.outgoing.send(b"still here").await.unwrap();
        assert_eq!(echo.incoming.next().await.unwrap(), b"still here");
        for headers in [
            &[("streamtype", "data"), ("requestid", "c")][..],
            &[("streamtype", "data"), ("port", "0"), ("requestid", "c")],
            &[
                ("streamtype", "data"),
                ("port", "65536"),
                ("requestid", "c"),
            ],
            &[
                ("streamtype", "other"),
                ("port", "7000"),
                ("requestid", "c"),
            ],
        ] {
            assert!(session.stream(headers).await.is_err(), "{headers:?}");
        }
        echo.outgoing.send(b"and still").await.unwrap();
        assert_eq!(echo.incoming.next().await.unwrap(), b"and still");
    }
    daemon.finish().await.unwrap();
}

/// Clients older than request ids: the error stream, then the data stream.
#[tokio::test]
async fn pairs_without_a_request_id_are_matched_by_stream_number() {
    let daemon = shell::daemon().await;
    let pod = servers(&daemon).await;
    let session = session(&pod, Carrier::Plain).await;
    for _ in 0..3 {
        let error = session
            .stream(&[("streamtype", "error"), ("port", "7000")])
            .await
            .unwrap();
        let data = session
            .stream(&[("streamtype", "data"), ("port", "7000")])
            .await
            .unwrap();
        let ((outgoing, mut incoming), (_error, _)) = (data.split(), error.split());
        outgoing.send(b"old").await.unwrap();
        assert_eq!(incoming.next().await.unwrap(), b"old");
    }
    daemon.finish().await.unwrap();
}

/// The oldest WebSocket form: ports by position, each channel begins with its port.
#[tokio::test]
async fn ports_by_channel_number() {
    let daemon = shell::daemon().await;
    let pod = servers(&daemon).await;
    for protocol in ["v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""] {
        let url = forward_url(&pod, &[7000, 7009]).await.unwrap();
        let socket = Socket::open(&Url::parse(&url).unwrap(), protocol)
            .await
            .unwrap();
        let echo = socket.channel(0);
        let (output, mut received) = mpsc::channel(16);
        let _reading = socket.forward(move |channel, bytes| {
            let output = output.clone();
            async move { output.send((channel, bytes)).await.is_ok() }
        });
        for (channel, port) in [(0, 7000_u16), (1, 7000), (2, 7009), (3, 7009)] {
            assert_eq!(
                received.recv().await.unwrap(),
                (channel, port.to_le_bytes().to_vec()),
                "{protocol}"
            );
        }
        let (channel, why) = received.recv().await.unwrap();
        let why = String::from_utf8(why).unwrap();
        assert!(
            channel == 3 && why.contains("7009"),
            "{protocol}: {channel} {why}"
        );
        echo.send(b"by number").await.unwrap();
        assert_eq!(
            received.recv().await.unwrap(),
            (0, b"by number".to_vec()),
            "{protocol}"
        );
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn many_connections_share_a_session() {
    let daemon = shell::daemon().await;
    let pod = servers(&daemon).await;
    for carrier in CARRIERS {
        let session = session(&pod, carrier).await;
        let mut pairs = Vec::new();
        for number in 0..60 {
            let mut pair = pair(&session, 7000, &number.to_string()).await;
            // One by one: the pod's server takes no two that come at once.
            pair.outgoing.send(b"first").await.unwrap();
            assert_eq!(pair.incoming.next().await.unwrap(), b"first");
            pairs.push(pair);
        }
        for round in 0..5 {
            for (number, pair) in pairs.iter_mut().enumerate() {
                pair.outgoing
                    .send(format!("{round} {number}").as_bytes())
                    .await
                    .unwrap();
            }
            for (number, pair) in pairs.iter_mut().enumerate() {
                let received = pair.incoming.next().await.unwrap();
                assert_eq!(received, format!("{round} {number}").as_bytes());
            }
        }
    }
    daemon.finish().await.unwrap();
}

/// Half of a pair, and a client that opens a session and no streams, wait half a minute for the rest.
#[tokio::test]
async fn what_is_never_completed_is_given_up() {
    let daemon = shell::daemon().await;
    let pod = servers(&daemon).await;
    let session = session(&pod, Carrier::Plain).await;
    let headers = |kind, request| {
        [
            ("streamtype", kind),
            ("port", "7000"),
            ("requestid", request),
        ]
    };
    let began = std::time::Instant::now();
    let (_, mut error) = session
        .stream(&headers("error", "a"))
        .await
        .unwrap()
        .split();
    let (_, mut data) = session.stream(&headers("data", "b")).await.unwrap().split();
    let (_, mut twice) = session.stream(&headers("data", "b")).await.unwrap().split();
    assert_eq!(twice.rest().await, b"");
    assert!(twice.was_reset, "a second stream of a kind");
    let why = String::from_utf8(error.rest().await).unwrap();
    assert!(why.contains("request a: timed out"), "{why}");
    assert_eq!(data.rest().await, b"");
    assert!(error.was_reset && data.was_reset);
    assert!(began.elapsed().as_secs() >= 25, "{:?}", began.elapsed());
    let mut echo = pair(&session, 7000, "b").await;
    echo.outgoing.send(b"go on").await.unwrap();
    assert_eq!(echo.incoming.next().await.unwrap(), b"go on");
    daemon.finish().await.unwrap();
}

/// What goes wrong in a session's bytes ends that session and nothing else.
#[tokio::test]
async fn frames_that_make_no_sense_end_their_session() {
    let daemon = shell::daemon().await;
    let pod = servers(&daemon).await;
    let nonsense: [&[u8]; 4] = [
        b"GET / HTTP/1.1\r\n\r\n---------------------------------------------------------------------------",
        // SPDY/2; a control frame of 16 MiB; a header block that is none.
        &[0x80, 2, 0, 1, 0, 0, 0, 4, 0, 0, 0, 1],
        &[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff],
        &[0x80, 3, 0, 1, 0, 0, 0, 14, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4],
    ];
    for (at, bytes) in nonsense.iter().enumerate().skip(1) {
        let broken = session(&pod, Carrier::Plain).await;
        broken.raw(bytes).await.unwrap();
        eventually(&format!("session {at} ends"), || broken.is_gone()).await;
    }
    // Data for streams that do not exist, settings and windows are passed over.
    let session = session(&pod, Carrier::Plain).await;
    session
        .raw(&[0, 0, 0, 77, 0, 0, 0, 3, 1, 2, 3])
        .await
        .unwrap();
    session
        .raw(&[0x80, 3, 0, 9, 0, 0, 0, 8, 0, 0, 0, 1, 0, 1, 0, 0])
        .await
        .unwrap();
    session
        .raw(&[0x80, 3, 0, 4, 0, 0, 0, 4, 0, 0, 0, 0])
        .await
        .unwrap();
    session.ping(1).await.unwrap();
    let mut echo = pair(&session, 7000, "0").await;
    echo.outgoing.send(b"fine").await.unwrap();
    assert_eq!(echo.incoming.next().await.unwrap(), b"fine");
    let url = Url::parse(&forward_url(&pod, &[]).await.unwrap()).unwrap();
    assert_eq!(upgrade(&url, "GET", &[]).await.unwrap().status, 400);
    daemon.finish().await.unwrap();
}
