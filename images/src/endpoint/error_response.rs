//! Maps error responses of a registry to errors of this crate.
//!
//! Called by [`super::Endpoint`]. Invariant: no message repeats the response of a host, except for the error code of
//! the distribution specification. Not here: whether to repeat the request.

use oci_client::errors::{OciEnvelope, OciErrorCode};
use reqwest::Response;

use super::retry_after::retry_after;
use crate::error::Error;

/// One request, for messages.
pub(super) struct RequestInfo<'a> {
    /// The host's name, for messages.
    pub registry: &'a str,
    /// The requested object.
    pub what: &'a str,
    /// Whether credentials were given.
    pub is_anonymous: bool,
}

impl RequestInfo<'_> {
    /// The error for a request without sufficient credentials.
    pub(super) fn unauthorized(&self) -> Error {
        Error::Unauthorized {
            registry: self.registry.to_owned(),
            what: self.what.to_owned(),
            who: if self.is_anonymous {
                "an anonymous client"
            } else {
                "the given credentials"
            },
        }
    }
}

/// The error for a response that is none of success; `body` may hold the error codes of the distribution specification.
pub(super) fn error_for_status(
    request_info: &RequestInfo<'_>,
    response: &Response,
    body: &[u8],
) -> Error {
    let (registry, what) = (
        request_info.registry.to_owned(),
        request_info.what.to_owned(),
    );
    let envelope: Option<OciEnvelope> = serde_json::from_slice(body).ok();
    let code = envelope.and_then(|envelope| envelope.errors.into_iter().next());
    let code = code.map(|error| error.code).filter(is_shown);
    match (response.status().as_u16(), code) {
        (401 | 403, _) | (_, Some(OciErrorCode::Unauthorized | OciErrorCode::Denied)) => {
            request_info.unauthorized()
        }
        (404, _) => Error::NotInRegistry { registry, what },
        (_, Some(code)) if is_absence(&code) => Error::NotInRegistry { registry, what },
        (407, _) => Error::Unreachable {
            registry,
            problem: "the proxy requires another user and password (407)".to_owned(),
        },
        (status, code) => Error::Status {
            registry,
            what,
            status,
            code: code.map(|code| format!("{code:?}")),
            retry_after: retry_after(response.headers()),
        },
    }
}

/// False for what only looks like a code and is a text of the registry.
fn is_shown(code: &OciErrorCode) -> bool {
    let OciErrorCode::Other(text) = code else {
        return true;
    };
    let is_of_code = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    text.len() <= 64 && text.bytes().all(is_of_code)
}

/// True for the codes of absent objects.
fn is_absence(code: &OciErrorCode) -> bool {
    matches!(
        code,
        OciErrorCode::ManifestUnknown
            | OciErrorCode::ManifestBlobUnknown
            | OciErrorCode::NameUnknown
            | OciErrorCode::BlobUnknown
            | OciErrorCode::NotFound
    )
}
