//! Verifies digest and size of a stream.
//!
//! Place in the flow: between a registry stream (or a file) and the content store.
//! Invariants: only [`Verifier::finish`] confirms content; a stream that is too long is refused at the first
//! excess byte, not at its end.
//! Not here: network, disk, signature policies.

use sha2::{Digest as _, Sha256};

use crate::error::Error;
use crate::reference::Digest;

/// Digest and size of one blob, being checked.
pub(crate) struct Verifier {
    what: String,
    want: Digest,
    want_bytes: u64,
    seen_bytes: u64,
    hasher: Sha256,
}

impl Verifier {
    /// Starts to check `what` (as named in errors) against `want` and `want_bytes`.
    pub(crate) fn new(what: impl Into<String>, want: Digest, want_bytes: u64) -> Self {
        Self {
            what: what.into(),
            want,
            want_bytes,
            seen_bytes: 0,
            hasher: Sha256::new(),
        }
    }

    /// Takes the next bytes. Errors: [`Error::SizeMismatch`] as soon as there are too many.
    pub(crate) fn update(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.seen_bytes = self.seen_bytes.saturating_add(bytes.len() as u64);
        if self.seen_bytes > self.want_bytes {
            return Err(self.size_mismatch());
        }
        self.hasher.update(bytes);
        Ok(())
    }

    /// How many bytes it has taken.
    pub(crate) fn seen(&self) -> u64 {
        self.seen_bytes
    }

    /// Ends the check. Errors: [`Error::SizeMismatch`], [`Error::DigestMismatch`].
    pub(crate) fn finish(self) -> Result<(), Error> {
        if self.seen_bytes != self.want_bytes {
            return Err(self.size_mismatch());
        }
        let got = Digest::from_hasher(self.hasher);
        if got != self.want {
            return Err(Error::DigestMismatch {
                what: self.what,
                want: self.want,
                got,
            });
        }
        Ok(())
    }

    fn size_mismatch(&self) -> Error {
        Error::SizeMismatch {
            what: self.what.clone(),
            want: self.want_bytes,
            got: self.seen_bytes,
        }
    }
}

/// Checks bytes that are all there.
pub(crate) fn check(what: &str, bytes: &[u8], want: &Digest, want_bytes: u64) -> Result<(), Error> {
    let mut verifier = Verifier::new(what, want.clone(), want_bytes);
    verifier.update(bytes)?;
    verifier.finish()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test panics to fail")]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn wrong_short_and_long_content_is_refused() {
        let want = Digest::of(b"hello");
        check("blob", b"hello", &want, 5).unwrap();
        for (bytes, size) in [
            (&b"hellO"[..], 5),
            (b"hell", 5),
            (b"hello!", 5),
            (b"hello", 4),
            (b"hello", 6),
            (b"", 5),
        ] {
            assert_eq!(
                check("blob", bytes, &want, size).unwrap_err().kind(),
                Kind::Corrupt,
                "{bytes:?} as {size}"
            );
        }
    }

    #[test]
    fn too_long_a_stream_is_refused_at_once() {
        let mut verifier = Verifier::new("blob", Digest::of(b"abc"), 3);
        verifier.update(b"abc").unwrap();
        assert!(matches!(
            verifier.update(b"d"),
            Err(Error::SizeMismatch {
                want: 3,
                got: 4,
                ..
            })
        ));
    }
}
