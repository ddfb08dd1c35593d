//! Clients that want a function's memory, or its turns, rather than answers.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use coracle_tests::client::{TIMEOUT, container};

use super::limits::frame;
use super::{annotated, curl, functions, functions_with, raw, run, start};
use crate::site::{Pod, eventually};

/// What a function has here. Bytes.
const MEMORY: i64 = 96 << 20;
/// Requests that a connection of HTTP/2 may have at a time: `max_requests`.
const STREAMS: u32 = 128;

/// The head of a GET in HTTP/2 with so many fields behind those that it needs, each of which takes a byte.
fn head(path: &str, fields: usize) -> Vec<u8> {
    let length = u8::try_from(path.len()).unwrap();
    let mut head = [
        &[0x82, 0x86, 0x04, length][..],
        path.as_bytes(),
        &[0x01, 1],
        b"f",
    ]
    .concat();
    // "a" without a value becomes the newest entry of the table, 62, in each request anew.
    head.extend_from_slice(&[0x40, 1, b'a', 0]);
    head.resize(head.len() + fields, 0x80 | 62);
    head
}

/// A connection of HTTP/2 with as many such requests as it may have, of which no answer is read.
fn flood(at: SocketAddr, path: &str, fields: usize) -> TcpStream {
    let stream = TcpStream::connect(at).unwrap();
    stream.set_write_timeout(Some(TIMEOUT)).unwrap();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    for number in 0..STREAMS {
        bytes.extend(frame(1, 5, 2 * number + 1, &head(path, fields)));
    }
    // It may be refused before its end.
    let _ = (&stream).write_all(&bytes);
    stream
}

#[tokio::test]
async fn clients_of_http_2_do_not_take_a_functions_memory_by_requests_of_few_bytes() {
    let (daemon, image) = functions().await;
    let pod = Pod::run_config(&daemon, annotated(&daemon, "flooded", &[])).await;
    let mut config = container("function", &image, &[]);
    let linux = config.linux.as_mut().unwrap();
    linux.resources.as_mut().unwrap().memory_limit_in_bytes = MEMORY;
    let function = start(pod, &config, 8080).await;
    // Of which each is one field too many, or as many fields as there may be, or many requests with hardly any.
    for (connections, fields) in [(16, 1_900), (64, 120), (64, 1)] {
        let at = function.at;
        let clients =
            (0..connections).map(|_| std::thread::spawn(move || flood(at, "/sleep/2000", fields)));
        let clients: Vec<_> = clients.collect();
        let clients: Vec<_> = clients.into_iter().map(|one| one.join().unwrap()).collect();
        eventually("it answers", || function.get("/hello").0 == 200).await;
        drop(clients);
        let status = function.pod.cri.status(&function.id).await.unwrap();
        assert_eq!(status.state, 1, "{fields} fields: {status:?}");
    }
    let url = function.url("/hello");
    let fields: Vec<String> = (0..129).map(|number| format!("x-{number}: 1")).collect();
    let fields: Vec<&str> = fields
        .iter()
        .flat_map(|field| ["-H", field.as_str()])
        .collect();
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let words = [&[version, &url][..], &fields].concat();
        assert_eq!(curl(&words).0, 431, "{version}");
    }
    daemon.finish().await.unwrap();
}

/// A client that sends a part of its body, of which the guest has sent back some.
fn upload(at: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let head = "POST /echo HTTP/1.1\r\nHost: f\r\nConnection: close\r\nContent-Length: 100000\r\n\r\nbegun";
    stream.write_all(head.as_bytes()).unwrap();
    let mut seen = String::new();
    while !seen.contains("begun") {
        let mut some = [0; 512];
        let count = stream.read(&mut some).unwrap();
        assert_ne!(count, 0, "{seen}");
        seen += &String::from_utf8_lossy(&some[..count]);
    }
    stream
}

#[tokio::test]
async fn clients_that_do_not_send_their_bodies_keep_nobody_out() {
    // Whoever is not made to end keeps its turn for longer than the test waits.
    let config = "[handlers.coracle.http]\ndeadline_s = 600\n";
    let (daemon, image) = functions_with(config).await;
    let function = run(&daemon, &image, "uploads", &[("max-requests", "2")]).await;
    let slow = [upload(function.at), upload(function.at)];
    // How long they may be slow while others wait is part of it.
    tokio::time::sleep(Duration::from_secs(2)).await;
    eventually("somebody else is answered", || {
        function.get("/hello").0 == 200
    })
    .await;
    // One of them made room, and the other one goes on.
    let ended = slow.map(|mut stream| {
        let _ = stream.write_all(&[b'x'; 99_995]);
        let mut rest = String::new();
        let _ = stream.read_to_string(&mut rest);
        rest.matches('x').count() < 99_995
    });
    assert_eq!(ended.iter().filter(|ended| **ended).count(), 1, "{ended:?}");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_client_writes_no_commands_for_terminals_into_a_functions_log() {
    let (daemon, image) = functions().await;
    let function = run(&daemon, &image, "escapes", &[("access-log", "true")]).await;
    let head = "GET /\u{9b}2J\u{202e} HTTP/1.1\r\nHost: f\r\nConnection: close\r\n\r\n";
    raw(function.at, head, TIMEOUT);
    let said = || {
        daemon
            .output(function.name(), "function", "stdout")
            .unwrap()
    };
    eventually("it is logged", || said().contains("GET /")).await;
    assert!(said().contains("GET /%C2%9B2J%E2%80%AE "), "{}", said());
    daemon.finish().await.unwrap();
}
