//! The stream of one blob from one host.
//!
//! Created by [`super::Endpoint::blob`], read by the pull. Invariant: a host that sends nothing for the idle timeout,
//! or less than the minimum rate, ends the stream. Not here: verification, which the pull does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use reqwest::Response;
use reqwest::header::CONTENT_RANGE;
use tokio::time::timeout;

use super::failure::deepest;
use super::throughput::{Throughput, TooSlow, TransferLimits};
use crate::error::Error;
use crate::transfers::Host;

/// What was received of a blob already.
#[derive(Clone, Copy)]
pub(crate) struct Resume<'a> {
    /// The repository that has sent it, as in [`BlobStream::source`].
    pub source: &'a str,
    /// The first byte that is missing.
    pub first: u64,
}

/// The stream of a blob.
pub(crate) struct BlobStream {
    /// The place of its first byte in the blob.
    pub(super) first: u64,
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
    /// Skips its host for the rest of this pull; false if there is no other host.
    pub(crate) fn give_up_host(&self) -> bool {
        if self.has_next {
            self.is_given_up.store(true, Ordering::Relaxed);
        }
        self.has_next
    }

    /// What its host is: the registry itself comes last.
    pub(crate) fn host_kind(&self) -> Host {
        match self.has_next {
            true => Host::Mirror,
            false => Host::Own,
        }
    }

    /// The place of its first byte in the blob: 0, or where a resumed blob goes on.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// The repository that delivers it, with its host: see [`crate::sources`].
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// The error to return for bytes that failed verification: without details if they came from another host.
    pub(crate) fn withhold(&self, error: Error) -> Error {
        match error {
            Error::DigestMismatch { .. } | Error::SizeMismatch { .. } if self.is_elsewhere => {
                tracing::debug!(%error, "error text withheld: the content came from another host");
                Error::Withheld {
                    what: self.what.clone(),
                }
            }
            other => other,
        }
    }

    /// The error for a stream that begins where nobody asked for it.
    pub(crate) fn out_of_place(&self) -> Error {
        Error::Registry {
            registry: self.registry.clone(),
            what: self.what.clone(),
            problem: format!("it sends the blob from byte {} on", self.first),
        }
    }

    /// The next bytes; `None` at the end. Errors: the registry stalls, is too slow or breaks off.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let Some(response) = &mut self.response else {
            return Ok(None);
        };
        let begun = Instant::now();
        match timeout(self.limits.idle, response.chunk()).await {
            Ok(Ok(Some(bytes))) => {
                let counted = self.throughput.count(begun.elapsed(), bytes.len());
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

/// The place of the first byte of a response: 0 for a whole one. `None`: it is a part, and does not say which.
pub(super) fn first_byte(response: &Response) -> Option<u64> {
    if response.status().as_u16() != 206 {
        return Some(0);
    }
    let range = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    let (first, _) = range.trim().strip_prefix("bytes ")?.split_once('-')?;
    first.trim().parse().ok()
}
