//! Helpers of every effect: the blocking pool, failpoints, errors of kernel and runtime, private directories.
//!
//! Called by: drivers, recovery, the host. Must not know: effects.

use std::path::Path;

use super::error::{Error, Kind};

/// Runs work that blocks on the blocking pool. The error for a panic names `what`.
pub async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::because(
            Kind::Bug,
            format!("{what} did not finish"),
            error,
        )),
    }
}

/// Passes a failpoint. Errors: the failpoint is set to fail; never in a release.
pub fn pass(site: &'static str) -> Result<(), Error> {
    coracle_spec::failpoint::hit(site)
        .map_err(|error| io_error(format!("pass failpoint {site}"), error))
}

/// A failed operation of the kernel; a full disk and a lack of descriptors are `Exhausted`.
pub fn io_error(what: impl Into<String>, error: std::io::Error) -> Error {
    let kind = match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT | libc::ENOMEM | libc::EMFILE | libc::ENFILE) => {
            Kind::Exhausted
        }
        _ => Kind::Io,
    };
    Error::because(kind, what, error)
}

/// A failure of the runtime crate, during `what`.
pub fn runtime_error(what: impl Into<String>, error: coracle_spec::error::Error) -> Error {
    use coracle_spec::error::Kind as Runtime;
    let kind = match error.kind() {
        Runtime::Missing => Kind::Missing,
        Runtime::Invalid => Kind::Invalid,
        Runtime::WrongPhase => Kind::WrongPhase,
        Runtime::Exhausted => Kind::Exhausted,
        Runtime::StartFailed => Kind::StartFailed,
        Runtime::Deadline => Kind::Deadline,
        Runtime::Unsupported => Kind::Unsupported,
        Runtime::Gone | Runtime::Io => Kind::Io,
        Runtime::Bug => Kind::Bug,
    };
    Error::because(kind, what, error)
}

/// Creates a directory that only root may enter, with its parents. An existing one is fine.
pub fn make_private(directory: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| io_error(format!("make directory {}", directory.display()), error))
}
