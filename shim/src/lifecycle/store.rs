//! Records on disk: one versioned, checksummed file an object, replaced without ever renaming over a name.
//!
//! Called by: drivers (save, before effects) and recovery (load). A record is `record.<generation>`: a header line
//! with format version and SHA-256 of what follows, then JSON. A save writes the next generation under a name that
//! did not exist and unlinks the older one; ext4 would flush on a rename over an existing name, and nothing here
//! waits for a disk.
//! Invariants: the newest valid generation wins; a torn newest one over a valid older one is a crash in a save and
//! dropped; a torn one alone is reported, never read as "nothing there". What cannot be read (an error of the disk, of
//! memory or of descriptors) or is of a format that this build does not know is never taken for torn or absent, and no
//! older generation stands in for it.
//! Not here: what a record says.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use coracle_runtime::id::hex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

const MAGIC: &str = "coracle-record";
/// The format this build writes.
const VERSION: u32 = 1;
const PREFIX: &str = "record.";

/// Where one object's records lie, and which generation is on disk.
#[derive(Clone, Debug)]
pub struct Slot {
    directory: PathBuf,
    generation: u64,
}

/// What a directory held.
pub enum Loaded<T> {
    /// A valid record.
    Found(T, Slot),
    /// Files are there, none whole; the text says what is wrong with the newest.
    Torn(String),
    /// The newest may be whole, but could not be read or is not of a format that this build knows.
    Unreadable(Unreadable),
    /// No record at all.
    Absent,
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
    pub fn new(directory: PathBuf) -> Slot {
        Slot {
            directory,
            generation: 0,
        }
    }

    /// The object's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes `value` as the next generation. Errors: the disk's; the older record then still stands.
    pub fn save<T: Serialize>(&mut self, value: &T) -> io::Result<()> {
        let next = self.generation + 1;
        let path = path_of(&self.directory, next);
        if let Err(error) = write_new(&path, &encode(value)?) {
            // A half-written file must not stay: ENOSPC is the likely cause, and the next save wants the name.
            remove_if_there(&path)?;
            return Err(error);
        }
        if self.generation > 0 {
            remove_if_there(&path_of(&self.directory, self.generation))?;
        }
        self.generation = next;
        Ok(())
    }

    /// Unlinks the record: from here on the object does not exist, what is left of it is an orphan.
    pub fn erase(&mut self) -> io::Result<()> {
        for (_, path) in generations(&self.directory)? {
            remove_if_there(&path)?;
        }
        self.generation = 0;
        Ok(())
    }
}

/// Reads the newest valid record of `directory` and drops what is older or torn beside it.
pub fn load<T: DeserializeOwned>(directory: &Path) -> Loaded<T> {
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
    for (generation, path) in &found {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) => return unreadable(path, &error, None),
        };
        match decode(&bytes) {
            Ok(value) => {
                drop_others(&found, *generation);
                let slot = Slot {
                    directory: directory.to_owned(),
                    generation: *generation,
                };
                return Loaded::Found(value, slot);
            }
            Err(Defect::Foreign(text, json)) => return unreadable(path, &text, json),
            Err(Defect::Torn(text)) => {
                complaint.get_or_insert(format!("{}: {text}", path.display()));
            }
        }
    }
    complaint.map_or(Loaded::Absent, Loaded::Torn)
}

/// Best effort: what stays is older or torn, and dropped by the next load.
fn drop_others(found: &[(u64, PathBuf)], kept: u64) {
    for (generation, path) in found {
        if *generation != kept
            && let Err(error) = remove_if_there(path)
        {
            tracing::warn!(record = %path.display(), error = %error, "an old record was not removed");
        }
    }
}

fn path_of(directory: &Path, generation: u64) -> PathBuf {
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
