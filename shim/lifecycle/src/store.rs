//! Records on disk: one versioned, checksummed file for each object, replaced without ever renaming over a name.
//!
//! Called by: drivers (save, before effects) and recovery (load). A record is `record.<generation>`: a header line
//! with format version and SHA-256 of what follows, then JSON. A save writes the next generation under a name that
//! did not exist and queues it for the [`Syncer`], which unlinks the older ones once it is on the disk; ext4 would
//! flush on a rename over an existing name, and nothing here waits for a disk.
//! Invariants: the newest valid generation wins; a torn one above a valid one comes from a crash before it was on the
//! disk, and is dropped; a torn one alone is reported, never taken for an absent record. The first generation stays
//! until one is on the disk. A record that cannot be read (an error of the disk, a lack of memory or descriptors) or
//! has a format unknown to this build is never taken for torn or absent, and no older generation replaces it.
//! Must not know: the contents of a record.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use coracle_spec::id::hex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;

use super::generations::{generations, path_of, remove_if_there};
use super::syncer::Syncer;

const MAGIC: &str = "coracle-record";
/// The format that this build writes.
const VERSION: u32 = 1;

/// The directory of one object's records, and the newest generation.
#[derive(Clone, Debug)]
pub struct Slot {
    directory: PathBuf,
    generation: u64,
    /// The last save failed: the newest generation is out of date.
    is_behind: bool,
    syncer: Syncer,
}

/// The result of reading a directory.
pub enum Loaded<T> {
    /// A valid record.
    Found(T, Slot),
    /// There are files, but no valid one.
    Torn(Torn),
    /// The newest may be valid, but cannot be read or has a format unknown to this build.
    Unreadable(Unreadable),
    /// No record at all.
    Absent,
}

/// Records of which none is valid.
#[derive(Debug)]
pub struct Torn {
    /// What is wrong with the newest, for people.
    pub why: String,
    /// No generation ever was on the disk: the first one exists, and all are empty or zeros. A power loss leaves an
    /// object like this that was created in the second before.
    pub is_unwritten: bool,
}

/// A record that exists and cannot be used now.
#[derive(Debug)]
pub struct Unreadable {
    /// The file and what is wrong with it, for people.
    pub why: String,
    /// The checked JSON of a record in another format; `None` when nothing could be read.
    pub json: Option<serde_json::Value>,
}

/// Why a file is not a usable record.
#[derive(Debug)]
pub(super) enum Defect {
    /// It was cut off or overwritten.
    Torn(String),
    /// It is whole, but in another format.
    Foreign(String, Option<serde_json::Value>),
}

impl Slot {
    /// An object without a record. `directory` must exist when it is saved.
    pub fn new(directory: PathBuf, syncer: &Syncer) -> Slot {
        Slot {
            directory,
            generation: 0,
            is_behind: false,
            syncer: syncer.clone(),
        }
    }

    /// The object's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes `value` as the next generation, to be on the disk within a second. Errors: the disk's; the older record
    /// stays valid.
    pub fn save<T: Serialize>(&mut self, value: &T) -> io::Result<()> {
        self.is_behind = true;
        let next = self.generation + 1;
        let path = path_of(&self.directory, next);
        if let Err(error) = write_new(&path, &encode(value)?) {
            // Remove a half-written file: ENOSPC is the likely cause, and the next save uses the same name.
            remove_if_there(&path)?;
            return Err(error);
        }
        self.generation = next;
        self.is_behind = false;
        self.syncer.record(&self.directory, next, next == 1);
        Ok(())
    }

    /// Marks the object as changed after a save failed.
    pub fn set_behind(&mut self) {
        self.is_behind = true;
    }

    /// Resolves once the last saved generation is on the disk. Closed when it was not saved, or the disk refuses.
    pub fn wait_durable(&self) -> oneshot::Receiver<()> {
        match self.is_behind {
            true => oneshot::channel().1,
            false => self.syncer.wait(&self.directory),
        }
    }

    /// Unlinks the record: from here on the object does not exist, and what remains of it is an orphan.
    pub fn erase(&mut self) -> io::Result<()> {
        let mut found = generations(&self.directory)?;
        // The newest one last, so that no older state can come back.
        found.sort_by_key(|(generation, _)| *generation);
        for (_, path) in found {
            remove_if_there(&path)?;
        }
        self.generation = 0;
        self.syncer.directory(&self.directory);
        Ok(())
    }
}

