//! `/dev` of a Linux container: device nodes, terminals, shared memory and message queues.
//!
//! Called by [`super::prepare`] (what must come from the host) and [`super::finish`] (the rest), before any volume.
//! Invariants: `/dev` is a new tmpfs, so nothing in the image is followed or changed; a node is made by number, or, in
//! a user namespace, bind-mounted from a host node whose number was checked. Cgroups decide whether a device may be
//! used.

use std::cell::OnceCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Uid, XattrFlags, chownat, fsetxattr, fstat, makedev,
    mkdirat, mknodat, openat, symlinkat,
};

use crate::{PodNamespaces, rootfs_path};
use coracle_spec::error::{Context as _, Error, Kind, Result};
use coracle_spec::{Device, DeviceKind, LinuxSpec};
use coracle_sys as sys;
use coracle_sys::mounts::{self, Forbid};

/// Nodes that every container has: name, major and minor number. Source: OCI runtime-spec, "Default Devices".
const USUAL: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Group that owns terminals, `tty` on every distribution.
const TTY_GROUP: &str = "5";

const LINKS: [(&str, &str); 6] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
    ("/proc/kcore", "core"),
];

/// Trees that are bind-mounted from the host, because a user namespace cannot make them or they are the node's.
pub(super) struct Bound {
    /// A tree for each default node and then for each device of the spec; empty without a user namespace.
    nodes: Vec<OwnedFd>,
    /// The node's `/sys`, where the network is the node's but the user namespace is not.
    sys: Option<OwnedFd>,
    /// Shared memory: the pod's, or the node's where ipc is the node's.
    shm: Option<OwnedFd>,
    /// The container's null device, once it was made.
    null: OnceCell<OwnedFd>,
}

impl Bound {
    /// Opens them, as host root and before mounts are made private.
    pub(super) fn open(linux: &LinuxSpec, pod: &PodNamespaces) -> Result<Self> {
        let mut nodes = Vec::new();
        let mut sys = None;
        if pod.user.is_some() {
            for (device, _) in devices(linux) {
                nodes.push(host_node(&device)?);
            }
            if pod.net.is_none() {
                sys = Some(tree(Path::new("/sys"), true)?);
            }
        }
        let shm = match (&pod.ipc, &pod.shm) {
            (None, _) => Some(tree(Path::new("/dev/shm"), false)?),
            (Some(_), Some(shm)) => Some(match mounts::clone_at(shm.as_fd()) {
                // Before Linux 6.15 only an attached tree can be copied; the keeper has attached it.
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => tree(&linux.shm, false)?,
                copied => copied.during(|| "share the pod's memory".into())?,
            }),
            (Some(_), None) => None,
        };
        Ok(Self {
            nodes,
            sys,
            shm,
            null: OnceCell::new(),
        })
    }

    pub(super) fn sys(&self) -> Option<&OwnedFd> {
        self.sys.as_ref()
    }

    /// The container's null device, whose mount is cloned over masked files.
    pub(super) fn null(&self) -> &OwnedFd {
        self.null
            .get()
            .expect("`build` sets it and comes before every mask")
    }
}

fn tree(path: &Path, recursive: bool) -> Result<OwnedFd> {
    mounts::clone_tree(path, recursive).during(|| format!("mount the node's {}", path.display()))
}

/// The default devices, then those of the spec, each with whether it is a default one.
fn devices(linux: &LinuxSpec) -> impl Iterator<Item = (Device, bool)> + '_ {
    let usual = USUAL.iter().map(|(name, major, minor)| Device {
        path: format!("/dev/{name}"),
        source: format!("/dev/{name}").into(),
        kind: DeviceKind::Char,
        major: *major,
        minor: *minor,
        mode: 0o666,
        uid: 0,
        gid: 0,
    });
    let given = |device: &Device| linux.jail.devices.iter().any(|d| d.path == device.path);
    let usual = usual.filter(move |device| !given(device));
    usual
        .map(|device| (device, true))
        .chain(linux.jail.devices.iter().map(|d| (d.clone(), false)))
}

fn host_node(device: &Device) -> Result<OwnedFd> {
    let what = || format!("bind device {}", device.source.display());
    let tree = mounts::clone_tree(&device.source, false).during(what)?;
    let found = fstat(&tree).during(what)?;
    let is_kind = FileType::from_raw_mode(found.st_mode) == file_type(device.kind);
    if is_kind && found.st_rdev == makedev(device.major, device.minor) {
        return Ok(tree);
    }
    Err(Error::new(
        Kind::Invalid,
        format!(
            "{}: it is not device {}:{} any more",
            what(),
            device.major,
            device.minor
        ),
    ))
}

