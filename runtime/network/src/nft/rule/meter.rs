//! Conditions on how many connections there are.
//!
//! Invariant: they belong behind the kernel's tracking of connections (a chain of a priority above -200) and make it track
//! those of the whole network namespace.
//! Not here: who is counted, and the set.

use super::super::{Set, Type};
use super::{
    Attributes, NFT_META_IIF, NFT_REG32_00, NFTA_DREG, NFTA_EXPR_DATA, NFTA_EXPR_NAME, Rule,
};

// Source: linux/netfilter/nf_tables.h, as all below.
const NFTA_CT_KEY: u16 = 2;
const NFT_CT_ID: u32 = 23;
const NFTA_DYNSET_SET_NAME: u16 = 1;
const NFTA_DYNSET_OP: u16 = 3;
const NFTA_DYNSET_SREG_KEY: u16 = 4;
const NFTA_DYNSET_EXPR: u16 = 7;
const NFT_DYNSET_OP_ADD: u32 = 0;
const NFTA_CONNLIMIT_COUNT: u16 = 1;
const NFTA_CONNLIMIT_FLAGS: u16 = 2;
const NFT_CONNLIMIT_F_INV: u32 = 1;

impl Rule {
    /// Only a connection for which there are `most` others already with the same key in `counts`: the remainder of the
    /// connection's number by `parts`, a power of two, and, if the key has it, the index of the interface that the packet came
    /// in by. Others are counted until they end. The kernel walks the connections of one key for each new one, so `most` is
    /// what that costs.
    pub(crate) fn beyond(self, counts: Set, parts: u32, most: u32) -> Self {
        let number = self.expression(
            "ct",
            Attributes::default()
                .number(NFTA_DREG, NFT_REG32_00)
                .number(NFTA_CT_KEY, NFT_CT_ID),
        );
        let part = number.masked(&(parts - 1).to_ne_bytes());
        let key = match counts.key.contains(&Type::Interface) {
            true => part.meta_at(NFT_META_IIF, 1),
            false => part,
        };
        let limit = Attributes::default()
            .number(NFTA_CONNLIMIT_COUNT, most)
            .number(NFTA_CONNLIMIT_FLAGS, NFT_CONNLIMIT_F_INV);
        let counter = Attributes::default()
            .text(NFTA_EXPR_NAME, "connlimit")
            .nest(NFTA_EXPR_DATA, &limit);
        key.expression(
            "dynset",
            Attributes::default()
                .text(NFTA_DYNSET_SET_NAME, counts.name)
                .number(NFTA_DYNSET_OP, NFT_DYNSET_OP_ADD)
                .number(NFTA_DYNSET_SREG_KEY, NFT_REG32_00)
                .nest(NFTA_DYNSET_EXPR, &counter),
        )
    }

    /// Keeps the kernel from tracking the packet's connection. Only in a chain that comes before that, at priority raw.
    pub(crate) fn untracked(self) -> Self {
        self.expression("notrack", Attributes::default())
    }
}
