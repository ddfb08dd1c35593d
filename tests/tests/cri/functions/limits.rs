//! What a function and its callers are held to.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use coracle_tests::client::{TIMEOUT, container};
use tonic::Code;

use super::{Asked, annotated, curl, functions, functions_with, raw, run, start};
use crate::site::{Pod, ended_soon, refused};

#[tokio::test]
async fn a_full_server_says_503_and_when_to_come_again() {
    let (daemon, image) = functions().await;
    let function = run(&daemon, &image, "full", &[("max-requests", "2")]).await;
    let asked = [
        function.under_way(&daemon, "/sleep/6000").await,
        function.under_way(&daemon, "/sleep/6000").await,
    ];
    let url = function.url("/hello");
    let (status, head) = curl(&["-i", &url]);
    assert_eq!(status, 503, "{head}");
    assert!(head.to_lowercase().contains("retry-after: 1"), "{head}");
    for asked in asked {
        assert_eq!(asked.answer(), (200, "slept\n".to_owned()));
    }
    assert_eq!(function.get("/hello").0, 200);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn as_many_requests_as_may_be_at_a_time_all_have_their_answers() {
    let (daemon, image) = functions().await;
    let function = run(&daemon, &image, "many", &[("max-requests", "48")]).await;
    // Guests that wait hold everything that an instance takes from the pool. Twice: what they gave back is as good.
    for _ in 0..2 {
        let begun = Instant::now();
        let asked = [(); 48].map(|()| function.begin("/sleep/3000"));
        for asked in asked {
            assert_eq!(asked.answer(), (200, "slept\n".to_owned()));
        }
        // So they waited at the same time: one after the other it takes more than two minutes.
        assert!(begun.elapsed() < TIMEOUT);
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_guest_that_is_late_is_ended_whether_it_computes_or_waits() {
    let (daemon, image) = functions().await;
    let function = run(&daemon, &image, "late", &[("deadline-seconds", "5")]).await;
    let begun = Instant::now();
    let mut asked = ["/spin", "/sleep/60000", "/spin"].map(|path| function.begin(path));
    // Others have their turn meanwhile.
    assert_eq!(function.get("/hello").0, 200);
    assert!(asked.iter_mut().all(Asked::is_waiting));
    for asked in asked {
        assert_eq!(asked.answer().0, 504);
    }
    ended_soon(begun);
    assert_eq!(function.get("/hello").0, 200);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_slow_client_loses_its_connection_in_whatever_way_it_is_slow() {
    let config = "[handlers.coracle.http]\nheader_timeout_s = 1\nmax_connections = 3\n";
    let (daemon, image) = functions_with(config).await;
    let function = run(&daemon, &image, "slow", &[]).await;
    let begun = Instant::now();
    let slow = [
        "",
        "GET /hello HT",
        "GET /hello HTTP/1.1\r\nHost: f\r\nX-Slow: ",
        "PRI * HTTP/2.0\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ];
    let clients = slow.map(|text| {
        let at = function.at;
        std::thread::spawn(move || raw(at, text, TIMEOUT))
    });
    for (client, text) in clients.into_iter().zip(slow) {
        let (_, closed) = client.join().unwrap();
        assert!(closed, "{text:?} was let wait");
    }
    // At most three at a time, so in two rounds; HTTP/2 is said good-bye first.
    ended_soon(begun);
    assert_eq!(function.get("/hello").0, 200);
    daemon.finish().await.unwrap();
}

/// One frame of HTTP/2.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

/// Whether a client of HTTP/2 that lets nobody send it an answer, and answers pings, loses it or its connection.
fn is_given_up(at: std::net::SocketAddr) -> bool {
    let mut stream = TcpStream::connect(at).unwrap();
    let patience = TIMEOUT;
    stream.set_read_timeout(Some(patience)).unwrap();
    let no_window = [0, 4, 0, 0, 0, 0];
    let asked = [&[0x82, 0x86, 0x04, 6][..], b"/hello", &[0x01, 1], b"f"].concat();
    let begin = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &no_window),
        frame(1, 5, 1, &asked),
    ];
    stream.write_all(&begin.concat()).unwrap();
    let end = Instant::now() + patience;
    while Instant::now() < end {
        let mut head = [0; 9];
        match stream.read_exact(&mut head) {
            Ok(()) => {}
            Err(e) => return e.kind() != io::ErrorKind::WouldBlock,
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).unwrap();
        match (head[3], head[4]) {
            (4, 0) => stream.write_all(&frame(4, 1, 0, &[])).unwrap(),
            (6, 0) => stream.write_all(&frame(6, 1, 0, &payload)).unwrap(),
            (3, _) => return true,
            _ => {}
        }
    }
    false
}

/// Whether a client that sends a body, which the guest sends back, and reads nothing of it loses its connection.
fn is_cut_off(at: std::net::SocketAddr) -> bool {
    let mut stream = TcpStream::connect(at).unwrap();
    let patience = TIMEOUT;
    stream.set_write_timeout(Some(patience)).unwrap();
    let head = "POST /echo HTTP/1.1\r\nHost: f\r\nContent-Length: 100000000\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    match stream.write_all(&vec![b'x'; 100_000_000]) {
        Ok(()) => panic!("the kernel took all of it"),
        Err(e) => e.kind() != io::ErrorKind::WouldBlock,
    }
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_its_answer_loses_it_and_makes_room_for_others() {
    let config = "[handlers.coracle.http]\nheader_timeout_s = 1\nmax_connections = 1\n";
    let (daemon, image) = functions_with(config).await;
    let function = run(&daemon, &image, "unread", &[("deadline-seconds", "2")]).await;
    assert!(is_given_up(function.at), "of HTTP/2");
    assert_eq!(function.get("/hello").0, 200);
    assert!(is_cut_off(function.at), "of HTTP/1.1");
    assert_eq!(function.get("/hello").0, 200);
    daemon.finish().await.unwrap();
}

/// A client of HTTP/2 that lets nobody send it data. One of its requests is answered and the end of that is left, the other one
/// is complete only when the server says that the connection ends. Whether that one was answered whole.
fn is_answered_beside_a_stuck_one(at: std::net::SocketAddr) -> bool {
    let mut stream = TcpStream::connect(at).unwrap();
    let patience = TIMEOUT;
    stream.set_read_timeout(Some(patience)).unwrap();
    let no_window = [0, 4, 0, 0, 0, 0];
    let hello = [&[0x82, 0x86, 0x04, 6][..], b"/hello", &[0x01, 1], b"f"].concat();
    let echo = [&[0x83, 0x86, 0x04, 5][..], b"/echo", &[0x01, 1], b"f"].concat();
    let begin = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &no_window),
        frame(1, 4, 1, &echo),
        frame(1, 5, 3, &hello),
    ];
    stream.write_all(&begin.concat()).unwrap();
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).is_err() {
            return false;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).unwrap();
        match (head[3], head[4], head[8]) {
            (4, 0, _) => stream.write_all(&frame(4, 1, 0, &[])).unwrap(),
            (6, 0, _) => stream.write_all(&frame(6, 1, 0, &payload)).unwrap(),
            // GOAWAY, of which there are two.
            (7, ..) => drop(stream.write_all(&frame(0, 1, 1, &[]))),
            (0 | 1, flags, 1) if flags & 1 != 0 => return true,
            _ => {}
        }
    }
}

