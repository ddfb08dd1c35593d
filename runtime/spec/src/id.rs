//! Ids of pods and containers: checked once at the edge, then safe as file, cgroup and interface names.
//!
//! Made by the daemon when it creates a pod or container, read back from records and from keepers.
//! Invariant: a value holds exactly 64 lowercase hexadecimal digits; nothing else can be constructed.
//! Not here: what a pod or container is.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text that is no id: what it was, cut to a printable length.
#[derive(Debug, thiserror::Error)]
#[error("{what} id {text:?} is not 64 lowercase hexadecimal digits")]
pub struct BadId {
    what: &'static str,
    text: String,
}

fn check(what: &'static str, text: &str) -> Result<Box<str>, BadId> {
    let good = text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if good {
        return Ok(text.into());
    }
    Err(BadId {
        what,
        text: text.chars().take(80).collect(),
    })
}

fn draw() -> std::io::Result<Box<str>> {
    let mut bytes = [0_u8; 32];
    let mut filled = 0;
    while filled < bytes.len() {
        filled +=
            rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(hex(&bytes).into())
}

/// Lowercase hexadecimal digits of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            /// Draws a new id from the kernel's generator. Errors: getrandom(2) failed.
            pub fn random() -> std::io::Result<Self> {
                draw().map(Self)
            }

            /// The 64 digits; safe as a path component.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The first 13 digits, as `crictl` prints them.
            pub fn short(&self) -> &str {
                &self.0[..13]
            }
        }

        // Its order, hash and equality are those of its text.
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                check($what, text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadId;
            fn try_from(text: String) -> Result<Self, BadId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }
    };
}

id_type!(
    /// The id of a pod sandbox.
    PodId,
    "pod"
);
id_type!(
    /// The id of a container.
    ContainerId,
    "container"
);

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn only_64_lowercase_hex_digits_are_ids() {
        let good = "0123456789abcdef".repeat(4);
        assert_eq!(good.parse::<PodId>().unwrap().as_str(), good);
        for bad in [
            "",
            "../x",
            &good[1..],
            &good.to_uppercase(),
            &format!("{good}0"),
            &"é".repeat(32),
        ] {
            assert!(bad.parse::<ContainerId>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn two_draws_differ() {
        assert_ne!(PodId::random().unwrap(), PodId::random().unwrap());
    }
}
