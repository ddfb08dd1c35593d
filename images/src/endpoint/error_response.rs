//! What a host refused, in this crate's words.
//!
//! Place in the flow: [`super::Endpoint`] hands over each answer that is not what was asked for. Invariant: no message
//! repeats what a host answered, but the registry's own error code. Not here: whether to ask again.

use oci_client::errors::{OciEnvelope, OciErrorCode};
use reqwest::StatusCode;

use crate::error::Error;

/// Who asked whom for what.
pub(super) struct RequestInfo<'a> {
    /// The host's name, for messages.
    pub registry: &'a str,
    /// What was asked for.
    pub what: &'a str,
    /// Whether credentials were given.
    pub is_anonymous: bool,
}

impl RequestInfo<'_> {
    /// The registry does not let them in.
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

/// Our error for an answer of this status; `body` may hold the error codes of the distribution specification.
pub(super) fn error_for_status(
    request_info: &RequestInfo<'_>,
    status: StatusCode,
    body: &[u8],
) -> Error {
    let (registry, what) = (
        request_info.registry.to_owned(),
        request_info.what.to_owned(),
    );
    let envelope: Option<OciEnvelope> = serde_json::from_slice(body).ok();
    let code = envelope.and_then(|envelope| envelope.errors.into_iter().next());
    let code = code.map(|error| error.code);
    match (status.as_u16(), code) {
        (401 | 403, _) | (_, Some(OciErrorCode::Unauthorized | OciErrorCode::Denied)) => {
            request_info.unauthorized()
        }
        (404, _) => Error::NotInRegistry { registry, what },
        (_, Some(code)) if is_absence(&code) => Error::NotInRegistry { registry, what },
        (status, Some(code)) => Error::Registry {
            registry,
            what,
            problem: format!("it answers {status} ({code:?})"),
        },
        (status, None) => Error::Registry {
            registry,
            what,
            problem: format!("it answers {status}"),
        },
    }
}

/// True for the codes that say: there is no such thing.
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

/// The innermost cause in one line: `Connection refused (os error 111)` says more than `error sending request`.
pub(super) fn deepest(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
