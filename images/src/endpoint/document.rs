//! Documents that are read whole: manifests and indexes.
//!
//! Place in the flow: made by [`super::Endpoint::manifest`], parsed by the pull. Invariants: few large documents are in
//! memory at a time in the whole process, however many pulls there are; a document that came from another host than the
//! one that was asked says nothing of its content in errors. Not here: what a document means.

use bytes::{Bytes, BytesMut};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::wire::{Answer, Bound, Wire, read_until};
use crate::error::Error;

/// A larger document waits for its turn. Bytes; nearly all are far smaller.
const LARGE: u64 = 256 << 10;
/// Large documents in memory at a time, in all pulls.
static PERMITS: Semaphore = Semaphore::const_new(8);

/// The bytes of a manifest or an index.
pub(crate) struct Document {
    pub bytes: Bytes,
    is_elsewhere: bool,
    _permit: Option<SemaphorePermit<'static>>,
}

impl Document {
    /// The error to tell for a document that cannot be used; `what` names it as it was asked for.
    pub(crate) fn withhold(&self, what: impl Into<String>, error: Error) -> Error {
        if !self.is_elsewhere {
            return error;
        }
        tracing::debug!(%error, "told without what was received");
        Error::Withheld { what: what.into() }
    }
}

/// Waits for the turn of a document of `size` bytes, if it is large; it is over when the answer is dropped.
pub(crate) async fn large_document(size: u64) -> Option<SemaphorePermit<'static>> {
    if size <= LARGE {
        return None;
    }
    // Never closed, so an error cannot be.
    PERMITS.acquire().await.ok()
}

/// Reads a document.
pub(super) async fn read(
    wire: &Wire,
    answer: &mut Answer,
    bound: Bound<'_>,
) -> Result<Document, Error> {
    bound.check(answer)?;
    let (mut body, mut permit) = (BytesMut::new(), None);
    let mut is_whole = read_until(wire, answer, bound, &mut body, LARGE.min(bound.allowed)).await?;
    if !is_whole && bound.allowed > LARGE {
        permit = large_document(bound.allowed).await;
        is_whole = read_until(wire, answer, bound, &mut body, bound.allowed).await?;
    }
    if !is_whole {
        return Err(bound.exceeded());
    }
    Ok(Document {
        bytes: body.freeze(),
        is_elsewhere: answer.is_elsewhere,
        _permit: permit,
    })
}
