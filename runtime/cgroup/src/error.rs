//! Errors of cgroup operations, created where the file is accessed, so that they name file and value.
//! Not here: gRPC codes, logging.

use std::io;
use std::path::{Path, PathBuf};

/// An operation on the cgroup file system that did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The mount table shows no cgroup file system at all.
    #[error(
        "find the cgroup hierarchies: no cgroup file system in {mountinfo}; mount one on /sys/fs/cgroup"
    )]
    NotMounted {
        /// The mount table that was read.
        mountinfo: PathBuf,
    },
    /// A cgroup path that could leave its hierarchy, or is its root.
    #[error("cgroup path {path:?} {why}; it must look like /kubepods/podX/ID")]
    BadPath {
        /// The path as it was given.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A controller that every container needs is absent or not delegated.
    #[error(
        "create cgroup {path}: controller {controller} is not available in {dir}; enable it on the node"
    )]
    MissingController {
        /// The cgroup to create.
        path: String,
        /// The controller, e.g. `memory`.
        controller: &'static str,
        /// The directory that should offer it.
        dir: PathBuf,
    },
    /// A limit the hierarchy cannot express.
    #[error("set {key} on cgroup {path}: {why}")]
    Unsupported {
        /// The cgroup.
        path: String,
        /// The limit or unified key.
        key: String,
        /// Why it cannot be set.
        why: &'static str,
    },
    /// A memory limit below what is used now: setting it would kill the workload.
    #[error("set the memory limit of cgroup {path} to {limit} bytes: {usage} bytes are in use")]
    BelowUsage {
        /// The cgroup.
        path: String,
        /// The requested limit, in bytes.
        limit: u64,
        /// What the cgroup uses now, in bytes.
        usage: u64,
    },
    /// Processes outlived SIGKILL until the timeout (uninterruptible sleep).
    #[error(
        "kill cgroup {path}: {left} processes are left after {waited_ms} ms, among them pid {pid}"
    )]
    StillAlive {
        /// The cgroup.
        path: String,
        /// How many are left.
        left: usize,
        /// One of them.
        pid: i32,
        /// How long we waited, in ms.
        waited_ms: u128,
    },
    /// A file is not in its format.
    #[error("read {file}: {text:?} is not {expected}")]
    Malformed {
        /// The file.
        file: PathBuf,
        /// The beginning of its text.
        text: String,
        /// The expected format.
        expected: &'static str,
    },
    /// A system call failed.
    #[error("{operation} {file}")]
    Io {
        /// The operation: `read`, `write "42" to`, `create`, `remove`, ...
        operation: String,
        /// The file or directory.
        file: PathBuf,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// An [`Error::Io`] for `operation` on `file`.
    pub(super) fn io(operation: impl Into<String>, file: &Path, source: io::Error) -> Self {
        Self::Io {
            operation: operation.into(),
            file: file.to_owned(),
            source,
        }
    }

    /// Whether a requested value is at fault, such as processors that the node does not have.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        let refused = matches!(
            self.raw_os_error(),
            Some(libc::EINVAL | libc::ERANGE | libc::EACCES)
        );
        refused
            || matches!(
                self,
                Self::BadPath { .. } | Self::Unsupported { .. } | Self::BelowUsage { .. }
            )
    }

    /// Whether a cgroup was not removed because it holds a process that has not ended, or other cgroups.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        matches!(self.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY))
    }

    /// The kernel's error number, when a system call failed.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Io { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}
