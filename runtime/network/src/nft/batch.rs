//! A batch: messages about one table, which the kernel applies or refuses together.
//!
//! Invariant: an object that may be absent is added before it is deleted, which works on kernels before 6.3, too.
//! Not here: sockets, the expressions of rules.

use super::{Attributes, Head, NFNL_SUBSYS_NFTABLES, NFPROTO_INET, NLM_F_ACK, Rule, append};

// Source: linux/netfilter/nfnetlink.h.
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
// Source: linux/netlink.h.
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
// Source: linux/netfilter/nf_tables.h, as all below.
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_NEWSET: u16 = 9;
const NFT_MSG_NEWSETELEM: u16 = 12;
const NFT_MSG_DELSETELEM: u16 = 14;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_KEY_TYPE: u16 = 4;
const NFTA_SET_KEY_LEN: u16 = 5;
const NFTA_SET_DATA_TYPE: u16 = 6;
const NFTA_SET_DATA_LEN: u16 = 7;
const NFTA_SET_ID: u16 = 10;
const NFTA_SET_DESC: u16 = 9;
const NFTA_SET_DESC_SIZE: u16 = 1;
const NFT_SET_MAP: u32 = 8;
const NFT_SET_EVAL: u32 = 32;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
/// Elements a message: a list of them is one attribute, of less than 64 KiB.
const ELEMENTS_A_MESSAGE: usize = 500;

/// The type of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Verdicts on every packet.
    Filter,
    /// Translation, decided at a connection's first packet.
    Nat,
}

/// The hook of a base chain. Source: linux/netfilter.h, `enum nf_inet_hooks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    /// Packets that arrive.
    Prerouting = 0,
    /// Packets to this network namespace itself, when their addresses have been translated.
    Input = 1,
    /// Packets that this node sends.
    Output = 3,
    /// Packets that leave.
    Postrouting = 4,
}

/// The parameters of a base chain; a chain without them is only a jump target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Base {
    /// Its type.
    pub(crate) kind: Kind,
    /// Its hook.
    pub(crate) hook: Hook,
    /// Its priority: lower runs first.
    pub(crate) priority: i32,
    /// Its policy: whether packets without a verdict are accepted.
    pub(crate) accepts: bool,
}

/// One field of a set's keys or values. Only its size matters to the kernel; the number is nft's, for `nft list`.
/// Source: nftables, include/datatype.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    /// An IPv4 address.
    Ipv4 = 7,
    /// An IPv6 address.
    Ipv6 = 8,
    /// A transport protocol.
    Protocol = 12,
    /// A port.
    Port = 13,
    /// A number.
    Mark = 19,
    /// The index of an interface.
    Interface = 20,
}

impl Type {
    /// Bytes that it takes in a register, a multiple of four.
    fn bytes(self) -> u32 {
        match self {
            Self::Ipv6 => 16,
            Self::Ipv4 | Self::Protocol | Self::Port | Self::Mark | Self::Interface => 4,
        }
    }
}

/// A set, or with values a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Set {
    /// Its name.
    pub(crate) name: &'static str,
    /// The fields of a key.
    pub(crate) key: &'static [Type],
    /// The fields of a value; none for a set.
    pub(crate) value: &'static [Type],
}

/// A key, and a value if it is a map's. Both as [`concat`] gives them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Element {
    /// The key.
    pub(crate) key: Vec<u8>,
    /// The value; empty in a set.
    pub(crate) value: Vec<u8>,
}

