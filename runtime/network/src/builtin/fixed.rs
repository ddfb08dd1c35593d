//! A table of nftables whose rules follow from the configuration alone, not from the pods.
//!
//! Called by: [`super::masquerade`], [`super::sources`]. Invariants: the table is written and deleted as a whole; while it is
//! kept, it is written again when another program changed it; the lock is held while it changes, so that no watch brings
//! back what was deleted.
//! Not here: the rules.

use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::error::Error;
use super::super::nft::{Batch, Nft};
use super::super::{NamespaceConfig, create_namespaces};
use super::watch::Watch;

/// The table of one daemon. Dropping it leaves the table as it is.
#[derive(Debug)]
pub(super) struct Fixed(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// All of it, in place of what is there.
    batch: Batch,
    /// `Some` while the table is kept.
    watch: Mutex<Option<Watch>>,
}

impl Fixed {
    /// `batch` replaces the table by one with all its rules. Nothing is written yet.
    pub(super) fn new(batch: Batch) -> Self {
        let watch = Mutex::default();
        Self(Arc::new(Shared { batch, watch }))
    }

    /// Writes the table, unless it is kept already, and keeps it. Errors: the kernel refuses.
    pub(super) fn keep(&self) -> Result<(), Error> {
        let mut held = self.0.lock();
        if held.is_some() {
            return Ok(());
        }
        let shared = Arc::downgrade(&self.0);
        // Started before the table is written, so that no change is missed.
        let watch = Watch::start(self.0.batch.table(), move || {
            shared.upgrade().map_or(Ok(false), |shared| shared.mend())
        })?;
        Nft::open()?.commit(self.0.batch.clone())?;
        *held = Some(watch);
        Ok(())
    }

    /// Deletes the table if `is_unused` says so while nobody can keep it. It may be absent.
    pub(super) fn delete_if(&self, is_unused: impl FnOnce() -> bool) {
        let mut held = self.0.lock();
        if !is_unused() {
            return;
        }
        *held = None;
        let mut batch = Batch::new(self.0.batch.table());
        batch.delete_table();
        if let Err(error) = Nft::open().and_then(|nft| nft.commit(batch)) {
            // It is absent, or this kernel has no nf_tables.
            tracing::debug!(table = self.0.batch.table(), error = %error, "found no table to delete");
        }
    }
}

/// Writes a table in a network namespace that is gone afterwards: whether this kernel takes it. Errors: it does not.
pub(super) fn try_elsewhere(batch: Batch) -> Result<(), Error> {
    let config = NamespaceConfig {
        net: true,
        ..NamespaceConfig::default()
    };
    let made = create_namespaces(config, None)?;
    match made.net {
        Some(netns) => Nft::open_in(netns.as_fd())?.commit(batch),
        None => Ok(()),
    }
}

impl Shared {
    /// Writes the table again if another program flushed or changed it; returns whether that was so.
    fn mend(&self) -> Result<bool, Error> {
        let held = self.lock();
        let nft = Nft::open()?;
        if held.is_none() || nft.rules(self.batch.table())? == self.batch.rules() {
            return Ok(false);
        }
        nft.commit(self.batch.clone())?;
        tracing::warn!(
            table = self.batch.table(),
            "another program changed our nftables table; writing it again"
        );
        Ok(true)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Watch>> {
        // No panic leaves the state half changed.
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
