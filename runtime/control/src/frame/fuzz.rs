//! Fuzz targets of the control protocol: frames, and the messages in them. See [`crate::fuzz`].

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Frame, MAX_BODY, Reader, Writer};
use crate::messages::{FromKeeper, FromSpawner, Report, ToKeeper, ToSpawner};

/// Most bytes that a socket pair buffers without a reader.
const HELD: usize = 64 << 10;

/// A frame that was read is written back unchanged, and never exceeds the limits.
pub(crate) fn frames(input: &[u8]) {
    let input = &input[..input.len().min(HELD)];
    let (mut left, right) = UnixStream::pair().expect("a socket pair can be made");
    left.write_all(input).expect("a socket pair holds as much");
    drop(left);
    let (mut reader, mut at) = (Reader::default(), 0);
    while let Ok(Some(frame)) = reader.read(right.as_fd()) {
        assert!(frame.body.len() <= MAX_BODY && frame.fds.is_empty());
        let written = written(&frame);
        assert_eq!(written, input[at..at + written.len()]);
        at += written.len();
        messages(&frame.body);
    }
    assert!(at <= input.len());
}

/// The bytes of a frame.
fn written(frame: &Frame) -> Vec<u8> {
    let (left, mut right) = UnixStream::pair().expect("a socket pair can be made");
    let mut writer = Writer::default();
    writer.push(Frame {
        version: frame.version,
        body: frame.body.clone(),
        fds: Vec::new(),
    });
    writer
        .flush(left.as_fd())
        .expect("a socket pair holds as much");
    assert!(writer.is_empty());
    drop(left);
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut right, &mut bytes).expect("the other end is ours");
    bytes
}

/// Each side parses the other's messages; a parsed message serializes to one that parses the same.
pub(crate) fn messages(body: &[u8]) {
    round::<ToSpawner>(body);
    round::<FromSpawner>(body);
    round::<ToKeeper>(body);
    round::<FromKeeper>(body);
    round::<Report>(body);
}

fn round<M: Serialize + DeserializeOwned>(body: &[u8]) {
    let frame = Frame {
        version: 1,
        body: body.to_vec(),
        fds: Vec::new(),
    };
    let Ok(message) = frame.message::<M>() else {
        return;
    };
    let packed = Frame::pack(&message, Vec::new());
    let Ok(packed) = packed else {
        // Escapes can make a text longer than [`MAX_BODY`].
        assert!(
            body.len() > MAX_BODY / 6,
            "a short message cannot be packed"
        );
        return;
    };
    let again: M = packed.message().expect("what was packed is read");
    let again = Frame::pack(&again, Vec::new()).expect("it was packed before");
    assert_eq!(packed.body, again.body);
}
