//! Sends nf_tables batches, which the kernel applies as a whole or not at all.
//! Called by: the host ports of the built-in network, a pod's egress rules. Calls: netlink.
//!
//! ```text
//! Batch   begin, messages about one table of ours, end          (`batch`)
//! Rule    conditions on a packet, then a verdict                (`rule`)
//! Nft     sends a batch; a socket stays in the namespace it was opened in
//! Events  reports changes by other programs                     (`events`)
//! ```
//! Invariants: only tables of ours are named; a refused batch has changed nothing; no program is exec'd, and no
//! library holds a copy of the ruleset. The kernel has handled a datagram when send(2) returns, so no read waits.
//! Not here: which rules to install.

mod attributes;
mod batch;
mod counter;
mod events;
mod flows;
mod rule;

use std::os::fd::{AsFd as _, BorrowedFd};

use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use rustix::io::Errno;
use rustix::net::sockopt;

use super::error::Error;
use super::netlink::{inside, open_socket};

pub(super) use attributes::Attributes;
pub(super) use batch::{Base, Batch, Element, Hook, Kind, Set, Type, concat};
pub(super) use events::Events;
pub(super) use flows::{Flow, forget_addresses, forget_flows};
pub(super) use rule::Rule;

// Source: linux/netlink.h, linux/netfilter/nfnetlink.h and nf_tables.h.
const NLMSG_HEADER_BYTES: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
/// `lo` has this index in every network namespace. Source: net/loopback.c, `LOOPBACK_IFINDEX`.
pub(super) const LOOPBACK_INDEX: u32 = 1;
/// The family of tables for IPv4 and IPv6 alike.
const NFPROTO_INET: u8 = 1;
/// Large enough for any datagram of a dump.
const RECEIVE_BYTES: usize = 64 << 10;

/// A netfilter netlink socket in one network namespace.
pub(super) struct Nft {
    socket: Socket,
}

impl Nft {
    /// A socket in the calling thread's network namespace.
    pub(super) fn open() -> Result<Self, Error> {
        let socket = open_socket(NETLINK_NETFILTER, "a netfilter netlink socket")?;
        Ok(Self { socket })
    }

    /// A socket in `netns`.
    pub(super) fn open_in(netns: BorrowedFd<'_>) -> Result<Self, Error> {
        inside(netns, Self::open)
    }

    /// Commits `batch`. Errors: the kernel refuses a message, whose text the error carries; nothing has changed then.
    pub(super) fn commit(&self, batch: Batch) -> Result<(), Error> {
        let (datagram, names) = batch.finish();
        self.send(&datagram, "change", "a table of nftables")?;
        let mut is_taken = false;
        let mut buffer = vec![0; RECEIVE_BYTES];
        while let Some(length) = self.receive(&mut buffer)? {
            for answer in Messages(&buffer[..length]) {
                let Some(code) = answer.error() else { continue };
                if code == 0 {
                    is_taken = true;
                    continue;
                }
                let number = answer.sequence as usize;
                let (operation, object) = names.get(number).cloned().unwrap_or_default();
                return Err(Error::Netlink {
                    operation: if operation.is_empty() {
                        "commit"
                    } else {
                        operation
                    },
                    object,
                    explanation: String::new(),
                    source: std::io::Error::from_raw_os_error(-code),
                });
            }
        }
        match is_taken {
            true => Ok(()),
            false => Err(Error::Answer {
                operation: "change",
                object: "a table of nftables".to_owned(),
                what: "no acknowledgement".to_owned(),
            }),
        }
    }

    /// Sends one message outside a batch and calls `each` for every message of the answer.
    fn ask(
        &self,
        operation: &'static str,
        object: &str,
        message: &[u8],
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), Error> {
        self.send(message, operation, object)?;
        let mut buffer = vec![0; RECEIVE_BYTES];
        while let Some(length) = self.receive(&mut buffer)? {
            for answer in Messages(&buffer[..length]) {
                match answer.error() {
                    Some(0) => return Ok(()),
                    Some(code) => {
                        let error = std::io::Error::from_raw_os_error(-code);
                        return Err(Error::io(operation, object, error));
                    }
                    None if answer.kind == NLMSG_DONE => return Ok(()),
                    None => each(answer.payload),
                }
            }
        }
        Ok(())
    }

