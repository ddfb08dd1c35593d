//! What the calls and the server refuse. Numbers as T36 are those of the project's list of attacks.

use std::time::{Duration, Instant};

use coracle_tests::client::TIMEOUT;
use coracle_tests::daemon::Options;
use coracle_tests::streaming::websocket::handshake;
use coracle_tests::streaming::{Ends, MODERN, Remote, Url, upgrade};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;

use super::{OUT, TTY, attach_url, exec_url, forward_url, run};
use crate::linux::shell;
use crate::site::{Pod, refused};

const NONE: Ends = Ends {
    tty: false,
    stdin: false,
    stdout: false,
    stderr: false,
};
const SPDY: &[(&str, &str)] = &[
    ("Connection", "Upgrade"),
    ("Upgrade", "SPDY/3.1"),
    ("X-Stream-Protocol-Version", "v4.channel.k8s.io"),
];

const INVALID: Code = Code::InvalidArgument;
const ABSENT: Code = Code::NotFound;

#[tokio::test]
async fn calls_refuse_what_cannot_be_and_say_which_field() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "calls").await;
    let id = pod.create(&shell::sh("main", "sleep 1000")).await.unwrap();
    refused(
        exec_url(&pod, &id, &["true"], OUT).await,
        Code::FailedPrecondition,
        &[&id, "created"],
    );
    pod.cri.start(&id).await.unwrap();
    let both = Ends {
        stderr: true,
        ..TTY
    };
    let (own, absent) = (id.as_str(), "0".repeat(64));
    for (id, argv, ends, code, expected) in [
        (own, &["true"][..], NONE, INVALID, ["stdin", "stdout"]),
        (own, &["true"], both, INVALID, ["stderr", "terminal"]),
        (own, &[], OUT, INVALID, ["cmd", "program"]),
        (own, &["a\0b"], OUT, INVALID, ["cmd[0]", "NUL"]),
        ("", &["true"], OUT, INVALID, ["container_id", "empty"]),
        (&absent, &["true"], OUT, ABSENT, ["container", "0000"]),
    ] {
        refused(exec_url(&pod, id, argv, ends).await, code, &expected);
    }
    for (id, ends, code, expected) in [
        (own, NONE, INVALID, ["stdin", "stdout"]),
        (own, both, INVALID, ["stderr", "terminal"]),
        ("", OUT, INVALID, ["container_id", "empty"]),
        (&absent, OUT, ABSENT, ["container", "0000"]),
    ] {
        refused(attach_url(&pod, id, ends).await, code, &expected);
    }
    for (ports, expected) in [
        (&[80, 0][..], ["port[1]", "65535"]),
        (&[65536], ["port[0]", "65535"]),
    ] {
        refused(forward_url(&pod, ports).await, INVALID, &expected);
    }
    pod.cri.stop(&id, 0).await.unwrap();
    refused(
        exec_url(&pod, &id, &["true"], OUT).await,
        Code::FailedPrecondition,
        &[&id, "exited"],
    );
    pod.cri.stop_pod(&pod.id).await.unwrap();
    refused(
        forward_url(&pod, &[]).await,
        Code::FailedPrecondition,
        &[&pod.id, "ready"],
    );
    daemon.finish().await.unwrap();
}

