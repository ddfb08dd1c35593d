//! The signature policy in a pull.
//!
//! Called by: the pull, when it knows the digests of the image and before it fetches a blob. Invariant: an image from a
//! registry that the policy does not accept costs no blob and leaves nothing. Images of archives are not checked: root and its
//! group import them.
//! Not here: policies, signatures ([`crate::signature`]).

use std::collections::BTreeSet;

use super::{Origin, Pull, Resolved};
use crate::error::Error;
use crate::metadata::Record;
use crate::reference::Digest;

impl Pull {
    /// What a successful check has shown, for the image's record.
    pub(super) fn verified(&self) -> BTreeSet<Digest> {
        match (&self.demands.rules, self.names.references.first()) {
            (Some(rules), Some(image)) => rules.facts(image),
            _ => BTreeSet::new(),
        }
    }

    /// Marks the names of a new record that only the policy of a namespace has accepted.
    pub(super) fn mark_names(&self, record: &mut Record) {
        if self.demands.is_of_namespace {
            record.of_namespace = record.tags.union(&record.digests).cloned().collect();
        }
    }

    /// Errors: the signatures do not satisfy the policy; the registry does not deliver them.
    pub(super) async fn check_signatures(&self, resolved: &Resolved) -> Result<(), Error> {
        let (Some(rules), Origin::Registry(registry)) = (&self.demands.rules, &self.origin) else {
            return Ok(());
        };
        let Some(image) = self.names.references.first() else {
            return Ok(());
        };
        let mut digests = vec![resolved.top.clone(), resolved.digest.clone()];
        digests.dedup();
        rules
            .check(registry, image, &digests, &self.inner.config.limits)
            .await
    }
}
