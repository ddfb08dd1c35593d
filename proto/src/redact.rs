//! `Debug` for the messages that carry secrets, so that a logged request never shows one.
//!
//! The build script leaves `Debug` out for exactly these messages; any message that holds one of them
//! (`PullImageRequest`, `ContainerConfig`) is safe to print because it prints them through here.
//! Invariant: a secret shows as absent or present, never its bytes nor its length.

use std::fmt;

use crate::nri::v1 as nri;
use crate::runtime::v1::{AuthConfig, KeyValue};

/// What stands in a `Debug` output where a secret is.
struct Redacted {
    is_set: bool,
}

impl fmt::Debug for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_set { "<redacted>" } else { "<unset>" })
    }
}

fn redacted(secret: &str) -> Redacted {
    Redacted {
        is_set: !secret.is_empty(),
    }
}

impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthConfig")
            .field("username", &redacted(&self.username))
            .field("password", &redacted(&self.password))
            .field("auth", &redacted(&self.auth))
            .field("server_address", &self.server_address)
            .field("identity_token", &redacted(&self.identity_token))
            .field("registry_token", &redacted(&self.registry_token))
            .finish()
    }
}

impl fmt::Debug for KeyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyValue")
            .field("key", &self.key)
            .field(
                "value",
                &Redacted {
                    is_set: !self.value.is_empty(),
                },
            )
            .finish()
    }
}

impl fmt::Debug for nri::KeyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyValue")
            .field("key", &self.key)
            .field("value", &redacted(&self.value))
            .finish()
    }
}

/// Only what identifies it: arguments and environment may carry secrets.
impl fmt::Debug for nri::Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Container")
            .field("id", &self.id)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for nri::ConfigureRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigureRequest")
            .field("config", &redacted(&self.config))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::v1::{ContainerConfig, CreateContainerRequest, PullImageRequest};

    fn secrets() -> AuthConfig {
        AuthConfig {
            username: "alice-secret".into(),
            password: "hunter2-secret".into(),
            auth: "YWxpY2U6aHVudGVyMg-secret".into(),
            server_address: "registry.example".into(),
            identity_token: "identity-secret".into(),
            registry_token: "registry-secret".into(),
        }
    }

    #[test]
    fn pull_request_debug_shows_no_credential() {
        let request = PullImageRequest {
            auth: Some(secrets()),
            ..Default::default()
        };
        for shown in [format!("{request:?}"), format!("{request:#?}")] {
            assert!(!shown.contains("secret"), "{shown}");
            assert!(shown.contains("registry.example"), "{shown}");
            assert_eq!(shown.matches("<redacted>").count(), 5, "{shown}");
        }
    }

    #[test]
    fn an_absent_credential_reads_as_unset() {
        let shown = format!("{:?}", AuthConfig::default());
        assert_eq!(shown.matches("<unset>").count(), 5, "{shown}");
    }

    #[test]
    fn create_request_debug_shows_names_of_variables_only() {
        let env = KeyValue {
            key: "DB_PASSWORD".into(),
            value: b"very-secret".to_vec(),
        };
        let request = CreateContainerRequest {
            config: Some(ContainerConfig {
                envs: vec![env],
                ..Default::default()
            }),
            ..Default::default()
        };
        let shown = format!("{request:?}");
        assert!(shown.contains("DB_PASSWORD"), "{shown}");
        assert!(
            !shown.contains("118, 101") && !shown.contains("secret"),
            "{shown}"
        );
    }
}
