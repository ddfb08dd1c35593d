//! Settings of a store: its directory, registries without TLS, and the limits of what a registry may send.
//!
//! Invariants: every limit has a documented default; none is read from the environment.
//! Not here: the configuration file (the daemon's).

use std::path::PathBuf;
use std::time::Duration;

use crate::proxy::Proxies;
use crate::reference::ImageRef;

/// Settings of one [`crate::Images`].
#[derive(Debug, Clone)]
pub struct ImagesConfig {
    /// The runtime's root directory; the store lives in `images/` below it.
    pub root: PathBuf,
    /// Registry hosts (with port, as in references) for plain http, besides loopback.
    pub plain_http: Vec<String>,
    /// Directory of `hosts.toml` files that name mirrors (see `docs/operate/registries.md`); `None` for none.
    pub registry_config: Option<PathBuf>,
    /// Credentials for pulls that bring none, as `docker login` writes them; `None` for none.
    pub auth_file: Option<PathBuf>,
    /// The policy that says which images must be signed, and by whom (see `docs/security/signatures.md`); `None` accepts all.
    pub signature_policy: Option<PathBuf>,
    /// Directory of `NAMESPACE.json` files: policies for pods of these namespaces, instead of the one above.
    pub signature_policy_dir: Option<PathBuf>,
    /// Proxies for registries and mirrors that name none of their own.
    pub proxies: Proxies,
    /// Give up on a registry that has sent nothing for this long.
    pub pull_idle_timeout: Duration,
    /// Give up on a registry that sends a blob more slowly than this, taken over `pull_idle_timeout`; 0 for never.
    pub pull_min_bytes_per_s: u64,
    /// Give up on a pull that is not complete after this long; `None` for never.
    pub pull_timeout: Option<Duration>,
    /// Give up on an archive of the preload directory that is not imported after this long.
    pub preload_timeout: Duration,
    /// Names of images that are reported as pinned: references, completed as everywhere, or beginnings of completed
    /// references and `*`.
    pub pinned: Vec<String>,
    /// Keep manifests and layers as they came, besides the unpacked layers, so that an export gives them unchanged.
    pub keep_blobs: bool,
    /// Size limits.
    pub limits: Limits,
}

impl ImagesConfig {
    /// The defaults for a store under `root`: loopback registries over http, 60 s of silence, 1 KiB a
    /// second, 600 s for an archive of the preload directory, [`Limits`].
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            plain_http: Vec::new(),
            registry_config: None,
            auth_file: None,
            signature_policy: None,
            signature_policy_dir: None,
            proxies: Proxies::default(),
            pull_idle_timeout: Duration::from_secs(60),
            pull_min_bytes_per_s: 1024,
            pull_timeout: None,
            preload_timeout: Duration::from_secs(600),
            pinned: Vec::new(),
            keep_blobs: false,
            limits: Limits::default(),
        }
    }
}

impl ImagesConfig {
    /// Completes the names in `pinned`. One that is no reference stays as it is, and fits no image.
    pub(crate) fn complete_pinned(&mut self) {
        for name in &mut self.pinned {
            if let Ok(reference) = name.parse::<ImageRef>() {
                *name = reference.to_string();
            }
        }
    }
}

/// Upper bounds on what a registry may make this node fetch, hold and unpack.
#[derive(Debug, Clone)]
pub struct Limits {
    /// A manifest, an index or a config. Bytes; 4 MiB.
    pub max_manifest_bytes: u64,
    /// Environment, arguments, volumes and labels of an image config together, and the annotations of its manifest
    /// together, with 32 for each text besides its own. Bytes; 1 MiB.
    pub max_run_config_bytes: u64,
    /// What the store keeps in memory of all images together: configs, annotations, names, digests. Bytes; 256 MiB.
    pub max_metadata_bytes: u64,
    /// Layers of an image; 256.
    pub max_layers: u64,
    /// Indexes inside indexes; 4.
    pub max_index_depth: u64,
    /// One blob as transferred. Bytes; 8 GiB.
    pub max_layer_bytes: u64,
    /// A WebAssembly module. Bytes; 128 MiB.
    pub max_module_bytes: u64,
    /// All layers of an image, unpacked. Bytes; 32 GiB.
    pub max_unpacked_bytes: u64,
    /// Archive entries of all layers of an image; 2,000,000.
    pub max_entries: u64,
    /// Unpacked bytes for each byte transferred, counted once a layer has given 64 MiB; 200.
    pub max_ratio: u64,
    /// A path inside an archive. Bytes; 4096.
    pub max_path_bytes: u64,
    /// Directories above a file inside an archive; 256.
    pub max_path_depth: u64,
    /// The window of a zstd layer. Power of two of bytes; 27, which is 128 MiB.
    pub max_zstd_window_log: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_manifest_bytes: 4 << 20,
            max_run_config_bytes: 1 << 20,
            max_metadata_bytes: 256 << 20,
            max_layers: 256,
            max_index_depth: 4,
            max_layer_bytes: 8 << 30,
            max_module_bytes: 128 << 20,
            max_unpacked_bytes: 32 << 30,
            max_entries: 2_000_000,
            max_ratio: 200,
            max_path_bytes: 4096,
            max_path_depth: 256,
            max_zstd_window_log: 27,
        }
    }
}
