//! The lifecycle's error: the operation, the object, and the reason.
//!
//! Made by: registry, state, driver, host. Rendered by: `cri/status`, which alone turns a [`Kind`] into a gRPC code.
//! Invariant: causes stay in `source`; the text names the object. Must not know: gRPC.

use std::sync::Arc;

/// What a caller can do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No such sandbox, container or image.
    Missing,
    /// The request cannot be met as it stands.
    Invalid,
    /// An image cannot be mounted as a volume; the kubelet recognises this error by the beginning of its message.
    ImageVolume,
    /// The object is in a phase that does not allow it.
    WrongPhase,
    /// Another object has that name.
    NameTaken,
    /// A limited resource has run out: addresses, ids, disk.
    Exhausted,
    /// The container's jail or program could not be started.
    StartFailed,
    /// A process did not answer in time.
    Deadline,
    /// Not implemented.
    Unsupported,
    /// The daemon is about to end.
    Draining,
    /// The node refused an operation.
    Io,
    /// A bug of our own.
    Bug,
}

/// An error. Cheap to clone: several waiting requests get the same one.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub struct Error {
    kind: Kind,
    text: String,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error without a cause.
    pub fn new(kind: Kind, text: impl Into<String>) -> Error {
        Error {
            kind,
            text: text.into(),
            source: None,
        }
    }

    /// An error that another one caused.
    pub fn because(
        kind: Kind,
        text: impl Into<String>,
        cause: impl std::error::Error + Send + Sync + 'static,
    ) -> Error {
        let kind = match kind {
            // The operation does not matter: the node does not refuse it, and the lack will pass.
            Kind::Io if lacks_descriptors(&cause) => Kind::Exhausted,
            kind => kind,
        };
        Error {
            kind,
            text: text.into(),
            source: Some(Arc::new(cause)),
        }
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The text with all its causes, as `a: b: c`.
    pub fn chain(&self) -> String {
        coracle_spec::error::chain(self)
    }
}

/// Whether `cause` or one of its causes is a lack of file descriptors in this process or on the node.
fn lacks_descriptors(cause: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(cause);
    while let Some(error) = next {
        // Our errors share their causes in an `Arc`, which is not a cause itself.
        if let Some(shared) = error.downcast_ref::<Arc<dyn std::error::Error + Send + Sync>>() {
            next = Some(shared.as_ref());
            continue;
        }
        let io = error.downcast_ref::<std::io::Error>();
        let errno = error.downcast_ref::<rustix::io::Errno>();
        let number = io
            .and_then(std::io::Error::raw_os_error)
            .or(errno.map(|errno| errno.raw_os_error()));
        if matches!(number, Some(libc::EMFILE | libc::ENFILE)) {
            return true;
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_descriptors_is_recognised_at_any_depth() {
        let of = |number| std::io::Error::from_raw_os_error(number);
        for (cause, kind) in [
            (libc::EMFILE, Kind::Exhausted),
            (libc::ENFILE, Kind::Exhausted),
            (libc::EIO, Kind::Io),
        ] {
            let inner = Error::because(Kind::Bug, "open a cgroup", of(cause));
            let outer = Error::because(Kind::Io, "make a container", inner.clone());
            assert_eq!((inner.kind(), outer.kind()), (Kind::Bug, kind));
        }
    }
}
