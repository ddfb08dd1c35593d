//! Errors of the demo: one sentence, with its cause.

use std::path::Path;

/// A step of the demo that failed. `Display` is the step and the object; the cause is in `source`.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Error {
    what: String,
    #[source]
    cause: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// A failure that `what` describes completely.
    pub fn new(what: impl Into<String>) -> Error {
        Error {
            what: what.into(),
            cause: None,
        }
    }

    /// A failure of `what` because of `cause`.
    pub fn because(
        what: impl Into<String>,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        Error {
            what: what.into(),
            cause: Some(cause.into()),
        }
    }

    /// A file operation that failed: a verb, and the path.
    pub fn file(verb: &str, path: &Path, cause: std::io::Error) -> Error {
        Error::because(format!("{verb} {}", path.display()), cause)
    }
}
