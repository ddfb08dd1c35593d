//! The two cgroup drivers: cgroupfs creates directories; with systemd, each pod has one delegated scope.
//!
//! Called by the daemon when it creates a pod's record ([`Driver::pod_path`]), after it has started the pod's keeper
//! ([`Scopes::adopt`]), and when the pod is stopped ([`Scopes::release`]). With either driver the cgroups of keeper
//! and containers are children of the pod's cgroup; systemd owns the tree down to the scope, we own what is in it.
//!
//! ```text
//! kubelet:  kubepods-burstable-podX.slice          created by systemd
//! adopt:    `- coracle-POD.scope   (Delegate=yes)   StartTransientUnit with the keeper's pid, wait for the job
//!              |- KEEPER                            created by Cgroups
//!              `- CONTAINER ...
//! ```
//! Invariants: the name of a pod's cgroup tells its driver, so a pod outlives a change of the configuration; adopt
//! and release may be repeated; neither lasts longer than [`TIMEOUT`]. A scope is no child of the daemon's unit, so
//! it does not end with the daemon; it ends with its last process, or by [`Scopes::release`].
//! Not here: limits, which the kubelet sets on its slices and we on the cgroups inside.

mod bus;
mod error;
mod message;
mod semaphore;
mod slice;

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

pub use error::Error;

use self::bus::{Answer, Bus, SOCKET};
use self::message::{Body, Value};
use self::semaphore::Semaphore;
use super::{Cgroups, Limits, Version, files};
use coracle_spec::id::PodId;

/// How long systemd may take to start or stop a scope.
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at a time. systemd answers one call after the other and sends every signal to each connection, so
/// that more connections only cost it time; two keep it busy.
const AT_A_TIME: usize = 2;
/// Pause before a call is repeated on a new connection.
const PAUSE: Duration = Duration::from_millis(50);

const START: &str = "StartTransientUnit";
const STOP: &str = "StopUnit";

/// The cgroup driver of new pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Directories in the cgroup file system.
    Cgroupfs,
    /// Scopes in slices of systemd.
    Systemd,
}

impl Driver {
    /// The driver that fits this node: systemd where it is process 1 and the tree is v2, else cgroupfs.
    #[must_use]
    pub fn detect(cgroups: &Cgroups) -> Self {
        // As sd_booted(3) does it.
        let booted = Path::new("/run/systemd/system").is_dir();
        match cgroups.version() {
            Version::V2 if booted => Self::Systemd,
            Version::V1 | Version::V2 => Self::Cgroupfs,
        }
    }

    /// The path of the cgroup of `pod`; nothing is created. `parent` is CRI's `cgroup_parent`; `fallback`, a path or a
    /// slice, is used when it is empty.
    ///
    /// Errors: `parent` is not of this driver's form, which means that the kubelet uses the other driver.
    pub fn pod_path(self, parent: &str, fallback: &str, pod: &PodId) -> Result<String, Error> {
        let given = if parent.is_empty() { fallback } else { parent };
        match self {
            Self::Cgroupfs if slice::is_slice(parent) && !parent.contains('/') => {
                Err(Error::NotSystemd {
                    parent: parent.to_owned(),
                })
            }
            Self::Cgroupfs => Ok(format!("/{}", given.trim_matches('/'))),
            Self::Systemd => {
                let plain = parent.is_empty() && !slice::is_slice(fallback);
                let slice = match plain {
                    true => slice::cgroup_of(&slice::slice_for(fallback)),
                    false => slice::cgroup_of(given),
                };
                Ok(format!("{}/{}", slice?, slice::scope_of(pod)))
            }
        }
    }
}

/// Whether `path` is a scope, created by [`Scopes::adopt`]: no cgroup can be created in it before it has a process.
#[must_use]
pub fn is_scope(path: &str) -> bool {
    slice::split(path).is_some()
}

/// Creates and removes the scopes of pods. Cheap to clone; clones share the limit of connections.
#[derive(Clone, Debug)]
pub struct Scopes {
    permits: Arc<Semaphore>,
}

impl Default for Scopes {
    fn default() -> Self {
        Self {
            permits: Arc::new(Semaphore::new(AT_A_TIME)),
        }
    }
}

