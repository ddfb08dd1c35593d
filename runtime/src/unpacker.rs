//! The unpacker process: reads one layer, writes its files below one directory, and exits.
//!
//! The daemon calls [`start`], which returns a [`Running`] process. The process calls [`enter`], which builds the jail
//! before a byte is read. Descriptors: 0 lifeline pipe, 3 the blob, 4 the directory, 5 the socket to the daemon.
//! Invariants: the process has no network and sees only the files of the directory; its only privileges are to change
//! owners, modes and attributes there; its limits or the daemon end it.
//! It must not know the archive formats or the protocol with the daemon.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, openat};

use coracle_sandbox as sandbox;
use coracle_sandbox::helper::{self, Helper, Permit, Permits};
use coracle_spec::error::{Context as _, Error, Kind, Result};
use coracle_spec::failpoint;
use coracle_sys as sys;

/// Address space of one unpacker, in bytes: the largest window of a compressed layer and our own code.
pub const MEMORY_BYTES: u64 = 512 << 20;

/// How long an unpacker may take to exit after its report.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The descriptors of an unpacker, in order.
#[derive(Debug)]
pub struct Descriptors {
    /// The blob, readable.
    pub blob: OwnedFd,
    /// The directory that it writes to.
    pub directory: OwnedFd,
    /// The socket to the daemon.
    pub socket: OwnedFd,
}

/// Limits of one unpacker, besides [`MEMORY_BYTES`].
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// CPU time, in seconds.
    pub cpu_s: u64,
    /// The largest file that it may write, in bytes.
    pub file_bytes: u64,
}

/// A running unpacker; dropping it kills it.
pub struct Running {
    helper: Helper,
    bounds: Bounds,
    _permit: Permit,
}

/// Waits for a permit of `tenant`, then starts an unpacker.
///
/// Errors: fork or exec failed.
pub async fn start(
    permits: &Permits,
    tenant: &str,
    descriptors: Descriptors,
    bounds: Bounds,
) -> Result<Running> {
    let what = || "start an unpacker".to_owned();
    let permit = permits.take(tenant, MEMORY_BYTES).await?;
    failpoint::hit("unpack.exec").during(what)?;
    let Descriptors {
        blob,
        directory,
        socket,
    } = descriptors;
    let arguments = [
        "unpacker".to_owned(),
        bounds.cpu_s.to_string(),
        bounds.file_bytes.to_string(),
    ];
    let given = vec![blob, directory, socket];
    let exe = Path::new("/proc/self/exe");
    let helper = helper::start(exe, &arguments, given, Stdio::null()).during(what)?;
    Ok(Running {
        helper,
        bounds,
        _permit: permit,
    })
}

impl Running {
    /// Waits for its exit, which is due; kills it after a timeout.
    ///
    /// Errors: it did not exit with 0.
    pub async fn end(mut self) -> Result<()> {
        let what = || "unpack a layer".to_owned();
        let child = &mut self.helper.child;
        let status = match tokio::time::timeout(TIMEOUT, child.wait()).await {
            Ok(status) => status.during(what)?,
            Err(_) => {
                child.kill().await.during(what)?;
                return Err(Error::new(
                    Kind::Exhausted,
                    "unpack a layer: the unpacker did not end by itself",
                ));
            }
        };
        if status.success() {
            return Ok(());
        }
        let Bounds { cpu_s, .. } = self.bounds;
        let text = format!(
            "{}: the unpacker ended with {status}{} (limits: {cpu_s} s of CPU, {} MiB)",
            what(),
            self.helper.error_line().await,
            MEMORY_BYTES >> 20
        );
        Err(Error::new(Kind::Exhausted, text))
    }
}

/// Takes over the descriptors and jails this process: `coracle unpacker CPU_S FILE_BYTES`. The returned directory is
/// the root of the file system.
///
/// Errors: bad arguments, or the first step of the jail that failed.
pub fn enter(arguments: &[String]) -> Result<Descriptors> {
    let number = |at: usize| arguments.get(at).and_then(|a| a.parse::<u64>().ok());
    let (Some(cpu_s), Some(file_bytes)) = (number(0), number(1)) else {
        let text = format!("unpacker arguments {arguments:?} are not two numbers");
        return Err(Error::new(Kind::Invalid, text));
    };
    let kept = sys::fork::keep_only(&[0, 1, 2, 3, 4, 5]);
    kept.during(|| "take over the unpacker's descriptors".into())?;
    let [blob, directory, socket] = [3, 4, 5].map(sys::fork::adopt);
    limit(Bounds { cpu_s, file_bytes })?;
    sandbox::unpacker::jail(directory.as_fd())?;
    // This descriptor leads out of the jail; the new root does not.
    drop(directory);
    helper::watch_lifeline();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, "/", flags, Mode::empty());
    Ok(Descriptors {
        blob,
        directory: root.during(|| "open the unpacker's root".into())?,
        socket,
    })
}

fn limit(bounds: Bounds) -> Result<()> {
    use rustix::process::Resource;
    sandbox::set_limits(&[
        (Resource::Cpu, bounds.cpu_s),
        (Resource::Fsize, bounds.file_bytes),
        (Resource::As, MEMORY_BYTES),
        (Resource::Core, 0),
        (Resource::Nofile, 64),
        (Resource::Memlock, 0),
        (Resource::Msgqueue, 0),
    ])
}
