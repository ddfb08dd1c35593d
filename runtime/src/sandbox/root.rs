//! A guest's root: the image's layers under its own writable one, its volumes on top, and nothing of the host.
//!
//! Called by [`super::build`] in a fresh mount namespace. Everything is assembled below a private tmpfs over the
//! staging directory, then becomes the root; the tmpfs and the host's mounts vanish with the old root.
//! Invariants: paths inside the container are resolved with openat2(2) below its root and never leave it; every
//! mount is nosuid, nodev, noexec and carries the pod's id map; read-only ones are so in the kernel.
//! Not here: who decided what is mounted.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, open, openat, openat2};
use rustix::process::{chdir, fchdir};

use super::identity::HostIdentity;
use crate::error::{Context as _, Error, Kind, Result};
use crate::spec::{ContainerSpec, Mount};
use crate::sys;
use crate::sys::mounts::{self, Forbid};

const JAILED: Forbid = Forbid {
    writes: false,
    privilege: true,
};

/// The identity that all volumes of `spec` can carry: `mapped`, or the host's own ids if a filesystem takes no map.
///
/// Errors: such a filesystem, by name, under a container that runs as root.
pub fn carried(spec: &ContainerSpec, mapped: HostIdentity) -> Result<HostIdentity> {
    for source in spec.mounts.iter().map(|mount| mount.source.as_path()) {
        let tree =
            mounts::clone_tree(source, true).during(|| format!("mount {}", source.display()))?;
        let map = mapped.map.as_ref().map(AsFd::as_fd);
        if let Err(e) = mounts::set_attributes(tree.as_fd(), Forbid::default(), map, true) {
            return super::identity::unmapped_identity(spec).ok_or_else(|| cannot_map(source, e));
        }
    }
    Ok(mapped)
}

/// Builds the root of `spec` and enters it. Errors: the first mount that failed, by name.
pub fn build(spec: &ContainerSpec, host: &HostIdentity) -> Result<()> {
    mounts::make_all_private().during(|| "make mounts private".into())?;
    let stage = Stage::over(&spec.staging)?;
    // From here on files are created as the container's own root; mounting still works as capabilities stay.
    sys::ids::keep_capabilities_over_id_change()
        .during(|| "keep capabilities while building the root".into())?;
    sys::ids::set_filesystem_ids(host.root, host.root);
    let tree = base(spec, host, &stage)?;
    let place = stage.place("root")?;
    mounts::attach(tree.as_fd(), place.as_fd()).during(|| "attach the root".into())?;
    let root = stage.place("root")?;
    for mount in &spec.mounts {
        add(mount, host, root.as_fd())?;
    }
    if spec.root.readonly {
        let forbid = Forbid {
            writes: true,
            ..JAILED
        };
        mounts::set_attributes(root.as_fd(), forbid, None, false)
            .during(|| "make the root read-only".into())?;
    }
    fchdir(&root).during(|| "enter the new root".into())?;
    mounts::pivot_into_working_directory().during(|| "make the new root the root".into())
}

/// An empty, read-only root without anything mounted; for the compiler.
pub fn empty() -> Result<()> {
    mounts::make_all_private().during(|| "make mounts private".into())?;
    let tree = mounts::tmpfs("4k").during(|| "make an empty root".into())?;
    let place = open_dir(Path::new("/proc")).during(|| "open /proc".into())?;
    mounts::attach(tree.as_fd(), place.as_fd()).during(|| "attach an empty root".into())?;
    let root = open_dir(Path::new("/proc")).during(|| "open the empty root".into())?;
    mounts::set_attributes(
        root.as_fd(),
        Forbid {
            writes: true,
            ..JAILED
        },
        None,
        false,
    )
    .during(|| "make the empty root read-only".into())?;
    fchdir(&root).during(|| "enter the empty root".into())?;
    mounts::pivot_into_working_directory().during(|| "make the empty root the root".into())
}

/// A private tmpfs with one directory for each tree that must be attached somewhere to be used.
struct Stage {
    path: PathBuf,
}

impl Stage {
    fn over(staging: &Path) -> Result<Self> {
        let what = || format!("build over staging directory {}", staging.display());
        let tree = mounts::tmpfs("64k").during(what)?;
        let place = open_dir(staging).during(what)?;
        mounts::attach(tree.as_fd(), place.as_fd()).during(what)?;
        fs::create_dir(staging.join("root")).during(what)?;
        fs::create_dir(staging.join("own")).during(what)?;
        chdir(staging).during(what)?;
        Ok(Self {
            path: staging.into(),
        })
    }

    fn place(&self, name: &str) -> Result<OwnedFd> {
        let path = self.path.join(name);
        open_dir(&path).during(|| format!("open {}", path.display()))
    }

