//! Errors of a pod's network, created where the call fails.
//! Not here: gRPC codes, logging.

use std::io;
use std::path::{Path, PathBuf};

/// A network operation that did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A subnet or prefix in the configuration that cannot be used.
    #[error("network setting {key}: {value:?} {why}")]
    BadSetting {
        /// The setting.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        why: String,
    },
    /// What was decided about the network cannot be read or recorded.
    #[error("keep the decision of network.mode = \"auto\" in {0}")]
    Record(PathBuf, #[source] io::Error),
    /// What was decided about the network is of no build that we know.
    #[error(
        "{path} says {found:?}, must be \"builtin\" or \"cni\": remove it, or set network.mode"
    )]
    UnknownRecord {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// Every address is leased or still in use by a dying interface.
    #[error(
        "lease an address for pod {pod}: all {size} of {subnet} are taken, {leased} by pods; use a larger subnet or fewer pods"
    )]
    Exhausted {
        /// The pod.
        pod: String,
        /// The subnet.
        subnet: String,
        /// How many addresses it has for pods.
        size: u32,
        /// How many of them are leased.
        leased: usize,
    },
    /// A port of the node that another pod has.
    #[error("offer {port} for pod {pod}: pod {holder} has it until it is stopped")]
    PortTaken {
        /// The port, as `tcp port 80 of every address`.
        port: String,
        /// The pod.
        pod: String,
        /// The pod that has it; perhaps the same, when it asks for one port twice.
        holder: String,
    },
    /// A port at an address of a family that the pod has not.
    #[error("offer {port} for pod {pod}: the pod has no address of that family")]
    PortFamily {
        /// The port, as `tcp port 80 of [2001:db8::1]`.
        port: String,
        /// The pod.
        pod: String,
    },
    /// A device that is to be moved into a pod.
    #[error(
        "move network device {name:?} into the pod: the node has none of that name; another pod may have it"
    )]
    NoDevice {
        /// Its name on the node.
        name: String,
    },
    /// A name in the pod that is not free.
    #[error(
        "move network device {device:?} into the pod: the pod has an interface {name:?} already"
    )]
    DeviceTaken {
        /// Its name on the node.
        device: String,
        /// The name that it would have.
        name: String,
    },
    /// A pinned namespace that is no namespace any more.
    #[error(
        "open the pinned namespace {pin}: it is a plain file, its mount is gone (unmounted, or the node rebooted)"
    )]
    NotPinned {
        /// The pin.
        pin: PathBuf,
    },
    /// The kernel refused a netlink request.
    #[error("{operation} {object}{}", hint(explanation))]
    Netlink {
        /// What was tried, e.g. `create veth`.
        operation: &'static str,
        /// To what, e.g. an interface or an address.
        object: String,
        /// The kernel's extended acknowledgement text, if it sent one.
        explanation: String,
        /// The kernel's error number.
        #[source]
        source: io::Error,
    },
    /// The kernel answered a netlink request with something we cannot read.
    #[error("read the kernel's answer to {operation} {object}: {what}")]
    Answer {
        /// The operation.
        operation: &'static str,
        /// About what.
        object: String,
        /// What is wrong with the answer.
        what: String,
    },
    /// A system call failed.
    #[error("{operation} {object}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// To what.
        object: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// An [`Error::Io`] about `object`.
    pub(super) fn io(
        operation: &'static str,
        object: impl Into<String>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::Io {
            operation,
            object: object.into(),
            source: source.into(),
        }
    }

    /// An [`Error::Io`] about a file.
    pub(super) fn file(operation: &'static str, file: &Path, source: impl Into<io::Error>) -> Self {
        Self::io(operation, file.display().to_string(), source)
    }

    /// The kernel's error number, when a call to it failed.
    pub(super) fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Netlink { source, .. } | Self::Io { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// Whether the kernel lacks nf_tables or an expression of a rule.
    pub(super) fn is_unknown_to_kernel(&self) -> bool {
        let codes = [libc::ENOENT, libc::EOPNOTSUPP, libc::EPROTONOSUPPORT];
        self.raw_os_error()
            .is_some_and(|code| codes.contains(&code))
    }
}

fn hint(explanation: &str) -> String {
    if explanation.is_empty() {
        String::new()
    } else {
        format!(" ({explanation})")
    }
}
