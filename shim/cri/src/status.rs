//! The only code that names gRPC codes: turns every failure into the status that the kubelet reads, and logs it.
//!
//! Called by: the wrapper around every call, and the streams, when a call failed.
//! Invariants: every kind of every error has exactly one code, by matches without a `_` arm; each failure is logged
//! here, once, with its whole chain of causes; messages that the kubelet recognises by their beginning have code
//! Unknown, the only one whose text its client passes on unchanged; for a bug of our own the client gets the headline
//! only.
//! Must not know: how errors arise.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt;

use coracle_images as images;
use coracle_lifecycle as lifecycle;
use tonic::{Code, Status};
use tracing::{debug, error, info, warn};

use super::bad_request::{BadRequest, KubeletError};

/// The longest message, in bytes: it travels in a header, percent-encoded, and Go clients refuse headers beyond 16 KiB.
const MAX_MESSAGE_BYTES: usize = 4096;

/// Why a call failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The request itself is invalid.
    Request(BadRequest),
    /// The lifecycle refused or failed.
    Lifecycle(lifecycle::Error),
    /// The image store refused or failed.
    Images(images::Error),
    /// This build does not implement the call.
    NotBuilt,
    /// The caller's deadline, or ours where it sent none, has passed.
    Deadline,
    /// An event stream's reader fell behind.
    FellBehind { lost: u64 },
    /// The call panicked; the text is the panic's.
    Panicked(String),
}

impl From<BadRequest> for Failure {
    fn from(bad: BadRequest) -> Self {
        Self::Request(bad)
    }
}

impl From<lifecycle::Error> for Failure {
    fn from(error: lifecycle::Error) -> Self {
        Self::Lifecycle(error)
    }
}

impl From<images::Error> for Failure {
    fn from(error: images::Error) -> Self {
        Self::Images(error)
    }
}

/// The answer to the kubelet: a code, and how its message must begin, if the kubelet recognises it by that.
struct Verdict {
    code: Code,
    error: Option<KubeletError>,
}

impl From<Code> for Verdict {
    fn from(code: Code) -> Self {
        Self { code, error: None }
    }
}

impl From<KubeletError> for Verdict {
    fn from(error: KubeletError) -> Self {
        Self {
            code: Code::Unknown,
            error: Some(error),
        }
    }
}

impl Failure {
    /// A caught panic, with its text.
    pub(super) fn panicked(payload: &(dyn Any + Send)) -> Self {
        let text = payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        Self::Panicked(text.unwrap_or_else(|| "no text".to_owned()))
    }

    /// Whether it only means that the object is absent.
    fn is_missing(&self) -> bool {
        match self {
            Self::Lifecycle(error) => error.kind() == lifecycle::Kind::Missing,
            Self::Images(error) => error.kind() == images::ErrorKind::Missing,
            Self::Request(_) | Self::NotBuilt | Self::Deadline => false,
            Self::FellBehind { .. } | Self::Panicked(_) => false,
        }
    }

    /// Logs the failure of `rpc` and renders it for the client.
    pub(super) fn into_status(self, rpc: &'static str) -> Status {
        let Verdict { code, error } = self.verdict();
        // An image's text, or a request's, is as short in the log as in the answer.
        let chain = bounded(self.chain(rpc));
        log(rpc, code, &chain);
        let shown = if self.is_bug() {
            self.headline(rpc)
        } else {
            chain
        };
        let shown = match error {
            Some(error) => format!("{}: {shown}", error.as_str()),
            None => shown,
        };
        Status::new(code, bounded(shown))
    }

    /// Whether it is a bug of our own, whose causes help only us.
    fn is_bug(&self) -> bool {
        match self {
            Self::Lifecycle(error) => error.kind() == lifecycle::Kind::Bug,
            Self::Panicked(_) => true,
            Self::Request(_) | Self::Images(_) | Self::NotBuilt => false,
            Self::Deadline | Self::FellBehind { .. } => false,
        }
    }

