//! Records on disk: one versioned, checksummed file an object, replaced without ever renaming over a name.
//!
//! Called by: drivers (save, before effects) and recovery (load). A record is `record.<generation>`: a header line
//! with format version and SHA-256 of what follows, then JSON. A save writes the next generation under a name that
//! did not exist and queues it for the [`Syncer`], which unlinks the older ones once it is on the disk; ext4 would flush
//! on a rename over an existing name, and nothing here waits for a disk.
//! Invariants: the newest valid generation wins; a torn newest one over a valid older one is a crash before it was on
//! the disk and dropped; a torn one alone is reported, never read as "nothing there". The first generation is there for
//! as long as none is on the disk. What cannot be read (an error of the disk, of memory or of descriptors) or is of a
//! format that this build does not know is never taken for torn or absent, and no older generation stands in for it.
//! Not here: the contents of a record.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use coracle_spec::id::hex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;

use super::syncer::Syncer;

const MAGIC: &str = "coracle-record";
/// The format this build writes.
const VERSION: u32 = 1;
const PREFIX: &str = "record.";

/// Where one object's records lie, and which generation is the newest.
#[derive(Clone, Debug)]
pub struct Slot {
    directory: PathBuf,
    generation: u64,
    /// The last save failed: the newest generation is not what the object is by now.
    is_behind: bool,
    syncer: Syncer,
}

/// What a directory held.
pub enum Loaded<T> {
    /// A valid record.
    Found(T, Slot),
    /// Files are there, none whole.
    Torn(Torn),
    /// The newest may be whole, but could not be read or is not of a format that this build knows.
    Unreadable(Unreadable),
    /// No record at all.
    Absent,
}

/// Records of which none is whole.
#[derive(Debug)]
pub struct Torn {
    /// What is wrong with the newest, for people.
    pub why: String,
    /// No generation ever was on the disk: the first one is still there, and all are empty or zeros. A power loss leaves
    /// this of an object that was made in the second before.
    pub is_unwritten: bool,
}

/// A record that exists and cannot be used now.
#[derive(Debug)]
pub struct Unreadable {
    /// The file and what is wrong, for people.
    pub why: String,
    /// The checked JSON of a record of another format; `None` when nothing could be read.
    pub json: Option<serde_json::Value>,
}

/// Why one file is no record.
#[derive(Debug)]
pub(super) enum Defect {
    /// It was cut off or overwritten.
    Torn(String),
    /// It is whole, and of another format.
    Foreign(String, Option<serde_json::Value>),
}

impl Slot {
    /// An object that has no record yet. `directory` must exist when it is saved.
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
    /// then still stands.
    pub fn save<T: Serialize>(&mut self, value: &T) -> io::Result<()> {
        self.is_behind = true;
        let next = self.generation + 1;
        let path = path_of(&self.directory, next);
        if let Err(error) = write_new(&path, &encode(value)?) {
            // A half-written file must not stay: ENOSPC is the likely cause, and the next save wants the name.
            remove_if_there(&path)?;
            return Err(error);
        }
        self.generation = next;
        self.is_behind = false;
        self.syncer.record(&self.directory, next, next == 1);
        Ok(())
    }

    /// The object has changed, and that could not be saved.
    pub fn set_behind(&mut self) {
        self.is_behind = true;
    }

    /// Answers once what was saved last is on the disk. Closed when that was not saved, or the disk refuses.
    pub fn wait_durable(&self) -> oneshot::Receiver<()> {
        match self.is_behind {
            true => oneshot::channel().1,
            false => self.syncer.wait(&self.directory),
        }
    }

    /// Unlinks the record: from here on the object does not exist, what is left of it is an orphan.
    pub fn erase(&mut self) -> io::Result<()> {
        let mut found = generations(&self.directory)?;
        // The newest one last: no older state may come back.
        found.sort_by_key(|(generation, _)| *generation);
        for (_, path) in found {
            remove_if_there(&path)?;
        }
        self.generation = 0;
        self.syncer.directory(&self.directory);
        Ok(())
    }
}

/// Reads the newest valid record of `directory` and drops what is torn beside it. The record is queued for the disk,
/// where a daemon that was killed may not have brought it; until it is there, older ones stay.
pub fn load<T: DeserializeOwned>(directory: &Path, syncer: &Syncer) -> Loaded<T> {
    let unreadable = |path: &Path, error: &dyn std::fmt::Display, json| {
        let why = format!("{}: {error}", path.display());
        Loaded::Unreadable(Unreadable { why, json })
    };
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
                    // The next name must be free, also if a torn one could not be removed.
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

/// Best progress: what stays is torn, and dropped by the next load.
fn drop_torn(torn: &[(u64, PathBuf)]) {
    for (_, path) in torn {
        match remove_if_there(path) {
            Ok(()) => {
                tracing::warn!(record = %path.display(), "a torn record was dropped for the one before it");
            }
            Err(error) => {
                tracing::warn!(record = %path.display(), error = %error, "a torn record was not removed");
            }
        }
    }
}

/// Unlinks the generations before `kept`, which is on the disk. Errors: the first one that stays.
pub(super) fn drop_older(directory: &Path, kept: u64) -> io::Result<()> {
    for (generation, path) in generations(directory)? {
        if generation < kept {
            remove_if_there(&path)?;
        }
    }
    Ok(())
}

pub(super) fn path_of(directory: &Path, generation: u64) -> PathBuf {
    directory.join(format!("{PREFIX}{generation}"))
}

fn generations(directory: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX))
            .and_then(|text| text.parse().ok());
        if let Some(generation) = number {
            found.push((generation, entry.path()));
        }
    }
    Ok(found)
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
    let header = std::str::from_utf8(&bytes[..end]).map_err(|_| torn("its header is no text"))?;
    let body = &bytes[end + 1..];
    let mut words = header.split(' ');
    if words.next() != Some(MAGIC) {
        return Err(Defect::Torn(format!(
            "its header does not begin with {MAGIC}"
        )));
    }
    let version = words.next().and_then(|word| word.parse::<u32>().ok());
    let version = version.ok_or_else(|| torn("its header names no format"))?;
    let got = hex(&Sha256::digest(body));
    let is_whole = words.next() == Some(got.as_str());
    if version != VERSION {
        // A later format may have another checksum: its body is only looked at when ours fits.
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
    // Whole, so it was written like this: by a build that knows more.
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

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Moves a broken object's directory to `quarantine`, out of the way of a new one and kept for a person to look at.
/// Returns where it lies now.
pub fn quarantine(directory: &Path, quarantine: &Path) -> io::Result<PathBuf> {
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
