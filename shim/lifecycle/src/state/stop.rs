//! A stop that is under way: when the grace period ends, how far the stop has come, what follows it.
//!
//! Called by: [`super::step`]. Pure, like it.
//! Invariants: of two stops together the deadline is the earlier one and the stage the later one; a removal is never
//! forgotten. Must not know: which phase the stop belongs to.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::BootTime;

/// What follows once a container has ended or a pod was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Then {
    /// It stays, so that clients can look at it.
    #[serde(rename = "Rest")]
    Keep,
    /// It is removed.
    Remove,
}

/// A stop that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// When the grace period ends.
    pub kill_at: BootTime,
    /// How far it has come.
    pub stage: Stage,
    /// What follows.
    pub then: Then,
}

/// How far a stop has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// The container's stop signal was or is to be sent.
    #[serde(rename = "Asked")]
    Requested,
    /// We killed it.
    Killed,
}

impl Stop {
    pub(super) fn after(now: BootTime, grace: Duration) -> Stop {
        let grace_ns = u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX);
        Stop {
            kill_at: now.saturating_add(grace_ns),
            stage: Stage::Requested,
            then: Then::Keep,
        }
    }

    /// A stop that kills at once and removes afterwards.
    pub(super) fn to_remove(now: BootTime) -> Stop {
        Stop {
            kill_at: now,
            stage: Stage::Requested,
            then: Then::Remove,
        }
    }

    /// Combines two stops: the earlier deadline, the later stage, a removal if either requests it.
    pub(super) fn joined(self, other: Stop) -> Stop {
        Stop {
            kill_at: self.kill_at.min(other.kill_at),
            stage: if self.stage == Stage::Killed {
                Stage::Killed
            } else {
                other.stage
            },
            then: if self.then == Then::Remove {
                Then::Remove
            } else {
                other.then
            },
        }
    }
}