fn file_type(kind: DeviceKind) -> FileType {
    match kind {
        DeviceKind::Char => FileType::CharacterDevice,
        DeviceKind::Block => FileType::BlockDevice,
    }
}

/// Makes and fills `/dev`. Returns the controlling side of the container's terminal, if it has one; the other side has
/// become the standard streams.
pub(super) fn build(
    root: &OwnedFd,
    linux: &LinuxSpec,
    pod: &PodNamespaces,
    bound: &Bound,
    uid: u32,
) -> Result<Option<OwnedFd>> {
    let what = || "mount a tmpfs at /dev".to_owned();
    let at = rootfs_path::plain_directory(root.as_fd(), "dev").during(what)?;
    let mut options = vec![(c"mode", Some("0755")), (c"size", Some("65536k"))];
    let label = linux.jail.mount_label.as_deref();
    options.extend(label.map(|label| (c"context", Some(label))));
    let setid = Forbid {
        setid: true,
        ..Forbid::default()
    };
    let dev = mounts::filesystem(c"tmpfs", &options, setid).during(what)?;
    mounts::attach(dev.as_fd(), at.as_fd()).during(what)?;
    for (number, (device, usual)) in devices(linux).enumerate() {
        node(root, &dev, &device, bound.nodes.get(number))
            .during(|| format!("make device {}", device.path))?;
        if usual && device.path == "/dev/null" {
            let null = rootfs_path::inside(dev.as_fd(), "null").during(what)?;
            let _ = bound.null.set(null);
        }
    }
    if bound.null.get().is_none() {
        let null = rootfs_path::inside(dev.as_fd(), "null").during(what)?;
        let _ = bound.null.set(null);
    }
    links(root, &dev)?;
    let pts = terminals(&dev, pod, label)?;
    shared_memory(&dev, bound)?;
    queues(&dev, label)?;
    own_null(&dev)?;
    if linux.jail.tty {
        return terminal(&dev, &pts, uid).map(Some);
    }
    Ok(None)
}

fn links(root: &OwnedFd, dev: &OwnedFd) -> Result<()> {
    for (target, name) in LINKS {
        // Not every kernel has it.
        if name == "core" && rootfs_path::inside(root.as_fd(), "proc/kcore").is_err() {
            continue;
        }
        match symlinkat(target, dev, name) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(e).during(|| format!("link /dev/{name} to {target}")),
        }
    }
    Ok(())
}