    fn verdict(&self) -> Verdict {
        match self {
            Self::Request(bad) => of_request(bad),
            Self::Lifecycle(error) => of_lifecycle(error.kind()),
            Self::Images(error) => of_images(error.kind()),
            Self::NotBuilt => Code::Unimplemented.into(),
            Self::Deadline => Code::DeadlineExceeded.into(),
            Self::FellBehind { .. } => Code::ResourceExhausted.into(),
            Self::Panicked(_) => Code::Internal.into(),
        }
    }

    /// The failure in one line, without causes.
    fn headline(&self, rpc: &'static str) -> String {
        match self {
            Self::Request(bad) => format!("{rpc}: {bad}"),
            Self::Lifecycle(error) => error.to_string(),
            Self::Images(error) => error.to_string(),
            Self::NotBuilt => format!("{rpc} is not implemented by this runtime"),
            Self::Deadline => format!("{rpc} was not done by its deadline"),
            Self::FellBehind { lost } => {
                format!("{rpc}: the reader fell behind and lost {lost} events")
            }
            Self::Panicked(_) => {
                format!("{rpc} failed by a bug in coracle; its log has the details")
            }
        }
    }

    /// The failure with all its causes, as `a: b: c`.
    fn chain(&self, rpc: &'static str) -> String {
        let head = self.headline(rpc);
        match self {
            Self::Lifecycle(error) => with_causes(head, error.source()),
            Self::Images(error) => with_causes(head, error.beneath()),
            Self::Panicked(text) => format!("{head}: {text}"),
            Self::Request(_) | Self::NotBuilt | Self::Deadline | Self::FellBehind { .. } => head,
        }
    }
}

/// The result, or `None` if the object is absent, which Stop and Remove treat as success.
pub(super) fn or_absent<T>(outcome: Result<T, impl Into<Failure>>) -> Result<Option<T>, Failure> {
    match outcome.map_err(Into::into) {
        Ok(done) => Ok(Some(done)),
        Err(failure) if failure.is_missing() => Ok(None),
        Err(failure) => Err(failure),
    }
}

fn of_request(bad: &BadRequest) -> Verdict {
    match bad {
        BadRequest::Invalid { .. } => Code::InvalidArgument.into(),
        BadRequest::Unsupported { .. } => Code::Unimplemented.into(),
        BadRequest::Recognised { error, .. } => (*error).into(),
    }
}

fn of_lifecycle(kind: lifecycle::Kind) -> Verdict {
    use lifecycle::Kind;
    match kind {
        Kind::Missing => Code::NotFound.into(),
        Kind::Invalid => Code::InvalidArgument.into(),
        Kind::ImageVolume => KubeletError::ImageVolumeMountFailed.into(),
        // A container that could not be started stays so until it is changed.
        Kind::WrongPhase | Kind::StartFailed => Code::FailedPrecondition.into(),
        Kind::NameTaken => Code::AlreadyExists.into(),
        Kind::Exhausted => Code::ResourceExhausted.into(),
        Kind::Deadline => Code::DeadlineExceeded.into(),
        Kind::Unsupported => Code::Unimplemented.into(),
        Kind::Draining => Code::Unavailable.into(),
        Kind::Io | Kind::Bug => Code::Internal.into(),
    }
}

fn of_images(kind: images::ErrorKind) -> Verdict {
    use images::ErrorKind as Kind;
    match kind {
        Kind::Missing => Code::NotFound.into(),
        Kind::Invalid => Code::InvalidArgument.into(),
        Kind::Unauthorized => Code::Unauthenticated.into(),
        Kind::RegistryUnavailable => KubeletError::RegistryUnavailable.into(),
        Kind::Exhausted => Code::ResourceExhausted.into(),
        Kind::Limit => Code::FailedPrecondition.into(),
        Kind::Corrupt => Code::DataLoss.into(),
        Kind::Cancelled => Code::Cancelled.into(),
        Kind::Io => Code::Internal.into(),
        Kind::Signature => KubeletError::SignatureValidationFailed.into(),
    }
}

