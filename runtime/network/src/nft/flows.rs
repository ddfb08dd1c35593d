//! Deletes stale entries from the kernel's connection tracking table (conntrack).
//!
//! A UDP sender that never pauses keeps its entry alive: a flow from before a host port existed would bypass the pod
//! for ever, and a flow that outlives the pod would reach the next pod with its address.
//! An entry of an established TCP connection stays for days after its pod.
//! Invariant: what is held of a listing is bounded, however long it is: anybody outside can fill the table.
//! Not here: which entries are stale.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::attributes::find;
use super::{Attributes, Error, Head, NFNL_SUBSYS_CTNETLINK, NLM_F_ACK, NLM_F_DUMP, Nft, append};

// Source: linux/netfilter/nfnetlink_conntrack.h.
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
/// The source address. Source: net/netfilter/nf_internals.h, `CTA_FILTER_F_CTA_IP_SRC`.
const OF_SOURCE: u32 = 1;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
/// Bytes of an nfgenmsg.
const FAMILY_HEADER_BYTES: usize = 4;
const NLA_F_NESTED: u16 = 1 << 15;
/// Entries that are deleted by one datagram: if all are refused, their errors fit the socket.
const AT_A_TIME: usize = 64;

/// One entry of the connection table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    /// The source of its first packet.
    pub(crate) caller: IpAddr,
    /// Transport protocol, by its number.
    pub(crate) protocol: u8,
    /// The destination of its first packet.
    pub(crate) target: IpAddr,
    /// The destination port; 0 for protocols without ports.
    pub(crate) port: u16,
    /// The source of answers: where the first packet was delivered.
    pub(crate) answers: IpAddr,
}

/// Deletes every entry for which `is_stale` is true, and returns how many. An entry may expire meanwhile. In the calling
/// thread's network namespace.
pub(crate) fn forget_flows(is_stale: impl Fn(&Flow) -> bool) -> Result<usize, Error> {
    let mut message = Vec::new();
    // Both families at once: the kernel walks its whole table, which takes some milliseconds.
    append(&mut message, head(IPCTNL_MSG_CT_GET, NLM_F_DUMP, 0), &[]);
    let mut stale = Stale::new()?;
    Nft::open()?.ask("list", "connections", &message, |entry| {
        let Some((header, attributes)) = entry.split_at_checked(FAMILY_HEADER_BYTES) else {
            return;
        };
        if flow(attributes).is_some_and(|flow| is_stale(&flow)) {
            stale.add(header[0], &key(attributes));
        }
    })?;
    stale.finish()
}

/// Deletes every entry of a connection that one of `addresses` began, or that was delivered to it, in the calling thread's
/// network namespace.
pub(crate) fn forget_addresses(addresses: &[IpAddr]) -> Result<(), Error> {
    let ends_at = |flow: &Flow| {
        [flow.caller, flow.answers]
            .iter()
            .any(|end| addresses.contains(end))
    };
    let mut is_listed = addresses.iter().any(IpAddr::is_ipv6);
    for address in addresses {
        if let IpAddr::V4(address) = address {
            is_listed |= !forget_by_filter(*address)?;
        }
    }
    if is_listed {
        forget_flows(ends_at)?;
    }
    Ok(())
}

/// Has the kernel choose and delete the entries of an address. False if it cannot: before Linux 6.8 it takes the request for
/// one entry's name, which lacks the ports. Not for IPv6: what the kernel compares there it takes for equal when it differs,
/// and deletes everybody else's (net/netfilter/nf_conntrack_netlink.c: ctnetlink_filter_match_tuple, since Linux 5.8).
fn forget_by_filter(address: Ipv4Addr) -> Result<bool, Error> {
    let directions = [
        (CTA_TUPLE_ORIG, CTA_FILTER_ORIG_FLAGS),
        (CTA_TUPLE_REPLY, CTA_FILTER_REPLY_FLAGS),
    ];
    let nft = Nft::open()?;
    for (tuple, flags) in directions {
        let mut message = Vec::new();
        let head = head(IPCTNL_MSG_CT_DELETE, NLM_F_ACK, libc::AF_INET as u8);
        append(&mut message, head, from(address, tuple, flags).bytes());
        match nft.ask("forget", "connections", &message, |_| {}) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(false),
            done => done?,
        }
    }
    Ok(true)
}

