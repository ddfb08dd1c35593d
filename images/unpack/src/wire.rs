//! The protocol between daemon and unpacker, on one SOCK_SEQPACKET socket.
//!
//! The daemon sends the job; the unpacker answers with any number of directories to be marked opaque, as descriptors,
//! and one verdict. A mark is an attribute that only a process with CAP_SYS_ADMIN may set, which the unpacker is not.
//! Called by: the unpacker's main ([`serve`]), the image store ([`begin`], [`supervise`]).
//! Invariants: the daemon checks everything: messages are bounded, a marked directory must be on the file system of
//! the layer, marks are counted; a process that ends without a verdict is an error.
//! Not here: starting and ending processes.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, XattrFlags, fsetxattr, fstat};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};

use crate::{Job, OPAQUE, Verdict, layer};

/// The longest message. Bytes.
const MAX_MESSAGE_BYTES: usize = 8 << 10;
/// The text of a message that carries a directory to be marked.
const MARK: &[u8] = b"mark";

/// Makes the socket of one unpacker and sends it its job. The first end is the daemon's, the second the unpacker's.
///
/// Errors: the node is out of descriptors or memory.
pub fn begin(job: &Job) -> io::Result<(OwnedFd, OwnedFd)> {
    let kind = SocketType::SEQPACKET;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    send(ours.as_fd(), &serde_json::to_vec(job)?, None)?;
    Ok((ours, theirs))
}

/// The unpacker's whole work: takes its job from `socket`, unpacks `blob` into `directory`, reports.
///
/// Errors: the socket breaks, which means that the daemon is gone or has cancelled the pull.
pub fn serve(socket: &OwnedFd, blob: OwnedFd, directory: OwnedFd) -> io::Result<()> {
    let message = receive(socket.as_fd())?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let job: Job = serde_json::from_slice(&message.bytes)?;
    let mark = |directory: BorrowedFd<'_>| send(socket.as_fd(), MARK, Some(directory));
    let verdict = layer::unpack(&job, blob, directory, &mark);
    Ok(send(socket.as_fd(), &serde_json::to_vec(&verdict)?, None)?)
}

/// The daemon's side: marks up to `most` directories on the file system of `directory`, until the verdict. Blocks until
/// the unpacker has reported or is gone.
///
/// Errors: UnexpectedEof when it ended without a verdict; InvalidData when it sends what no unpacker sends; the disk's.
pub fn supervise(socket: &OwnedFd, directory: &OwnedFd, most: u64) -> io::Result<Verdict> {
    let device = fstat(directory)?.st_dev;
    let mut left = most;
    loop {
        let message = receive(socket.as_fd())?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let Some(marked) = message.descriptor else {
            return Ok(serde_json::from_slice(&message.bytes)?);
        };
        left = left.checked_sub(1).ok_or(io::ErrorKind::InvalidData)?;
        let stat = fstat(&marked)?;
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if message.bytes != MARK || !is_directory || stat.st_dev != device {
            return Err(io::ErrorKind::InvalidData.into());
        }
        fsetxattr(&marked, OPAQUE, b"y", XattrFlags::empty())?;
    }
}

struct Message {
    bytes: Vec<u8>,
    descriptor: Option<OwnedFd>,
}

fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.as_slice();
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::NOBUFS);
    }
    loop {
        match sendmsg(
            socket,
            &[IoSlice::new(bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        ) {
            Err(Errno::INTR) => {}
            other => return other.map(drop),
        }
    }
}

/// The next message; `None` when the other end is gone.
fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<Message>> {
    let mut bytes = vec![0; MAX_MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let into = &mut [IoSliceMut::new(&mut bytes)];
        match recvmsg(socket, into, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    let descriptor = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        })
        .next();
    let torn = ReturnFlags::TRUNC | ReturnFlags::CTRUNC;
    if received.flags.intersects(torn) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    bytes.truncate(received.bytes);
    let is_end = bytes.is_empty() && descriptor.is_none();
    Ok((!is_end).then_some(Message { bytes, descriptor }))
}