fn node(root: &OwnedFd, dev: &OwnedFd, device: &Device, bound: Option<&OwnedFd>) -> io::Result<()> {
    let (parent, name) = device.path.rsplit_once('/').unwrap_or(("", &device.path));
    let made;
    let parent = if parent == "/dev" {
        dev
    } else {
        made = rootfs_path::ensure(root.as_fd(), parent, true)?;
        &made
    };
    if let Some(tree) = bound {
        let at = rootfs_path::ensure(parent.as_fd(), name, false)?;
        return mounts::attach(tree.as_fd(), at.as_fd());
    }
    let mode = Mode::from_raw_mode(device.mode);
    let number = makedev(device.major, device.minor);
    mknodat(parent, name, file_type(device.kind), mode, number)?;
    if (device.uid, device.gid) != (0, 0) {
        let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
        chownat(
            parent,
            name,
            Some(uid),
            Some(gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
    }
    Ok(())
}

fn directory(dev: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    mkdirat(dev, name, Mode::from_raw_mode(0o755))?;
    rootfs_path::inside(dev.as_fd(), name)
}

/// Most pseudo terminals of a container, its own and its execs' included: all containers share the node's
/// `kernel.pty.max`.
const MOST_TERMINALS: &str = "256";

fn terminals(dev: &OwnedFd, pod: &PodNamespaces, label: Option<&str>) -> Result<OwnedFd> {
    let what = || "mount devpts at /dev/pts".to_owned();
    let mut options = vec![
        (c"newinstance", None),
        (c"ptmxmode", Some("0666")),
        (c"max", Some(MOST_TERMINALS)),
        (c"mode", Some("0620")),
    ];
    options.extend(label.map(|label| (c"context", Some(label))));
    // If the id map does not contain the group, terminals keep root's group.
    let tty_is_mapped = pod.user.is_none() || sys::ids::is_group_mapped(5);
    if tty_is_mapped {
        options.push((c"gid", Some(TTY_GROUP)));
    }
    let forbid = Forbid {
        setid: true,
        exec: true,
        ..Forbid::default()
    };
    let tree = mounts::filesystem(c"devpts", &options, forbid).during(what)?;
    let at = directory(dev, "pts").during(what)?;
    mounts::attach(tree.as_fd(), at.as_fd()).during(what)?;
    Ok(tree)
}

fn shared_memory(dev: &OwnedFd, bound: &Bound) -> Result<()> {
    let what = || "mount shared memory at /dev/shm".to_owned();
    let at = directory(dev, "shm").during(what)?;
    match &bound.shm {
        Some(tree) => mounts::attach(tree.as_fd(), at.as_fd()).during(what),
        None => Ok(()),
    }
}

fn queues(dev: &OwnedFd, label: Option<&str>) -> Result<()> {
    let what = || "mount mqueue at /dev/mqueue".to_owned();
    let at = directory(dev, "mqueue").during(what)?;
    let tree = mounts::filesystem(c"mqueue", &[], Forbid::PRIVILEGE).during(what)?;
    if let Some(label) = label {
        let what = || format!("give /dev/mqueue the SELinux label {label:?}");
        label_top(&tree, label).during(what)?;
    }
    mounts::attach(tree.as_fd(), at.as_fd()).during(what)
}

/// Labels the root of a filesystem that has no mount option for it. Not every policy has labels for each filesystem.
fn label_top(tree: &OwnedFd, label: &str) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = openat(tree, ".", flags, Mode::empty())?;
    let name = c"security.selinux";
    match fsetxattr(&top, name, label.as_bytes(), XattrFlags::empty()) {
        Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
        done => Ok(done?),
    }
}

/// Replaces standard streams that are the node's null device by the container's: a process with the open device could
/// change the node's.
fn own_null(dev: &OwnedFd) -> Result<()> {
    let what = || "open the container's null device".to_owned();
    let is_null = |fd: BorrowedFd<'_>| {
        let found = fstat(fd)?;
        let is_char = FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice;
        io::Result::Ok(is_char && found.st_rdev == makedev(1, 3))
    };
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    let own = openat(dev, "null", flags, Mode::empty()).during(what)?;
    if !is_null(own.as_fd()).during(what)? {
        return Err(Error::new(Kind::Invalid, "/dev/null is not char 1:3"));
    }
    for stream in 0..3 {
        if is_null(sys::standard(stream)).during(what)? {
            sys::terminal::replace_stream(own.as_fd(), stream).during(what)?;
        }
    }
    Ok(())
}

/// Opens a terminal of the container's own devpts by descriptor and makes it the standard streams and `/dev/console`.
fn terminal(dev: &OwnedFd, pts: &OwnedFd, uid: u32) -> Result<OwnedFd> {
    let what = || "open the container's terminal".to_owned();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let control = openat(pts, "ptmx", flags, Mode::empty()).during(what)?;
    let side = sys::terminal::other_side(control.as_fd()).during(what)?;
    // Its user may reopen it, as /dev/stdout or by its name.
    rustix::fs::fchown(&side, Some(Uid::from_raw(uid)), None).during(what)?;
    let tree = mounts::clone_at(side.as_fd()).during(what)?;
    let at = rootfs_path::ensure(dev.as_fd(), "console", false).during(what)?;
    mounts::attach(tree.as_fd(), at.as_fd()).during(what)?;
    sys::terminal::become_controlled_by(side.as_fd()).during(what)?;
    Ok(control)
}

/// Makes the pod's shared memory: a tmpfs of at most `bytes` with SELinux label `label`. Before Linux 6.15, which
/// cannot copy a detached mount, it is attached at `shm` beside directory `exits`.
///
/// Errors: the kernel's.
pub fn pod_shared_memory(
    bytes: u64,
    owner: u32,
    label: Option<&str>,
    exits: &Path,
) -> io::Result<OwnedFd> {
    let (size, owner_text) = (bytes.to_string(), owner.to_string());
    let mut options = vec![
        (c"source", Some("shm")),
        (c"mode", Some("1777")),
        (c"size", Some(&*size)),
    ];
    if owner != 0 {
        options.extend([(c"uid", Some(&*owner_text)), (c"gid", Some(&*owner_text))]);
    }
    options.extend(label.map(|label| (c"context", Some(label))));
    let tree = mounts::filesystem(c"tmpfs", &options, Forbid::PRIVILEGE)?;
    if mounts::clone_at(tree.as_fd()).is_err() {
        let target = exits.with_file_name("shm");
        std::fs::create_dir_all(&target)?;
        mounts::attach(tree.as_fd(), rootfs_path::open_dir(&target)?.as_fd())?;
    }
    Ok(tree)
}
