//! The targets that read the control wire: frames as they arrive, and the messages in them.

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::messages::{FromKeeper, FromSpawner, Report, ToKeeper, ToSpawner};
use super::{Frame, MAX_BODY, Reader, Writer};

/// Most bytes that a socket pair holds without a reader.
const HELD: usize = 64 << 10;

/// Frames that are read are written as they were, and no more is taken than a frame may have.
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

/// A frame as it goes over the wire.
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

/// Each side reads what the other may say; what is read as a message is written as one that is read the same.
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
        // Escapes can make a text longer than a body may be.
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
