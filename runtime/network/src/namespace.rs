//! Creates a pod's net, ipc and uts namespaces, and pins a network namespace by a bind mount (a pin).
//! A short-lived thread unshares the namespaces: no other thread of the daemon ever leaves the host's.
//! Invariants: a failed call leaves no namespace and no pin; `lo` is up in every namespace created here.
//! Not here: interfaces other than `lo`, which sysctls are allowed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;

use rustix::fs::{Mode, OFlags, fstatfs, openat};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::system::sethostname;
use rustix::thread::{UnshareFlags, move_into_link_name_space};

use super::error::Error;
use super::netlink::Netlink;
use super::veth;
use coracle_sys::empty;
use coracle_sys::mounts::{self, Forbid};
use coracle_sys::namespaces::unshare;
use coracle_sys::userns::{self, Holder};

/// `f_type` of nsfs. Source: linux/magic.h, `NSFS_MAGIC`.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// The namespaces to create for a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceConfig {
    /// A network namespace.
    pub net: bool,
    /// An IPC namespace.
    pub ipc: bool,
    /// A UTS namespace with this hostname (at most 64 bytes).
    pub uts: Option<String>,
    /// A user namespace that owns the others.
    pub user: Option<IdMaps>,
    /// The network namespace has no IPv6: not even a link-local address, now or on a later interface.
    pub ipv6_off: bool,
    /// Sysctls of these namespaces: path below `/proc/sys`, value.
    pub sysctls: Vec<(String, String)>,
}

/// The maps of a user namespace, one block each: first id inside, first outside, count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMaps {
    /// Users.
    pub users: (u32, u32, u32),
    /// Groups.
    pub groups: (u32, u32, u32),
}

/// The created namespaces; each lives as long as its descriptor, a pin or a process in it.
#[derive(Debug, Default)]
pub struct Namespaces {
    /// The network namespace.
    pub net: Option<OwnedFd>,
    /// The IPC namespace.
    pub ipc: Option<OwnedFd>,
    /// The UTS namespace.
    pub uts: Option<OwnedFd>,
    /// The user namespace that owns the others.
    pub user: Option<OwnedFd>,
}

