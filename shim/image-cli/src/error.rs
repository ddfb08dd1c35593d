//! The error of this crate: one sentence for a person at a terminal.
//!
//! Invariant: it has no control characters: names in it may come from strangers. Must not know: exit codes.

use std::path::Path;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Error {
    text: String,
}

impl Error {
    /// With this sentence.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        let text: String = text.into();
        let is_control = |character: char| character.is_control() && character != '\n';
        let text = text.replace(is_control, "\u{fffd}");
        Self { text }
    }

    /// `doing` failed by `cause`.
    pub(crate) fn because(doing: &str, cause: impl std::fmt::Display) -> Self {
        Self::new(format!("{doing}: {cause}"))
    }

    /// The refusal of the daemon on `socket`.
    pub(crate) fn refused(socket: &Path, status: &tonic::Status) -> Self {
        if status.code() != tonic::Code::Unavailable || !is_unconnected(status) {
            return Self::new(status.message());
        }
        let socket = socket.display();
        Self::new(format!(
            "no daemon answers on {socket}; start it with `coracle serve`, or name its socket with --socket"
        ))
    }
}

/// Whether the connection failed, as opposed to the call.
fn is_unconnected(status: &tonic::Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.downcast_ref::<std::io::Error>().is_some() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let status = tonic::Status::invalid_argument("it offers [linux/\u{1b}]0;x\u{7}\u{9b}31m]");
        let text = Error::refused(Path::new("/run/x.sock"), &status).to_string();
        assert_eq!(text, "it offers [linux/\u{fffd}]0;x\u{fffd}\u{fffd}31m]");
    }
}