    /// Sends messages that request no acknowledgement, outside a batch. What they name may be gone. Errors: the first other
    /// refusal; the rest was carried out.
    fn tell(&self, operation: &'static str, object: &str, messages: &[u8]) -> Result<(), Error> {
        self.send(messages, operation, object)?;
        let mut buffer = vec![0; RECEIVE_BYTES];
        let mut told = Ok(());
        while let Some(length) = self.receive(&mut buffer)? {
            let refused = Messages(&buffer[..length]).filter_map(|answer| answer.error());
            for code in refused.filter(|code| ![0, -libc::ENOENT].contains(code)) {
                let error = std::io::Error::from_raw_os_error(-code);
                told = told.and(Err(Error::io(operation, object, error)));
            }
        }
        told
    }

    fn send(&self, datagram: &[u8], operation: &'static str, object: &str) -> Result<(), Error> {
        let refuse = |error: std::io::Error| Error::io(operation, object, error);
        // A batch is one datagram, and the kernel counts its size twice.
        let wanted = datagram.len() * 2;
        let has = sockopt::socket_send_buffer_size(self.socket.as_fd()).unwrap_or(0);
        if wanted > has {
            sockopt::set_socket_send_buffer_size_force(self.socket.as_fd(), wanted)
                .map_err(|error| refuse(error.into()))?;
        }
        self.socket.send(datagram, 0).map(drop).map_err(refuse)
    }

    /// The length of the next datagram, if there is one.
    fn receive(&self, mut buffer: &mut [u8]) -> Result<Option<usize>, Error> {
        let flags = rustix::net::RecvFlags::DONTWAIT.bits().cast_signed();
        match self.socket.recv(&mut buffer, flags) {
            Ok(length) => Ok(Some(length)),
            Err(error) if error.raw_os_error() == Some(Errno::AGAIN.raw_os_error()) => Ok(None),
            Err(error) => Err(Error::io(
                "receive from",
                "a netfilter netlink socket",
                error,
            )),
        }
    }
}

/// One netlink message of an answer.
struct Message<'a> {
    kind: u16,
    sequence: u32,
    payload: &'a [u8],
}

impl Message<'_> {
    /// The error number of an acknowledgement: 0 or negative.
    fn error(&self) -> Option<i32> {
        let code = self.payload.get(..4)?.try_into().ok()?;
        (self.kind == NLMSG_ERROR).then(|| i32::from_ne_bytes(code))
    }
}

/// The messages of a datagram.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let header = self.0.get(..NLMSG_HEADER_BYTES)?;
        let word = |at: usize| [header[at], header[at + 1], header[at + 2], header[at + 3]];
        let length = u32::from_ne_bytes(word(0)) as usize;
        let message = Message {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            sequence: u32::from_ne_bytes(word(8)),
            payload: self.0.get(NLMSG_HEADER_BYTES..length)?,
        };
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    }
}

/// Appends one message: header, nfgenmsg, attributes.
fn append(datagram: &mut Vec<u8>, head: Head, attributes: &[u8]) {
    let length = NLMSG_HEADER_BYTES + 4 + attributes.len();
    // A batch that does not fit into 4 GiB fails in send(2) long before.
    datagram.extend((length as u32).to_ne_bytes());
    datagram.extend(head.kind.to_ne_bytes());
    datagram.extend((head.flags | NLM_F_REQUEST).to_ne_bytes());
    datagram.extend(head.sequence.to_ne_bytes());
    datagram.extend([0; 4]);
    datagram.extend([head.family, 0]);
    datagram.extend(head.resource.to_be_bytes());
    datagram.extend(attributes);
    datagram.resize(datagram.len().next_multiple_of(4), 0);
}

/// The fields before a message's attributes.
#[derive(Clone, Copy, Default)]
struct Head {
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
}

#[cfg(test)]
mod tests;
