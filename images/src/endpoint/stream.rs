//! The bytes of one blob on their way from one host.
//!
//! Place in the flow: made by [`super::Endpoint::blob`], read by the pull. Invariant: a host that sends nothing for the
//! idle timeout, or less than the least rate, ends the stream. Not here: what the bytes should be; the pull checks them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use reqwest::Response;
use tokio::time::timeout;

use super::error_response::deepest;
use super::throughput::{Throughput, TooSlow, TransferLimits};
use crate::error::Error;

/// The bytes of a blob, as they come.
pub(crate) struct BlobStream {
    /// `None` for a blob without bytes.
    pub(super) response: Option<Response>,
    pub(super) registry: String,
    pub(super) what: String,
    pub(super) limits: TransferLimits,
    pub(super) throughput: Throughput,
    pub(super) is_given_up: Arc<AtomicBool>,
    pub(super) has_next: bool,
    pub(super) is_elsewhere: bool,
    pub(super) source: String,
}

impl BlobStream {
    /// Leaves its host out for the rest of this pull; false if there is nobody else to ask.
    pub(crate) fn give_up_host(&self) -> bool {
        if self.has_next {
            self.is_given_up.store(true, Ordering::Relaxed);
        }
        self.has_next
    }

    /// The repository that delivers it, with its host: see [`crate::sources`].
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// The error to tell for bytes that are not what they should be: of what another host sent, nothing is told.
    pub(crate) fn withhold(&self, error: Error) -> Error {
        match error {
            Error::DigestMismatch { .. } | Error::SizeMismatch { .. } if self.is_elsewhere => {
                tracing::debug!(%error, "told without what was received");
                Error::Withheld {
                    what: self.what.clone(),
                }
            }
            other => other,
        }
    }

    /// The next bytes; `None` at the end. Errors: the registry stalls, drips or breaks off.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let Some(response) = &mut self.response else {
            return Ok(None);
        };
        let asked = Instant::now();
        match timeout(self.limits.idle, response.chunk()).await {
            Ok(Ok(Some(bytes))) => {
                let counted = self.throughput.count(asked.elapsed(), bytes.len());
                counted.map_err(|slow| self.too_slow(&slow))?;
                Ok(Some(bytes))
            }
            Ok(Ok(None)) => Ok(None),
            Ok(Err(source)) => Err(Error::Registry {
                registry: self.registry.clone(),
                what: self.what.clone(),
                problem: format!("it broke off: {}", deepest(&source)),
            }),
            Err(_) => Err(Error::Stalled {
                registry: self.registry.clone(),
                what: self.what.clone(),
                idle: self.limits.idle,
            }),
        }
    }

    fn too_slow(&self, slow: &TooSlow) -> Error {
        Error::Slow {
            registry: self.registry.clone(),
            what: self.what.clone(),
            received: slow.received,
            waited: slow.waited,
            min_rate: self.limits.min_rate,
        }
    }
}
