//! Single-use tokens: what CRI was asked for, until the client comes for it.
//!
//! Used by: [`super::server`] (issue) and [`super::http`] (redeem). Invariants: 128 bits of the kernel's; a token opens
//! one session at most, within [`LIFE`]; whoever shows one, for whatever, has used it; at most [`MOST`] are out.
//! Not here: URLs.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{Wish, base64};

/// How long a token waits for its client.
const LIFE: Duration = Duration::from_secs(60);
/// Most tokens that wait at a time.
const MOST: usize = 1000;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// As many as may be are waiting.
    #[error("{MOST} streaming sessions wait for their clients; each gives up after {} s", LIFE.as_secs())]
    TooMany,
    /// The kernel gave no random bytes.
    #[error("draw a token")]
    Draw(#[source] std::io::Error),
}

/// The tokens that wait for their clients.
#[derive(Default)]
pub struct Tokens(Mutex<HashMap<String, (Wish, Instant)>>);

impl Tokens {
    /// A token for `wish`.
    pub fn issue(&self, wish: Wish) -> Result<String, Refused> {
        let token = draw().map_err(Refused::Draw)?;
        let now = Instant::now();
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= MOST {
            waiting.retain(|_, (_, end)| *end > now);
        }
        if waiting.len() >= MOST {
            return Err(Refused::TooMany);
        }
        waiting.insert(token.clone(), (wish, now + LIFE));
        Ok(token)
    }

    /// What `token` was issued for, once.
    pub fn redeem(&self, token: &str) -> Option<Wish> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (wish, end) = waiting.remove(token)?;
        (Instant::now() < end).then_some(wish)
    }
}

fn draw() -> std::io::Result<String> {
    let mut bytes = [0_u8; 16];
    let mut filled = 0;
    while filled < bytes.len() {
        filled +=
            rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(base64::url(&bytes))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use coracle_runtime::id::PodId;

    use super::*;
    use crate::streaming::ForwardWish;

    fn wish() -> Wish {
        let pod = PodId::random().unwrap();
        Wish::Forward(ForwardWish {
            pod,
            ports: vec![80],
        })
    }

    #[tokio::test]
    async fn a_token_is_good_once() {
        let (tokens, wish) = (Tokens::default(), wish());
        let token = tokens.issue(wish.clone()).unwrap();
        assert_eq!(token.len(), 22);
        assert_eq!(tokens.redeem("AAAAAAAAAAAAAAAAAAAAAA"), None);
        assert_eq!(tokens.redeem(&token), Some(wish));
        assert_eq!(tokens.redeem(&token), None);
    }

    #[tokio::test]
    async fn old_ones_are_worth_nothing_and_make_room() {
        let tokens = Tokens::default();
        let first = tokens.issue(wish()).unwrap();
        for _ in 1..MOST {
            tokens.issue(wish()).unwrap();
        }
        assert!(matches!(tokens.issue(wish()), Err(Refused::TooMany)));
        for (_, end) in tokens.0.lock().unwrap().values_mut() {
            *end = Instant::now();
        }
        let fresh = tokens.issue(wish()).unwrap();
        assert_eq!(tokens.0.lock().unwrap().len(), 1);
        let mut waiting = tokens.0.lock().unwrap();
        waiting.get_mut(&fresh).unwrap().1 = Instant::now();
        drop(waiting);
        assert_eq!((tokens.redeem(&first), tokens.redeem(&fresh)), (None, None));
    }
}