/// Chooses entries one of whose two directions begins at `address`.
fn from(address: Ipv4Addr, tuple: u16, flags: u16) -> Attributes {
    let source = Attributes::default().value(CTA_IP_V4_SRC, &address.octets());
    let tuple_ip = Attributes::default().nest(CTA_TUPLE_IP, &source);
    // Unlike other numbers of netfilter, in the machine's order.
    let fields = Attributes::default().value(flags, &OF_SOURCE.to_ne_bytes());
    Attributes::default()
        .nest(tuple, &tuple_ip)
        .nest(CTA_FILTER, &fields)
}

/// Entries that are to be deleted, some at a time, while others are still being listed.
struct Stale {
    nft: Nft,
    /// The requests for the next ones.
    requests: Vec<u8>,
    count: usize,
    /// The first refusal.
    failed: Option<Error>,
}

impl Stale {
    fn new() -> Result<Self, Error> {
        Ok(Self {
            nft: Nft::open()?,
            requests: Vec::new(),
            count: 0,
            failed: None,
        })
    }

    fn add(&mut self, family: u8, key: &Attributes) {
        append(
            &mut self.requests,
            head(IPCTNL_MSG_CT_DELETE, 0, family),
            key.bytes(),
        );
        self.count += 1;
        if self.count.is_multiple_of(AT_A_TIME) {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let requests = std::mem::take(&mut self.requests);
        if requests.is_empty() || self.failed.is_some() {
            return;
        }
        self.failed = self.nft.tell("forget", "connections", &requests).err();
    }

    /// Deletes the last ones; returns how many there were.
    fn finish(mut self) -> Result<usize, Error> {
        self.flush();
        self.failed.map_or(Ok(self.count), Err)
    }
}

fn head(message: u16, flags: u16, family: u8) -> Head {
    Head {
        kind: NFNL_SUBSYS_CTNETLINK << 8 | message,
        flags,
        family,
        ..Head::default()
    }
}

fn flow(entry: &[u8]) -> Option<Flow> {
    let original = find(entry, CTA_TUPLE_ORIG)?;
    let protocol = find(original, CTA_TUPLE_PROTO)?;
    let port = find(protocol, CTA_PROTO_DST_PORT).and_then(|port| port.try_into().ok());
    Some(Flow {
        caller: address(original, CTA_IP_V4_SRC, CTA_IP_V6_SRC)?,
        protocol: *find(protocol, CTA_PROTO_NUM)?.first()?,
        target: address(original, CTA_IP_V4_DST, CTA_IP_V6_DST)?,
        port: port.map(u16::from_be_bytes).unwrap_or_default(),
        answers: address(find(entry, CTA_TUPLE_REPLY)?, CTA_IP_V4_SRC, CTA_IP_V6_SRC)?,
    })
}

fn address(tuple: &[u8], v4: u16, v6: u16) -> Option<IpAddr> {
    let ip = find(tuple, CTA_TUPLE_IP)?;
    let octets = |kind| find(ip, kind);
    match octets(v4) {
        Some(octets) => Some(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?).into()),
        None => Some(Ipv6Addr::from(<[u8; 16]>::try_from(octets(v6)?).ok()?).into()),
    }
}

/// What identifies an entry: its tuple, its zone, and its id, so that no later entry is meant.
fn key(entry: &[u8]) -> Attributes {
    let parts = [CTA_TUPLE_ORIG | NLA_F_NESTED, CTA_ZONE, CTA_ID];
    parts.into_iter().fold(Attributes::default(), |key, kind| {
        match find(entry, kind & !NLA_F_NESTED) {
            Some(value) => key.value(kind, value),
            None => key,
        }
    })
}
