//! CDI specifications as files: read, bounded, looked up.
//!
//! Called by [`super`]. Invariants: a file that cannot be read does not hide others, and is reported when a device is
//! not found; of two files in one directory with the same device, neither is chosen.
//! Must not know: what an edit does.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::paths::Lookup;

/// Largest specification that is read. Bytes.
const MAX_BYTES: u64 = 4 << 20;

/// Most files of a directory that are read.
const MAX_FILES: usize = 512;

/// One specification.
#[derive(Debug)]
pub(super) struct Document {
    pub path: PathBuf,
    kind: String,
    devices: Vec<NamedDevice>,
    /// The edits for all of its devices.
    pub edits: Edits,
    /// Later directories have higher ranks.
    rank: usize,
}

/// Unknown fields are refused, as the specification says: what they would change is unknown.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Raw {
    #[serde(default)]
    cdi_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default, rename = "annotations")]
    _annotations: IgnoredAny,
    #[serde(default)]
    devices: Vec<NamedDevice>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NamedDevice {
    name: String,
    #[serde(default, rename = "annotations")]
    _annotations: IgnoredAny,
    #[serde(default)]
    container_edits: Edits,
}

/// Changes to a container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Edits {
    pub env: Vec<String>,
    pub device_nodes: Vec<Node>,
    pub mounts: Vec<MountEdit>,
    pub hooks: Vec<HookEdit>,
    #[serde(rename = "additionalGids")]
    pub additional_gids: Vec<u32>,
    pub net_devices: Vec<NetDeviceEdit>,
    pub intel_rdt: Option<Rdt>,
}

/// Only its presence counts.
#[derive(Debug, Deserialize)]
pub(super) struct Rdt {}

/// A device node.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Node {
    pub path: String,
    pub host_path: Option<String>,
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub file_mode: Option<u32>,
    pub permissions: Option<String>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

/// A mount.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct MountEdit {
    pub host_path: String,
    pub container_path: String,
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub options: Vec<String>,
}

/// A network device of the host.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct NetDeviceEdit {
    pub host_interface_name: String,
    pub name: String,
}

/// A program of the host.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct HookEdit {
    pub hook_name: String,
    pub path: String,
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub timeout: Option<i64>,
}

impl Document {
    /// The edits of one device.
    pub(super) fn device(&self, name: &str) -> Option<&Edits> {
        let named = self.devices.iter().find(|device| device.name == name)?;
        Some(&named.container_edits)
    }
}

/// All specifications of a node.
pub(super) struct Documents {
    found: Vec<Document>,
    /// Why files were skipped.
    pub(super) broken: Vec<String>,
}

impl Documents {
    /// The name of every device, and its specification.
    pub(super) fn devices(&self) -> impl Iterator<Item = (String, &PathBuf)> {
        self.found.iter().flat_map(|document| {
            let devices = document.devices.iter();
            devices.map(|device| (format!("{}={}", document.kind, device.name), &document.path))
        })
    }

    /// The specification with the device. Errors: none has it, or two of the same rank.
    pub(super) fn find(&self, kind: &str, device: &str) -> Result<&Document, String> {
        let has = |document: &&Document| document.kind == kind && document.device(device).is_some();
        let top = self
            .found
            .iter()
            .filter(has)
            .map(|document| document.rank)
            .max();
        let mut with: Vec<&Document> = self
            .found
            .iter()
            .filter(has)
            .filter(|document| Some(document.rank) == top)
            .collect();
        match (with.pop(), with.pop()) {
            (Some(document), None) => Ok(document),
            (Some(one), Some(other)) => Err(format!(
                "{} and {} both have it",
                other.path.display(),
                one.path.display()
            )),
            (None, _) if self.broken.is_empty() => {
                Err("no specification on this node has it".to_owned())
            }
            (None, _) => Err(format!(
                "no specification on this node has it; not readable: {}",
                self.broken.join("; ")
            )),
        }
    }
}

/// Reads every specification; none in an absent directory.
pub(super) fn read_all(directories: &[PathBuf], lookup: &Lookup<'_>) -> Documents {
    let mut all = Documents {
        found: Vec::new(),
        broken: Vec::new(),
    };
    for (rank, directory) in directories.iter().enumerate() {
        let entries = match lookup.resolve(directory) {
            Ok(found) => std::fs::read_dir(found.path),
            Err(error) => Err(error),
        };
        let entries = match entries {
            Ok(entries) => entries,
            Err(error) => {
                if error.kind() != std::io::ErrorKind::NotFound {
                    all.broken.push(format!("{}: {error}", directory.display()));
                }
                continue;
            }
        };
        let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
        let mut paths: Vec<PathBuf> = paths.filter(|path| is_specification(path)).collect();
        paths.sort();
        paths.truncate(MAX_FILES);
        for path in paths {
            match read(&path, rank, lookup) {
                Ok(document) => all.found.push(document),
                Err(why) => all.broken.push(format!("{}: {why}", path.display())),
            }
        }
    }
    all
}

fn is_specification(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("json" | "yaml" | "yml"))
}

fn read(path: &Path, rank: usize, lookup: &Lookup<'_>) -> Result<Document, String> {
    let to_text = |error: std::io::Error| error.to_string();
    // Looked up before it is opened: opening a FIFO would block.
    let found = lookup.resolve(path).map_err(to_text)?;
    if !found.metadata.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    let mut text = String::new();
    let file = found.read().map_err(to_text)?;
    file.take(MAX_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(to_text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(format!("it is larger than {MAX_BYTES} bytes"));
    }
    let raw: Raw = match path
        .extension()
        .is_some_and(|extension| extension == "json")
    {
        true => serde_json::from_str(&text).map_err(|error| error.to_string())?,
        false => serde_saphyr::from_str(&text).map_err(|error| error.to_string())?,
    };
    check_version(&raw.cdi_version)?;
    Ok(Document {
        path: path.to_owned(),
        kind: raw.kind,
        devices: raw.devices,
        edits: raw.container_edits,
        rank,
    })
}

/// Errors: the version is of a specification that may mean something else by its fields.
fn check_version(text: &str) -> Result<(), String> {
    let plain = text.strip_prefix('v').unwrap_or(text);
    let numbers: Option<Vec<u32>> = plain.split('.').map(|part| part.parse().ok()).collect();
    match numbers.as_deref() {
        Some([0, 1..=u32::MAX, _] | [1, _, _]) => Ok(()),
        Some([_, _, _]) => Err(format!(
            "its cdiVersion is {text:?}, known are 0.1.0 and later, and 1"
        )),
        _ => Err(format!("its cdiVersion is {text:?}, which is no version")),
    }
}
