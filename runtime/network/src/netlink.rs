//! A route netlink socket: sends several requests in one datagram and reads one acknowledgement each.
//! The kernel has handled a datagram when send(2) returns, so no read here ever waits.
//! A socket stays in the network namespace it was opened in, whoever uses it later.
//! Not here: what the messages mean (`veth` builds them).

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::error::Error;

/// Large enough for any datagram of a dump (the kernel fills at most 32 KiB).
const RECEIVE_BYTES: usize = 64 << 10;
const NLMSG_HEADER_BYTES: usize = 16;
const IFINFOMSG_BYTES: usize = 16;
// Source: linux/if_link.h and linux/netlink.h.
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_GROUP: u16 = 27;
const IFLA_INFO_KIND: u16 = 1;
const NLMSGERR_ATTR_MSG: u16 = 1;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const IFADDRMSG_BYTES: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

/// One request and the text for its error.
pub(super) struct Request {
    /// What it does, e.g. `create veth`.
    pub(super) operation: &'static str,
    /// To what.
    pub(super) object: String,
    /// The message.
    pub(super) message: RouteNetlinkMessage,
    /// NLM_F flags besides REQUEST and ACK.
    pub(super) flags: u16,
}

/// One interface of a dump.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mac: Vec<u8>,
    pub(super) group: u32,
    pub(super) is_veth: bool,
    pub(super) is_up: bool,
    /// Whether it takes and sends no ARP.
    pub(super) is_without_arp: bool,
}

/// Opens a netlink socket of `protocol`, which errors call `name`, in the calling thread's network namespace.
pub(super) fn open_socket(protocol: isize, name: &'static str) -> Result<Socket, Error> {
    let refuse = |error| Error::io("open", name, error);
    let socket = Socket::new(protocol).map_err(refuse)?;
    // Without these options an error carries no text and repeats the request; both exist since Linux 4.12.
    socket
        .set_ext_ack(true)
        .and_then(|()| socket.set_cap_ack(true))
        .map_err(refuse)?;
    Ok(socket)
}

/// A socket in one network namespace.
pub(super) struct Netlink {
    socket: Socket,
}

impl Netlink {
    /// A socket in the calling thread's network namespace.
    pub(super) fn open() -> Result<Self, Error> {
        let socket = open_socket(NETLINK_ROUTE, "a route netlink socket")?;
        Ok(Self { socket })
    }

    /// A socket in `netns`.
    pub(super) fn open_in(netns: BorrowedFd<'_>) -> Result<Self, Error> {
        inside(netns, Self::open)
    }

    /// The index of interface `name`, if it exists.
    pub(super) fn index(&self, name: &str) -> Result<Option<u32>, Error> {
        match name_to_index(self.socket.as_fd(), name) {
            Ok(index) => Ok(Some(index)),
            Err(Errno::NODEV) => Ok(None),
            Err(error) => Err(Error::io("look up interface", name, error)),
        }
    }

    /// Runs all `requests`, in order. The kernel continues after a refused one; the first refusal is returned.
    pub(super) fn run(&self, requests: Vec<Request>) -> Result<(), Error> {
        let mut names = Vec::with_capacity(requests.len());
        let mut datagram = Vec::with_capacity(1024);
        for (number, request) in requests.into_iter().enumerate() {
            let flags = request.flags | NLM_F_ACK;
            append(&mut datagram, number, flags, request.message);
            names.push((request.operation, request.object));
        }
        let Some((operation, object)) = names.first() else {
            return Ok(());
        };
        self.socket
            .send(&datagram, 0)
            .map_err(|error| Error::io(operation, object, error))?;
        let mut outcome = Ok(());
        for _ in 0..names.len() {
            let answered = self.acknowledgement(&names);
            outcome = outcome.and(answered);
        }
        outcome
    }

