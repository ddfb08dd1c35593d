//! What can go wrong between us and systemd. Made where the call is; names call, unit and cause.
//! Not here: gRPC codes, logging.

use std::io;
use std::path::PathBuf;

/// A pod's scope could not be named, made or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A parent that is no slice.
    #[error("cgroup parent {parent:?} {why}; it must be a slice such as kubepods-pod1.slice")]
    Slice {
        /// The parent as it was given.
        parent: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A slice was asked for, but we make cgroups as directories.
    #[error(
        "cgroup parent {parent:?} is a slice of systemd, but cgroup.driver is cgroupfs; give kubelet and runtime the \
         same driver"
    )]
    NotSystemd {
        /// The parent as it was given.
        parent: String,
    },
    /// Nobody listens on systemd's socket, or refuses us.
    #[error("connect to systemd at {socket}; is it process 1?")]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The conversation broke off.
    #[error("ask systemd for {member}")]
    Call {
        /// The method.
        member: &'static str,
        /// The cause; `TimedOut` when the deadline passed.
        source: io::Error,
    },
    /// systemd refused a call.
    #[error("{member} of {unit}: systemd says {name}: {text}")]
    Refused {
        /// The method.
        member: &'static str,
        /// The unit.
        unit: String,
        /// The D-Bus error's name.
        name: String,
        /// Its text.
        text: String,
    },
    /// systemd took the job and failed.
    #[error("{member} of {unit}: the job ended {result:?}, not done; see systemctl status {unit}")]
    Job {
        /// The method.
        member: &'static str,
        /// The unit.
        unit: String,
        /// How the job ended.
        result: String,
    },
    /// systemd says done, but the process is elsewhere.
    #[error("start of {unit}: process {pid} is in cgroup {found}, not in {wanted}")]
    Elsewhere {
        /// The unit.
        unit: String,
        /// The process that was to be in it.
        pid: i32,
        /// Where it is.
        found: String,
        /// Where the scope is.
        wanted: String,
    },
    /// The cgroups below the scope.
    #[error(transparent)]
    Cgroup(#[from] super::super::Error),
}
