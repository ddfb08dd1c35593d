//! A container's root: the image's layers, a writable layer on top, its volumes, and nothing of the host.
//!
//! Called by [`super::build`] in the node's mount namespace. What comes from the node is opened there; then the process
//! leaves it, assembles the tree in a private tmpfs of a namespace of its own (`super::stage`) and mounts it over the
//! empty root of that namespace; then it drops the tmpfs.
//! Invariants: paths inside the container are resolved with openat2(2) below its root and never leave it; every mount
//! is nosuid, nodev, noexec and has the pod's id map; read-only mounts are read-only in the kernel.
//! It must not know why something is mounted.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use super::identity::HostIdentity;
use super::stage::{self, Stage, cannot_map};
use super::volume::{self, Source};
use super::{PodNamespaces, rootfs_path};
use coracle_spec::error::{Context as _, Result};
use coracle_spec::{ContainerSpec, MountKind, Workload};
use coracle_sys as sys;
use coracle_sys::mounts::{self, Forbid};

const JAILED: Forbid = Forbid::PRIVILEGE;

/// Builds the root of `spec` and enters it. Returns the identity that works for all of its volumes: `mapped`, or the host's
/// own ids if a filesystem of them does not support id maps.
///
/// Errors: the first mount that failed, by name; such a filesystem in a container that runs as root.
pub fn build(
    spec: &ContainerSpec,
    mapped: HostIdentity,
    pod: &PodNamespaces,
) -> Result<HostIdentity> {
    // What is opened is used: to close a mount that is attached nowhere takes milliseconds where processors are busy.
    let (sources, host) = Source::open_mapped(spec, mapped)?;
    let base = Base::open(spec, &host, JAILED)?;
    let stage = Stage::apart_from_node(pod.empty()?)?;
    create_files_as(host.root)?;
    let tree = base.mount(spec, &stage, JAILED)?;
    mounts::cover_root(tree.as_fd()).during(|| "attach the root".into())?;
    let root = tree;
    let options = volume::MountOptions {
        host: &host,
        forbid: JAILED,
        label: None,
    };
    for ((number, mount), source) in spec.mounts.iter().enumerate().zip(sources) {
        let tree = volume::make(mount, number, source, &stage, &options)?;
        if mount.kind == MountKind::Bind {
            volume::restrict(&tree, mount, None, JAILED, true)?;
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
    mounts::enter_covering_root(root.as_fd()).during(|| "make the new root the root".into())?;
    Ok(host)
}

/// From here on this process creates files as `root`, the host id of the container's own root. It keeps its
/// capabilities, so mounting still works.
pub(super) fn create_files_as(root: u32) -> Result<()> {
    sys::ids::keep_capabilities_over_id_change()
        .during(|| "keep capabilities while building the root".into())?;
    sys::ids::set_filesystem_ids(root, root).during(|| format!("make files as host user {root}"))
}

/// What a container's root is made of before volumes, opened: its own directory and the image's layers, lowest first.
pub(super) struct Base {
    own: OwnedFd,
    layers: Vec<OwnedFd>,
}

impl Base {
    /// Opens it. For an image without layers `own` is the root itself, with the restrictions of `forbid`.
    ///
    /// Errors: a filesystem, by name, does not support id maps.
    pub(super) fn open(spec: &ContainerSpec, host: &HostIdentity, forbid: Forbid) -> Result<Self> {
        let own = spec.root.upper.parent().unwrap_or(Path::new("/"));
        if !spec.root.layers.is_empty() {
            return Ok(Self {
                own: stage::open(own, Forbid::default(), host)?,
                layers: stage::open_layers(&spec.root.layers, host)?,
            });
        }
        let what = || format!("mount {} as the root", spec.root.upper.display());
        let tree = mounts::clone_tree(&spec.root.upper, false).during(what)?;
        let map = host.map.as_ref().map(AsFd::as_fd);
        mounts::set_attributes(tree.as_fd(), forbid, map, false).map_err(|e| cannot_map(own, e))?;
        Ok(Self {
            own: tree,
            layers: Vec::new(),
        })
    }

    /// The root before volumes: an overlay, or its own directory alone for an image without layers.
    pub(super) fn mount(
        self,
        spec: &ContainerSpec,
        stage: &Stage,
        forbid: Forbid,
    ) -> Result<OwnedFd> {
        if self.layers.is_empty() {
            return Ok(self.own);
        }
        stage.hold("own", &self.own)?;
        let lower = stage.layers("l", &self.layers)?;
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
}