/// T36: guessed, replayed, and shown at another door.
#[tokio::test]
async fn a_token_opens_one_session_of_one_kind_once() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "tokens").await;
    let id = pod.start(&shell::sh("main", "sleep 1000")).await;
    let text = exec_url(&pod, &id, &["true"], OUT).await.unwrap();
    let url = Url::parse(&text).unwrap();
    assert!(url.host.starts_with("127.0.0.1:"), "{text}");
    let token = url.path.strip_prefix("/exec/").unwrap();
    assert!(token.len() == 22, "{token}: 128 bits");
    let at = |path: String| Url {
        host: url.host.clone(),
        path,
    };
    for path in [
        "/",
        "/exec/",
        "/exec",
        "/exec/AAAAAAAAAAAAAAAAAAAAAA",
        "/other/x",
        "/exec/../exec/x",
    ] {
        assert_eq!(
            upgrade(&at(path.into()), "POST", SPDY)
                .await
                .unwrap()
                .status,
            404,
            "{path}"
        );
    }
    let guess = format!("/exec/{}A", &token[..21]);
    if guess != url.path {
        assert_eq!(upgrade(&at(guess), "POST", SPDY).await.unwrap().status, 404);
    }
    // At a wrong door it is used up.
    assert_eq!(
        upgrade(&at(format!("/attach/{token}")), "POST", SPDY)
            .await
            .unwrap()
            .status,
        404
    );
    assert_eq!(upgrade(&url, "POST", SPDY).await.unwrap().status, 404);
    for wire in MODERN {
        let text = exec_url(&pod, &id, &["true"], OUT).await.unwrap();
        let output = Remote::open(&text, *wire, OUT)
            .await
            .unwrap()
            .finish()
            .await
            .unwrap();
        assert_eq!(output.code(), Ok(0));
        let again = Remote::open(&text, *wire, OUT)
            .await
            .err()
            .unwrap()
            .to_string();
        assert!(again.contains(" 404 "), "{again}");
    }
    daemon.finish().await.unwrap();
}

/// T36: a thousand wait at most; what is taken makes room.
#[tokio::test]
async fn urls_that_nobody_comes_for_are_bounded() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "pending").await;
    let id = pod.start(&shell::sh("main", "sleep 1000")).await;
    let first = exec_url(&pod, &id, &["true"], OUT).await.unwrap();
    for _ in 1..1000 {
        exec_url(&pod, &id, &["true"], OUT).await.unwrap();
    }
    for _ in 0..1000 {
        let more = exec_url(&pod, &id, &["true"], OUT).await;
        refused(more, Code::ResourceExhausted, &["1000"]);
    }
    let output = Remote::open(&first, MODERN[0], OUT)
        .await
        .unwrap()
        .finish()
        .await
        .unwrap();
    assert_eq!(output.code(), Ok(0));
    exec_url(&pod, &id, &["true"], OUT).await.unwrap();
    refused(
        exec_url(&pod, &id, &["true"], OUT).await,
        Code::ResourceExhausted,
        &["wait"],
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn requests_that_are_no_upgrade_get_an_answer_and_no_session() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "requests").await;
    let id = pod.start(&shell::sh("main", "sleep 1000")).await;
    let url = || async {
        let url = exec_url(&pod, &id, &["true"], OUT).await.unwrap();
        Url::parse(&url).unwrap()
    };
    let socket = |version, protocol| {
        vec![
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("Sec-WebSocket-Version", version),
            ("Sec-WebSocket-Protocol", protocol),
        ]
    };
    for (method, headers, status) in [
        ("GET", vec![], 400),
        (
            "POST",
            vec![("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")],
            400,
        ),
        (
            "POST",
            vec![("Connection", "Upgrade"), ("Upgrade", "h2c")],
            400,
        ),
        ("PUT", SPDY.to_vec(), 405),
        ("GET", socket("12", "v4.channel.k8s.io"), 400),
        ("GET", socket("13", "v9.channel.k8s.io"), 403),
        ("GET", socket("13", "SPDY/3.1+portforward.k8s.io"), 403),
    ] {
        let answer = upgrade(&url().await, method, &headers).await.unwrap();
        assert_eq!(answer.status, status, "{method} {headers:?}");
    }
    let mut headers = SPDY[..2].to_vec();
    headers.push((
        "X-Stream-Protocol-Version",
        "v9.channel.k8s.io, portforward.k8s.io",
    ));
    let answer = upgrade(&url().await, "POST", &headers).await.unwrap();
    assert_eq!(answer.status, 403);
    assert!(
        answer
            .header("X-Accepted-Stream-Protocol-Versions")
            .is_some(),
        "{}",
        answer.head
    );
    // The first that both know, of several, on several lines.
    headers.push((
        "X-Stream-Protocol-Version",
        "v2.channel.k8s.io,v4.channel.k8s.io",
    ));
    let answer = upgrade(&url().await, "GET", &headers).await.unwrap();
    assert_eq!(
        answer.header("X-Stream-Protocol-Version"),
        Some("v2.channel.k8s.io")
    );
    let large = "x".repeat(40_000);
    let answer = upgrade(&url().await, "POST", &[("Cookie", &large)]).await;
    // The answer may be lost, as more of the request comes after it.
    assert!(answer.map_or(431, |answer| answer.status) == 431);
    daemon.finish().await.unwrap();
}

