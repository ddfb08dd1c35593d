//! Stored images under the policy of a namespace: the kubelet runs them without a pull if it may.
//!
//! Called by: the daemon, when a container is created. Blocks on the policy's files.
//! Invariants: nothing is fetched; a namespace with a policy of its own runs an image only if a pull has verified what that
//! policy demands, under the name that the pod gives the image; so does every other namespace, by the node's policy, if the
//! image has come by that name only under the policy of a namespace; a name from the preload directory needs no signature.
//! Not here: changes of the node's policy, which an image meets when it is pulled again.

use std::path::Path;

use super::files::{namespace_policy, node_policy};
use super::policy::Policy;
use super::rules::rules_of;
use crate::error::Error;
use crate::metadata::Record;
use crate::reference::{ImageId, ImageRef};
use crate::store::{Images, Inner};

impl Images {
    /// Whether [`Images::check_stored`] may have anything to check.
    pub fn has_signature_policies(&self) -> bool {
        let config = &self.inner.config;
        config.signature_policy_dir.is_some() || config.signature_policy.is_some()
    }

    /// Whether a pod of `namespace` may run or mount the image `id`, which it calls `name`: a reference; if it is none, any of
    /// the image's own names will do. Blocking.
    ///
    /// Errors: [`Error::Signature`]: the policy for pods of the namespace does not accept it, or cannot be read.
    pub fn check_stored(&self, id: &ImageId, name: &str, namespace: &str) -> Result<(), Error> {
        self.inner.check_stored(id, name, namespace)
    }
}

impl Inner {
    fn check_stored(&self, id: &ImageId, name: &str, namespace: &str) -> Result<(), Error> {
        let mut found = namespace_policy(&self.config, namespace)?;
        let is_own = found.is_some();
        let record = self.read().images.get(id).map(|(record, _)| record.clone());
        let record = record.ok_or_else(|| Error::NotInStore {
            name: id.to_string(),
        })?;
        if !is_own && !record.of_namespace.is_empty() {
            found = node_policy(&self.config)?;
        }
        let Some((path, policy)) = found else {
            return Ok(());
        };
        let problem = format!("image {id} has no name");
        let mut refusal = Error::signature(&path.display().to_string(), problem);
        for image in names(&record, name) {
            if !is_own && record.is_of_node(&image.to_string()) {
                return Ok(());
            }
            match judge(&path, &policy, &record, &image) {
                Ok(()) => return Ok(()),
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }
}

/// Errors: no pull has shown what the policy demands of the image under this name.
fn judge(path: &Path, policy: &Policy, record: &Record, image: &ImageRef) -> Result<(), Error> {
    match rules_of(path, policy, image)? {
        Some(rules) if !rules.are_met_by(record, image) => {
            let problem = format!(
                "the stored image {image} was not pulled under this policy, or before it was signed; \
                 pull it again for a pod of this namespace"
            );
            Err(Error::signature(&path.display().to_string(), problem))
        }
        _ => Ok(()),
    }
}

/// The names by which the policy judges an image: the pod's, or all that the image has.
fn names(record: &Record, name: &str) -> Vec<ImageRef> {
    let is_id = name.parse::<ImageId>().is_ok();
    match name.parse::<ImageRef>() {
        Ok(reference) if !is_id => vec![reference],
        _ => {
            let all = record.tags.iter().chain(&record.digests);
            all.filter_map(|name| name.parse().ok()).collect()
        }
    }
}
