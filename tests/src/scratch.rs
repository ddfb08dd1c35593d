//! A corner of the machine for one daemon: a directory, a cgroup, a subnet, an interface prefix and host ids of its own.
//!
//! Called by: the daemon and peer starters. Slots are held by file locks, so several test processes can run at once,
//! and a slot that a killed process left behind is swept by the next one that takes it.
//! Invariant: dropping a scratch removes everything of it from the machine, whatever the test did.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, flock, openat, unlinkat,
};
use rustix::mount::{UnmountFlags, unmount};

use crate::{Outcome, procs};

/// How many scratches can exist on the machine at once; each has a /20 subnet and [`PODS`] ranges of host ids.
const SLOTS: u16 = 48;
/// Most pods of a scratch's daemon at a time.
const PODS: u32 = 512;
/// Host ids of a pod: the default of `sandbox.id_count`.
const POD_IDS: u32 = 65_536;
/// The first host id of the first scratch: above those that tests give user namespaces.
const ID_BASE: u32 = 0x1000_0000;
/// The first host id, and most pods, of the daemon with many pods: above those of a demo.
const MANY: (u32, u32) = (0x9800_0000, 20_000);
/// How long killed processes and their cgroups may take to go.
const SWEEP: Duration = Duration::from_secs(30);
/// Where the lock files of the slots lie.
const LOCKS: &str = "/tmp/coracle-test-slots";

/// One slot and what hangs on its number. Removed, with everything in it, on drop.
#[derive(Debug)]
pub struct Scratch {
    number: u16,
    dir: PathBuf,
    _lock: File,
}

impl Scratch {
    /// Takes the first free slot, sweeps what an earlier holder left there, and makes its directory and cgroups.
    /// Errors: all slots taken, or the directory cannot be made.
    pub fn new() -> Outcome<Self> {
        fs::create_dir_all(LOCKS)?;
        for number in 0..SLOTS {
            let lock = File::create(format!("{LOCKS}/{number}"))?;
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            let dir = PathBuf::from(format!("/tmp/coracle-test-{number}"));
            let scratch = Self {
                number,
                dir,
                _lock: lock,
            };
            scratch.sweep();
            fs::create_dir_all(&scratch.dir)?;
            // The parent of the pods' cgroups is made here as the kubelet makes it, and stays when the pods go.
            let pods = scratch.cgroup_dirs("pods");
            for cgroup in scratch.cgroup_dirs("daemon").into_iter().chain(pods) {
                make_cgroup(&cgroup)
                    .map_err(|e| format!("make cgroup {}: {e}", cgroup.display()))?;
            }
            return Ok(scratch);
        }
        Err(format!("no free slot in {LOCKS}: all {SLOTS} are locked").into())
    }

    /// The directory that holds everything the daemon writes.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The cgroup, as a path inside every hierarchy, under which all processes of this scratch run.
    pub fn cgroup(&self) -> String {
        format!("/coracle-test-{}", self.number)
    }

    /// The pod subnet of this scratch, a /20 inside 10.96.0.0/12.
    pub fn subnet(&self) -> String {
        format!(
            "10.{}.{}.0/20",
            96 + self.number / 16,
            self.number % 16 * 16
        )
    }

    /// Lines of `[sandbox]` with the host ids of this scratch, which end below those of a daemon with the default
    /// configuration. With `many_pods` they are those for the one daemon on the machine that has more than usual.
    pub fn host_ids(&self, many_pods: bool) -> String {
        let usual = (ID_BASE + u32::from(self.number) * PODS * POD_IDS, PODS);
        let (base, pods) = if many_pods { MANY } else { usual };
        format!("id_base = {base}\nmax_pods = {pods}\n")
    }

    /// The tables of nftables that the daemon keeps while there are pods.
    pub fn tables_of_pods(&self) -> [String; 2] {
        ["in", "count"].map(|name| format!("coracle-{}-{name}", self.interface_prefix()))
    }

    /// Those that it keeps while there are pods with host ports, and pods under an egress list.
    pub fn tables_of_some_pods(&self) -> [String; 2] {
        let prefix = self.interface_prefix();
        [
            format!("coracle-{prefix}"),
            format!("coracle-{prefix}-control"),
        ]
    }

    /// The first three letters of the name of every host interface of this scratch.
    pub fn interface_prefix(&self) -> String {
        let letter = |n: u16| char::from(b'a' + (n % 26) as u8);
        format!("t{}{}", letter(self.number / 26), letter(self.number))
    }

    /// The directories of the cgroup `below` this scratch's, one for each hierarchy of the machine.
    pub fn cgroup_dirs(&self, below: &str) -> Vec<PathBuf> {
        let inside = format!("{}/{below}", self.cgroup());
        let inside = inside.trim_matches('/');
        hierarchies().iter().map(|root| root.join(inside)).collect()
    }

