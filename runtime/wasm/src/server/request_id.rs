//! The ids of requests: the client's own, or one that is made here.
//!
//! Called by [`super::requests`] where the settings ask for ids. Invariant: an id is short and plain, so that it cannot be
//! taken for the rest of a line or for another line.
//! Not here: where ids are written.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderName, HeaderValue, Request};

use crate::random;

/// The header that carries an id, by a habit of proxies and meshes.
const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id of a client's that is kept; proxies send UUIDs.
const MAX_BYTES: usize = 64;

/// The id of one request.
pub(super) type RequestId = Arc<str>;

/// Makes ids that no other server has.
pub(super) struct RequestIds {
    next: AtomicU64,
}

impl RequestIds {
    /// Begins anywhere.
    pub(super) fn new() -> Self {
        let mut first = [0; 8];
        random::fill(&mut first);
        Self {
            next: AtomicU64::new(u64::from_le_bytes(first)),
        }
    }

    /// The id that `request` came with, or else a new one, which the guest finds in the header.
    pub(super) fn of<B>(&self, request: &mut Request<B>) -> RequestId {
        let own = request
            .headers()
            .get(HEADER)
            .and_then(|id| id.to_str().ok());
        if let Some(own) = own.filter(|id| is_plain(id)) {
            return own.into();
        }
        let made = format!("{:016x}", self.next.fetch_add(1, Ordering::Relaxed));
        if let Ok(value) = HeaderValue::from_str(&made) {
            request.headers_mut().insert(HEADER, value);
        }
        made.into()
    }
}

fn is_plain(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    (1..=MAX_BYTES).contains(&id.len()) && id.bytes().all(plain)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn only_plain_ids_are_kept() {
        let ids = RequestIds::new();
        let id = |text: &str| {
            let mut request = Request::builder().header(HEADER, text).body(()).unwrap();
            let id = ids.of(&mut request);
            assert_eq!(request.headers()[HEADER], *id, "{text:?}");
            id.to_string()
        };
        let uuid = "6f1c2a4e-0b7d-4c39-9a55-3f0e7a1d2b48";
        assert_eq!(id(uuid), uuid);
        for odd in ["", "two words", "a\u{e9}", "\"", &"x".repeat(65)] {
            let made = id(odd);
            assert!(made.len() == 16 && made != id(odd), "{odd:?}");
        }
        let mut without = Request::new(());
        assert_eq!(ids.of(&mut without).len(), 16);
    }
}
