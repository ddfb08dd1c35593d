//! A container's root: the image's layers, a writable layer on top, its volumes, and nothing of the host.
//!
//! Called by [`super::build`] in a new mount namespace. The tree is assembled in a private tmpfs over the staging
//! directory, then becomes the root; the tmpfs and the host's mounts disappear with the old root.
//! Invariants: paths inside the container are resolved with openat2(2) below its root and never leave it; every mount
//! is nosuid, nodev, noexec and has the pod's id map; read-only mounts are read-only in the kernel.
//! It must not know why something is mounted.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::process::fchdir;

use super::identity::HostIdentity;
use super::stage::{Stage, cannot_map};
use super::{rootfs_path, volume};
use coracle_spec::error::{Context as _, Result};
use coracle_spec::{ContainerSpec, MountKind, Workload};
use coracle_sys as sys;
use coracle_sys::mounts::{self, Forbid};

const JAILED: Forbid = Forbid::PRIVILEGE;

/// The identity that works for all volumes of `spec`: `mapped`, or the host's own ids if a filesystem does not support
/// id maps.
///
/// Errors: such a filesystem, by name, in a container that runs as root.
pub fn idmapped_identity(spec: &ContainerSpec, mapped: HostIdentity) -> Result<HostIdentity> {
    let binds = spec.mounts.iter().filter(|m| m.kind == MountKind::Bind);
    for source in binds.map(|mount| mount.source.as_path()) {
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
    create_files_as(host.root)?;
    let tree = base(spec, host, &stage, JAILED)?;
    let target = stage.mount_point("root")?;
    mounts::attach(tree.as_fd(), target.as_fd()).during(|| "attach the root".into())?;
    let root = stage.mount_point("root")?;
    let options = volume::MountOptions {
        host,
        forbid: JAILED,
        label: None,
    };
    for (number, mount) in spec.mounts.iter().enumerate() {
        let tree = volume::make(mount, number, &stage, &options)?;
        if mount.kind == MountKind::Bind {
            volume::restrict(&tree, mount, host, JAILED, true)?;
        }
        volume::attach(&root, &tree, &mount.target)?;
    }
    if let Workload::Wasm(wasm) = &spec.workload {
        // Created while that is possible; opening it reports what is wrong with it.
        let _ = rootfs_path::ensure(root.as_fd(), &wasm.working_dir, true);
    }
    if spec.root.readonly {
        mounts::set_attributes(root.as_fd(), JAILED.and_writes(true), None, false)
            .during(|| "make the root read-only".into())?;
    }
    fchdir(&root).during(|| "enter the new root".into())?;
    mounts::pivot_into_working_directory().during(|| "make the new root the root".into())
}

/// From here on this process creates files as `root`, the host id of the container's own root. It keeps its
/// capabilities, so mounting still works.
pub(super) fn create_files_as(root: u32) -> Result<()> {
    sys::ids::keep_capabilities_over_id_change()
        .during(|| "keep capabilities while building the root".into())?;
    sys::ids::set_filesystem_ids(root, root).during(|| format!("make files as host user {root}"))
}

/// The container's root before volumes: an overlay, or its own directory alone for an image without layers.
pub(super) fn base(
    spec: &ContainerSpec,
    host: &HostIdentity,
    stage: &Stage,
    forbid: Forbid,
) -> Result<OwnedFd> {
    let own = spec.root.upper.parent().unwrap_or(Path::new("/"));
    if spec.root.layers.is_empty() {
        let what = || format!("mount {} as the root", spec.root.upper.display());
        let tree = mounts::clone_tree(&spec.root.upper, false).during(what)?;
        mounts::set_attributes(
            tree.as_fd(),
            forbid,
            host.map.as_ref().map(AsFd::as_fd),
            false,
        )
        .map_err(|e| cannot_map(own, e))?;
        return Ok(tree);
    }
    stage.hold("own", own, Forbid::default(), host)?;
    let lower = stage.layers("l", &spec.root.layers, host)?;
    let label = match &spec.workload {
        Workload::Linux(linux) => linux.jail.mount_label.as_deref(),
        Workload::Wasm(_) => None,
    };
    let base = |path: &Path| {
        path.file_name()
            .map(|n| format!("own/{}", n.to_string_lossy()))
            .unwrap_or_default()
    };
    let own = (&*base(&spec.root.upper), &*base(&spec.root.work));
    let tree = mounts::overlay(&lower, Some(own), label)
        .during(|| format!("mount an overlay of {} layers", lower.len()))?;
    mounts::set_attributes(tree.as_fd(), forbid, None, false)
        .during(|| "restrict the overlay".into())?;
    Ok(tree)
}