    /// Shell words that move the shell into the daemon's cgroup of this scratch, in every hierarchy.
    pub fn enter_cgroup(&self) -> String {
        let join = |dir: PathBuf| format!("echo $$ > {}/cgroup.procs; ", dir.display());
        self.cgroup_dirs("daemon").into_iter().map(join).collect()
    }

    /// Kills and removes everything that carries this slot's number. Best effort: what resists is for the leak check.
    fn sweep(&self) {
        let deadline = Instant::now() + SWEEP;
        loop {
            let alive = procs::of_scratch(self);
            if alive.is_empty() || Instant::now() > deadline {
                break;
            }
            for process in alive {
                procs::kill(process.pid);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        for mount in self.mounts().iter().rev() {
            let _ = unmount(mount, UnmountFlags::DETACH);
        }
        // They outlive a daemon that was killed, as pods do. Absent otherwise.
        let tables = self.tables_of_pods().into_iter();
        for table in tables.chain(self.tables_of_some_pods()) {
            let mut delete = Command::new("nft");
            let _ = delete.args(["delete", "table", "inet", &table]).output();
        }
        // The threads of a large process are in their cgroup for a while after it was killed.
        while !self
            .cgroup_dirs("")
            .iter()
            .all(|root| is_without_cgroups(root))
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        // What a test has left may be too deep for the standard library.
        let _ = Command::new("rm").arg("-rf").arg(&self.dir).status();
    }

    /// The mount points of this mount namespace that lie in this scratch's directory, in mount order.
    pub fn mounts(&self) -> Vec<String> {
        mounts_below(&self.dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::env::var_os("CORACLE_TEST_KEEP").is_none() || !std::thread::panicking() {
            self.sweep();
        }
    }
}

/// The mount points of this mount namespace that lie below a directory, in mount order.
pub(crate) fn mounts_below(dir: &Path) -> Vec<String> {
    let inside = format!("{}/", dir.display());
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points
        .filter(|point| point.starts_with(&inside))
        .map(str::to_owned)
        .collect()
}

/// The mount points of all cgroup hierarchies, version 1 and 2.
pub fn hierarchies() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let cgroup = |line: &&str| {
        line.split(" - ")
            .nth(1)
            .is_some_and(|fs| fs.starts_with("cgroup"))
    };
    table
        .lines()
        .filter(cgroup)
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .collect()
}

/// Makes a cgroup and its parents; on version 1 a new cpuset takes the processors and memory nodes of its parent.
fn make_cgroup(dir: &Path) -> std::io::Result<()> {
    if dir.exists() {
        return Ok(());
    }
    let Some(parent) = dir.parent() else {
        return Ok(());
    };
    make_cgroup(parent)?;
    fs::create_dir(dir)?;
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if let Ok(inherited) = fs::read(parent.join(file)) {
            let _ = fs::write(dir.join(file), inherited);
        }
    }
    Ok(())
}

/// Removes a cgroup as [`remove_cgroups`] does; whether nothing is left of it.
fn is_without_cgroups(dir: &Path) -> bool {
    remove_cgroups(dir);
    !dir.exists()
}

/// Removes a cgroup and those below it, as far as they are empty; by descriptor, because a test may nest them deeper than a
/// path can name.
pub(crate) fn remove_cgroups(dir: &Path) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |at: BorrowedFd<'_>, name: &CStr| openat(at, name, flags, Mode::empty()).ok();
    let below = |dir: &OwnedFd| -> Vec<CString> {
        let entries = Dir::read_from(dir).into_iter().flatten().flatten();
        let dirs = entries.filter(|entry| entry.file_type() == FileType::Directory);
        let names = dirs.map(|entry| entry.file_name().to_owned());
        names
            .filter(|name| !name.to_bytes().starts_with(b"."))
            .collect()
    };
    let Ok(mut here) = openat(CWD, dir, flags, Mode::empty()) else {
        return;
    };
    let mut frames = vec![(CString::default(), below(&here))];
    while let Some((own, names)) = frames.last_mut() {
        if let Some(name) = names.pop() {
            if let Some(child) = open(here.as_fd(), &name) {
                frames.push((name, below(&child)));
                here = child;
            }
            continue;
        }
        let own = std::mem::take(own);
        frames.pop();
        if !frames.is_empty()
            && let Some(parent) = open(here.as_fd(), c"..")
        {
            here = parent;
            let _ = unlinkat(&here, &*own, AtFlags::REMOVEDIR);
        }
    }
    let _ = fs::remove_dir(dir);
}
