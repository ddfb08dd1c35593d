//! The credentials of a pull.
//!
//! Called by: whoever pulls. Invariant: they are never printed. Not here: which host may see them.

use std::fmt;

/// Credentials for a registry. `Debug` and `Display` show no secret.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Credentials {
    /// A user name and a password, for basic authentication or a token request.
    Basic {
        /// The user's name.
        username: String,
        /// The password.
        password: String,
    },
    /// A token for the registry, used unchanged.
    Bearer(String),
    /// An identity token, as `docker login` stores it: a refresh token that the registry's realm gives tokens for.
    Identity(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic(redacted)",
            Self::Bearer(_) => "Bearer(redacted)",
            Self::Identity(_) => "Identity(redacted)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_print_no_secret() {
        let basic = Credentials::Basic {
            username: "canary-user".into(),
            password: "canary-pass".into(),
        };
        let shown = format!(
            "{basic:?} {:?} {:?}",
            Credentials::Bearer("canary-token".into()),
            Credentials::Identity("canary-identity".into())
        );
        assert!(!shown.contains("canary"), "{shown}");
    }
}
