//! Bodies that are read into memory, each with a limit.
//!
//! Called by: [`super::Endpoint`], [`super::token`] and [`super::document`]. Invariant: no body is read beyond its limit, nor
//! at all if it promises to exceed it. Not here: blobs, which are streamed.

use bytes::{Bytes, BytesMut};

use super::failure::deepest;
use super::wire::{Answer, Wire};
use crate::error::Error;

/// Reads a whole body. Errors: [`Error::Limit`] as soon as it exceeds its limit, [`Error::Registry`].
pub(super) async fn read_bounded(
    wire: &Wire,
    answer: &mut Answer,
    bound: Bound<'_>,
) -> Result<Bytes, Error> {
    let mut body = BytesMut::new();
    bound.check(answer)?;
    match read_until(wire, answer, bound, &mut body, bound.allowed).await? {
        true => Ok(body.freeze()),
        false => Err(bound.exceeded()),
    }
}

/// The limit of a body.
#[derive(Clone, Copy)]
pub(super) struct Bound<'a> {
    /// The object, for messages.
    pub what: &'a str,
    /// The limit's name.
    pub limit: &'static str,
    /// Bytes.
    pub allowed: u64,
}

impl Bound<'_> {
    pub(super) fn exceeded(self) -> Error {
        Error::Limit {
            what: self.what.to_owned(),
            limit: self.limit,
            allowed: self.allowed,
        }
    }

    /// Errors: the Content-Length exceeds the limit.
    pub(super) fn check(self, answer: &Answer) -> Result<(), Error> {
        match answer.response.content_length() {
            Some(promised) if promised > self.allowed => Err(self.exceeded()),
            _ => Ok(()),
        }
    }
}

/// Reads until the end of the body (true), or until there are more than `until` bytes (false).
pub(super) async fn read_until(
    wire: &Wire,
    answer: &mut Answer,
    bound: Bound<'_>,
    body: &mut BytesMut,
    until: u64,
) -> Result<bool, Error> {
    while let Some(chunk) = answer
        .response
        .chunk()
        .await
        .map_err(|error| Error::Registry {
            registry: wire.name().to_owned(),
            what: bound.what.to_owned(),
            problem: format!("it broke off: {}", deepest(&error)),
        })?
    {
        body.extend_from_slice(&chunk);
        if body.len() as u64 > until {
            return Ok(false);
        }
    }
    Ok(true)
}
