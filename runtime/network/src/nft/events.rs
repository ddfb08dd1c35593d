//! Receives events about changes to one table, and counts its rules.
//!
//! Invariants: [`Events::drain`] reports every change of rules, chains, sets or the table once; events lost to an
//! overflow of the socket count as a change; elements of sets do not count, as they change with pods.
//! Not here: reacting to a change.

use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::SocketAddr;

use super::attributes::find;
use super::{
    Attributes, Error, Head, Message, Messages, NFNL_SUBSYS_NFTABLES, NFPROTO_INET, NLM_F_DUMP,
    Nft, RECEIVE_BYTES, append,
};

// Source: linux/netfilter/nfnetlink.h and nf_tables.h, as all below.
const NFNLGRP_NFTABLES: u32 = 7;
const NFT_MSG_GETRULE: u16 = 7;
const NFT_MSG_NEWSETELEM: u16 = 12;
const NFT_MSG_DELSETELEM: u16 = 14;
/// The attribute of the table's name in messages about tables, chains, rules and sets alike.
const NFTA_TABLE: u16 = 1;
/// Bytes of an nfgenmsg.
const FAMILY_HEADER_BYTES: usize = 4;

/// A socket that receives events about one table of the family `inet`. Readable after a change to any table.
pub(crate) struct Events {
    nft: Nft,
    table: String,
}

impl Events {
    /// Listens in the calling thread's network namespace. Errors: the kernel has no nf_tables.
    pub(crate) fn open(table: &str) -> Result<Self, Error> {
        let mut nft = Nft::open()?;
        // The kernel skips sockets without an address.
        nft.socket
            .bind(&SocketAddr::new(0, 0))
            .and_then(|()| nft.socket.add_membership(NFNLGRP_NFTABLES))
            .map_err(|error| Error::io("listen for changes to", table, error))?;
        Ok(Self {
            nft,
            table: table.to_owned(),
        })
    }

    /// Reads all pending events; true if one concerns the table. Does not wait.
    pub(crate) fn drain(&self) -> Result<bool, Error> {
        let mut is_ours = false;
        let mut buffer = vec![0; RECEIVE_BYTES];
        loop {
            match self.nft.receive(&mut buffer) {
                Ok(None) => return Ok(is_ours),
                Ok(Some(length)) => {
                    is_ours |= Messages(&buffer[..length]).any(|event| self.concerns(&event));
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => is_ours = true,
                Err(error) => return Err(error),
            }
        }
    }

    fn concerns(&self, event: &Message<'_>) -> bool {
        let is_element = [NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM]
            .contains(&(event.kind ^ NFNL_SUBSYS_NFTABLES << 8));
        let Some((family, attributes)) = event.payload.split_at_checked(FAMILY_HEADER_BYTES) else {
            return false;
        };
        let name = find(attributes, NFTA_TABLE).and_then(|name| name.strip_suffix(&[0]));
        !is_element && family[0] == NFPROTO_INET && name == Some(self.table.as_bytes())
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.nft.socket.as_fd()
    }
}

impl Nft {
    /// How many rules `table` of the family `inet` has in all its chains; 0 if there is no such table.
    pub(crate) fn rules(&self, table: &str) -> Result<usize, Error> {
        let head = Head {
            kind: NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETRULE,
            flags: NLM_F_DUMP,
            family: NFPROTO_INET,
            ..Head::default()
        };
        let mut message = Vec::new();
        let name = Attributes::default().text(NFTA_TABLE, table);
        append(&mut message, head, name.bytes());
        let mut count = 0;
        self.ask("list", "rules", &message, |_| count += 1)?;
        Ok(count)
    }
}
