//! `[images]` as written, and its defaults.
//!
//! Called by: [`super`], which contains [`ImagesFile`]; [`crate::images`] reads it.
//! Invariant: unknown keys are refused, and every key has a default.
//! Must not know: whether a value is valid.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{GIB, MIB, PRELOAD_DIR, REGISTRY_CONFIG};

/// `[images]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImagesFile {
    /// Registries (`host` or `host:port`) that are used without TLS, in addition to loopback ones.
    pub plain_http: Vec<String>,
    /// Directory of `hosts.toml` files, which name mirrors; may be absent.
    pub registry_config: PathBuf,
    /// Credentials for pulls that bring none, as `docker login` writes them; empty for none.
    pub auth_file: PathBuf,
    /// Which images must be signed, and by whom: a file as containers-policy.json(5) describes it; empty for none.
    pub signature_policy: PathBuf,
    /// Directory of `NAMESPACE.json` files, which count instead for pods of these namespaces; empty for none.
    pub signature_policy_dir: PathBuf,
    /// The proxy for registries, a URL; empty for none.
    pub proxy: String,
    /// What is reached without a proxy: names, `.suffix`, addresses, networks, `host:port`, or `*`.
    pub no_proxy: Vec<String>,
    /// Whether the proxies that the daemon's environment names are used.
    pub proxy_from_environment: bool,
    /// Directory of archives of images that are imported when the daemon starts; may be absent.
    pub preload_dir: PathBuf,
    /// An archive of that directory that is not imported after this long is given up. Seconds.
    pub preload_timeout_s: u64,
    /// Images that the kubelet never collects: references, or beginnings of references and `*`.
    pub pinned: Vec<String>,
    /// Manifests and layers are kept as they came, for exports.
    pub keep_blobs: bool,
    /// A pull whose registry has sent nothing for this long fails. Seconds.
    pub pull_idle_timeout_s: u64,
    /// A registry that sends a blob more slowly fails the pull; 0 for no limit. Bytes a second.
    pub pull_min_bytes_per_s: u64,
    /// A pull that is not complete after this long fails; 0 for no limit. Seconds.
    pub pull_timeout_s: u64,
    /// Largest manifest, index or image config.
    pub max_manifest_bytes: u64,
    /// Memory for the texts of all images: configs, annotations, names. Bytes.
    pub max_metadata_bytes: u64,
    /// Most layers of an image.
    pub max_layers: u64,
    /// Largest compressed layer.
    pub max_layer_bytes: u64,
    /// Largest unpacked image.
    pub max_unpacked_bytes: u64,
    /// Most files, directories and links of an image.
    pub max_entries: u64,
}

impl Default for ImagesFile {
    fn default() -> Self {
        Self {
            plain_http: Vec::new(),
            registry_config: PathBuf::from(REGISTRY_CONFIG),
            auth_file: PathBuf::new(),
            signature_policy: PathBuf::new(),
            signature_policy_dir: PathBuf::new(),
            proxy: String::new(),
            no_proxy: Vec::new(),
            proxy_from_environment: false,
            preload_dir: PathBuf::from(PRELOAD_DIR),
            preload_timeout_s: 600,
            pinned: Vec::new(),
            keep_blobs: false,
            pull_idle_timeout_s: 60,
            pull_min_bytes_per_s: 1024,
            pull_timeout_s: 14_400,
            max_manifest_bytes: 4 * MIB,
            max_metadata_bytes: 256 * MIB,
            max_layers: 256,
            max_layer_bytes: 8 * GIB,
            max_unpacked_bytes: 32 * GIB,
            max_entries: 2_000_000,
        }
    }
}
