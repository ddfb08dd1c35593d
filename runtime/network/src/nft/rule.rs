//! One rule: conditions, each narrowing the packets that the next one sees, then a verdict or a translation.
//!
//! Written left to right as `nft` prints it: `Rule::default().ipv4().destination(cidr).drop()`.
//! Invariant: a condition on addresses follows [`Rule::ipv4`] or [`Rule::ipv6`], since their offsets
//! differ; ports are matched as nft's `th dport`, so the protocol is a condition of its own.
//! Not here: chains, hooks; conditions on addresses are in `address`, on routes in `fib`, on numbers of connections in `meter`.

mod address;
mod fib;
mod meter;

use std::net::IpAddr;

use super::{Attributes, Hook, Set, Type};

// Source: linux/netfilter/nf_tables.h, as all below.
/// The first of sixteen registers of four bytes.
const NFT_REG32_00: u32 = 8;
const NFT_REG_VERDICT: u32 = 0;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
const NFTA_DREG: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const NFTA_CT_KEY: u16 = 2;
const NFT_META_IIF: u32 = 4;
const NFT_META_OIF: u32 = 5;
const NFT_META_IIFNAME: u32 = 6;
const NFT_META_OIFNAME: u32 = 7;
const NFT_META_NFPROTO: u32 = 15;
const NFT_META_L4PROTO: u32 = 16;
const NFT_META_IIFKIND: u32 = 26;
const NFT_CT_STATE: u32 = 0;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LEN: u16 = 4;
const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;
const NFTA_BITWISE_SREG: u16 = 1;
const NFTA_BITWISE_DREG: u16 = 2;
const NFTA_BITWISE_LEN: u16 = 3;
const NFTA_BITWISE_MASK: u16 = 4;
const NFTA_BITWISE_XOR: u16 = 5;
const NFTA_CMP_SREG: u16 = 1;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFT_CMP_EQ: u32 = 0;
const NFT_CMP_NEQ: u32 = 1;
const NFT_CMP_LTE: u32 = 3;
const NFT_CMP_GTE: u32 = 5;
const NFTA_LOOKUP_SET: u16 = 1;
const NFTA_LOOKUP_SREG: u16 = 2;
const NFTA_LOOKUP_DREG: u16 = 3;
const NFTA_NAT_TYPE: u16 = 1;
const NFTA_NAT_FAMILY: u16 = 2;
const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
const NFTA_NAT_REG_PROTO_MIN: u16 = 5;
const NFT_NAT_SNAT: u32 = 0;
const NFT_NAT_DNAT: u32 = 1;
const NFTA_REJECT_TYPE: u16 = 1;
const NFTA_REJECT_ICMP_CODE: u16 = 2;
const NFT_REJECT_TCP_RST: u32 = 1;
const NFT_REJECT_ICMPX_UNREACH: u32 = 2;
const NFT_REJECT_ICMPX_ADMIN_PROHIBITED: u8 = 3;
const NFT_JUMP: i32 = -3;
const NF_DROP: i32 = 0;
const NF_ACCEPT: i32 = 1;
// Source: linux/netfilter.h.
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
/// Source: linux/netfilter/nf_conntrack_common.h, `NF_CT_STATE_BIT` of established and related, and of new.
const ESTABLISHED_OR_RELATED: u32 = 2 | 4;
const NEW: u32 = 8;

/// Source: RFC 9293 section 3.1: where the flags are in a header, and two of them.
const TCP_FLAGS: u32 = 13;
const SYN: u8 = 2;
const ACK: u8 = 16;

/// Expressions, as they go into a message.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rule(Attributes);

impl Rule {
    /// Only IPv4.
    pub(crate) fn ipv4(self) -> Self {
        self.meta(NFT_META_NFPROTO).equals(&[NFPROTO_IPV4])
    }

    /// Only IPv6.
    pub(crate) fn ipv6(self) -> Self {
        self.meta(NFT_META_NFPROTO).equals(&[NFPROTO_IPV6])
    }

