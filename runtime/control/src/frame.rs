//! The protocol between daemon, spawner and keepers: versioned, length-prefixed frames that may carry descriptors.
//!
//! Used on both ends: async in the daemon ([`crate::keeper::Keeper`], [`crate::spawner::Spawner`]), polled in the
//! single-threaded keeper and spawner. A frame is an 8-byte head (`C` `R`, version u16, length u32, little endian)
//! and a JSON body; descriptors travel with the head.
//! Invariant: the connection to a peer that sends a bad head, an oversized body or too many descriptors is closed.
//! Callers set deadlines and retry. It must not know what a message means.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Serialize, de::DeserializeOwned};

/// The protocol version of this build, which also understands every older one.
pub const PROTOCOL: u16 = 5;
/// The protocol version since which a greeting comes in pages.
pub const PAGED_PROTOCOL: u16 = 4;
/// The largest body, in bytes. Specs are sent as descriptors, so frames are small.
pub const MAX_BODY: usize = 256 * 1024;
/// The most descriptors that one frame may carry.
pub const MAX_FDS: usize = 253;

const HEAD: usize = 8;

/// One message with its descriptors.
#[derive(Debug)]
pub struct Frame {
    /// The sender's protocol version.
    pub version: u16,
    /// JSON text of the message.
    pub body: Vec<u8>,
    /// Descriptors in the order the message names them.
    pub fds: Vec<OwnedFd>,
}

impl Frame {
    /// Packs `message` and `fds`. Errors: the message does not serialize or is larger than [`MAX_BODY`].
    pub fn pack<M: Serialize>(message: &M, fds: Vec<OwnedFd>) -> io::Result<Self> {
        let body = serde_json::to_vec(message).map_err(io::Error::other)?;
        if body.len() > MAX_BODY || fds.len() > MAX_FDS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "frame of {} bytes and {} descriptors exceeds {MAX_BODY} and {MAX_FDS}",
                    body.len(),
                    fds.len()
                ),
            ));
        }
        Ok(Self {
            version: PROTOCOL,
            body,
            fds,
        })
    }

    /// Parses the body. Errors: it is not such a message.
    pub fn message<M: DeserializeOwned>(&self) -> io::Result<M> {
        serde_json::from_slice(&self.body)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }
}

/// Assembles frames that arrive in pieces; one per connection.
#[derive(Debug, Default)]
pub struct Reader {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Reader {
    /// Reads until one frame is complete. `Ok(None)`: the peer closed. `WouldBlock`: call again when it is readable.
    ///
    /// Errors: the peer broke the protocol, or recvmsg(2) failed; close the connection then.
    pub fn read(&mut self, socket: BorrowedFd<'_>) -> io::Result<Option<Frame>> {
        loop {
            let wanted = self.wanted()?;
            if wanted == 0 {
                return Ok(Some(self.take()));
            }
            if self.fill(socket, wanted)? == 0 {
                return if self.bytes.is_empty() {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
        }
    }

    /// Bytes missing from the current frame. Reading more could take a descriptor of the next frame.
    fn wanted(&self) -> io::Result<usize> {
        if self.bytes.len() < HEAD {
            return Ok(HEAD - self.bytes.len());
        }
        let length =
            u32::from_le_bytes([self.bytes[4], self.bytes[5], self.bytes[6], self.bytes[7]])
                as usize;
        if &self.bytes[..2] != b"CR" || length > MAX_BODY {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "control frame begins {:02x?} with a body of {length} bytes",
                    &self.bytes[..2]
                ),
            ));
        }
        Ok(HEAD + length - self.bytes.len())
    }

    fn fill(&mut self, socket: BorrowedFd<'_>, wanted: usize) -> io::Result<usize> {
        let have = self.bytes.len();
        self.bytes.resize(have + wanted, 0);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let result = recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut self.bytes[have..])],
            &mut ancillary,
            flags,
        );
        self.bytes
            .truncate(have + result.as_ref().map_or(0, |r| r.bytes));
        let got = match result {
            Err(rustix::io::Errno::INTR) => return self.fill(socket, wanted),
            other => other?.bytes,
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        if self.fds.len() > MAX_FDS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "control frame carries too many descriptors",
            ));
        }
        Ok(got)
    }

    fn take(&mut self) -> Frame {
        let version = u16::from_le_bytes([self.bytes[2], self.bytes[3]]);
        let body = self.bytes.split_off(HEAD);
        self.bytes.clear();
        Frame {
            version,
            body,
            fds: std::mem::take(&mut self.fds),
        }
    }
}

