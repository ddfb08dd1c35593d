//! Documents that are read into memory: manifests and indexes.
//!
//! Created by [`super::Endpoint::manifest`], parsed by the pull. Invariants: the number of large documents in memory
//! is bounded for the whole process; errors do not show the content of a document that came from a host to which the
//! registry redirected. Not here: parsing.

use bytes::{Bytes, BytesMut};
use reqwest::header::CONTENT_TYPE;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::body::{Bound, read_until};
use super::wire::{Answer, Wire};
use crate::error::Error;

/// A larger document waits for a permit. Bytes; nearly all are far smaller.
const LARGE: u64 = 256 << 10;
/// Large documents in memory at a time, in all pulls.
static PERMITS: Semaphore = Semaphore::const_new(8);

/// The bytes of a manifest or an index.
pub(crate) struct Document {
    pub bytes: Bytes,
    /// What it was sent as: the media type alone, in lower case.
    pub content_type: Option<String>,
    is_elsewhere: bool,
    permit: Option<SemaphorePermit<'static>>,
}

impl Document {
    /// A document of this node.
    pub(crate) fn local(bytes: Vec<u8>, permit: Option<SemaphorePermit<'static>>) -> Self {
        Self {
            bytes: bytes.into(),
            content_type: None,
            is_elsewhere: false,
            permit,
        }
    }

    /// Whether it has one of the permits that others wait for.
    pub(crate) fn is_large(&self) -> bool {
        self.permit.is_some()
    }

    /// The error to return for a document that cannot be used: without its content if it came from another host.
    pub(crate) fn withhold(&self, what: impl Into<String>, error: Error) -> Error {
        if !self.is_elsewhere {
            return error;
        }
        tracing::debug!(%error, "error text withheld: the content came from another host");
        Error::Withheld { what: what.into() }
    }
}

/// Waits for a permit for a document of `size` bytes, if it is large.
pub(crate) async fn large_document(size: u64) -> Option<SemaphorePermit<'static>> {
    if size <= LARGE {
        return None;
    }
    // The semaphore is never closed, so this cannot fail.
    PERMITS.acquire().await.ok()
}

/// What the body is sent as: the media type alone, in lower case.
pub(super) fn content_type(answer: &Answer) -> Option<String> {
    let sent = answer.response.headers().get(CONTENT_TYPE)?;
    let kind = sent.to_str().ok()?.split(';').next()?;
    Some(kind.trim().to_ascii_lowercase())
}

/// Reads a document.
pub(super) async fn read(
    wire: &Wire,
    answer: &mut Answer,
    bound: Bound<'_>,
) -> Result<Document, Error> {
    bound.check(answer)?;
    let content_type = content_type(answer);
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
        content_type,
        is_elsewhere: answer.is_elsewhere,
        permit,
    })
}
