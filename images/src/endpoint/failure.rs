//! Why a request has no response: what the HTTP client's error means.
//!
//! Called by: [`super::wire`]. Invariant: each cause that an operator mends in a place of its own has a text of its own.
//! Not here: error responses ([`super::error_response`]).

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use super::address_policy::ForbiddenAddress;
use crate::error::Error;

/// What failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The policy forbids the address.
    Forbidden(String),
    /// Its certificate does not convince.
    Untrusted(String),
    /// No connection in time.
    SlowConnect,
    /// No connection.
    Connect(String),
    /// A connection, but no response.
    Request(String),
}

impl Failure {
    /// Sorts the error of a request.
    pub(super) fn of(error: &reqwest::Error) -> Self {
        if let Some(forbidden) = find::<ForbiddenAddress>(error) {
            return Self::Forbidden(forbidden.to_string());
        }
        if let Some(tls) = find::<rustls::Error>(error) {
            return Self::of_tls(tls);
        }
        let cause = deepest(error);
        if error.is_dns() {
            return Self::Connect(format!("the name does not resolve: {cause}"));
        }
        if !error.is_connect() {
            return if is_tls(error) && is_cut_off(error) {
                Self::Connect(format!(
                    "it ends the connection before it answers ({cause}), as a server may that asks for a client certificate; `client` in its hosts.toml names one to present"
                ))
            } else {
                Self::Request(cause)
            };
        }
        // The text of hyper-util's error, whose type is not public.
        match cause.strip_prefix("tunnel error: ") {
            Some("proxy authorization required") => {
                Self::Connect("the proxy requires another user and password (407)".to_owned())
            }
            Some("unsuccessful") => {
                Self::Connect("the proxy refuses or fails to connect to it".to_owned())
            }
            Some(problem) => Self::Connect(format!("the proxy does not connect to it: {problem}")),
            None if error.is_timeout() => Self::SlowConnect,
            None => Self::Connect(cause),
        }
    }

    fn of_tls(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => {
                Self::Untrusted(error.to_string())
            }
            rustls::Error::InvalidMessage(_) => Self::Connect(format!(
                "it does not speak TLS ({error}); images.plain_http lists registries that are to be used without"
            )),
            rustls::Error::AlertReceived(_) => Self::Connect(format!(
                "it refuses this node in the TLS handshake ({error}); `client` in its hosts.toml names a certificate to present"
            )),
            other => Self::Connect(format!("the TLS handshake fails: {other}")),
        }
    }

    /// The error for `what` at `registry`. `waited`: how long a connection is waited for.
    pub(super) fn into_error(self, registry: &str, what: &str, waited: Duration) -> Error {
        let registry = registry.to_owned();
        let problem = match self {
            Self::Untrusted(problem) => return Error::Untrusted { registry, problem },
            Self::Forbidden(problem) | Self::Request(problem) => {
                let what = what.to_owned();
                return Error::Registry {
                    registry,
                    what,
                    problem,
                };
            }
            Self::SlowConnect => {
                format!("no connection within {} s", waited.as_secs_f32())
            }
            Self::Connect(problem) => problem,
        };
        Error::Unreachable { registry, problem }
    }
}

/// The error for certificates that cannot be used.
pub(super) fn setup_failed(name: &str, error: &reqwest::Error) -> Error {
    Error::invalid(
        format!("certificates for {name}"),
        format!("they cannot be used: {}", deepest(error)),
    )
}

fn is_tls(error: &reqwest::Error) -> bool {
    error.url().is_some_and(|url| url.scheme() == "https")
}

/// The server ended the connection before its answer. In TLS 1.3 it refuses a client's certificate after the client's side of the
/// handshake has ended, and what it says of that is lost if the request goes out meanwhile.
fn is_cut_off(error: &reqwest::Error) -> bool {
    let is_closed = |error: &hyper::Error| error.is_canceled() || error.is_incomplete_message();
    let is_reset = |error: &io::Error| {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        matches!(
            error.kind(),
            BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
        )
    };
    find::<hyper::Error>(error).is_some_and(is_closed)
        || find::<io::Error>(error).is_some_and(is_reset)
}

/// The cause of type `T`, which an I/O error may hold.
fn find<'e, T: StdError + 'static>(error: &'e (dyn StdError + 'static)) -> Option<&'e T> {
    let mut cause = Some(error);
    while let Some(at) = cause {
        if let Some(found) = at.downcast_ref::<T>() {
            return Some(found);
        }
        let held = at.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        cause = match held {
            Some(held) => Some(held as &(dyn StdError + 'static)),
            None => at.source(),
        };
    }
    None
}

/// The innermost cause in one line: `Connection refused (os error 111)` says more than `error sending request`.
pub(super) fn deepest(error: &dyn StdError) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
