//! How a container ended.
//!
//! Written by its keeper, to the daemon and to disk. Invariant: records of older builds stay readable.
//! It must not know what is shown to the kubelet.

use serde::{Deserialize, Serialize};

/// How a container ended, reported by its keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code as CRI reports it; 128 + signal for a signal.
    pub code: i32,
    /// The signal that ended the process, if one did.
    pub signal: Option<i32>,
    /// Nanoseconds since 1970 UTC.
    pub finished_at: i64,
    /// Why it ended, as the container process reported it.
    pub cause: Cause,
    /// The message of a container process that ended by itself without success; empty without one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

impl Exit {
    /// Itself with texts of at most [`MAX_MESSAGE_BYTES`] and [`MAX_CAUSE_BYTES`] bytes, as an honest keeper sends them.
    pub fn shortened(mut self) -> Self {
        let end = self.message.floor_char_boundary(MAX_MESSAGE_BYTES);
        self.message.truncate(end);
        self.cause.shorten(MAX_CAUSE_BYTES);
        self
    }
}

/// Most bytes of [`Exit::message`].
pub const MAX_MESSAGE_BYTES: usize = 1024;

/// Most bytes of the text of a [`Cause`]: the kubelet's limit for a termination message.
pub const MAX_CAUSE_BYTES: usize = 4096;

/// Why a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// By itself, or by a signal.
    Ended,
    /// A WebAssembly trap; the text holds the trap and its backtrace, bounded.
    Trap(String),
    /// The jail could not be built or the program not be loaded; the text names the step.
    StartFailed(String),
    /// Its keeper died under it.
    KeeperLost,
    /// Its end was not observed (the node rebooted).
    Unknown,
}

impl Cause {
    /// Cuts its text, if it has one, to at most `bytes` bytes of whole characters.
    pub fn shorten(&mut self, bytes: usize) {
        if let Cause::Trap(text) | Cause::StartFailed(text) = self {
            text.truncate(text.floor_char_boundary(bytes));
        }
    }
}
