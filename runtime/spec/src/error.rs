//! The error of the runtime crates: the operation, its object, and how a caller may react.
//!
//! Created at the call that knows the operation; the daemon maps it to a gRPC code.
//! Invariant: every error carries a [`Kind`]; the text names the operation and the object.
//! Not here: gRPC, log output.

use std::fmt;
use std::io;

/// How a caller may react to an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The object does not exist.
    Missing,
    /// The request is invalid; repeating it will not help.
    Invalid,
    /// The object is in the wrong phase for the request.
    WrongPhase,
    /// A resource of the node is exhausted.
    Exhausted,
    /// A container's jail could not be built or its program not be loaded.
    StartFailed,
    /// The other side did not answer in time.
    Deadline,
    /// The process on the other side is gone.
    Gone,
    /// The node or this build does not support it.
    Unsupported,
    /// The kernel refused an operation.
    Io,
    /// An invariant of Coracle is violated.
    Bug,
}

/// An error of the runtime: operation and object in `text`, the cause in `source`.
pub struct Error {
    kind: Kind,
    text: Box<str>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error without a cause below it.
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into().into(),
            source: None,
        }
    }

    /// An error caused by another one.
    pub fn with(
        kind: Kind,
        text: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            kind,
            text: text.into().into(),
            source: Some(source.into()),
        }
    }

    /// How a caller may react.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The whole cause chain on one line: `a: b: c`.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// An error with its causes on one line: `a: b: c`.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.chain())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source
            .as_deref()
            .map(|e| e as &(dyn std::error::Error + 'static))
    }
}

/// Names the operation and object of a kernel call that failed.
pub trait Context<T> {
    /// Wraps the failure; ENOSPC, EDQUOT, ENOMEM and the fd limits become [`Kind::Exhausted`].
    fn during(self, text: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn during(self, text: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| {
            let cause: io::Error = e.into();
            Error::with(kind_of(&cause), text(), cause)
        })
    }
}

fn kind_of(cause: &io::Error) -> Kind {
    match cause.raw_os_error() {
        Some(
            libc::ENOSPC | libc::EDQUOT | libc::ENOMEM | libc::EMFILE | libc::ENFILE | libc::EAGAIN,
        ) => Kind::Exhausted,
        Some(libc::ENOSYS) => Kind::Unsupported,
        _ => Kind::Io,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_exhausted_and_the_chain_names_both() {
        let failed: std::result::Result<(), io::Error> =
            Err(io::Error::from_raw_os_error(libc::ENOSPC));
        let error = failed
            .during(|| "write exit record of c1".into())
            .expect_err("it failed");
        assert_eq!(error.kind(), Kind::Exhausted);
        assert!(
            error
                .chain()
                .starts_with("write exit record of c1: No space left")
        );
    }
}
