//! The parts that need no guest: lines, statuses, sockets, the pool.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::io;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use wasmtime::Store;
use wasmtime::component::{Component, Linker};
use wasmtime_wasi::cli::StdoutStream as _;
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;

use super::lines::Stream;
use super::pool::Needs;
use super::{bind, bind_at, pool, requests};
use crate::streams::{Sink, Writer};
use coracle_spec::{HttpLimits, HttpServer};

/// Keeps each write.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<Vec<u8>>>>);

impl Sink for Kept {
    fn put(&self, bytes: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap().push(bytes.to_vec());
        Ok(())
    }
}

pub(super) fn server() -> HttpServer {
    HttpServer {
        port: 8080,
        threads: 1,
        limits: HttpLimits {
            deadline_s: 1,
            max_requests: 64,
            max_connections: 64,
            max_header_bytes: 8_192,
            max_body_bytes: 0,
            header_timeout_s: 1,
            instance_idle_s: 1,
            ..HttpLimits::default()
        },
    }
}

#[test]
fn each_write_is_one_whole_line_of_one_instance() {
    let kept = Kept::default();
    let stream = Stream::new(kept.clone());
    let instances = [stream.of_instance(), stream.of_instance()];
    let [mut one, mut other] = instances
        .each_ref()
        .map(|lines| Writer(lines.clone()).p2_stream());
    one.write("a".into()).unwrap();
    other.write("b\nb".into()).unwrap();
    // Another handle of the first instance goes on with its line.
    let mut again = Writer(instances[0].clone()).p2_stream();
    again.write("a\na".into()).unwrap();
    stream.line("own");
    drop((one, other, again, instances));
    let lines = kept.0.lock().unwrap().clone();
    assert_eq!(lines, [&b"b\n"[..], b"aa\n", b"own\n", b"a\n", b"b\n"]);
}

#[test]
fn lines_carry_the_id_of_their_request() {
    let kept = Kept::default();
    let lines = Stream::new(kept.clone()).of_instance();
    lines.put(b"from the start").unwrap();
    lines.set_request("one");
    lines.put(b"a\n\nb").unwrap();
    lines.set_request("two");
    lines.put(b"c").unwrap();
    lines.put(b"").unwrap();
    lines.line("failed");
    drop(lines);
    let lines = kept.0.lock().unwrap().concat();
    let lines = String::from_utf8(lines).unwrap();
    assert_eq!(
        lines,
        "from the start\none a\none \none b\ntwo c\ntwo failed\n"
    );
}

#[test]
fn an_endless_line_carries_its_id_in_each_part() {
    let kept = Kept::default();
    let lines = Stream::new(kept.clone()).of_instance();
    lines.set_request("one");
    lines.put(&[b'x'; 200_000]).unwrap();
    drop(lines);
    let parts = kept.0.lock().unwrap().clone();
    assert!(parts.len() > 3);
    assert!(
        parts
            .iter()
            .all(|part| part.starts_with(b"one x") && part.len() <= 65_537)
    );
}

#[test]
fn a_line_that_never_ends_is_bounded() {
    let kept = Kept::default();
    let mut lines = Writer(Stream::new(kept.clone()).of_instance()).p2_stream();
    for _ in 0..40 {
        lines.write(vec![b'x'; 10_000].into()).unwrap();
    }
    drop(lines);
    let lines = kept.0.lock().unwrap().clone();
    assert!(lines.len() > 5 && lines.iter().all(|line| line.len() <= 65_537));
    assert_eq!(
        lines.iter().map(|line| line.len() - 1).sum::<usize>(),
        400_000
    );
}

#[test]
fn a_port_is_taken_in_both_families_and_only_once() {
    // Which port is free is the kernel's to say.
    let free =
        bind_at("[::]:0".parse().unwrap()).or_else(|_| bind_at("0.0.0.0:0".parse().unwrap()));
    let taken = free.unwrap();
    rustix::net::listen(&taken, 1).unwrap();
    let listener = TcpListener::from(taken);
    let port = listener.local_addr().unwrap().port();
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    let refused = bind(port).unwrap_err().chain();
    assert!(
        refused.contains(&port.to_string()) && refused.contains("PORT"),
        "{refused}"
    );
}

#[test]
fn a_guests_errors_become_statuses() {
    for (code, status) in [
        (ErrorCode::HttpRequestDenied, 403),
        (ErrorCode::HttpRequestBodySize(Some(3)), 413),
        (ErrorCode::ConnectionRefused, 502),
        (ErrorCode::DnsTimeout, 504),
        (ErrorCode::InternalError(None), 500),
    ] {
        assert_eq!(requests::status_of(&code).as_u16(), status, "{code:?}");
    }
}

/// Compiled code of the component with this text, and what it needs.
fn compiled(text: &str) -> (Vec<u8>, Needs) {
    let engine = crate::engine::compiling().unwrap();
    let component = Component::new(&engine, wat::parse_str(text).unwrap()).unwrap();
    (component.serialize().unwrap(), Needs::of(&component))
}

/// A component of `instances` modules with a memory and three tables each.
fn component(instances: usize, table_elements: u32) -> String {
    let tables = format!("(table {table_elements} funcref)").repeat(3);
    let made = "(core instance (instantiate $m))".repeat(instances);
    // An instance without a name compiles as the text of a component.
    format!("(component (core module $m {tables} (memory 1)) {made})")
}

#[tokio::test]
async fn the_pooled_engine_runs_code_that_was_compiled_without_a_pool_whatever_it_needs() {
    for (text, is_usual) in [
        (component(1, 3), true),
        (component(2, 3), false),
        (component(1, 30_000), false),
        (component(9, 30_000), false),
    ] {
        let (code, needs) = compiled(&text);
        assert_eq!(needs == Needs::USUAL, is_usual, "{text}");
        for memory in [None, Some(100_000), Some(1 << 40)] {
            let engine = pool::engine(needs, &server(), memory, Default::default()).unwrap();
            // SAFETY: `code` is unchanged output of a compatible engine.
            let loaded = unsafe { Component::deserialize(&engine, &code) }.unwrap();
            assert_eq!(Needs::of(&loaded), needs);
            let mut store = Store::new(&engine, ());
            store.set_epoch_deadline(1);
            let linker = Linker::new(&engine);
            let made = linker.instantiate_async(&mut store, &loaded).await;
            assert!(made.is_ok(), "{memory:?} {text}: {:?}", made.err());
        }
    }
}
