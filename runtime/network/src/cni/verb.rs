//! The operations of CNI. Source: CNI specification 1.1.0, "CNI operations". Not here: who carries them out.

use std::fmt;

/// What a plugin can be asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Attach a pod.
    Add,
    /// Detach it.
    Del,
    /// See whether an attachment is as it was made.
    Check,
    /// Say whether ADD would work.
    Status,
    /// Drop what no attachment owns.
    Gc,
}

impl Verb {
    /// As `CNI_COMMAND` says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(self.as_str())
    }
}
