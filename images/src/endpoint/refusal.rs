//! What a host refused, in this crate's words.
//!
//! Place in the flow: [`super::Endpoint`] hands over each error of its client. Invariant: no message repeats what a host
//! answered to a request for a token. Not here: whether to ask again.

use oci_client::errors::{DigestError, OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;

use super::Endpoint;
use crate::error::Error;

impl Endpoint {
    /// Our error for the client's.
    pub(super) fn refusal(&self, what: &str, error: OciDistributionError) -> Error {
        use OciDistributionError as Wire;
        let (registry, what) = (self.host().to_owned(), what.to_owned());
        let problem = match error {
            Wire::UnauthorizedError { .. }
            | Wire::AuthenticationFailure(_)
            | Wire::ServerError {
                code: 401 | 403, ..
            } => return self.unauthorized(what),
            Wire::ServerError { code: 404, .. } => return Error::NotInRegistry { registry, what },
            Wire::RegistryError { envelope, .. } => {
                match envelope.errors.first().map(|first| &first.code) {
                    Some(OciErrorCode::Unauthorized | OciErrorCode::Denied) => {
                        return self.unauthorized(what);
                    }
                    Some(code) if is_absence(code) => {
                        return Error::NotInRegistry { registry, what };
                    }
                    code => format!("it answers {code:?}"),
                }
            }
            Wire::DigestError(DigestError::VerificationError { expected, actual }) => {
                return match (expected.parse(), actual.parse()) {
                    (Ok(want), Ok(got)) => Error::DigestMismatch { what, want, got },
                    _ => {
                        Error::invalid(what, format!("it has digest {actual}, expected {expected}"))
                    }
                };
            }
            Wire::ServerError { code, .. } => format!("it answers {code}"),
            Wire::RequestError(source) => deepest(&source),
            other => other.to_string(),
        };
        Error::Registry {
            registry,
            what,
            problem,
        }
    }

    fn unauthorized(&self, what: String) -> Error {
        let who = match self.auth {
            RegistryAuth::Anonymous => "an anonymous client",
            _ => "the given credentials",
        };
        Error::Unauthorized {
            registry: self.host().to_owned(),
            what,
            who,
        }
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
