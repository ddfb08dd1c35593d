//! Why there is no configuration, in words an operator can act on.
//!
//! Place in the flow: made by [`super::load`] and its steps, printed once by the command line.
//! Invariant: wherever a line is to blame the message starts with `FILE:LINE: `, as compilers write it,
//! so that editors jump there. Not here: what makes a value wrong.

use std::io;
use std::path::PathBuf;

/// Why there is no configuration. Prints `FILE:LINE: ...` wherever there is a line to name.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be opened or read.
    #[error("read configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others than root could have written the file, or it is not a file.
    #[error("configuration {0} is {found}, must be a regular file that only root can write; try: chown root:root {0} && chmod 0644 {0}", path.display())]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// Its owner, mode or type.
        found: String,
    },
    /// The file is larger than any configuration.
    #[error("configuration {} holds more than {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most that is read. Bytes.
        limit: u64,
    },
    /// The text is not TOML, or a value has the wrong type.
    #[error("{}:{line}: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// The parser's words, after the key where one is known.
        what: String,
    },
    /// A key that is no setting.
    #[error("{}:{line}: {key} is not a setting; {hint}", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// With its tables.
        key: String,
        /// What to do about it.
        hint: String,
    },
    /// A setting whose value cannot be used.
    #[error("{origin}: {key} {why}")]
    Value {
        /// `FILE:LINE`, or where else the value came from.
        origin: String,
        /// With its tables.
        key: &'static str,
        /// The fact and what it should have been.
        why: String,
    },
}
