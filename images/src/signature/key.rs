//! Public keys: read from PEM, and what they have signed.
//!
//! Called by: [`super::policy`] to read keys, [`super::payload`] to verify. Pure. The algorithms are those of the TLS library.
//! Invariants: a key verifies only by algorithms of its own type; keys and signatures that cannot be parsed verify nothing.
//! Not here: where keys lie, what was signed.

use std::sync::LazyLock;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer};

use crate::reference::Digest;

/// Tags of DER.
const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;

/// Every algorithm: ECDSA with P-256 and P-384, Ed25519, RSA (PKCS #1 and PSS) with 2048 to 8192 bits.
static ALGORITHMS: LazyLock<&'static [&'static dyn SignatureVerificationAlgorithm]> =
    LazyLock::new(|| {
        let provider = rustls::crypto::ring::default_provider();
        provider.signature_verification_algorithms.all
    });

/// A public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PublicKey {
    /// The content of its `AlgorithmIdentifier`. DER.
    algorithm: Vec<u8>,
    /// The key itself, as its algorithm encodes it.
    key: Vec<u8>,
}

impl PublicKey {
    /// Reads the one `PUBLIC KEY` section of a PEM text. Errors: what is wrong, as the rest of a sentence.
    pub(crate) fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let mut keys = SubjectPublicKeyInfoDer::pem_slice_iter(pem);
        let Some(first) = keys.next() else {
            return Err("it has no PEM section PUBLIC KEY".to_owned());
        };
        if keys.next().is_some() {
            return Err("it has more than one PEM section PUBLIC KEY".to_owned());
        }
        let der = first.map_err(|error| format!("its PEM cannot be read: {error}"))?;
        let key = Self::from_der(&der).ok_or("it is no public key in DER")?;
        if key.algorithms().next().is_none() {
            let problem = "its algorithm is none of ECDSA with P-256 or P-384, Ed25519 and RSA";
            return Err(problem.to_owned());
        }
        Ok(key)
    }

    /// Reads a `SubjectPublicKeyInfo`. Source: RFC 5280, 4.1.
    fn from_der(der: &[u8]) -> Option<Self> {
        let (whole, rest) = element(der, SEQUENCE)?;
        let (algorithm, after) = element(whole, SEQUENCE)?;
        let (bits, end) = element(after, BIT_STRING)?;
        let (unused, key) = bits.split_first()?;
        let is_whole = rest.is_empty() && end.is_empty() && *unused == 0;
        is_whole.then(|| Self {
            algorithm: algorithm.to_vec(),
            key: key.to_vec(),
        })
    }

    /// Identifies it.
    pub(super) fn digest(&self) -> Digest {
        let length = (self.algorithm.len() as u64).to_le_bytes();
        Digest::of(&[&length[..], &self.algorithm, &self.key].concat())
    }

    /// Those that keys of this type verify by.
    fn algorithms(&self) -> impl Iterator<Item = &'static dyn SignatureVerificationAlgorithm> {
        let is_own = |one: &&&'static dyn SignatureVerificationAlgorithm| {
            one.public_key_alg_id().as_ref() == self.algorithm
        };
        ALGORITHMS.iter().filter(is_own).copied()
    }

    /// Whether `signature` is this key's, over `message`.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.algorithms().any(|algorithm| {
            algorithm
                .verify_signature(&self.key, message, signature)
                .is_ok()
        })
    }
}

/// The content of the DER element at the beginning of `bytes`, which must have this tag, and what follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (first, rest) = bytes.split_first()?;
    if *first != tag {
        return None;
    }
    let (length, rest) = match rest.split_first()? {
        (short, rest) if *short < 0x80 => (usize::from(*short), rest),
        (long, rest) => {
            let count = usize::from(*long & 0x7f);
            if !(1..=4).contains(&count) || rest.len() < count {
                return None;
            }
            let (length, rest) = rest.split_at(count);
            let length = length
                .iter()
                .fold(0_usize, |sum, byte| (sum << 8) | usize::from(*byte));
            (length, rest)
        }
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test panics to fail")]
mod tests {
    use super::*;

    /// Made by `openssl genpkey -algorithm ed25519`.
    const ED25519: &[u8] = b"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";

    #[test]
    fn a_key_is_read_and_damaged_ones_are_refused_without_a_panic() {
        let key = PublicKey::from_pem(ED25519).unwrap();
        assert!(!key.verifies(b"message", &[0; 64]));
        assert!(!key.verifies(b"message", b""));
        let der = SubjectPublicKeyInfoDer::from_pem_slice(ED25519).unwrap();
        for length in 0..der.len() {
            assert_eq!(PublicKey::from_der(&der[..length]), None, "{length} bytes");
        }
        for (place, value) in (0..9).flat_map(|place| (0..=255).map(move |value| (place, value))) {
            let mut damaged = der.to_vec();
            if damaged[place] == value {
                continue;
            }
            damaged[place] = value;
            let read = PublicKey::from_der(&damaged);
            assert!(
                read.is_none_or(|read| read.algorithms().next().is_none()),
                "byte {place}"
            );
        }
        assert_eq!(
            PublicKey::from_der(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]),
            None
        );
    }

    #[test]
    fn a_file_has_one_key() {
        for (pem, says) in [
            (Vec::new(), "no PEM section"),
            (ED25519.repeat(2), "more than one"),
            (
                b"-----BEGIN PUBLIC KEY-----\n????\n-----END PUBLIC KEY-----\n".to_vec(),
                "cannot be read",
            ),
            (
                b"-----BEGIN PUBLIC KEY-----\nMAA=\n-----END PUBLIC KEY-----\n".to_vec(),
                "no public key",
            ),
        ] {
            let refused = PublicKey::from_pem(&pem).unwrap_err();
            assert!(refused.contains(says), "{refused} does not say {says}");
        }
    }
}
