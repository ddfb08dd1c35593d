//! The error of this crate: [`Error`] names the operation, the object, and the two facts that
//! disagree; [`Kind`] tells a caller how to react.
//!
//! Created at the call that knows the operation, returned unlogged, logged once by the
//! caller. Invariants: no message contains a credential or a registry's response to an authentication
//! request; [`Error::kind`] is exhaustive.
//! Not here: gRPC codes, HTTP status numbers, whether to try again (`retry`).

mod retry;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::reference::{BadName, Digest};

/// A boxed cause.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What a caller can conclude from an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The registry or the store does not have the object.
    Missing,
    /// The request, the manifest, the config or a layer is invalid; repeating the request will not help.
    Invalid,
    /// The registry refuses these credentials, or requires some.
    Unauthorized,
    /// The registry does not answer, breaks off or stalls; repeating the request may help.
    RegistryUnavailable,
    /// The disk is full, or a process of the node ran out of time or memory.
    Exhausted,
    /// The image is larger than this node accepts.
    Limit,
    /// Bytes do not match their digest or size.
    Corrupt,
    /// The last caller of this pull has left.
    Cancelled,
    /// The node's signature policy does not accept the image, or cannot be read.
    Signature,
    /// The node's disk or metadata failed.
    Io,
}

/// Anything that can go wrong with images. `Display` is one line; causes are in `source`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A pull failed; all its callers share the cause.
    #[error("pull {reference} from {registry}: {cause}")]
    Pull {
        /// The reference as completed.
        reference: String,
        /// The registry of the request.
        registry: String,
        /// What went wrong.
        cause: Arc<Error>,
    },
    /// An archive could not be imported.
    #[error("import {archive}: {cause}")]
    Import {
        /// The archive's path.
        archive: String,
        /// What went wrong.
        cause: Box<Error>,
    },
    /// A name that is not a reference.
    #[error(transparent)]
    Name(#[from] BadName),
    /// The registry does not have the object.
    #[error("{registry} has no {what}")]
    NotInRegistry {
        /// The registry's host.
        registry: String,
        /// Manifest, tag or blob, with its name.
        what: String,
    },
    /// The store does not have this image.
    #[error("image {name} is not in the store")]
    NotInStore {
        /// The name as given.
        name: String,
    },
    /// The registry does not let these credentials read the repository.
    #[error("{registry} refuses to give {what} to {who}")]
    Unauthorized {
        /// The registry's host.
        registry: String,
        /// What was requested.
        what: String,
        /// `the given credentials` or `an anonymous client`.
        who: &'static str,
    },
    /// The request could not be sent, or the response is unusable.
    #[error("{registry} did not deliver {what}: {problem}")]
    Registry {
        /// The registry's host.
        registry: String,
        /// What was requested.
        what: String,
        /// What it answered instead, or the innermost cause.
        problem: String,
    },
    /// The registry answers with a status of error.
    #[error(
        "{registry} did not deliver {what}: it answers {status}{}{}",
        code.as_ref().map(|code| format!(" ({code})")).unwrap_or_default(),
        retry_after.map(|pause| format!(", to be tried again after {} s", pause.as_secs())).unwrap_or_default()
    )]
    Status {
        /// The registry's host.
        registry: String,
        /// What was requested.
        what: String,
        /// The HTTP status.
        status: u16,
        /// The error code of the distribution specification, if the answer has one.
        code: Option<String>,
        /// The pause that the registry asks for.
        retry_after: Option<Duration>,
    },
    /// The registry's certificate is none that this node trusts.
    #[error(
        "{registry} is not trusted: {problem}; `ca` in its hosts.toml names certificates to trust"
    )]
    Untrusted {
        /// The registry's host.
        registry: String,
        /// What is wrong with the certificate.
        problem: String,
    },
    /// There is no connection to the registry.
    #[error("{registry} cannot be reached: {problem}")]
    Unreachable {
        /// The registry's host.
        registry: String,
        /// The innermost cause, such as `Connection refused (os error 111)`.
        problem: String,
    },
    /// Content from a host to which the registry redirected is invalid. The error has no details about it.
    #[error("{what} came by a redirect to another host and is not what it should be")]
    Withheld {
        /// Manifest or blob.
        what: String,
    },
    /// All hosts failed: mirrors first, the registry last.
    #[error("{}", tried.iter().map(|error| error.to_string()).collect::<Vec<_>>().join("; "))]
    Hosts {
        /// What each of them did instead, in the order of asking. Never empty.
        tried: Vec<Error>,
    },
    /// The registry sent nothing for too long.
    #[error("{registry} sent nothing of {what} for {}s", idle.as_secs_f32())]
    Stalled {
        /// The registry's host.
        registry: String,
        /// What was being read.
        what: String,
        /// The longest silence that is allowed.
        idle: Duration,
    },
    /// The registry sends a blob, but too slowly.
    #[error(
        "{registry} sent {received} bytes of {what} in {}s, less than the {min_rate} bytes a second of \
         images.pull_min_bytes_per_s", waited.as_secs()
    )]
    Slow {
        /// The registry's host.
        registry: String,
        /// What was being read.
        what: String,
        /// Bytes that came.
        received: u64,
        /// How long they took.
        waited: Duration,
        /// The least rate. Bytes a second.
        min_rate: u64,
    },
    /// The pull, or the import of a preloaded archive, took too long.
    #[error("not complete within {setting} ({} s)", allowed.as_secs())]
    Overdue {
        /// The setting with the limit: `images.pull_timeout_s`, `images.preload_timeout_s`.
        setting: &'static str,
        /// How long it may take.
        allowed: Duration,
    },
    /// Bytes do not have the digest they were promised under.
    #[error("{what} has digest {got}, expected {want}")]
    DigestMismatch {
        /// Manifest, config, layer.
        what: String,
        /// The digest that was promised.
        want: Digest,
        /// The digest of the bytes.
        got: Digest,
    },
    /// A blob is shorter or longer than its descriptor says.
    #[error("{what} holds {got} bytes, its manifest says {want}")]
    SizeMismatch {
        /// Manifest, config, layer.
        what: String,
        /// The size that was promised. Bytes.
        want: u64,
        /// The size that was seen; of a blob that is too long, what was read until that was clear. Bytes.
        got: u64,
    },
    /// A manifest, config, archive or module that cannot be used.
    #[error("{what}: {problem}")]
    Invalid {
        /// The object at fault.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A limit of this node.
    #[error("{what} exceeds the limit {limit} ({allowed})")]
    Limit {
        /// The object at fault.
        what: String,
        /// The limit's name, as in [`crate::Limits`], or what it is a limit of: `of names in an archive`.
        limit: &'static str,
        /// Its value.
        allowed: u64,
    },
    /// The disk is full.
    #[error("no space left to {operation} {}", path.display())]
    DiskFull {
        /// A verb.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A file operation failed.
    #[error("{operation} {}", path.display())]
    Io {
        /// A verb.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The metadata database failed.
    #[error("{operation} image metadata in {}", path.display())]
    Metadata {
        /// A verb.
        operation: &'static str,
        /// The database file.
        path: PathBuf,
        /// The database's error.
        source: Cause,
    },
    /// A layer's unpacker could not be started or ended without a verdict.
    #[error("{what}: {problem}")]
    Unpacker {
        /// The layer.
        what: String,
        /// How it ended, with its limits.
        problem: String,
    },
    /// The node's signature policy does not accept the image, or cannot be read.
    #[error("signature policy {policy}: {problem}")]
    Signature {
        /// The policy's file, and the scope in it that counts.
        policy: String,
        /// Why.
        problem: String,
    },
    /// The caller has left.
    #[error("cancelled while {doing}")]
    Cancelled {
        /// What was being done.
        doing: &'static str,
    },
}

impl Error {
    /// What a caller can conclude.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Pull { cause, .. } => cause.kind(),
            Self::Import { cause, .. } => cause.kind(),
            // The last is the registry itself: its error counts.
            Self::Hosts { tried } => tried.last().map_or(Kind::RegistryUnavailable, Self::kind),
            Self::Name(_) | Self::Invalid { .. } => Kind::Invalid,
            Self::NotInRegistry { .. } | Self::NotInStore { .. } => Kind::Missing,
            Self::Unauthorized { .. } => Kind::Unauthorized,
            Self::Registry { .. }
            | Self::Status { .. }
            | Self::Untrusted { .. }
            | Self::Unreachable { .. }
            | Self::Stalled { .. }
            | Self::Overdue { .. }
            | Self::Slow { .. } => Kind::RegistryUnavailable,
            Self::DigestMismatch { .. } | Self::SizeMismatch { .. } | Self::Withheld { .. } => {
                Kind::Corrupt
            }
            Self::Limit { .. } => Kind::Limit,
            Self::DiskFull { .. } | Self::Unpacker { .. } => Kind::Exhausted,
            Self::Io { .. } | Self::Metadata { .. } => Kind::Io,
            Self::Cancelled { .. } => Kind::Cancelled,
            Self::Signature { .. } => Kind::Signature,
        }
    }

    /// The cause that its text does not name.
    pub fn beneath(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Pull { cause, .. } => cause.beneath(),
            Self::Import { cause, .. } => cause.beneath(),
            other => std::error::Error::source(other),
        }
    }

    /// A failed file operation; a full disk becomes its own variant.
    pub(crate) fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull {
                operation,
                path,
                source,
            },
            _ => Self::Io {
                operation,
                path,
                source,
            },
        }
    }

    /// An image that the policy does not accept, or a policy that cannot be read.
    pub(crate) fn signature(policy: &str, problem: String) -> Self {
        Self::Signature {
            policy: policy.to_owned(),
            problem,
        }
    }

    /// An object that cannot be used.
    pub(crate) fn invalid(what: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid {
            what: what.into(),
            problem: problem.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_differs_from_other_failures() {
        let full = Error::io("write", Path::new("/x"), io::Error::from_raw_os_error(28));
        assert_eq!(full.kind(), Kind::Exhausted);
        assert_eq!(full.to_string(), "no space left to write /x");
        let quota = Error::io("write", Path::new("/x"), io::Error::from_raw_os_error(122));
        assert_eq!(quota.kind(), Kind::Exhausted);
        let other = Error::io("open", Path::new("/x"), io::Error::from_raw_os_error(5));
        assert_eq!(
            (other.kind(), other.to_string().as_str()),
            (Kind::Io, "open /x")
        );
    }

    #[test]
    fn a_pull_error_names_both_facts_on_one_line() {
        let (want, got) = (Digest::of(b"a"), Digest::of(b"b"));
        let cause = Error::DigestMismatch {
            what: "layer 1".into(),
            want: want.clone(),
            got: got.clone(),
        };
        let error = Error::Pull {
            reference: "r.io/a:b".into(),
            registry: "r.io".into(),
            cause: cause.into(),
        };
        assert_eq!(
            error.to_string(),
            format!("pull r.io/a:b from r.io: layer 1 has digest {got}, expected {want}")
        );
        assert_eq!(error.kind(), Kind::Corrupt);
    }
}
