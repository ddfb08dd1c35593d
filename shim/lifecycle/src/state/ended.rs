//! How a container ended, with the reasons that CRI names.
//!
//! Called by: the driver, when a keeper or a pidfd reports an end. Pure.
//! Invariants: `OOMKilled` means a cgroup's out-of-memory kill and nothing else; messages are bounded.
//! Must not know: who observed the end.

use coracle_spec::{Cause, Exit};
use serde::{Deserialize, Serialize};

use super::Stage;

/// Why a container ended, as CRI's `reason` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// Exit code 0.
    Completed,
    /// Any other exit code or a signal.
    Error,
    /// The kernel killed it for its cgroup's memory limit.
    CgroupOom,
    /// A WebAssembly trap.
    Trap,
    /// Its jail could not be built or its program not be loaded.
    StartFailed,
    /// Its keeper died.
    KeeperLost,
    /// Nobody observed its end.
    Unknown,
}

impl Reason {
    /// Its name in ContainerStatus; kubelet compares `OOMKilled` letter by letter.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Completed => "Completed",
            Reason::Error => "Error",
            Reason::CgroupOom => "OOMKilled",
            Reason::Trap => "WasmTrap",
            Reason::StartFailed => "StartError",
            Reason::KeeperLost => "KeeperLost",
            Reason::Unknown => "Unknown",
        }
    }
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Nanoseconds since 1970 UTC; 0 when it never ran.
    pub started_at: i64,
    /// Nanoseconds since 1970 UTC; never 0.
    pub finished_at: i64,
    /// Exit code; 128 + signal for a signal.
    pub code: i32,
    /// The reason.
    pub reason: Reason,
    /// Trap text, start failure, or what may have led to an end without success; bounded.
    pub message: String,
}

/// The longest message an [`Ended`] carries, in bytes.
pub const MESSAGE_LIMIT: usize = 4096;

/// The message of a container that its memory limit ended.
const OUT_OF_MEMORY: &str = "the kernel killed it because all its processes together used more memory than its limit: raise resources.limits.memory, or have it use less";

impl Ended {
    /// Interprets an exit. `oom_kills` is the count of the container's own cgroup; `stage` is how far a stop had come.
    ///
    /// An out-of-memory kill is an exit with 137 when the kernel counted a kill and we had sent none: the counter alone
    /// is cumulative and would blame a container that survived an earlier kill of a child.
    pub fn judge(started_at: i64, exit: &Exit, oom_kills: u64, stage: Option<Stage>) -> Ended {
        let (reason, message) = match &exit.cause {
            Cause::Trap(text) => (Reason::Trap, text.as_str()),
            Cause::StartFailed(text) => (Reason::StartFailed, text.as_str()),
            Cause::KeeperLost => (Reason::KeeperLost, ""),
            Cause::Unknown => (Reason::Unknown, ""),
            Cause::Ended if exit.code == 0 => (Reason::Completed, ""),
            Cause::Ended if exit.code == 137 && oom_kills > 0 && stage != Some(Stage::Killed) => {
                (Reason::CgroupOom, OUT_OF_MEMORY)
            }
            Cause::Ended => (Reason::Error, exit.message.as_str()),
        };
        let finished_at = exit.finished_at.max(started_at).max(1);
        Ended {
            started_at,
            finished_at,
            code: exit.code,
            reason,
            message: bounded(message),
        }
    }

    /// The end of a container that could not be started: code 128, which the kubelet shows as "cannot run".
    pub fn never_ran(at: i64, message: &str) -> Ended {
        Ended {
            started_at: 0,
            finished_at: at.max(1),
            code: 128,
            reason: Reason::StartFailed,
            message: bounded(message),
        }
    }
}

fn bounded(text: &str) -> String {
    let mut end = text.len().min(MESSAGE_LIMIT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