/// The cause that follows after an image error's own text: a shared pull error already contains its cause's text, so it
/// continues with the cause of that.
fn with_causes(mut text: String, mut cause: Option<&(dyn StdError + 'static)>) -> String {
    while let Some(error) = cause {
        let text_of_cause = error.to_string();
        // Some libraries repeat their cause in their own text.
        if !text.ends_with(&text_of_cause) {
            text.push_str(": ");
            text.push_str(&text_of_cause);
        }
        cause = error.source();
    }
    text
}

/// Logs a failure in one line: `error` when we or the node failed, `warn` when something around us did, `info` when the
/// request cannot be met, `debug` when the kubelet sends such requests all day.
///
/// A pull of an image that the registry does not have is not such a request, but somebody's mistake.
fn log(rpc: &str, code: Code, chain: &str) {
    let code = CodeName(code);
    match code.0 {
        Code::NotFound if rpc == "PullImage" => info!(%code, failure = chain, "call failed"),
        Code::Internal => error!(%code, failure = chain, "call failed"),
        Code::Unknown
        | Code::DataLoss
        | Code::ResourceExhausted
        | Code::Unavailable
        | Code::DeadlineExceeded => {
            warn!(%code, failure = chain, "call failed");
        }
        Code::NotFound | Code::Unimplemented | Code::Cancelled => {
            debug!(%code, failure = chain, "call failed")
        }
        Code::Ok | Code::InvalidArgument | Code::AlreadyExists | Code::PermissionDenied => {
            info!(%code, failure = chain, "call failed");
        }
        Code::FailedPrecondition | Code::Aborted | Code::OutOfRange | Code::Unauthenticated => {
            info!(%code, failure = chain, "call failed");
        }
    }
}

/// A code as the protocol spells it.
struct CodeName(Code);

impl fmt::Display for CodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Cuts `text` to the size of a header, at a character's boundary.
fn bounded(mut text: String) -> String {
    if text.len() > MAX_MESSAGE_BYTES {
        text.truncate(text.floor_char_boundary(MAX_MESSAGE_BYTES));
        text.push_str(" (cut)");
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::io;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn every_lifecycle_kind_has_the_code_that_kubelet_expects() {
        use lifecycle::Kind;
        for (kind, code) in [
            (Kind::Missing, Code::NotFound),
            (Kind::Invalid, Code::InvalidArgument),
            (Kind::WrongPhase, Code::FailedPrecondition),
            (Kind::StartFailed, Code::FailedPrecondition),
            (Kind::NameTaken, Code::AlreadyExists),
            (Kind::Exhausted, Code::ResourceExhausted),
            (Kind::Deadline, Code::DeadlineExceeded),
            (Kind::Unsupported, Code::Unimplemented),
            (Kind::Draining, Code::Unavailable),
            (Kind::Io, Code::Internal),
            (Kind::Bug, Code::Internal),
        ] {
            let failure = Failure::from(lifecycle::Error::new(kind, "sandbox abc is gone"));
            let status = failure.into_status("StopPodSandbox");
            assert_eq!(
                (status.code(), status.message()),
                (code, "sandbox abc is gone"),
                "{kind:?}"
            );
        }
    }

    #[test]
    fn causes_are_shown_once_and_in_order() {
        let cause = io::Error::from_raw_os_error(2);
        let text = cause.to_string();
        let error = lifecycle::Error::because(
            lifecycle::Kind::Invalid,
            "mount /data of container c1",
            cause,
        );
        let status = Failure::from(error).into_status("CreateContainer");
        assert_eq!(
            status.message(),
            format!("mount /data of container c1: {text}")
        );
    }

    #[test]
    fn a_bug_shows_only_its_headline_and_a_node_failure_its_causes() {
        let cause = io::Error::other("internal path /var/lib/coracle/x");
        let error =
            lifecycle::Error::because(lifecycle::Kind::Bug, "driver of pod p1 is gone", cause);
        let status = Failure::from(error).into_status("StopPodSandbox");
        assert_eq!(
            (status.code(), status.message()),
            (Code::Internal, "driver of pod p1 is gone")
        );
        let cause = io::Error::other("no such device");
        let node =
            lifecycle::Error::because(lifecycle::Kind::Io, "make the network of pod p1", cause);
        let status = Failure::from(node).into_status("RunPodSandbox");
        assert_eq!(
            status.message(),
            "make the network of pod p1: no such device"
        );
        let panicked = Failure::panicked(&"index out of bounds").into_status("Status");
        assert_eq!(panicked.code(), Code::Internal);
        assert!(
            !panicked.message().contains("index"),
            "{}",
            panicked.message()
        );
    }

    fn pull_failed(cause: images::Error) -> Status {
        let pull = images::Error::Pull {
            reference: "r.example/a:b".into(),
            registry: "r.example".into(),
            cause: Arc::new(cause),
        };
        Failure::from(pull).into_status("PullImage")
    }

    #[test]
    fn an_unreachable_registry_begins_as_the_kubelet_expects() {
        let status = pull_failed(images::Error::Registry {
            registry: "r.example".into(),
            what: "manifest b".into(),
            problem: "no answer".into(),
        });
        assert_eq!(status.code(), Code::Unknown);
        let want = "RegistryUnavailable: pull r.example/a:b from r.example: \
                    r.example did not deliver manifest b: no answer";
        assert_eq!(status.message(), want);
    }

    #[test]
    fn a_refusal_by_signature_policy_begins_as_the_kubelet_expects() {
        let status = pull_failed(images::Error::Signature {
            policy: "/etc/coracle/policy.json".into(),
            problem: "the image has no signature".into(),
        });
        assert_eq!(status.code(), Code::Unknown);
        let want = "SignatureValidationFailed: pull r.example/a:b from r.example: signature policy \
                    /etc/coracle/policy.json: the image has no signature";
        assert_eq!(status.message(), want);
    }

    #[test]
    fn image_failures_keep_kubelets_meaning() {
        let absent = images::Error::NotInRegistry {
            registry: "r.example".into(),
            what: "tag b".into(),
        };
        assert_eq!(pull_failed(absent).code(), Code::NotFound);
        let denied = images::Error::Unauthorized {
            registry: "r.example".into(),
            what: "manifest b".into(),
            who: "an anonymous client",
        };
        assert_eq!(pull_failed(denied).code(), Code::Unauthenticated);
        let full = images::Error::DiskFull {
            operation: "write",
            path: "/var/lib/coracle".into(),
            source: io::Error::from_raw_os_error(28),
        };
        assert_eq!(pull_failed(full).code(), Code::ResourceExhausted);
    }

    #[test]
    fn messages_fit_into_a_header() {
        let error = lifecycle::Error::new(lifecycle::Kind::Invalid, "é".repeat(10_000));
        let status = Failure::from(error).into_status("CreateContainer");
        assert!(status.message().len() < MAX_MESSAGE_BYTES + 16);
        assert!(status.message().ends_with("(cut)"));
    }

    #[test]
    fn only_a_missing_object_counts_as_removed() {
        use lifecycle::{Error, Kind};
        let of = |kind| or_absent::<()>(Err(Error::new(kind, "container abc")));
        assert!(matches!(of(Kind::Missing), Ok(None)));
        assert!(of(Kind::Invalid).is_err() && of(Kind::Bug).is_err());
        assert!(matches!(or_absent::<u8>(Ok::<_, Failure>(7)), Ok(Some(7))));
    }

    #[test]
    fn an_rpc_that_is_not_implemented_names_itself() {
        let status = Failure::NotBuilt.into_status("CheckpointPod");
        assert_eq!(status.code(), Code::Unimplemented);
        assert!(
            status.message().starts_with("CheckpointPod "),
            "{}",
            status.message()
        );
    }
}