    /// Attaches a mapped copy of host directory `source` as `name`; the name is relative to the working directory.
    fn hold(&self, name: &str, source: &Path, forbid: Forbid, host: &HostIdentity) -> Result<()> {
        let what = || format!("mount {} for the root", source.display());
        let tree = mounts::clone_tree(source, false).during(what)?;
        mounts::set_attributes(
            tree.as_fd(),
            forbid,
            host.map.as_ref().map(AsFd::as_fd),
            false,
        )
        .map_err(|e| cannot_map(source, e))?;
        if !Path::new(name).exists() {
            mkdirat(CWD, name, Mode::RWXU).during(what)?;
        }
        let place = self.place(name)?;
        mounts::attach(tree.as_fd(), place.as_fd()).during(what)
    }
}

/// The container's root before volumes: an overlay, or its own directory alone for an image without layers.
fn base(spec: &ContainerSpec, host: &HostIdentity, stage: &Stage) -> Result<OwnedFd> {
    let own = spec.root.upper.parent().unwrap_or(Path::new("/"));
    if spec.root.layers.is_empty() {
        let what = || format!("mount {} as the root", spec.root.upper.display());
        let tree = mounts::clone_tree(&spec.root.upper, false).during(what)?;
        mounts::set_attributes(
            tree.as_fd(),
            JAILED,
            host.map.as_ref().map(AsFd::as_fd),
            false,
        )
        .map_err(|e| cannot_map(own, e))?;
        return Ok(tree);
    }
    stage.hold("own", own, Forbid::default(), host)?;
    let mut lower = Vec::new();
    for (number, layer) in spec.root.layers.iter().enumerate() {
        let name = format!("l{number}");
        stage.hold_new(&name, layer, host)?;
        lower.push(name);
    }
    // Overlay wants the topmost first.
    lower.reverse();
    let base = |path: &Path| {
        path.file_name()
            .map(|n| format!("own/{}", n.to_string_lossy()))
            .unwrap_or_default()
    };
    let tree = mounts::overlay(
        &lower.join(":"),
        &base(&spec.root.upper),
        &base(&spec.root.work),
    )
    .during(|| format!("mount an overlay of {} layers", lower.len()))?;
    mounts::set_attributes(tree.as_fd(), JAILED, None, false)
        .during(|| "restrict the overlay".into())?;
    Ok(tree)
}

impl Stage {
    fn hold_new(&self, name: &str, source: &Path, host: &HostIdentity) -> Result<()> {
        self.hold(
            name,
            source,
            Forbid {
                writes: true,
                privilege: false,
            },
            host,
        )
    }
}

fn cannot_map(source: &Path, cause: std::io::Error) -> Error {
    Error::with(
        Kind::Unsupported,
        format!(
            "the filesystem of {} cannot carry the pod's id map (idmapped mounts), and the container runs as root; \
             set runAsUser to a user other than 0",
            source.display()
        ),
        cause,
    )
}

fn add(mount: &Mount, host: &HostIdentity, root: BorrowedFd<'_>) -> Result<()> {
    let what = || format!("mount {} at {}", mount.source.display(), mount.target);
    let tree = mounts::clone_tree(&mount.source, true).during(what)?;
    let forbid = Forbid {
        writes: mount.readonly,
        ..JAILED
    };
    mounts::set_attributes(
        tree.as_fd(),
        forbid,
        host.map.as_ref().map(AsFd::as_fd),
        true,
    )
    .map_err(|e| cannot_map(&mount.source, e))?;
    let is_dir = rustix::fs::fstat(&tree).during(what)?.st_mode & libc::S_IFMT == libc::S_IFDIR;
    let target = ensure(root, &mount.target, is_dir).during(what)?;
    mounts::attach(tree.as_fd(), target.as_fd()).during(what)
}

/// Opens `path` below `root`, making what is missing: directories, and at the end a directory or an empty file.
fn ensure(root: BorrowedFd<'_>, path: &str, dir: bool) -> std::io::Result<OwnedFd> {
    let names: Vec<&str> = path
        .split('/')
        .filter(|n| !n.is_empty() && *n != ".")
        .collect();
    let mut at = String::from(".");
    let mut parent = inside(root, &at)?;
    for (depth, name) in names.iter().enumerate() {
        at.push('/');
        at.push_str(name);
        let last = depth + 1 == names.len();
        parent = match inside(root, &at) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                if last && !dir {
                    let flags = OFlags::CREATE
                        | OFlags::EXCL
                        | OFlags::WRONLY
                        | OFlags::CLOEXEC
                        | OFlags::NOFOLLOW;
                    drop(openat(&parent, *name, flags, Mode::from_raw_mode(0o644))?);
                } else {
                    mkdirat(&parent, *name, Mode::from_raw_mode(0o755))?;
                }
                inside(root, &at)?
            }
            other => other?,
        };
    }
    Ok(parent)
}

fn inside(root: BorrowedFd<'_>, path: &str) -> std::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(
        root,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        resolve,
    )?)
}

fn open_dir(path: &Path) -> std::io::Result<OwnedFd> {
    Ok(open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}
