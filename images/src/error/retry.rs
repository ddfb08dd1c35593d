//! What an [`Error`] says of the next attempt: whether to ask the same host again, how long to wait, or to ask another host.
//!
//! Called by: whoever sends requests to registries, between two attempts. Pure.
//! Invariant: of several hosts that failed, the last counts for a repetition, because it is the registry itself.
//! Must not know: how many attempts there are, which hosts are left.

use std::time::Duration;

use super::{Error, Kind};

/// A registry that asks for a longer pause fails the pull at once; the kubelet waits longer than this by itself.
const MAX_PAUSE: Duration = Duration::from_secs(30);

impl Error {
    /// True if the same host may answer the next request.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Registry { .. } | Self::Unreachable { .. } => true,
            Self::Status {
                status,
                retry_after,
                ..
            } => {
                let is_passing = matches!(status, 408 | 425 | 429 | 500..);
                is_passing && retry_after.unwrap_or_default() <= MAX_PAUSE
            }
            // The last is the registry itself.
            Self::Hosts { tried } => tried.last().is_some_and(Self::may_pass),
            _ => false,
        }
    }

    /// How long to wait before the next request: `usual`, or longer if the registry asks for it.
    pub(crate) fn pause(&self, usual: Duration) -> Duration {
        match self {
            Self::Status {
                retry_after: Some(pause),
                ..
            } => usual.max(*pause),
            Self::Hosts { tried } => tried.last().map_or(usual, |last| last.pause(usual)),
            _ => usual,
        }
    }

    /// True if another host may do better: this one is out of reach, stalls, or sends what it should not.
    pub(crate) fn is_of_source(&self) -> bool {
        matches!(self.kind(), Kind::RegistryUnavailable | Kind::Corrupt)
    }
}