/// Creates the namespaces that `config` names. With `pin` and `config.net`, the network namespace is bind-mounted on
/// that file, which is created; an older pin there is replaced. Blocks for about half a millisecond.
/// Errors: the kernel refuses a namespace, the hostname or the mount; nothing is left then.
pub fn create_namespaces(config: NamespaceConfig, pin: Option<&Path>) -> Result<Namespaces, Error> {
    let pin = pin.map(Path::to_owned);
    let (done, made) = mpsc::sync_channel(1);
    let maker = thread::Builder::new()
        .name("namespaces".to_owned())
        .spawn(move || {
            let mut procfs = None;
            // Who waits has given up only if it has panicked.
            let _ = done.send(make(&config, pin.as_deref(), &mut procfs));
            // Behind the answer: the kernel waits for all processors before a mount is gone, for milliseconds where they
            // are busy.
            drop(procfs);
        })
        .map_err(|error| Error::io("start a thread to make", "namespaces", error))?;
    made.recv().unwrap_or_else(|gone| match maker.join() {
        Ok(()) => Err(Error::io("make", "namespaces", io::Error::other(gone))),
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Runs on a thread that ends afterwards, when it has closed the mount in `procfs`.
fn make(
    config: &NamespaceConfig,
    pin: Option<&Path>,
    procfs: &mut Option<OwnedFd>,
) -> Result<Namespaces, Error> {
    let user = match &config.user {
        Some(maps) => Some(enter_new_user_namespace(config, maps)?),
        None => {
            leave_shared(config)?;
            None
        }
    };
    if let Some(hostname) = &config.uts {
        sethostname(hostname.as_bytes())
            .map_err(|error| Error::io("set the hostname", format!("{hostname:?}"), error))?;
    }
    let mut made = Namespaces {
        net: config.net.then(|| own_namespace("net")).transpose()?,
        ipc: config.ipc.then(|| own_namespace("ipc")).transpose()?,
        uts: config
            .uts
            .is_some()
            .then(|| own_namespace("uts"))
            .transpose()?,
        user,
    };
    *procfs = set_sysctls(config)?;
    if let Some(net) = made.net.take() {
        Netlink::open()?.run(vec![veth::loopback_up()])?;
        pin.map_or(Ok(()), pin_own_network)?;
        made.net = Some(net);
    }
    Ok(made)
}

/// Leaves those namespaces of the node that `config` names.
fn leave_shared(config: &NamespaceConfig) -> Result<(), Error> {
    let mut flags = UnshareFlags::empty();
    flags.set(UnshareFlags::NEWNET, config.net);
    flags.set(UnshareFlags::NEWIPC, config.ipc);
    flags.set(UnshareFlags::NEWUTS, config.uts.is_some());
    // Only this thread is in the new namespaces, and it ends when its work is done.
    unshare(flags).map_err(|error| Error::io("unshare", format!("{flags:?}"), error))
}

/// Creates a user namespace and the others inside it, and enters the others. Returns the user namespace,
/// which a multi-threaded process cannot enter.
fn enter_new_user_namespace(config: &NamespaceConfig, maps: &IdMaps) -> Result<OwnedFd, Error> {
    let kinds = [
        (config.net, libc::CLONE_NEWNET, "net"),
        (config.ipc, libc::CLONE_NEWIPC, "ipc"),
        (config.uts.is_some(), libc::CLONE_NEWUTS, "uts"),
    ];
    let wanted = || kinds.iter().filter(|(wanted, _, _)| *wanted);
    let flags = wanted().fold(0, |flags, (_, flag, _)| flags | flag);
    let failed = |error| Error::io("make a user namespace with", format!("{maps:?}"), error);
    let holder = Holder {
        flags,
        root: Some(empty_mounts().map_err(failed)?),
        title: None,
    };
    let held = userns::hold(holder, &[maps.users], &[maps.groups]).map_err(failed)?;
    for (_, _, kind) in wanted() {
        let namespace = held.open(kind).map_err(failed)?;
        move_into_link_name_space(namespace.as_fd(), None)
            .map_err(|error| Error::io("enter the new namespace", (*kind).to_owned(), error))?;
    }
    held.open("user").map_err(failed)
}

/// The daemon's empty mount namespace, made when it is first needed.
fn empty_mounts() -> io::Result<BorrowedFd<'static>> {
    static EMPTY: Mutex<Option<&'static OwnedFd>> = Mutex::new(None);
    let mut made = EMPTY.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(made) = *made {
        return Ok(made.as_fd());
    }
    let new: &'static OwnedFd = Box::leak(Box::new(empty::namespace()?));
    *made = Some(new);
    Ok(new.as_fd())
}

/// Sets the sysctls of `config` in the namespaces this thread is in.
///
/// They are written below a procfs mounted for that alone: the node's would keep an entry for each file and namespace, and
/// as those of all namespaces have the same names, finding one takes as long as there are pods. Returns that procfs.
fn set_sysctls(config: &NamespaceConfig) -> Result<Option<OwnedFd>, Error> {
    let ipv6_off = config.net && config.ipv6_off;
    if !ipv6_off && config.sysctls.is_empty() {
        return Ok(None);
    }
    let procfs = mounts::filesystem(c"proc", &[], Forbid::PRIVILEGE)
        .map_err(|error| Error::io("mount", "a procfs for sysctls", error))?;
    if ipv6_off {
        // Later interfaces inherit this value, too.
        match set(&procfs, "net/ipv6/conf/all/disable_ipv6", "1") {
            // A kernel without IPv6.
            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {}
            done => done?,
        }
    }
    let mut sysctls = config.sysctls.iter();
    sysctls.try_for_each(|(path, value)| set(&procfs, path, value))?;
    Ok(Some(procfs))
}

fn set(procfs: &OwnedFd, path: &str, value: &str) -> Result<(), Error> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let opened = openat(procfs, format!("sys/{path}"), flags, Mode::empty());
    let written = opened.map_err(io::Error::from).and_then(|file| {
        let mut file = File::from(file);
        file.write_all(value.as_bytes())
    });
    written.map_err(|error| Error::file("set", &Path::new("/proc/sys").join(path), error))
}

fn own_namespace(kind: &str) -> Result<OwnedFd, Error> {
    let file = PathBuf::from(format!("/proc/thread-self/ns/{kind}"));
    File::open(&file)
        .map(OwnedFd::from)
        .map_err(|error| Error::file("open", &file, error))
}

fn pin_own_network(pin: &Path) -> Result<(), Error> {
    let create = || {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(pin)
            .map(drop)
    };
    match create() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            unpin(pin).map(|()| create())?
        }
        done => done,
    }
    .map_err(|error| Error::file("create the pin", pin, error))?;
    mount_bind("/proc/thread-self/ns/net", pin).map_err(|error| {
        // The error of the mount is the one to report.
        let _ = fs::remove_file(pin);
        Error::file("bind-mount a network namespace on", pin, error)
    })
}

/// Opens a pinned namespace. Errors: the pin is absent (ENOENT), or a plain file because its mount
/// is gone.
pub fn open_pin(pin: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let opened = rustix::fs::open(pin, flags, Mode::empty())
        .map_err(|error| Error::file("open the pin", pin, error))?;
    let stat = fstatfs(&opened).map_err(|error| Error::file("stat the pin", pin, error))?;
    match u64::try_from(stat.f_type) == Ok(NSFS_MAGIC) {
        true => Ok(opened),
        false => Err(Error::NotPinned {
            pin: pin.to_owned(),
        }),
    }
}

