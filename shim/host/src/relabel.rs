//! Gives volumes the SELinux label of their container's mounts, where the kubelet requests it.
//!
//! Called by: CreateContainer, on a kernel with SELinux; StopPodSandbox and RemovePodSandbox, which cancel the
//! labelling for their pod.
//! Invariants: each volume is walked on a thread of its own, at most [`THREADS`] at a time and [`INSIDE`] in one file
//! system, so that a dead one leaves threads for the others; a container waits at most [`LIMIT`], however far the
//! labelling is; a directory of the node or of this daemon is refused, judged by the opened file, not by its name.
//! Must not know: the walk, which label.

mod walk;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coracle_spec::id::PodId;
use rustix::fs::{XattrFlags, fstat, getxattr, setxattr, stat};
use tokio::sync::{Notify, Semaphore, oneshot};

use super::paths::{Lookup, Missing};
use super::{Host, io_error, linux};
use coracle_lifecycle::{ContainerConfig, Error, Kind, MountConfig, PodRecord};

/// Most volumes that are walked at a time.
const THREADS: usize = 8;
/// Most of them in one file system.
const INSIDE: usize = 2;
/// Time limit for all volumes of a container. The next try skips files that are already labelled.
const LIMIT: Duration = Duration::from_secs(600);
/// Stack of a thread. Bytes; only touched pages count.
const STACK: usize = 256 << 10;
/// The extended attribute with a file's label.
const ATTRIBUTE: &str = "security.selinux";
/// Longest label that is compared. Bytes.
const LABEL_BYTES: usize = 1024;
/// The node itself: with another label its own programs would be locked out, and containers let in. Only these
/// directories, not their contents.
const SYSTEM: [&str; 26] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/home",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/media",
    "/mnt",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/var",
    "/var/lib",
    "/var/lib/kubelet",
    "/var/lib/kubelet/pods",
    "/var/log",
];
/// The node itself, with the contents.
const SYSTEM_TREES: [&str; 13] = [
    "/bin",
    "/boot",
    "/dev",
    "/etc/group",
    "/etc/passwd",
    "/etc/pki",
    "/etc/selinux",
    "/etc/shadow",
    "/lib",
    "/proc",
    "/sbin",
    "/sys",
    "/usr",
];

/// The volumes that are being labelled, and for which pods.
#[derive(Debug)]
pub(super) struct Relabels {
    threads: Arc<Semaphore>,
    limit: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Free slots of file systems, by device number.
    devices: HashMap<u64, Arc<Semaphore>>,
    /// Whether a pod's volumes are still needed.
    pods: HashMap<PodId, Arc<Stop>>,
}

/// Signals threads and waiters that a pod is being stopped, or that nobody waits any more.
#[derive(Debug, Default)]
struct Stop {
    requested: AtomicBool,
    changed: Notify,
}

impl Stop {
    fn set(&self) {
        self.requested.store(true, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    fn is_set(&self) -> bool {
        self.requested.load(Ordering::Relaxed)
    }

    async fn wait(&self) {
        let changed = self.changed.notified();
        if !self.is_set() {
            changed.await;
        }
    }
}

/// Sets the stop flag when dropped: nobody waits for the thread any more.
struct Waiting(Arc<Stop>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.set();
    }
}

/// A volume, opened.
struct Volume {
    path: PathBuf,
    device: u64,
    top: OwnedFd,
}

impl Host {
    /// Gives the volumes of a container that request it the label of its mounts. Without such a label they stay as they
    /// are, and so do those on a file system that has no labels or is read-only.
    ///
    /// Errors: Invalid for a directory of the node, or a label that the policy does not know; Deadline; WrongPhase when
    /// the pod is stopped meanwhile; the disk's.
    pub(super) async fn relabel(
        &self,
        pod: &PodRecord,
        config: &Arc<ContainerConfig>,
    ) -> Result<(), Error> {
        let is_requested = |mount: &MountConfig| mount.selinux_relabel && mount.image.is_none();
        if !config.mounts.iter().any(is_requested) || !linux::has_selinux() {
            return Ok(());
        }
        let (record, config) = (pod.clone(), Arc::clone(config));
        let own = [self.config.root.clone(), self.config.run.clone()];
        let what = || format!("open the volumes of sandbox {} to label them", pod.id);
        let opened = self.paths.run(what, move |lookup| {
            let Some(label) = linux::volume_label(&record, &config)? else {
                return Ok(None);
            };
            let requested = config.mounts.iter().filter(|mount| is_requested(mount));
            let volumes = requested.map(|mount| open(lookup, &mount.host_path, &own));
            Ok(Some((label, volumes.collect::<Result<Vec<_>, Error>>()?)))
        });
        let Some((label, volumes)) = opened.await? else {
            return Ok(());
        };
        let all = async {
            for volume in volumes {
                self.relabels.label(&pod.id, volume, label.clone()).await?;
            }
            Ok(())
        };
        self.relabels.in_time(&pod.id, all).await
    }
}

impl Default for Relabels {
    fn default() -> Self {
        Self {
            threads: Arc::new(Semaphore::new(THREADS)),
            limit: LIMIT,
            state: Mutex::default(),
        }
    }
}

impl Relabels {
    /// Waits for `work` of a pod within its time limit, until the pod is stopped.
    async fn in_time(
        &self,
        pod: &PodId,
        work: impl Future<Output = Result<(), Error>>,
    ) -> Result<(), Error> {
        let stop = self.of(pod);
        tokio::select! {
            biased;
            () = stop.wait() => {
                let text = format!("label the volumes of sandbox {pod}: it is being stopped");
                Err(Error::new(Kind::WrongPhase, text))
            }
            done = work => done,
            () = tokio::time::sleep(self.limit) => {
                let limit = self.limit.as_secs();
                let text = format!(
                    "label the volumes of sandbox {pod}: not done after {limit} s; the next try continues from there"
                );
                Err(Error::new(Kind::Deadline, text))
            }
        }
    }

