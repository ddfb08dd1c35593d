//! Clients of every gRPC library: what they call the server that a unix socket leads to.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use coracle_tests::client::TIMEOUT;

use crate::site;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
/// Of a frame of data.
const END_STREAM: u8 = 1;
/// Of a frame of headers.
const END_HEADERS: u8 = 4;

/// A frame of HTTP/2: length, type, flags, stream, payload.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A call of Version as a header block without compression. The authority is put into the peer's table, or taken from there.
fn version(authority: Option<&str>) -> Vec<u8> {
    let mut block = Vec::new();
    let field = |block: &mut Vec<u8>, first: u8, name: &str, value: &str| {
        block.push(first);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.bytes());
        }
    };
    field(&mut block, 0, ":method", "POST");
    field(&mut block, 0, ":scheme", "http");
    field(&mut block, 0, ":path", "/runtime.v1.RuntimeService/Version");
    match authority {
        Some(authority) => field(&mut block, 0x40, ":authority", authority),
        None => block.push(0x80 | 62),
    }
    field(&mut block, 0, "te", "trailers");
    field(&mut block, 0, "content-type", "application/grpc");
    block
}

/// The next frame of interest: kind, stream, payload.
fn next(socket: &mut UnixStream) -> (u8, u32, Vec<u8>) {
    let mut head = [0; 9];
    socket.read_exact(&mut head).unwrap();
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    socket.read_exact(&mut payload).unwrap();
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
    (head[3], stream, payload)
}

#[tokio::test]
async fn every_authority_is_answered() {
    let daemon = site::daemon().await;
    for authority in [
        "%2Frun%2Fcoracle%2Fcoracle.sock",
        "/run/coracle/coracle.sock",
        "localhost",
        "[::1]:80",
        "a b\\c\"{}",
        "@\u{e9}",
    ] {
        let mut socket = UnixStream::connect(daemon.socket()).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        sent.extend(frame(SETTINGS, 0, 0, &[]));
        for (stream, block) in [(1, version(Some(authority))), (3, version(None))] {
            sent.extend(frame(HEADERS, END_HEADERS, stream, &block));
            sent.extend(frame(DATA, END_STREAM, stream, &[0; 5]));
        }
        socket.write_all(&sent).unwrap();
        let mut answered = Vec::new();
        while answered.len() < 2 {
            match next(&mut socket) {
                (RST_STREAM, stream, why) => panic!("{authority:?}, stream {stream}: {why:?}"),
                (DATA, stream, payload) if payload.windows(7).any(|part| part == b"coracle") => {
                    answered.push(stream);
                }
                _ => {}
            }
        }
        answered.sort_unstable();
        assert_eq!(answered, [1, 3], "{authority:?}");
    }
    daemon.finish().await.unwrap();
}
