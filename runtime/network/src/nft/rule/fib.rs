//! Conditions on what the kernel's routes say of a packet.
//!
//! Invariant: a condition costs one lookup in the routing table, however many rules, sets or interfaces there are.
//! Not here: addresses as such.

use super::{Attributes, NFT_CMP_EQ, NFT_CMP_NEQ, NFT_REG32_00, NFTA_DREG, Rule};

// Source: linux/netfilter/nf_tables.h.
const NFTA_FIB_RESULT: u16 = 2;
const NFTA_FIB_FLAGS: u16 = 3;
const NFT_FIB_RESULT_OIF: u32 = 1;
const NFT_FIB_RESULT_OIFNAME: u32 = 2;
const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
const NFTA_FIB_F_SADDR: u32 = 1;
const NFTA_FIB_F_DADDR: u32 = 2;
const NFTA_FIB_F_IIF: u32 = 8;
const NFTA_FIB_F_PRESENT: u32 = 32;
// Source: linux/rtnetlink.h.
const RTN_LOCAL: u32 = 2;

impl Rule {
    /// Only packets to this network namespace itself.
    pub(crate) fn destination_is_local(self) -> Self {
        let loaded = self.fib(NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_DADDR);
        loaded.compare(NFT_CMP_EQ, &RTN_LOCAL.to_ne_bytes())
    }

    /// Only packets whose source is no address of this network namespace.
    pub(crate) fn source_is_not_local(self) -> Self {
        let loaded = self.fib(NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_SADDR);
        loaded.compare(NFT_CMP_NEQ, &RTN_LOCAL.to_ne_bytes())
    }

    /// Only packets whose answers would not leave by the interface that they came in by. The kernel makes an exception of
    /// packets from the unspecified address to multicast groups or everybody. Only in a chain of packets that arrive.
    pub(crate) fn source_is_elsewhere(self) -> Self {
        let flags = NFTA_FIB_F_SADDR | NFTA_FIB_F_IIF | NFTA_FIB_F_PRESENT;
        let loaded = self.fib(NFT_FIB_RESULT_OIF, flags);
        loaded.compare(NFT_CMP_EQ, &0u32.to_ne_bytes())
    }

    /// Only packets whose answers would leave by an interface whose name begins with `prefix`. Only in a chain of packets that
    /// arrive.
    pub(crate) fn source_is_behind(self, prefix: &str) -> Self {
        let loaded = self.fib(NFT_FIB_RESULT_OIFNAME, NFTA_FIB_F_SADDR);
        loaded.compare(NFT_CMP_EQ, prefix.as_bytes())
    }

    fn fib(self, result: u32, flags: u32) -> Self {
        self.expression(
            "fib",
            Attributes::default()
                .number(NFTA_DREG, NFT_REG32_00)
                .number(NFTA_FIB_RESULT, result)
                .number(NFTA_FIB_FLAGS, flags),
        )
    }
}
