//! Records which repository has delivered which blob, to check access to stored content.
//!
//! The pull adds a source when a blob has arrived and its digest is verified, and reads them before it uses stored
//! content; the store keeps the sources with its records.
//! Invariants: a repository is a source of a blob only if it has sent all of its bytes; a HEAD response is not enough.
//! A source is no permission: it must still let the credentials of a pull read the blob. Losing a source only costs a
//! transfer.
//! Not here: credentials, requests.

use std::collections::BTreeSet;

use crate::error::Error;
use crate::metadata::Change;
use crate::reference::Digest;
use crate::store::Inner;

/// Sources per blob; pulls from further repositories transfer it each time.
const MAX_SOURCES: usize = 64;

impl Inner {
    /// The repositories that have delivered this blob.
    pub(crate) fn sources(&self, blob: &Digest) -> BTreeSet<String> {
        self.read().sources.get(blob).cloned().unwrap_or_default()
    }

    /// `source` has sent all bytes of `blob`. On disk with the next image that names it.
    pub(crate) fn add_source(&self, blob: &Digest, source: &str) {
        let mut index = self.write();
        let sources = index.sources.entry(blob.clone()).or_default();
        if sources.len() < MAX_SOURCES {
            sources.insert(source.to_owned());
        }
    }

    /// Drops the sources of blobs that no stored content comes from. Blocking. The caller holds the writer's lock.
    pub(crate) fn forget_sources(&self) -> Result<(), Error> {
        // A blob that arrives later is pinned by its pull.
        let stored = self.blobs.stored_blobs()?.into_iter();
        let gone: Vec<Digest> = {
            let (pinned, mut index) = (self.lock_pins(), self.write());
            let layers = index.layers.values().map(|layer| layer.blob.clone());
            let used: BTreeSet<Digest> = stored.chain(layers).collect();
            let is_used = |blob: &Digest| used.contains(blob) || pinned.contains_key(blob);
            let gone: Vec<Digest> = index
                .sources
                .keys()
                .filter(|blob| !is_used(blob))
                .cloned()
                .collect();
            index.sources.retain(|blob, _| is_used(blob));
            gone
        };
        self.metadata.commit(&Change {
            drop_sources: gone,
            ..Change::default()
        })
    }
}