/// Reads the newest valid record of `directory` and drops torn ones above it. Queues the record for the disk, because a
/// daemon that was killed may not have synced it; until then older generations stay.
pub fn load<T: DeserializeOwned>(directory: &Path, syncer: &Syncer) -> Loaded<T> {
    let mut found = match generations(directory) {
        Ok(found) => found,
        Err(error) => return unreadable(directory, &error, None),
    };
    found.sort_by_key(|(generation, _)| std::cmp::Reverse(*generation));
    let mut complaint = None;
    let mut is_unwritten = true;
    for (index, (generation, path)) in found.iter().enumerate() {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) => return unreadable(path, &error, None),
        };
        match decode(&bytes) {
            Ok(value) => {
                drop_torn(&found[..index]);
                syncer.record(directory, *generation, true);
                let slot = Slot {
                    directory: directory.to_owned(),
                    // The next name must be free, even if a torn file could not be removed.
                    generation: found[0].0,
                    is_behind: false,
                    syncer: syncer.clone(),
                };
                return Loaded::Found(value, slot);
            }
            Err(Defect::Foreign(text, json)) => return unreadable(path, &text, json),
            Err(Defect::Torn(text)) => {
                is_unwritten &= bytes.iter().all(|byte| *byte == 0);
                complaint.get_or_insert(format!("{}: {text}", path.display()));
            }
        }
    }
    is_unwritten &= found.last().is_some_and(|(oldest, _)| *oldest == 1);
    complaint.map_or(Loaded::Absent, |why| {
        Loaded::Torn(Torn { why, is_unwritten })
    })
}

fn unreadable<T>(
    path: &Path,
    error: &dyn std::fmt::Display,
    json: Option<serde_json::Value>,
) -> Loaded<T> {
    let why = format!("{}: {error}", path.display());
    Loaded::Unreadable(Unreadable { why, json })
}

/// Removes torn files. One that cannot be removed is dropped by the next load.
fn drop_torn(torn: &[(u64, PathBuf)]) {
    for (_, path) in torn {
        match remove_if_there(path) {
            Ok(()) => {
                tracing::warn!(record = %path.display(), "a torn record was dropped; the one before it is used");
            }
            Err(error) => {
                tracing::warn!(record = %path.display(), error = %error, "a torn record was not removed");
            }
        }
    }
}

pub(super) fn encode<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec(value)?;
    let mut bytes = format!("{MAGIC} {VERSION} {}\n", hex(&Sha256::digest(&body))).into_bytes();
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Defect> {
    let torn = |text: &str| Defect::Torn(text.to_owned());
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let end = end.ok_or_else(|| torn("it has no header line"))?;
    let header = std::str::from_utf8(&bytes[..end]).map_err(|_| torn("its header is not text"))?;
    let body = &bytes[end + 1..];
    let mut fields = header.split(' ');
    if fields.next() != Some(MAGIC) {
        return Err(Defect::Torn(format!(
            "its header does not begin with {MAGIC}"
        )));
    }
    let version = fields.next().and_then(|field| field.parse::<u32>().ok());
    let version = version.ok_or_else(|| torn("its header names no format"))?;
    let got = hex(&Sha256::digest(body));
    let is_whole = fields.next() == Some(got.as_str());
    if version != VERSION {
        // A later format may have another checksum: its body is only used when ours matches.
        let json = is_whole
            .then(|| serde_json::from_slice(body).ok())
            .flatten();
        let text = format!("its format is {version}, this build reads {VERSION}");
        return Err(Defect::Foreign(text, json));
    }
    if !is_whole {
        return Err(Defect::Torn(format!(
            "its {} bytes hash to {got}, its header says otherwise",
            body.len()
        )));
    }
    // The file is whole, so a build that knows more has written it.
    serde_json::from_slice(body)
        .map_err(|error| Defect::Foreign(error.to_string(), serde_json::from_slice(body).ok()))
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)
}

/// Moves the directory of a broken object to the first of `quarantines` that is on its filesystem, where an operator can
/// look at it. Returns its new path.
pub fn quarantine(directory: &Path, quarantines: &[PathBuf]) -> io::Result<PathBuf> {
    let mut failure = io::Error::from(io::ErrorKind::CrossesDevices);
    for quarantine in quarantines {
        match move_into(directory, quarantine) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => failure = error,
            moved => return moved,
        }
    }
    Err(failure)
}

fn move_into(directory: &Path, quarantine: &Path) -> io::Result<PathBuf> {
    fs::create_dir_all(quarantine)?;
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    let mut target = quarantine.join(&*name);
    let mut number = 1;
    while target.exists() {
        number += 1;
        target = quarantine.join(format!("{name}.{number}"));
    }
    fs::rename(directory, &target)?;
    Ok(target)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests;