    /// Labels one volume on a thread, once its file system has a free slot. When dropped, the thread ends at the next
    /// file.
    async fn label(&self, pod: &PodId, volume: Volume, label: String) -> Result<(), Error> {
        let path = volume.path.clone();
        let done = self.run(pod, volume.device, move |is_stopped| {
            walk::walk(&volume.top, &label, is_stopped).map_err(|error| {
                let text = format!("give {} the SELinux label {label:?}", path.display());
                Error::because(Kind::Io, text, error)
            })
        });
        done.await
    }

    async fn run(
        &self,
        pod: &PodId,
        device: u64,
        work: impl FnOnce(&dyn Fn() -> bool) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let closed = |_| Error::new(Kind::Bug, "the threads that label volumes are gone");
        let inside = self.slots(device).acquire_owned().await.map_err(closed)?;
        let thread = Arc::clone(&self.threads);
        let thread = thread.acquire_owned().await.map_err(closed)?;
        let (sender, receiver) = oneshot::channel();
        let (of_pod, waiting) = (self.of(pod), Waiting(Arc::default()));
        let left = Arc::clone(&waiting.0);
        let job = move || {
            // Held until the thread has left the file system, whoever still waits for it.
            let _places = (inside, thread);
            let _ = sender.send(work(&|| of_pod.is_set() || left.is_set()));
        };
        let builder = std::thread::Builder::new().name("relabel".to_owned());
        let spawned = builder.stack_size(STACK).spawn(job);
        spawned.map_err(|error| io_error("start a thread to label a volume", error))?;
        let done = receiver.await;
        drop(waiting);
        done.map_err(|_| Error::new(Kind::Bug, "labelling a volume did not finish"))?
    }

    /// Cancels the labelling of a pod's volumes, now and until the pod is forgotten.
    pub(super) fn stop(&self, pod: &PodId) {
        self.of(pod).set();
    }

    /// Forgets a pod that is gone.
    pub(super) fn forget(&self, pod: &PodId) {
        self.lock().pods.remove(pod);
    }

    fn slots(&self, device: u64) -> Arc<Semaphore> {
        let mut state = self.lock();
        // Drops file systems without threads and waiters.
        state
            .devices
            .retain(|_, slots| Arc::strong_count(slots) > 1);
        let slots = state.devices.entry(device);
        Arc::clone(slots.or_insert_with(|| Arc::new(Semaphore::new(INSIDE))))
    }

    fn of(&self, pod: &PodId) -> Arc<Stop> {
        Arc::clone(self.lock().pods.entry(pod.clone()).or_default())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens a volume. Errors: Invalid for a directory of the node or one related to `own`; the disk's.
fn open(lookup: &Lookup<'_>, path: &Path, own: &[PathBuf]) -> Result<Volume, Error> {
    let opened = lookup.open(path, Missing::Refuse).and_then(|top| {
        let device = fstat(&top)?.st_dev;
        let real = std::fs::read_link(procfs_path(&top))?;
        Ok((top, device, real))
    });
    let (top, device, real) =
        opened.map_err(|error| io_error(format!("open {} to label it", path.display()), error))?;
    let is_own = |own: &PathBuf| real.starts_with(own) || own.starts_with(&real);
    if is_system(&real, &top) || own.iter().any(is_own) {
        let text = format!(
            "{} is to get a container's SELinux label, and it is a directory of the node itself",
            real.display()
        );
        return Err(Error::new(Kind::Invalid, text));
    }
    let path = path.to_owned();
    Ok(Volume { path, device, top })
}

/// Whether a directory is the node's own, by its path or, if mounted elsewhere, by its inode.
fn is_system(real: &Path, top: &OwnedFd) -> bool {
    let inode = |found: rustix::fs::Stat| (found.st_dev, found.st_ino);
    let own = fstat(top).map(inode).ok();
    SYSTEM_TREES.iter().any(|tree| real.starts_with(tree))
        || SYSTEM.iter().any(|system| {
            real == Path::new(system) || stat(*system).map(inode).is_ok_and(|it| Some(it) == own)
        })
}

/// Labels an open file, which need not be readable, unless it has the label. Returns false when its file system has no
/// labels or is read-only.
///
/// Errors: the kernel's, such as EINVAL for a label that the policy does not have.
pub(super) fn set(file: impl AsFd, label: &str) -> io::Result<bool> {
    use rustix::io::Errno;
    let at = procfs_path(&file);
    let mut bytes = [0; LABEL_BYTES];
    if let Ok(length) = getxattr(&at, ATTRIBUTE, &mut bytes[..])
        && bytes
            .get(..length)
            .map(|known| known.strip_suffix(b"\0").unwrap_or(known))
            == Some(label.as_bytes())
    {
        return Ok(true);
    }
    match setxattr(&at, ATTRIBUTE, label.as_bytes(), XattrFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::ROFS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The path of the open file itself in procfs, even if that is a link.
fn procfs_path(file: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests;