impl Scopes {
    /// Creates the scope `path` of a pod with its keeper `pid` in it, and the keeper's own cgroup `leaf` as a direct
    /// child. Blocks: for a permit, and then at most for [`TIMEOUT`] and that of a stop before it.
    ///
    /// A scope of that name from an earlier attempt is stopped first. Errors: systemd does not answer or
    /// refuses; the keeper ended meanwhile; the cgroup `leaf` cannot be created.
    pub fn adopt(&self, cgroups: &Cgroups, path: &str, leaf: &str, pid: i32) -> Result<(), Error> {
        let Some((slice, scope)) = slice::split(path) else {
            return Err(Error::Slice {
                parent: path.to_owned(),
                why: "is not the scope of a pod",
            });
        };
        let permit = self.permits.acquire();
        let deadline = Instant::now() + TIMEOUT;
        while !is_inside(pid, path) {
            let left = deadline.saturating_duration_since(Instant::now());
            match start(slice, scope, pid, left) {
                Ok(()) if is_inside(pid, path) => {}
                Ok(()) => return Err(elsewhere(scope, pid, path)),
                // systemd re-executed itself during the call.
                Err(Error::Call { source, .. }) if is_hangup(&source) => thread::sleep(PAUSE),
                Err(Error::Refused { name, .. }) if name.ends_with(".UnitExists") => {
                    stop(scope, left)?;
                }
                Err(error) => return Err(error),
            }
        }
        drop(permit);
        move_keeper(cgroups, leaf, pid)
    }

    /// Stops the scope `path` and the processes in it. Does nothing if the scope is gone, or if `path` is not a scope.
    /// Blocks: for a permit, and then at most for [`TIMEOUT`].
    ///
    /// Errors: systemd does not answer or refuses.
    pub fn release(&self, path: &str) -> Result<(), Error> {
        let Some((_, scope)) = slice::split(path) else {
            return Ok(());
        };
        let _permit = self.permits.acquire();
        stop(scope, TIMEOUT)
    }
}

/// Moves the keeper from the scope into its leaf. On v2 a cgroup with processes cannot enable controllers for its
/// children, so the keeper moves first.
fn move_keeper(cgroups: &Cgroups, leaf: &str, pid: i32) -> Result<(), Error> {
    let cgroup = cgroups.open(leaf)?;
    if cgroups.version() == Version::V1 {
        cgroups.create(leaf, &Limits::default())?;
    }
    for file in cgroup.procs_files() {
        if let Some(dir) = file.parent() {
            files::make_dir(dir)?;
        }
        files::write(&file, &pid.to_string())?;
    }
    cgroups.create(leaf, &Limits::default())?;
    Ok(())
}

fn start(slice: &str, scope: &str, pid: i32, timeout: Duration) -> Result<(), Error> {
    let pids = [pid.unsigned_abs()];
    let properties = [
        ("Description", Value::Text("a pod of Coracle")),
        ("Slice", Value::Text(slice)),
        ("PIDs", Value::U32s(&pids)),
        // Hands us the tree below, with every controller.
        ("Delegate", Value::Bool(true)),
        // The kubelet drains pods before a shutdown; systemd must not stop them earlier.
        ("DefaultDependencies", Value::Bool(false)),
        // Limits are the kubelet's, on the slice; systemd's default would be 15 % of the node's.
        ("TasksMax", Value::U64(u64::MAX)),
        // A failed scope is unloaded like one that ended, so that its name is free.
        ("CollectMode", Value::Text("inactive-or-failed")),
    ];
    let body = Body::default()
        .text(scope)
        .text("fail")
        .properties(&properties)
        .no_auxiliary_units();
    run(START, scope, body, timeout)
}

fn stop(scope: &str, timeout: Duration) -> Result<(), Error> {
    let body = Body::default().text(scope).text("replace");
    match run(STOP, scope, body, timeout) {
        Err(Error::Refused { name, .. }) if name.ends_with(".NoSuchUnit") => Ok(()),
        stopped => stopped,
    }
}