/// Unmounts and deletes a pin, if it exists. The kernel later removes the namespace and its interfaces, when its
/// last process and descriptor are gone; this call does not wait for that.
pub fn unpin(pin: &Path) -> Result<(), Error> {
    loop {
        match unmount(pin, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(error) => return Err(Error::file("unmount the pin", pin, error)),
        }
    }
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::file("delete the pin", pin, error))
        }
        _ => Ok(()),
    }
}

/// The pins in `dir`, sorted; none if there is no such directory. Includes files that are no longer mounts,
/// so that they can be unpinned.
pub fn list_pins(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::file("list the pins in", dir, error)),
    };
    let pins: io::Result<Vec<PathBuf>> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut pins = pins.map_err(|error| Error::file("list the pins in", dir, error))?;
    pins.sort_unstable();
    Ok(pins)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use rustix::thread::LinkNameSpaceType;
    use std::os::unix::fs::MetadataExt;

    /// A directory for pins; removed with them when it is dropped.
    struct PinDir(tempfile::TempDir);

    impl PinDir {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }
    }

    impl Drop for PinDir {
        fn drop(&mut self) {
            for pin in list_pins(self.0.path()).unwrap_or_default() {
                let _ = unpin(&pin);
            }
        }
    }

    fn is_mounted(path: &Path) -> bool {
        fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .contains(&format!(" {} ", path.display()))
    }

    #[test]
    fn namespaces_are_created_and_the_host_is_not_touched() {
        let own = |kind: &str| fs::metadata(format!("/proc/self/ns/{kind}")).unwrap().ino();
        let before = (
            own("net"),
            own("ipc"),
            own("uts"),
            rustix::system::uname().nodename().to_owned(),
        );
        let config = NamespaceConfig {
            net: true,
            ipc: true,
            uts: Some("web-0".into()),
            ..NamespaceConfig::default()
        };
        let made = create_namespaces(config, None).unwrap();
        let inode = |fd: &Option<OwnedFd>| rustix::fs::fstat(fd.as_ref().unwrap()).unwrap().st_ino;
        assert_ne!(inode(&made.net), before.0);
        assert_ne!(inode(&made.ipc), before.1);
        assert_ne!(inode(&made.uts), before.2);
        let uts = made.uts.unwrap();
        let hostname = thread::spawn(move || {
            move_into_link_name_space(
                uts.as_fd(),
                Some(LinkNameSpaceType::HostNameAndNISDomainName),
            )
            .unwrap();
            rustix::system::uname().nodename().to_owned()
        });
        assert_eq!(hostname.join().unwrap().to_str(), Ok("web-0"));
        assert_eq!(
            (
                own("net"),
                own("ipc"),
                own("uts"),
                rustix::system::uname().nodename().to_owned()
            ),
            before
        );
    }

    #[test]
    fn only_requested_namespaces_are_created() {
        let made = create_namespaces(
            NamespaceConfig {
                ipc: true,
                ..NamespaceConfig::default()
            },
            None,
        )
        .unwrap();
        assert!(made.net.is_none() && made.ipc.is_some() && made.uts.is_none());
        let config = NamespaceConfig {
            uts: Some("x".repeat(65)),
            ..NamespaceConfig::default()
        };
        assert!(
            create_namespaces(config, None)
                .unwrap_err()
                .to_string()
                .starts_with("set the hostname \"xxx")
        );
    }

    #[test]
    fn pin_lives_until_unpinned() {
        let pins = PinDir::new();
        let dir = pins.0.path();
        let pin = dir.join("pod");
        let config = NamespaceConfig {
            net: true,
            ..NamespaceConfig::default()
        };
        assert_eq!(
            list_pins(&dir.join("absent")).unwrap(),
            Vec::<PathBuf>::new()
        );
        let first = create_namespaces(config.clone(), Some(&pin)).unwrap();
        let again = create_namespaces(config, Some(&pin)).unwrap();
        let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        let opened = open_pin(&pin).unwrap();
        assert_eq!(
            inode(&opened),
            inode(again.net.as_ref().unwrap()),
            "a repeated create replaces the pin"
        );
        assert_ne!(inode(&opened), inode(first.net.as_ref().unwrap()));
        assert_eq!(list_pins(dir).unwrap(), [pin.as_path()]);
        unpin(&pin).unwrap();
        unpin(&pin).unwrap();
        assert!(!is_mounted(&pin) && !pin.exists());
        fs::write(&pin, "").unwrap();
        assert!(matches!(open_pin(&pin), Err(Error::NotPinned { .. })));
        unpin(&pin).unwrap();
        assert!(!pin.exists());
    }

    #[test]
    fn failed_pin_leaves_nothing() {
        let config = NamespaceConfig {
            net: true,
            ..NamespaceConfig::default()
        };
        let error = create_namespaces(config, Some(Path::new("/proc/absent/pin"))).unwrap_err();
        assert!(error.to_string().contains("/proc/absent/pin"), "{error}");
    }
}