/// Joins fields, each padded to four bytes, as registers hold them.
pub(crate) fn concat(fields: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(fields.len() * 16);
    for field in fields {
        bytes.extend(*field);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// One message, with the text for its error.
#[derive(Clone, Copy)]
struct Step(u16, u16, &'static str);

/// Messages about one table of the family `inet`, with the text for the error of each.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    table: String,
    messages: Vec<(u16, u16, Attributes)>,
    names: Vec<(&'static str, String)>,
    sets: u32,
}

impl Batch {
    /// An empty one about `table`.
    pub(crate) fn new(table: &str) -> Self {
        Self {
            table: table.to_owned(),
            messages: Vec::new(),
            names: Vec::new(),
            sets: 0,
        }
    }

    /// The table's name.
    pub(crate) fn table(&self) -> &str {
        &self.table
    }

    /// Adds the table, unless it is there.
    pub(crate) fn add_table(&mut self) {
        let name = Attributes::default().text(NFTA_TABLE_NAME, &self.table);
        let step = Step(NFT_MSG_NEWTABLE, NLM_F_CREATE, "add table");
        self.push(step, "", name);
    }

    /// Makes the table empty, whether or not it existed.
    pub(crate) fn renew_table(&mut self) {
        self.add_table();
        self.delete_table();
        self.add_table();
    }

    /// Deletes the table with its content. The batch fails if there is none.
    pub(crate) fn delete_table(&mut self) {
        let name = Attributes::default().text(NFTA_TABLE_NAME, &self.table);
        self.push(Step(NFT_MSG_DELTABLE, 0, "delete table"), "", name);
    }

    /// Adds a chain.
    pub(crate) fn add_chain(&mut self, name: &str, base: Option<Base>) {
        let mut chain = Attributes::default()
            .text(NFTA_CHAIN_TABLE, &self.table)
            .text(NFTA_CHAIN_NAME, name);
        if let Some(base) = base {
            let hook = Attributes::default()
                .number(NFTA_HOOK_HOOKNUM, base.hook as u32)
                .number(NFTA_HOOK_PRIORITY, base.priority.cast_unsigned());
            let kind = match base.kind {
                Kind::Filter => "filter",
                Kind::Nat => "nat",
            };
            chain = chain
                .nest(NFTA_CHAIN_HOOK, &hook)
                .number(NFTA_CHAIN_POLICY, u32::from(base.accepts))
                .text(NFTA_CHAIN_TYPE, kind);
        }
        let step = Step(NFT_MSG_NEWCHAIN, NLM_F_CREATE, "add chain");
        self.push(step, name, chain);
    }

    /// Appends a rule to `chain`.
    pub(crate) fn add_rule(&mut self, chain: &str, rule: &Rule) {
        let rule = Attributes::default()
            .text(NFTA_RULE_TABLE, &self.table)
            .text(NFTA_RULE_CHAIN, chain)
            .nest(NFTA_RULE_EXPRESSIONS, rule.expressions());
        let flags = NLM_F_CREATE | NLM_F_APPEND;
        let step = Step(NFT_MSG_NEWRULE, flags, "add a rule to chain");
        self.push(step, chain, rule);
    }

    /// How many rules are added.
    pub(crate) fn rules(&self) -> usize {
        let is_rule = |(kind, _, _): &&(u16, u16, Attributes)| *kind == NFT_MSG_NEWRULE;
        self.messages.iter().filter(is_rule).count()
    }

    /// Adds a set or a map.
    pub(crate) fn add_set(&mut self, set: Set) {
        let flags = if set.value.is_empty() { 0 } else { NFT_SET_MAP };
        self.add_set_as(set, flags, Attributes::default());
    }

    /// Adds a set whose elements come and go by rules that count; `most` of them.
    pub(crate) fn add_counting_set(&mut self, set: Set, most: u32) {
        let size = Attributes::default().number(NFTA_SET_DESC_SIZE, most);
        let described = Attributes::default().nest(NFTA_SET_DESC, &size);
        self.add_set_as(set, NFT_SET_EVAL, described);
    }

    fn add_set_as(&mut self, set: Set, flags: u32, described: Attributes) {
        // Type numbers of a concatenation: six bits each. Source: nftables, TYPE_BITS.
        let number = |types: &[Type]| types.iter().fold(0, |sum, kind| sum << 6 | *kind as u32);
        let bytes = |types: &[Type]| types.iter().map(|kind| kind.bytes()).sum();
        self.sets += 1;
        let mut attributes = described
            .text(NFTA_SET_TABLE, &self.table)
            .text(NFTA_SET_NAME, set.name)
            .number(NFTA_SET_FLAGS, flags)
            .number(NFTA_SET_KEY_TYPE, number(set.key))
            .number(NFTA_SET_KEY_LEN, bytes(set.key))
            .number(NFTA_SET_ID, self.sets);
        if !set.value.is_empty() {
            attributes = attributes
                .number(NFTA_SET_DATA_TYPE, number(set.value))
                .number(NFTA_SET_DATA_LEN, bytes(set.value));
        }
        let step = Step(NFT_MSG_NEWSET, NLM_F_CREATE, "add set");
        self.push(step, set.name, attributes);
    }

    /// Adds elements to a set. An element that exists with the same value is no error.
    pub(crate) fn add_elements(&mut self, set: Set, elements: &[Element]) {
        let step = Step(NFT_MSG_NEWSETELEM, NLM_F_CREATE, "add elements to set");
        self.elements(step, set, elements);
    }

    /// Deletes elements from a set. The batch fails if one is absent.
    pub(crate) fn delete_elements(&mut self, set: Set, elements: &[Element]) {
        let step = Step(NFT_MSG_DELSETELEM, 0, "delete elements of set");
        self.elements(step, set, elements);
    }

    fn elements(&mut self, step: Step, set: Set, elements: &[Element]) {
        let value = |bytes: &[u8]| Attributes::default().value(NFTA_DATA_VALUE, bytes);
        for some in elements.chunks(ELEMENTS_A_MESSAGE) {
            let mut list = Attributes::default();
            for element in some {
                let mut one = Attributes::default().nest(NFTA_SET_ELEM_KEY, &value(&element.key));
                if !element.value.is_empty() {
                    one = one.nest(NFTA_SET_ELEM_DATA, &value(&element.value));
                }
                list = list.nest(NFTA_LIST_ELEM, &one);
            }
            let attributes = Attributes::default()
                .text(NFTA_SET_ELEM_LIST_TABLE, &self.table)
                .text(NFTA_SET_ELEM_LIST_SET, set.name)
                .nest(NFTA_SET_ELEM_LIST_ELEMENTS, &list);
            self.push(step, set.name, attributes);
        }
    }

    fn push(&mut self, Step(kind, flags, operation): Step, object: &str, attributes: Attributes) {
        let object = match object {
            "" => self.table.clone(),
            object => format!("{object} of table {}", self.table),
        };
        self.names.push((operation, object));
        self.messages.push((kind, flags, attributes));
    }

    /// The datagram, and operation and object for each sequence number in it. Only the last message requests an
    /// acknowledgement, so that they do not fill the socket; errors come without a request.
    pub(super) fn finish(self) -> (Vec<u8>, Vec<(&'static str, String)>) {
        let mut datagram = Vec::with_capacity(4096);
        let mark = |kind| Head {
            kind,
            sequence: u32::MAX,
            resource: NFNL_SUBSYS_NFTABLES,
            ..Head::default()
        };
        append(&mut datagram, mark(NFNL_MSG_BATCH_BEGIN), &[]);
        let last = self.messages.len().saturating_sub(1);
        for (number, (kind, flags, attributes)) in self.messages.iter().enumerate() {
            let head = Head {
                kind: NFNL_SUBSYS_NFTABLES << 8 | kind,
                flags: flags | if number == last { NLM_F_ACK } else { 0 },
                sequence: number as u32,
                family: NFPROTO_INET,
                resource: 0,
            };
            append(&mut datagram, head, attributes.bytes());
        }
        append(&mut datagram, mark(NFNL_MSG_BATCH_END), &[]);
        (datagram, self.names)
    }
}
