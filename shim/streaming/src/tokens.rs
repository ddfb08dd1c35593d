//! Single-use tokens for sessions that wait for their clients.
//!
//! Called by: [`super::server`] (issue) and [`super::http`] (redeem). Invariants: a token is 128 random bits; it opens
//! one session at most, within [`LIFETIME`], and every attempt uses it up; at most [`MAX_TOKENS`] exist.
//! Must not know: URLs.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{Session, base64};

/// How long a token is valid.
const LIFETIME: Duration = Duration::from_secs(60);
/// Most valid tokens at a time.
const MAX_TOKENS: usize = 1000;

/// Why no token was issued.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// `MAX_TOKENS` sessions already wait for their clients.
    #[error("{MAX_TOKENS} streaming sessions wait for their clients; each gives up after {} s", LIFETIME.as_secs())]
    TooMany,
    /// The kernel gave no random bytes.
    #[error("get random bytes for a token")]
    Random(#[source] std::io::Error),
}

/// The tokens that wait for their clients.
#[derive(Default)]
pub struct Tokens(Mutex<HashMap<String, (Session, Instant)>>);

impl Tokens {
    /// Issues a token for `session`. Errors: too many exist, or the kernel has no random bytes.
    pub fn issue(&self, session: Session) -> Result<String, Refused> {
        let token = random_token().map_err(Refused::Random)?;
        let now = Instant::now();
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= MAX_TOKENS {
            waiting.retain(|_, (_, end)| *end > now);
        }
        if waiting.len() >= MAX_TOKENS {
            return Err(Refused::TooMany);
        }
        waiting.insert(token.clone(), (session, now + LIFETIME));
        Ok(token)
    }

    /// Redeems `token`: returns its session, once.
    pub fn redeem(&self, token: &str) -> Option<Session> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (session, end) = waiting.remove(token)?;
        (Instant::now() < end).then_some(session)
    }
}

fn random_token() -> std::io::Result<String> {
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
    use super::*;
    use crate::Forward;

    fn session() -> Session {
        Session::Forward(Forward::new("a pod", vec![80], |_| {
            Box::pin(async { Err("nothing listens".into()) })
        }))
    }

    #[tokio::test]
    async fn a_token_opens_one_session() {
        let tokens = Tokens::default();
        let token = tokens.issue(session()).unwrap();
        assert_eq!(token.len(), 22);
        assert!(tokens.redeem("AAAAAAAAAAAAAAAAAAAAAA").is_none());
        let Some(Session::Forward(redeemed)) = tokens.redeem(&token) else {
            panic!("the token opens another session");
        };
        assert_eq!((redeemed.target(), redeemed.ports()), ("a pod", &[80][..]));
        assert!(tokens.redeem(&token).is_none());
    }

    #[tokio::test]
    async fn expired_tokens_are_refused_and_removed() {
        let tokens = Tokens::default();
        let first = tokens.issue(session()).unwrap();
        for _ in 1..MAX_TOKENS {
            tokens.issue(session()).unwrap();
        }
        assert!(matches!(tokens.issue(session()), Err(Refused::TooMany)));
        for (_, end) in tokens.0.lock().unwrap().values_mut() {
            *end = Instant::now();
        }
        let fresh = tokens.issue(session()).unwrap();
        assert_eq!(tokens.0.lock().unwrap().len(), 1);
        let mut waiting = tokens.0.lock().unwrap();
        waiting.get_mut(&fresh).unwrap().1 = Instant::now();
        drop(waiting);
        assert!(tokens.redeem(&first).is_none() && tokens.redeem(&fresh).is_none());
    }
}