/// The kubelet and the API server pass the `Origin` of their client on: a browser's, behind a dashboard.
#[tokio::test]
async fn an_origin_is_no_reason_to_refuse_a_valid_token() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "anyorigin").await;
    let id = pod.start(&shell::sh("main", "sleep 1000")).await;
    for origin in [
        "https://dashboard.example.com",
        "null",
        "http://127.0.0.1:1",
    ] {
        let url = exec_url(&pod, &id, &["true"], OUT).await.unwrap();
        let url = Url::parse(&url).unwrap();
        let with = [("Origin", origin)];
        let answer = handshake(&url, "v4.channel.k8s.io", &with).await.unwrap();
        assert_eq!(answer.status, 101, "{origin}: {}", answer.head);
        // The token is still what it takes, once.
        let again = handshake(&url, "v4.channel.k8s.io", &with).await.unwrap();
        assert_eq!(again.status, 404, "{origin}: {}", again.head);
    }
    daemon.finish().await.unwrap();
}

/// T36: a page of another host, in a browser on this node, that somehow learned a URL.
#[tokio::test]
async fn a_page_from_elsewhere_opens_nothing_where_the_operator_lists_origins() {
    let config = "[streaming]\nallowed_origins = [\"https://console.example.com\"]\n";
    let options = Options {
        config: config.into(),
        ..Options::default()
    };
    let daemon = shell::daemon_with(options).await;
    let pod = Pod::run(&daemon, "origin").await;
    let id = pod.start(&shell::sh("main", "sleep 1000")).await;
    for (origin, status) in [
        ("https://evil.example.com", 403),
        ("null", 403),
        ("http://HOST.evil.example.com", 403),
        ("https://console.example.com", 101),
        ("http://HOST", 101),
    ] {
        let url = exec_url(&pod, &id, &["true"], OUT).await.unwrap();
        let url = Url::parse(&url).unwrap();
        let origin = origin.replace("HOST", &url.host);
        let answer = handshake(&url, "v4.channel.k8s.io", &[("Origin", &origin)])
            .await
            .unwrap();
        assert_eq!(answer.status, status, "{origin}: {}", answer.head);
    }
    daemon.finish().await.unwrap();
}

/// T36: slow-loris, and connections that say nothing at all.
#[tokio::test]
async fn clients_that_never_finish_their_request_are_let_go() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "loris").await;
    let id = pod.start(&shell::sh("main", "sleep 1000")).await;
    let url = Url::parse(&exec_url(&pod, &id, &["true"], OUT).await.unwrap()).unwrap();
    let before = super::memory_kib(daemon.pid(), "VmRSS:");
    let mut slow = Vec::new();
    for number in 0..400 {
        let mut socket = TcpStream::connect(&url.host).await.unwrap();
        if number % 2 == 0 {
            socket
                .write_all(format!("POST {} HTTP/1.1\r\nX-Slow: ", url.path).as_bytes())
                .await
                .unwrap();
        }
        slow.push(socket);
    }
    let began = Instant::now();
    let output = tokio::time::timeout(
        Duration::from_secs(20),
        run(&pod, &id, "echo alive", MODERN[0]),
    )
    .await;
    let output = output.expect("a new client waits for silent ones");
    assert_eq!(output.text(), "alive\n");
    let grown = super::memory_kib(daemon.pid(), "VmRSS:").saturating_sub(before);
    assert!(grown < 32 * 1024, "the daemon grew by {grown} KiB");
    for socket in &mut slow {
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(TIMEOUT, socket.read_to_end(&mut rest));
        // By a reset or an end, but closed.
        closed.await.expect("still open").ok();
    }
    assert!(began.elapsed() < TIMEOUT * 2, "{:?}", began.elapsed());
    daemon.finish().await.unwrap();
}
