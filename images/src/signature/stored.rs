//! Stored images under the policy of a namespace: the kubelet runs them without a pull if it may.
//!
//! Called by: the daemon, when a container is created. Blocks on the policy's files.
//! Invariants: nothing is fetched; a namespace with a policy of its own runs an image only if a pull has verified what that
//! policy demands, under the name that the pod gives the image; a name from the preload directory needs no signature.
//! Not here: the node's own policy, which every pull was subject to.

use super::rules::{namespace_policy, rules_of};
use crate::error::Error;
use crate::metadata::Record;
use crate::reference::{ImageId, ImageRef};
use crate::store::{Images, Inner};

impl Images {
    /// Whether [`Images::check_stored`] has anything to check.
    pub fn has_namespace_policies(&self) -> bool {
        self.inner.config.signature_policy_dir.is_some()
    }

    /// Whether a pod of `namespace` may run or mount the image `id`, which it calls `name`: a reference; if it is none, any of
    /// the image's own names will do. Blocking.
    ///
    /// Errors: [`Error::Signature`]: the namespace's policy does not accept it, or cannot be read.
    pub fn check_stored(&self, id: &ImageId, name: &str, namespace: &str) -> Result<(), Error> {
        self.inner.check_stored(id, name, namespace)
    }
}

impl Inner {
    fn check_stored(&self, id: &ImageId, name: &str, namespace: &str) -> Result<(), Error> {
        let Some((path, policy)) = namespace_policy(&self.config, namespace)? else {
            return Ok(());
        };
        let record = self.read().images.get(id).map(|(record, _)| record.clone());
        let record = record.ok_or_else(|| Error::NotInStore {
            name: id.to_string(),
        })?;
        let source = path.display().to_string();
        let mut refusal = Error::signature(&source, format!("image {id} has no name"));
        for image in names(&record, name) {
            let judged = rules_of(&path, &policy, &image).and_then(|rules| match rules {
                Some(rules) if !rules.are_met_by(&record, &image) => {
                    let problem = format!(
                        "the stored image {image} was not pulled under this policy, or before it was \
                         signed; pull it again for a pod of this namespace"
                    );
                    Err(Error::signature(&source, problem))
                }
                _ => Ok(()),
            });
            match judged {
                Ok(()) => return Ok(()),
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
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
