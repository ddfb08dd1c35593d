//! Where an image comes from: a registry, or an archive of this node.
//!
//! Called by: the pull and its fetches. Invariant: nothing of an origin is trusted; the pull verifies digests and limits.
//! Not here: requests, the formats of archives.

use std::sync::Arc;

use crate::archive::Archive;
use crate::blobs::blocking;
use crate::endpoint::{Document, large_document};
use crate::error::Error;
use crate::reference::Target;
use crate::registry::Registry;

/// Where documents and blobs come from.
pub(crate) enum Origin {
    /// A registry and its mirrors.
    Registry(Registry),
    /// An archive of images, unpacked.
    Archive(Arc<Archive>),
}

impl Origin {
    /// The name of the archive, if it is one.
    pub(super) fn archive(&self) -> Option<String> {
        match self {
            Self::Registry(_) => None,
            Self::Archive(archive) => Some(archive.name().to_owned()),
        }
    }

    /// The hosts that have answered, or the archive.
    pub(super) fn source(&self) -> String {
        match self {
            Self::Registry(registry) => registry.answered(),
            Self::Archive(archive) => archive.name().to_owned(),
        }
    }

    /// Fetches a manifest or an index of at most `allowed` bytes. If `target` is a digest, the caller must verify it.
    pub(super) async fn manifest(&self, target: &Target, allowed: u64) -> Result<Document, Error> {
        let archive = match self {
            Self::Registry(registry) => return registry.manifest(target, allowed).await,
            Self::Archive(archive) => archive.clone(),
        };
        let Target::Digest(digest) = target.clone() else {
            let problem = format!("its images are found by digest, not by {target}");
            return Err(Error::invalid(archive.name(), problem));
        };
        let (own, wanted) = (archive.clone(), digest.clone());
        let measure = move || own.document_size(&wanted);
        let size = blocking("looking at a document of an archive", measure).await?;
        let permit = large_document(size.min(allowed)).await;
        let read = move || archive.document(&digest, allowed);
        let bytes = blocking("reading a document of an archive", read).await?;
        Ok(Document::local(bytes, permit))
    }
}
