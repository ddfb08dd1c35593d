//! Reads what rules have counted.
//!
//! Called by: a pod's egress rules, for metrics. Invariant: the kernel lists one chain, however large the table is.
//! Not here: which packets a rule counts.

use super::attributes::find;
use super::{Attributes, Error, Head, NFNL_SUBSYS_NFTABLES, NFPROTO_INET, NLM_F_DUMP, Nft, append};

// Source: linux/netfilter/nf_tables.h, as all below.
const NFT_MSG_GETRULE: u16 = 7;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_COUNTER_PACKETS: u16 = 2;
/// Bytes of an nfgenmsg.
const FAMILY_HEADER_BYTES: usize = 4;

impl Nft {
    /// The packets that those rules of `chain` have counted which begin with a counter; 0 if there is no such table.
    pub(crate) fn counted(&self, table: &str, chain: &str) -> Result<u64, Error> {
        let head = Head {
            kind: NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETRULE,
            flags: NLM_F_DUMP,
            family: NFPROTO_INET,
            ..Head::default()
        };
        let of = Attributes::default()
            .text(NFTA_RULE_TABLE, table)
            .text(NFTA_RULE_CHAIN, chain);
        let mut message = Vec::new();
        append(&mut message, head, of.bytes());
        let mut packets = 0_u64;
        self.ask("list", "rules", &message, |rule| {
            let rule = rule.get(FAMILY_HEADER_BYTES..).unwrap_or_default();
            packets = packets.saturating_add(first_counter(rule).unwrap_or(0));
        })?;
        Ok(packets)
    }
}

/// The packets of the counter that a rule begins with.
fn first_counter(rule: &[u8]) -> Option<u64> {
    let first = find(find(rule, NFTA_RULE_EXPRESSIONS)?, NFTA_LIST_ELEM)?;
    let is_counter = find(first, NFTA_EXPR_NAME)? == b"counter\0";
    let packets = find(find(first, NFTA_EXPR_DATA)?, NFTA_COUNTER_PACKETS)?;
    is_counter.then_some(u64::from_be_bytes(packets.try_into().ok()?))
}