#[tokio::test]
async fn requests_that_share_a_connection_with_an_unread_answer_are_finished() {
    let config = "[handlers.coracle.http]\nheader_timeout_s = 2\nmax_connections = 1\n";
    let (daemon, image) = functions_with(config).await;
    let function = run(&daemon, &image, "shared", &[]).await;
    assert!(is_answered_beside_a_stuck_one(function.at));
    assert_eq!(function.get("/hello").0, 200);
    daemon.finish().await.unwrap();
}

/// A client that has had an answer, or has said nothing, and keeps its connection open.
fn keep_open(at: std::net::SocketAddr, is_silent: bool) -> TcpStream {
    let mut stream = TcpStream::connect(at).unwrap();
    if is_silent {
        return stream;
    }
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream
        .write_all(b"GET /hello HTTP/1.1\r\nHost: f\r\n\r\n")
        .unwrap();
    assert_ne!(stream.read(&mut [0; 512]).unwrap(), 0);
    stream
}

#[tokio::test]
async fn idle_connections_make_room_for_others_and_busy_ones_do_not() {
    let config = "[handlers.coracle.http]\nheader_timeout_s = 60\nmax_connections = 3\n";
    let (daemon, image) = functions_with(config).await;
    let function = run(&daemon, &image, "crowded", &[]).await;
    let mut busy = function.under_way(&daemon, "/sleep/10000").await;
    let mut kept = Vec::new();
    for is_silent in [false, true, false, true, true, true] {
        kept.push(keep_open(function.at, is_silent));
        assert_eq!(function.get("/hello").0, 200);
    }
    assert!(busy.is_waiting(), "others waited");
    assert_eq!(busy.answer(), (200, "slept\n".to_owned()));
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_guest_that_is_slow_to_write_keeps_its_client() {
    let config = "[handlers.coracle.http]\nheader_timeout_s = 1\n";
    let (daemon, image) = functions_with(config).await;
    let function = run(&daemon, &image, "events", &[]).await;
    let mut stream = TcpStream::connect(function.at).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let head =
        "POST /echo HTTP/1.1\r\nHost: f\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    for event in ["first", "third"] {
        stream
            .write_all(format!("5\r\n{event}\r\n").as_bytes())
            .unwrap();
        tokio::time::sleep(Duration::from_secs(4)).await;
    }
    stream.write_all(b"0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(
        answer.contains("first") && answer.contains("third"),
        "{answer}"
    );
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn heads_and_bodies_that_are_too_large_are_refused() {
    let config = "[handlers.coracle.http]\nmax_header_bytes = 8192\nmax_body_bytes = 1000\n";
    let (daemon, image) = functions_with(config).await;
    let function = run(&daemon, &image, "large", &[]).await;
    let header = format!("X-Large: {}", "x".repeat(20_000));
    assert_eq!(curl(&["-H", &header, &function.url("/hello")]).0, 431);
    let body = "x".repeat(1_001);
    assert_eq!(curl(&["-d", &body, &function.url("/echo")]).0, 413);
    // Whose length is not said is found out while it is read.
    let chunked = ["-H", "Transfer-Encoding: chunked", "-d", &body];
    let (_, back) = curl(&[&chunked[..], &[&function.url("/echo")]].concat());
    assert!(back.len() < body.len(), "{} bytes", back.len());
    assert_eq!(curl(&["-d", &body[..1_000], &function.url("/echo")]).0, 200);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn memory_of_a_request_is_limited_and_given_back() {
    let (daemon, image) = functions().await;
    let annotations = [("request-memory-bytes", "33554432")];
    let pod = Pod::run_config(&daemon, annotated(&daemon, "memory", &annotations)).await;
    let mut config = container("function", &image, &[]);
    let linux = config.linux.as_mut().unwrap();
    linux.resources.as_mut().unwrap().memory_limit_in_bytes = 96 << 20;
    let function = start(pod, &config, 8080).await;
    for _ in 0..20 {
        assert_eq!(function.get("/alloc/20"), (200, "allocated\n".to_owned()));
    }
    assert_eq!(function.get("/alloc/64"), (507, "no memory\n".to_owned()));
    let status = function.pod.cri.status(&function.id).await.unwrap();
    assert_eq!(status.state, 1, "{status:?}");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_pod_cannot_ask_for_more_than_its_handler_allows() {
    let (daemon, image) = functions().await;
    let cri = daemon.cri();
    let odd = annotated(&daemon, "odd", &[("deadline-seconds", "soon")]);
    let words = ["http.coracle.dev/deadline-seconds", "soon"];
    refused(cri.run_pod(&odd).await, Code::InvalidArgument, &words);
    let wide = annotated(&daemon, "wide", &[("deadline-seconds", "61")]);
    let pod = Pod::run_config(&daemon, wide).await;
    refused(
        pod.create(&container("c", &image, &[])).await,
        Code::InvalidArgument,
        &[
            "deadline-seconds is 61",
            "handlers.coracle.http.deadline_s",
            "60",
        ],
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_pod_without_a_network_of_its_own_choice_still_serves_and_reaches_nobody() {
    let (daemon, image) = functions().await;
    let cri = daemon.cri();
    let config = daemon.pod("strict");
    let id = cri.run_pod_with(&config, "coracle-strict").await.unwrap();
    let pod = Pod { cri, config, id };
    let function = start(pod, &container("function", &image, &[]), 8080).await;
    assert_eq!(
        function.get("/hello"),
        (200, "hello from a function\n".to_owned())
    );
    // One that holds a connection and says nothing holds up nobody.
    let silent = TcpStream::connect(function.at).unwrap();
    assert_eq!(function.get("/hello").0, 200);
    drop(silent);
    daemon.finish().await.unwrap();
}