    /// Reads up to the next acknowledgement; the answer to a get, which precedes it, is not needed.
    fn acknowledgement(&self, names: &[(&'static str, String)]) -> Result<(), Error> {
        let unreadable = |what: String| {
            let (operation, object) = names[0].clone();
            Error::Answer {
                operation,
                object,
                what,
            }
        };
        let mut buffer = [0u8; 512];
        let answer = loop {
            let length = self.receive(&mut buffer)?;
            if kind(&buffer[..length]) != Some(RTM_NEWLINK) {
                break &buffer[..length];
            }
        };
        let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(answer)
            .map_err(|error| unreadable(error.to_string()))?;
        let number = answer.header.sequence_number as usize;
        let NetlinkPayload::Error(error) = answer.payload else {
            return Err(unreadable(format!(
                "message {} in place of an acknowledgement",
                answer.header.message_type
            )));
        };
        if error.code.is_none() {
            return Ok(());
        }
        let (operation, object) = names.get(number).unwrap_or(&names[0]).clone();
        Err(Error::Netlink {
            operation,
            object,
            explanation: explanation(&error.header),
            source: error.to_io(),
        })
    }

    fn receive(&self, mut buffer: &mut [u8]) -> Result<usize, Error> {
        let flags = rustix::net::RecvFlags::DONTWAIT.bits().cast_signed();
        self.socket
            .recv(&mut buffer, flags)
            .map_err(|error| Error::io("receive from", "a route netlink socket", error))
    }

    /// All interfaces of the namespace.
    pub(super) fn links(&self) -> Result<Vec<Link>, Error> {
        let ask = RouteNetlinkMessage::GetLink(LinkMessage::default());
        self.dump("interfaces", ask, RTM_NEWLINK, link)
    }

    /// All addresses of the namespace's interfaces.
    pub(super) fn addresses(&self) -> Result<Vec<IpAddr>, Error> {
        self.dump_addresses(address)
    }

    /// What `read` makes of each address message of the namespace.
    pub(super) fn dump_addresses<T>(
        &self,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let ask = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        self.dump("addresses", ask, RTM_NEWADDR, read)
    }

    /// Maps every message of `kind` in the answer by `read`.
    fn dump<T>(
        &self,
        object: &str,
        ask: RouteNetlinkMessage,
        kind: u16,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let mut datagram = Vec::new();
        append(&mut datagram, 0, NLM_F_DUMP, ask);
        self.socket
            .send(&datagram, 0)
            .map_err(|error| Error::io("list", object, error))?;
        let mut found = Vec::new();
        let mut buffer = vec![0; RECEIVE_BYTES];
        loop {
            let length = self.receive(&mut buffer)?;
            let mut rest = &buffer[..length];
            while let Some((this, payload, next)) = split(rest) {
                match this {
                    netlink_packet_core::NLMSG_DONE => return Ok(found),
                    this if this == kind => found.extend(read(payload)),
                    other => {
                        let what = format!("message {other} in place of one of type {kind}");
                        return Err(Error::Answer {
                            operation: "list",
                            object: object.to_owned(),
                            what,
                        });
                    }
                }
                rest = next;
            }
        }
    }
}

/// Runs `work` on a thread that enters `netns` and ends afterwards.
pub(super) fn inside<T: Send>(
    netns: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<T, Error> + Send,
) -> Result<T, Error> {
    let enter = || {
        move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))
            .map_err(|error| Error::io("enter", "the pod's network namespace", error))?;
        work()
    };
    thread::scope(|scope| {
        let worker = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, enter)
            .map_err(|error| Error::io("start a thread to enter", "a network namespace", error))?;
        worker
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn append(datagram: &mut Vec<u8>, number: usize, flags: u16, message: RouteNetlinkMessage) {
    let mut header = NetlinkHeader::default();
    header.flags = flags | NLM_F_REQUEST;
    // A datagram has some ten requests.
    header.sequence_number = u32::try_from(number).unwrap_or(u32::MAX);
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let start = datagram.len();
    datagram.resize(start + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(&mut datagram[start..]);
}

/// The kernel's text in an acknowledgement, behind the header of the request.
fn explanation(payload: &[u8]) -> String {
    let attributes = NlasIterator::new(payload.get(NLMSG_HEADER_BYTES..).unwrap_or_default());
    let words = attributes
        .flatten()
        .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG);
    words
        .map(|attribute| text(attribute.value()))
        .unwrap_or_default()
}

/// The type of the first message of a datagram, which may be cut short.
fn kind(datagram: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(datagram.get(4..6)?.try_into().ok()?))
}

/// The first message of a datagram: its type, its payload, and what follows it.
fn split(datagram: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(datagram.get(..4)?.try_into().ok()?) as usize;
    let payload = datagram.get(NLMSG_HEADER_BYTES..length)?;
    Some((
        kind(datagram)?,
        payload,
        datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default(),
    ))
}

/// Reads the few attributes we need. By hand: the packet crate decodes each of some sixty, and
/// refuses an interface as a whole when a newer kernel has a longer one.
fn link(payload: &[u8]) -> Option<Link> {
    let index = u32::from_ne_bytes(payload.get(4..8)?.try_into().ok()?);
    let flags = u32::from_ne_bytes(payload.get(8..12)?.try_into().ok()?);
    let flags = LinkFlags::from_bits_retain(flags);
    let mut link = Link {
        index,
        is_up: flags.contains(LinkFlags::Up),
        is_without_arp: flags.contains(LinkFlags::Noarp),
        ..Link::default()
    };
    for attribute in NlasIterator::new(payload.get(IFINFOMSG_BYTES..)?).flatten() {
        let value = attribute.value();
        match attribute.kind() {
            IFLA_IFNAME => link.name = text(value),
            IFLA_ADDRESS => link.mac = value.to_vec(),
            IFLA_GROUP => link.group = value.try_into().map(u32::from_ne_bytes).unwrap_or_default(),
            IFLA_LINKINFO => {
                let mut info = NlasIterator::new(value).flatten();
                link.is_veth =
                    info.any(|part| part.kind() == IFLA_INFO_KIND && text(part.value()) == "veth");
            }
            _ => {}
        }
    }
    Some(link)
}

/// The interface's own address; the other end's, where only that one was sent.
fn address(payload: &[u8]) -> Option<IpAddr> {
    let (own, other) = address_pair(payload)?;
    own.or(other)
}

/// The address of the interface and that of the other end, as far as the message of an address has them.
pub(super) fn address_pair(payload: &[u8]) -> Option<(Option<IpAddr>, Option<IpAddr>)> {
    let (mut own, mut other) = (None, None);
    for attribute in NlasIterator::new(payload.get(IFADDRMSG_BYTES..)?).flatten() {
        let value = attribute.value();
        let address = match value.len() {
            4 => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
            _ => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
        };
        match attribute.kind() {
            IFA_LOCAL => own = address,
            IFA_ADDRESS => other = address,
            _ => {}
        }
    }
    Some((own, other))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .trim_end_matches('\0')
        .to_owned()
}
