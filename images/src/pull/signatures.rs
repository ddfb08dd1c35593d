//! The signature policy in a pull.
//!
//! Called by: the pull, when it knows the digests of the image and before it fetches a blob. Invariant: an image from a
//! registry that the policy does not accept costs no blob and leaves nothing. Images of archives are not checked: root and its
//! group import them.
//! Not here: policies, signatures ([`crate::signature`]).

use std::collections::BTreeMap;

use super::{Origin, Pull, Resolved};
use crate::error::Error;
use crate::metadata::Record;
use crate::record::Facts;
use crate::reference::Target;

impl Pull {
    /// What a successful check has shown, for the image's record.
    pub(super) fn proven(&self, facts: Facts) -> BTreeMap<String, Facts> {
        let image = self.names.references.first();
        let image = image.filter(|_| !facts.is_empty());
        image
            .map(|image| (image.to_string(), facts))
            .into_iter()
            .collect()
    }

    /// The same as earlier builds look for it.
    pub(super) fn verified(&self, facts: &Facts) -> Facts {
        match (&self.demands.rules, self.names.references.first()) {
            (Some(rules), Some(image)) if !facts.is_empty() => rules.earlier_facts(image),
            _ => Facts::new(),
        }
    }

    /// Marks the names of a new record that only the policy of a namespace has accepted.
    pub(super) fn mark_names(&self, record: &mut Record) {
        if self.demands.is_of_namespace {
            record.of_namespace = record.tags.union(&record.digests).cloned().collect();
        }
    }

    /// What the signatures show, if the policy wants some. A large manifest is not kept in memory meanwhile: pulls that hold
    /// one and wait for another would wait for each other.
    ///
    /// Errors: the signatures do not satisfy the policy; the registry does not deliver them.
    pub(super) async fn check_signatures(&self, resolved: &mut Resolved) -> Result<Facts, Error> {
        let (Some(rules), Origin::Registry(registry)) = (&self.demands.rules, &self.origin) else {
            return Ok(Facts::new());
        };
        let Some(image) = self.names.references.first() else {
            return Ok(Facts::new());
        };
        let large = resolved.document.take_if(|document| document.is_large());
        let is_needed = large.is_some() && self.kept(resolved).is_some();
        drop(large);
        let mut digests = vec![resolved.top.clone(), resolved.digest.clone()];
        digests.dedup();
        let limits = &self.inner.config.limits;
        let facts = rules.check(registry, image, &digests, limits).await?;
        if is_needed {
            let again = Target::Digest(resolved.digest.clone());
            resolved.document = Some(self.fetch_document(&again).await?);
        }
        Ok(facts)
    }
}
