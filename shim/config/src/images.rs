//! Checks `[images]`.
//!
//! Called by: [`super::check`]. Pure. Must not know: which names registries accept.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Images;
use super::check::{KIB, MIB, TIB, directory, seconds};
use super::file::ImagesFile;
use super::values::{Invalid, invalid, plain_absolute, within};

/// Checks every value of the table.
pub(super) fn check(file: &ImagesFile) -> Result<Images, Invalid> {
    plain_http(&file.plain_http)?;
    let layers = within("images.max_layers", file.max_layers, 1..=4_096)?;
    Ok(Images {
        plain_http: file.plain_http.clone(),
        registry_config: directory("images.registry_config", &file.registry_config)?,
        auth_file: optional("images.auth_file", &file.auth_file)?,
        signature_policy: optional("images.signature_policy", &file.signature_policy)?,
        signature_policy_dir: optional("images.signature_policy_dir", &file.signature_policy_dir)?,
        preload_dir: directory("images.preload_dir", &file.preload_dir)?,
        preload_timeout: seconds("images.preload_timeout_s", file.preload_timeout_s)?,
        pinned: pinned(&file.pinned)?,
        keep_blobs: file.keep_blobs,
        pull_idle_timeout: seconds("images.pull_idle_timeout_s", file.pull_idle_timeout_s)?,
        pull_min_bytes_per_s: within(
            "images.pull_min_bytes_per_s",
            file.pull_min_bytes_per_s,
            0..=1024 * MIB,
        )?,
        pull_timeout: pull_timeout(file.pull_timeout_s)?,
        max_manifest_bytes: within(
            "images.max_manifest_bytes",
            file.max_manifest_bytes,
            64 * KIB..=64 * MIB,
        )?,
        max_layers: usize::try_from(layers).unwrap_or(usize::MAX),
        max_layer_bytes: within("images.max_layer_bytes", file.max_layer_bytes, MIB..=TIB)?,
        max_unpacked_bytes: within(
            "images.max_unpacked_bytes",
            file.max_unpacked_bytes,
            MIB..=TIB,
        )?,
        max_entries: within("images.max_entries", file.max_entries, 1..=100_000_000)?,
    })
}

/// A path that may be empty.
fn optional(key: &'static str, path: &Path) -> Result<Option<PathBuf>, Invalid> {
    if path.as_os_str().is_empty() {
        return Ok(None);
    }
    match plain_absolute(path) {
        Some(path) => Ok(Some(path)),
        None => invalid(
            key,
            format!("is {path:?}, must be an absolute path without `..`, or empty"),
        ),
    }
}

fn pull_timeout(seconds: u64) -> Result<Option<Duration>, Invalid> {
    let seconds = within("images.pull_timeout_s", seconds, 0..=604_800)?;
    Ok((seconds > 0).then(|| Duration::from_secs(seconds)))
}

fn plain_http(registries: &[String]) -> Result<(), Invalid> {
    for registry in registries {
        if registry.is_empty()
            || registry.contains(['/', '@', '*'])
            || registry.contains(char::is_whitespace)
        {
            return invalid(
                "images.plain_http",
                format!(
                    "has {registry:?}, must be registries as `host` or `host:port`, without scheme and path"
                ),
            );
        }
    }
    Ok(())
}

/// The patterns for pinned images, each a name or the beginning of one and `*`.
fn pinned(patterns: &[String]) -> Result<Vec<String>, Invalid> {
    for pattern in patterns {
        let name = pattern.strip_suffix('*').unwrap_or(pattern);
        if pattern.is_empty() || name.contains('*') || name.contains(char::is_whitespace) {
            return invalid(
                "images.pinned",
                format!(
                    "has {pattern:?}, must be names of images, or beginnings of names with one * at the end"
                ),
            );
        }
    }
    Ok(patterns.to_vec())
}
