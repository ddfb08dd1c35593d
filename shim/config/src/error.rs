//! Why a configuration cannot be used, in terms that an operator can act on.
//!
//! Made by: [`super::load`] and its steps. Printed by: the command line.
//! Invariant: where a line is to blame, the message starts with `FILE:LINE: `, as in compilers, so that editors jump
//! there.
//! Must not know: what makes a value wrong.

use std::io;
use std::path::PathBuf;

/// Why a configuration cannot be used. Prints `FILE:LINE: ...` where a line is to blame.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be opened or read.
    #[error("read configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Users other than root could have written the file, or it is not a regular file.
    #[error("configuration {0} is {found}, must be a regular file that only root can write; try: chown root:root {0} && chmod 0644 {0}", path.display())]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// Its owner, mode or type.
        found: String,
    },
    /// Users other than root could have put files into the directory of drop-ins, or it is none.
    #[error("directory {0} of the configuration is {found}, must be a directory that only root can write; try: chown root:root {0} && chmod 0755 {0}", path.display())]
    UntrustedDirectory {
        /// The directory.
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
        /// The parser's message, after the key where one is known.
        what: String,
    },
    /// An unknown key.
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
        /// `FILE:LINE`, or another source of the value.
        origin: String,
        /// With its tables.
        key: String,
        /// The fact and what it should have been.
        why: String,
    },
}

impl Error {
    /// Whether the file or directory does not exist.
    pub(super) fn is_absence(&self) -> bool {
        matches!(self, Error::Read { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}
