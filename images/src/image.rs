//! The public values for an image: immutable, shared by `Arc`.
//!
//! Created by the store from a record, read by the image service and when containers are created.
//! Invariants: an [`Image`] that a caller holds never changes; its paths stay valid while it is in the store
//! or leased.
//! Not here: pulling, running.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::Error;
use crate::magic::Magic;
use crate::reference::{Digest, ImageId};
use crate::run_config::{RunConfig, absolute};
use crate::snapshot::Merged;

/// One image, as CRI's `Image` message needs it. Source: cri-api v0.37 api.proto, message `Image`.
#[derive(Debug, Clone)]
pub struct Image {
    /// Identifies the whole content; see [`ImageId`].
    pub id: ImageId,
    /// Every tag that points here, completed: `docker.io/library/busybox:1.36`. Sorted.
    pub repo_tags: Vec<String>,
    /// Every `name@sha256:` under which it was pulled. Sorted.
    pub repo_digests: Vec<String>,
    /// Size of config and layers as the manifest states them (compressed). Bytes, never 0.
    pub size: u64,
    /// The config's `User`, as written; `None` if empty.
    pub user: Option<String>,
    /// Its run configuration.
    pub config: Arc<RunConfig>,
    /// Its content.
    pub kind: Kind,
    /// True for images the node's configuration protects from garbage collection.
    pub pinned: bool,
    /// Annotations of the manifest.
    pub spec_annotations: Arc<BTreeMap<String, String>>,
}

/// What an image holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A WebAssembly module or component.
    Wasm(WasmImage),
    /// Programs for this node's processor.
    Linux(LinuxImage),
    /// Files to mount; it runs nothing.
    Artifact(Artifact),
}

impl Kind {
    /// The unpacked layers, lowest first; empty for a Wasm artifact.
    pub fn layers(&self) -> &[PathBuf] {
        match self {
            Self::Wasm(image) => &image.layers,
            Self::Linux(image) => &image.layers,
            Self::Artifact(artifact) => &artifact.layers,
        }
    }
}

/// A WebAssembly program and the files that came with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WasmImage {
    /// SHA-256 of the module's bytes: the key of whatever is compiled from it.
    pub module: Digest,
    /// The module on disk, owned by the store. The caller must not follow a symlink there: none is expected.
    pub module_path: PathBuf,
    /// The unpacked layers, lowest first; empty for an artifact.
    pub layers: Vec<PathBuf>,
    /// Absolute path of the module inside the image; `None` for an artifact.
    pub guest_path: Option<String>,
    /// The image config's working directory, against which relative program names count.
    pub(crate) working_dir: String,
}

impl WasmImage {
    /// The module that `argv0` names, when it is another WebAssembly file of this image: its path on disk.
    ///
    /// The lookup is confined to the image and sees what an overlay of its layers would show. `Ok(None)`: no
    /// such file, or not one that begins with `\0asm`. Errors: the disk fails.
    pub fn module_for(&self, argv0: &str) -> Result<Option<PathBuf>, Error> {
        module_in(&self.layers, &self.working_dir, argv0)
    }
}

impl Image {
    /// The module that `argv0` names in this image, whatever the image is made for: its path on disk.
    ///
    /// The lookup is confined to the image and sees what an overlay of its layers would show. `Ok(None)`: no
    /// such file, or not one that begins with `\0asm`. Errors: the disk fails.
    pub fn module_for(&self, argv0: &str) -> Result<Option<PathBuf>, Error> {
        match &self.kind {
            Kind::Wasm(wasm) => wasm.module_for(argv0),
            Kind::Linux(linux) => module_in(&linux.layers, &self.config.working_dir, argv0),
            Kind::Artifact(_) => Ok(None),
        }
    }
}

fn module_in(layers: &[PathBuf], working_dir: &str, argv0: &str) -> Result<Option<PathBuf>, Error> {
    if layers.is_empty() || argv0.is_empty() {
        return Ok(None);
    }
    let merged = Merged::open(layers)?;
    let Some(file) = merged.find_file(&absolute(working_dir, argv0))? else {
        return Ok(None);
    };
    Ok((file.magic()? == Magic::Module).then_some(file.host_path))
}

/// An ordinary image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinuxImage {
    /// The unpacked layers, lowest first.
    pub layers: Vec<PathBuf>,
}

/// An OCI artifact that is no image: files, such as a model or a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// The one layer that has the files, under the names that the artifact gives them.
    pub layers: Vec<PathBuf>,
}

/// Use of the disk by the store. O(1) to get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsInfo {
    /// A directory on the file system that holds images.
    pub mountpoint: PathBuf,
    /// Bytes of blobs and unpacked layers.
    pub used_bytes: u64,
    /// Those of them that are of unpacked layers.
    pub layer_bytes: u64,
    /// Files and directories of blobs and unpacked layers.
    pub inodes_used: u64,
}