    /// Only the family of `address`.
    pub(crate) fn family_of(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => self.ipv4(),
            IpAddr::V6(_) => self.ipv6(),
        }
    }

    /// Only this transport protocol, by its number.
    pub(crate) fn protocol(self, number: u8) -> Self {
        self.meta(NFT_META_L4PROTO).equals(&[number])
    }

    /// Only packets from interfaces whose names begin with `prefix`, or to such ones, depending on the hook.
    pub(crate) fn interfaces(self, hook: Hook, prefix: &str) -> Self {
        self.meta(interface_name(hook)).equals(prefix.as_bytes())
    }

    /// Only packets from interfaces of this kind, as in `ip link add type KIND`.
    pub(crate) fn interface_kind(self, kind: &str) -> Self {
        let mut name = kind.as_bytes().to_vec();
        name.resize(libc::IFNAMSIZ, 0);
        self.meta(NFT_META_IIFKIND).equals(&name)
    }

    /// Only packets from interfaces whose names begin otherwise, or to such ones, depending on the hook.
    pub(crate) fn other_interfaces(self, hook: Hook, prefix: &str) -> Self {
        let loaded = self.meta(interface_name(hook));
        loaded.compare(NFT_CMP_NEQ, prefix.as_bytes())
    }

    /// Only packets from other interfaces than the one with this index.
    pub(crate) fn not_from_interface(self, index: u32) -> Self {
        let loaded = self.meta(NFT_META_IIF);
        loaded.compare(NFT_CMP_NEQ, &index.to_ne_bytes())
    }

    /// Only packets to the interface with this index.
    pub(crate) fn out_interface(self, index: u32) -> Self {
        self.meta(NFT_META_OIF).equals(&index.to_ne_bytes())
    }

    /// Only packets of established connections and errors about them.
    pub(crate) fn established(self) -> Self {
        self.in_state(ESTABLISHED_OR_RELATED)
    }

    /// Only packets of connections of which nothing has come back yet.
    pub(crate) fn new_connection(self) -> Self {
        self.in_state(NEW)
    }

    fn in_state(self, states: u32) -> Self {
        let loaded = self.expression(
            "ct",
            Attributes::default()
                .number(NFTA_DREG, NFT_REG32_00)
                .number(NFTA_CT_KEY, NFT_CT_STATE),
        );
        loaded
            .masked(&states.to_ne_bytes())
            .compare(NFT_CMP_NEQ, &0u32.to_ne_bytes())
    }

    /// Only packets to ports `first` to `last`.
    pub(crate) fn ports(self, first: u16, last: u16) -> Self {
        let loaded = self.load_port(0);
        match first == last {
            true => loaded.equals(&first.to_be_bytes()),
            false => loaded
                .compare(NFT_CMP_GTE, &first.to_be_bytes())
                .compare(NFT_CMP_LTE, &last.to_be_bytes()),
        }
    }

    /// Only TCP segments that open a connection. Only after [`Rule::protocol`] with TCP.
    pub(crate) fn first_of_tcp(self) -> Self {
        self.payload(NFT_PAYLOAD_TRANSPORT_HEADER, TCP_FLAGS, 1, 0)
            .masked(&[SYN | ACK])
            .equals(&[SYN])
    }

    /// Only ICMPv6 messages of types `first` to `last`.
    pub(crate) fn icmpv6_types(self, first: u8, last: u8) -> Self {
        self.protocol(libc::IPPROTO_ICMPV6 as u8)
            .payload(NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1, 0)
            .compare(NFT_CMP_GTE, &[first])
            .compare(NFT_CMP_LTE, &[last])
    }

    /// DNAT to the value in `map` for its destination (if the key begins with an address), protocol and port.
    pub(crate) fn dnat_by(self, map: Set) -> Self {
        let is_ipv4 = map.value.first() == Some(&Type::Ipv4);
        let words = if is_ipv4 { 1 } else { 4 };
        let has_address = map.key.len() == 3;
        let (loaded, at) = match has_address {
            true => (self.load_address(is_ipv4, false, 0), words),
            false => (self, 0),
        };
        let loaded = loaded.meta_at(NFT_META_L4PROTO, at).load_port(at + 1);
        loaded.look_up(map).expression(
            "nat",
            Attributes::default()
                .number(NFTA_NAT_TYPE, NFT_NAT_DNAT)
                .number(NFTA_NAT_FAMILY, nat_family(is_ipv4))
                .number(NFTA_NAT_REG_ADDR_MIN, NFT_REG32_00)
                .number(NFTA_NAT_REG_PROTO_MIN, NFT_REG32_00 + words),
        )
    }

    /// SNAT to `address`.
    pub(crate) fn snat_to(self, address: IpAddr) -> Self {
        let bytes = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let value = Attributes::default().value(NFTA_DATA_VALUE, &bytes);
        let loaded = self.expression(
            "immediate",
            Attributes::default()
                .number(NFTA_DREG, NFT_REG32_00)
                .nest(2, &value),
        );
        loaded.expression(
            "nat",
            Attributes::default()
                .number(NFTA_NAT_TYPE, NFT_NAT_SNAT)
                .number(NFTA_NAT_FAMILY, nat_family(address.is_ipv4()))
                .number(NFTA_NAT_REG_ADDR_MIN, NFT_REG32_00),
        )
    }

    /// SNAT to the address of the interface that the packet leaves by.
    pub(crate) fn masquerade(self) -> Self {
        self.expression("masq", Attributes::default())
    }

    /// Jumps to `chain`, and continues behind this rule if that gives no verdict.
    pub(crate) fn jump(self, chain: &str) -> Self {
        self.verdict(NFT_JUMP, Some(chain))
    }

    /// Accepts the packet.
    pub(crate) fn accept(self) -> Self {
        self.verdict(NF_ACCEPT, None)
    }

    /// Drops the packet.
    pub(crate) fn drop(self) -> Self {
        self.verdict(NF_DROP, None)
    }

    /// Counts the packet; for [`super::Nft::counted`] the first expression of its rule.
    pub(crate) fn counted(self) -> Self {
        self.expression("counter", Attributes::default())
    }

    /// Rejects the packet with a TCP reset. Only after [`Rule::protocol`] with TCP.
    pub(crate) fn reset(self) -> Self {
        let kind = Attributes::default().number(NFTA_REJECT_TYPE, NFT_REJECT_TCP_RST);
        self.expression("reject", kind)
    }

    /// Rejects the packet with ICMP "administratively prohibited".
    pub(crate) fn reject(self) -> Self {
        self.expression(
            "reject",
            Attributes::default()
                .number(NFTA_REJECT_TYPE, NFT_REJECT_ICMPX_UNREACH)
                .value(NFTA_REJECT_ICMP_CODE, &[NFT_REJECT_ICMPX_ADMIN_PROHIBITED]),
        )
    }

    /// The list of expressions.
    pub(super) fn expressions(&self) -> &Attributes {
        &self.0
    }

    fn expression(self, name: &str, data: Attributes) -> Self {
        let expression = Attributes::default()
            .text(NFTA_EXPR_NAME, name)
            .nest(NFTA_EXPR_DATA, &data);
        Self(self.0.nest(NFTA_LIST_ELEM, &expression))
    }

    fn meta(self, key: u32) -> Self {
        self.meta_at(key, 0)
    }

    /// Loads a fact about the packet into the register `at`.
    fn meta_at(self, key: u32, at: u32) -> Self {
        self.expression(
            "meta",
            Attributes::default()
                .number(NFTA_DREG, NFT_REG32_00 + at)
                .number(NFTA_META_KEY, key),
        )
    }

    /// Loads `length` bytes of the packet into the register `at`.
    fn payload(self, base: u32, offset: u32, length: u32, at: u32) -> Self {
        self.expression(
            "payload",
            Attributes::default()
                .number(NFTA_DREG, NFT_REG32_00 + at)
                .number(NFTA_PAYLOAD_BASE, base)
                .number(NFTA_PAYLOAD_OFFSET, offset)
                .number(NFTA_PAYLOAD_LEN, length),
        )
    }

    /// TCP, UDP and SCTP have the destination port in the same place.
    fn load_port(self, at: u32) -> Self {
        self.payload(NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, at)
    }

    fn equals(self, value: &[u8]) -> Self {
        self.compare(NFT_CMP_EQ, value)
    }

    fn compare(self, operator: u32, value: &[u8]) -> Self {
        let value = Attributes::default().value(NFTA_DATA_VALUE, value);
        self.expression(
            "cmp",
            Attributes::default()
                .number(NFTA_CMP_SREG, NFT_REG32_00)
                .number(NFTA_CMP_OP, operator)
                .nest(NFTA_CMP_DATA, &value),
        )
    }

    fn masked(self, mask: &[u8]) -> Self {
        let value = |bytes: &[u8]| Attributes::default().value(NFTA_DATA_VALUE, bytes);
        self.expression(
            "bitwise",
            Attributes::default()
                .number(NFTA_BITWISE_SREG, NFT_REG32_00)
                .number(NFTA_BITWISE_DREG, NFT_REG32_00)
                .number(NFTA_BITWISE_LEN, mask.len() as u32)
                .nest(NFTA_BITWISE_MASK, &value(mask))
                .nest(NFTA_BITWISE_XOR, &value(&vec![0; mask.len()])),
        )
    }

    /// Only if `set` contains the registers' value; a map's value replaces it.
    fn look_up(self, set: Set) -> Self {
        let mut lookup = Attributes::default()
            .text(NFTA_LOOKUP_SET, set.name)
            .number(NFTA_LOOKUP_SREG, NFT_REG32_00);
        if !set.value.is_empty() {
            lookup = lookup.number(NFTA_LOOKUP_DREG, NFT_REG32_00);
        }
        self.expression("lookup", lookup)
    }

    fn verdict(self, code: i32, chain: Option<&str>) -> Self {
        let mut verdict = Attributes::default().number(NFTA_VERDICT_CODE, code.cast_unsigned());
        if let Some(chain) = chain {
            verdict = verdict.text(NFTA_VERDICT_CHAIN, chain);
        }
        let data = Attributes::default().nest(NFTA_DATA_VERDICT, &verdict);
        self.expression(
            "immediate",
            Attributes::default()
                .number(NFTA_DREG, NFT_REG_VERDICT)
                .nest(2, &data),
        )
    }
}

/// The name of the interface that a packet comes from, or goes to.
fn interface_name(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting | Hook::Input => NFT_META_IIFNAME,
        Hook::Output | Hook::Postrouting => NFT_META_OIFNAME,
    }
}

fn nat_family(is_ipv4: bool) -> u32 {
    u32::from(if is_ipv4 { NFPROTO_IPV4 } else { NFPROTO_IPV6 })
}