/// Calls a method that queues a job for `unit`, and waits for the job's end.
fn run(member: &'static str, unit: &str, body: Body, timeout: Duration) -> Result<(), Error> {
    let mut bus = Bus::connect(Path::new(SOCKET), timeout)?;
    match bus.call(member, body)? {
        Answer::Accepted => {}
        Answer::Refused { name, text } => {
            return Err(Error::Refused {
                member,
                unit: unit.to_owned(),
                name,
                text,
            });
        }
    }
    match bus.job_end(member, unit)?.as_str() {
        "done" => Ok(()),
        result => Err(Error::Job {
            member,
            unit: unit.to_owned(),
            result: result.to_owned(),
        }),
    }
}

fn is_hangup(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// Whether the process is in the cgroup `path` or below it: on v2 by the unified tree, on v1 by systemd's hierarchy.
fn is_inside(pid: i32, path: &str) -> bool {
    let found = cgroup_of(pid);
    found
        .strip_prefix(path)
        .is_some_and(|below| below.is_empty() || below.starts_with('/'))
}

/// The cgroup of a process in systemd's hierarchy, by `/proc/PID/cgroup`; empty if the process is gone.
fn cgroup_of(pid: i32) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let mut paths = text.lines().filter_map(|line| {
        line.strip_prefix("0::")
            .or_else(|| line.split_once(":name=systemd:").map(|(_, path)| path))
    });
    // A hybrid node lists systemd's hierarchy before the unified tree, and systemd places processes in both.
    paths.next().unwrap_or_default().to_owned()
}

fn elsewhere(scope: &str, pid: i32, path: &str) -> Error {
    Error::Elsewhere {
        unit: scope.to_owned(),
        pid,
        found: cgroup_of(pid),
        wanted: path.to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const POD: &str = "00000000000000000000000000000000000000000000000000000000000000ab";

    fn pod_path(driver: Driver, parent: &str, fallback: &str) -> Result<String, String> {
        let path = driver.pod_path(parent, fallback, &POD.parse().unwrap());
        path.map_err(|error| error.to_string())
    }

    #[test]
    fn the_kubelets_parent_precedes_the_configured_one() {
        let of = |parent, fallback| pod_path(Driver::Cgroupfs, parent, fallback).unwrap();
        assert_eq!(of("/kubepods/pod1/", "/coracle"), "/kubepods/pod1");
        assert_eq!(of("", "coracle.slice"), "/coracle.slice");
        assert_eq!(of("", "/coracle"), "/coracle");
    }

    #[test]
    fn scopes_lie_in_slices() {
        let scope = format!("coracle-{POD}.scope");
        let of = |parent, fallback| pod_path(Driver::Systemd, parent, fallback).unwrap();
        let parent = of("kubepods-pod1.slice", "/coracle");
        assert_eq!(
            parent,
            format!("/kubepods.slice/kubepods-pod1.slice/{scope}")
        );
        assert_eq!(of("", "/coracle"), format!("/coracle.slice/{scope}"));
        assert_eq!(of("", "a-b.slice"), format!("/a.slice/a-b.slice/{scope}"));
        assert!(is_scope(&parent));
        assert!(!is_scope("/kubepods/pod1"));
    }

    #[test]
    fn a_parent_of_the_other_driver_is_refused() {
        let error = pod_path(Driver::Cgroupfs, "kubepods-pod1.slice", "/coracle").unwrap_err();
        assert!(error.contains("cgroup.driver is cgroupfs"), "{error}");
        let error = pod_path(Driver::Systemd, "/kubepods/pod1", "/coracle").unwrap_err();
        assert!(error.contains("must be a slice"), "{error}");
    }

    #[test]
    fn releasing_a_plain_directory_needs_no_systemd() {
        Scopes::default().release("/kubepods/pod1").unwrap();
    }

    #[test]
    fn an_error_names_the_missing_socket_of_systemd() {
        if Path::new(SOCKET).exists() {
            return;
        }
        let scope = format!("/coracle.slice/coracle-{POD}.scope");
        let error = Scopes::default().release(&scope).unwrap_err();
        assert!(error.to_string().contains(SOCKET), "{error}");
    }
}
