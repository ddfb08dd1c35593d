//! Errors of calls to systemd, created where the call fails; they name call, unit and cause.
//! Not here: gRPC codes, logging.

use std::io;
use std::path::PathBuf;

/// Why a pod's scope was not named, created or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The parent is not a slice.
    #[error("cgroup parent {parent:?} {why}; it must be a slice such as kubepods-pod1.slice")]
    Slice {
        /// The parent.
        parent: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The parent is a slice, but the driver is cgroupfs.
    #[error(
        "cgroup parent {parent:?} is a slice of systemd, but cgroup.driver is cgroupfs; give kubelet and runtime the \
         same driver"
    )]
    NotSystemd {
        /// The parent.
        parent: String,
    },
    /// systemd's socket refuses the connection, or the authentication failed.
    #[error("connect to systemd at {socket}; is it process 1?")]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The connection broke during a call.
    #[error("call {member} of systemd")]
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
    /// systemd queued the job, and the job failed.
    #[error("{member} of {unit}: the job ended {result:?}, not done; see systemctl status {unit}")]
    Job {
        /// The method.
        member: &'static str,
        /// The unit.
        unit: String,
        /// How the job ended.
        result: String,
    },
    /// The job succeeded, but the process is in another cgroup.
    #[error("start of {unit}: process {pid} is in cgroup {found}, not in {wanted}")]
    Elsewhere {
        /// The unit.
        unit: String,
        /// The process that should be in it.
        pid: i32,
        /// Where it is.
        found: String,
        /// Where the scope is.
        wanted: String,
    },
    /// A cgroup below the scope failed.
    #[error(transparent)]
    Cgroup(#[from] super::super::Error),
}