/// Writes frames in pieces; one per connection. Bytes that the socket did not accept stay queued.
#[derive(Debug, Default)]
pub struct Writer {
    queue: std::collections::VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    sent: usize,
}

impl Writer {
    /// Queues `frame`; [`Writer::flush`] sends it.
    pub fn push(&mut self, frame: Frame) {
        let mut bytes = Vec::with_capacity(HEAD + frame.body.len());
        bytes.extend_from_slice(b"CR");
        bytes.extend_from_slice(&frame.version.to_le_bytes());
        // MAX_BODY keeps the length far below 4 GiB.
        bytes.extend_from_slice(&(frame.body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&frame.body);
        self.queue.push_back((bytes, frame.fds));
    }

    /// How many frames are queued, the one that is sent in part among them.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether the queue is empty.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Sends what the socket accepts. `WouldBlock`: call again when it is writable.
    ///
    /// Errors: sendmsg(2) failed; close the connection then.
    pub fn flush(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        while let Some((bytes, fds)) = self.queue.front_mut() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            if self.sent == 0
                && !borrowed.is_empty()
                && !ancillary.push(SendAncillaryMessage::ScmRights(&borrowed))
            {
                return Err(io::Error::other("descriptors do not fit one control frame"));
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match sendmsg(
                socket,
                &[IoSlice::new(&bytes[self.sent..])],
                &mut ancillary,
                flags,
            ) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
                Ok(sent) => self.sent += sent,
            }
            if self.sent == bytes.len() {
                self.queue.pop_front();
                self.sent = 0;
            }
        }
        Ok(())
    }
}

/// Sends `bytes` with one descriptor over a stream socket. The bytes are few, so they arrive in one piece.
///
/// Errors: sendmsg(2) failed.
pub fn send_one(socket: BorrowedFd<'_>, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let borrowed = [fd];
    ancillary.push(SendAncillaryMessage::ScmRights(&borrowed));
    let sent = sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    if sent == bytes.len() {
        return Ok(());
    }
    Err(io::ErrorKind::WriteZero.into())
}

/// Reads into `chunk` from a stream socket or a pipe and appends received descriptors to `fds`. Returns 0 at the end.
///
/// Errors: recvmsg(2) failed, `WouldBlock` among them.
pub fn receive(
    socket: BorrowedFd<'_>,
    chunk: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = match recvmsg(socket, &mut [IoSliceMut::new(chunk)], &mut ancillary, flags) {
        Err(rustix::io::Errno::NOTSOCK) => return Ok(rustix::io::read(socket, chunk)?),
        got => got?.bytes,
    };
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    Ok(got)
}

/// Waits for one descriptor. Errors: the other side closed without sending one.
pub fn receive_one(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut fds = Vec::new();
    receive(socket, &mut [0; 64], &mut fds)?;
    fds.pop().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use coracle_sys::memfd::{read_all, sealed};

    #[test]
    fn frames_arrive_whole_with_their_own_descriptors() {
        let (left, right) = UnixStream::pair().unwrap();
        let mut writer = Writer::default();
        for text in ["one", "two"] {
            writer.push(Frame::pack(&text, vec![sealed("t", text.as_bytes()).unwrap()]).unwrap());
        }
        writer.push(Frame::pack(&"bare", Vec::new()).unwrap());
        writer.flush(left.as_fd()).unwrap();
        drop(left);
        let mut reader = Reader::default();
        for text in ["one", "two"] {
            let frame = reader.read(right.as_fd()).unwrap().unwrap();
            assert_eq!(frame.message::<String>().unwrap(), text);
            assert_eq!(frame.fds.len(), 1);
            assert_eq!(read_all(frame.fds[0].as_fd(), 10).unwrap(), text.as_bytes());
        }
        assert_eq!(reader.read(right.as_fd()).unwrap().unwrap().fds.len(), 0);
        assert!(reader.read(right.as_fd()).unwrap().is_none());
    }

    #[test]
    fn a_peer_that_breaks_the_protocol_is_an_error() {
        let (mut left, right) = UnixStream::pair().unwrap();
        io::Write::write_all(&mut left, b"GET / HTTP/1.1\r\n").unwrap();
        assert_eq!(
            Reader::default().read(right.as_fd()).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        let (mut left, right) = UnixStream::pair().unwrap();
        io::Write::write_all(&mut left, b"CR\x01\0\xff\xff\xff\xff").unwrap();
        assert_eq!(
            Reader::default().read(right.as_fd()).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}
