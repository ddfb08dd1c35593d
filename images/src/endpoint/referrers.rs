//! The referrers of a manifest: what other manifests say that they are about it.
//!
//! Called by: [`crate::registry`]. Source: the distribution specification 1.1, "Listing Referrers". Only the first page is
//! read. Not here: the tag of registries without this API, what the referrers are.

use reqwest::Method;

use super::body::Bound;
use super::document::{self, Document};
use super::{Call, Endpoint};
use crate::error::Error;
use crate::manifest::OCI_INDEX;
use crate::reference::Digest;

impl Endpoint {
    /// The index of all manifests that refer to `digest`, of at most `allowed` bytes. Errors: `NotInRegistry` if the host does
    /// not have this API.
    pub(crate) async fn referrers(&self, digest: &Digest, allowed: u64) -> Result<Document, Error> {
        let what = format!("referrers of {digest}");
        let path = format!("referrers/{digest}");
        self.retry(&what, || {
            self.within(&what, async {
                let call = Call::new(Method::GET, &path, &[OCI_INDEX]);
                let mut answer = self.get(call, &what).await?;
                let bound = Bound {
                    what: &what,
                    limit: "max_manifest_bytes",
                    allowed,
                };
                document::read(&self.wire, &mut answer, bound).await
            })
        })
        .await
    }
}
