//! The unpacker process: one layer's bytes in, files out below one directory, then gone.
//!
//! [`start`] is the daemon's half; [`Running`] is the process that it started. [`enter`] is the process's: it builds the
//! jail before a byte is read. What is done with the descriptors is not known here.
//! Descriptors: 0 lifeline pipe, 3 the blob, 4 the directory, 5 the socket to the daemon.
//! Invariant: the process has no network and sees no file but those of the directory; it may change owners, modes and
//! attributes there and has no other privilege; it ends by its limits or with the daemon.
//! Not here: archives, what the daemon believes.

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

/// Address space of one unpacker: the largest window of a compressed layer and our own code. Bytes.
pub const MEMORY_BYTES: u64 = 512 << 20;

/// How long an unpacker that has reported may take to end.
const PATIENCE: Duration = Duration::from_secs(2);

/// What an unpacker is given, in the order of its descriptors.
#[derive(Debug)]
pub struct Descriptors {
    /// The blob, readable.
    pub blob: OwnedFd,
    /// The directory that it fills.
    pub directory: OwnedFd,
    /// The socket to the daemon.
    pub socket: OwnedFd,
}

/// What one unpacker may use, besides [`MEMORY_BYTES`].
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// CPU time. Seconds.
    pub cpu_s: u64,
    /// The largest file that it may write. Bytes.
    pub file_bytes: u64,
}

/// An unpacker that was started; dropping it kills it.
pub struct Running {
    helper: Helper,
    bounds: Bounds,
    _permit: Permit,
}

/// Starts an unpacker when its turn has come.
///
/// Errors: fork or exec failed.
pub async fn start(permits: &Permits, descriptors: Descriptors, bounds: Bounds) -> Result<Running> {
    let what = || "start an unpacker".to_owned();
    let permit = permits.take(MEMORY_BYTES).await?;
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
    /// Waits for its end, which has come or is near; kills it if it lingers.
    ///
    /// Errors: it ended otherwise than by exiting with 0.
    pub async fn end(mut self) -> Result<()> {
        let what = || "unpack a layer".to_owned();
        let child = &mut self.helper.child;
        let status = match tokio::time::timeout(PATIENCE, child.wait()).await {
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
            "{}: the unpacker ended with {status} (limits: {cpu_s} s of CPU, {} MiB)",
            what(),
            MEMORY_BYTES >> 20
        );
        Err(Error::new(Kind::Exhausted, text))
    }
}

/// Takes over the descriptors and jails this process: `coracle unpacker CPU_S FILE_BYTES`. The directory that is handed back is the
/// root of the file system.
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
    // It leads out of the jail; the root does not.
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
    use rustix::process::{Resource, Rlimit, setrlimit};
    let limits = [
        (Resource::Cpu, bounds.cpu_s),
        (Resource::Fsize, bounds.file_bytes),
        (Resource::As, MEMORY_BYTES),
        (Resource::Core, 0),
        (Resource::Nofile, 64),
        (Resource::Memlock, 0),
        (Resource::Msgqueue, 0),
    ];
    for (resource, value) in limits {
        let both = Rlimit {
            current: Some(value),
            maximum: Some(value),
        };
        setrlimit(resource, both).during(|| format!("limit {resource:?} to {value}"))?;
    }
    Ok(())
}
