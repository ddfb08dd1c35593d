//! The bytes of one blob on their way from one host.
//!
//! Place in the flow: made by [`super::Endpoint::blob`], read by the pull. Invariant: a host that sends nothing for the
//! idle timeout ends the stream. Not here: what the bytes should be; the pull checks them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use oci_client::errors::DigestError;
use tokio::time::timeout;

use super::refusal::deepest;
use crate::error::Error;

/// The bytes of a blob, as they come.
pub(crate) struct BlobStream {
    pub(super) stream: BoxStream<'static, Result<Bytes, std::io::Error>>,
    pub(super) registry: String,
    pub(super) what: String,
    pub(super) idle: Duration,
    pub(super) is_given_up: Arc<AtomicBool>,
    pub(super) has_next: bool,
}

impl BlobStream {
    /// Leaves its host out for the rest of this pull; false if there is nobody else to ask.
    pub(crate) fn give_up_host(&self) -> bool {
        if self.has_next {
            self.is_given_up.store(true, Ordering::Relaxed);
        }
        self.has_next
    }

    /// The next bytes; `None` at the end. Errors: the registry stalls or breaks off.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        match timeout(self.idle, self.stream.next()).await {
            Ok(None) => Ok(None),
            Ok(Some(Ok(bytes))) => Ok(Some(bytes)),
            Ok(Some(Err(source))) => Err(self.broken(&source)),
            Err(_) => Err(Error::Stalled {
                registry: self.registry.clone(),
                what: self.what.clone(),
                idle: self.idle,
            }),
        }
    }

    /// The client verifies whole answers itself; its verdict is a mismatch, not a broken connection.
    fn broken(&self, source: &std::io::Error) -> Error {
        let inner = source
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<DigestError>());
        if let Some(DigestError::VerificationError { expected, actual }) = inner
            && let (Ok(want), Ok(got)) = (expected.parse(), actual.parse())
        {
            let what = self.what.clone();
            return Error::DigestMismatch { what, want, got };
        }
        Error::Registry {
            registry: self.registry.clone(),
            what: self.what.clone(),
            problem: format!("it broke off: {}", deepest(source)),
        }
    }
}
