//! Records on disk: one versioned, checksummed file an object, replaced without ever renaming over a name.
//!
//! Called by: drivers (save, before effects) and recovery (load). A record is `record.<generation>`: a header line
//! with format version and SHA-256 of what follows, then JSON. A save writes the next generation under a name that
//! did not exist and unlinks the older one; ext4 would flush on a rename over an existing name, and nothing here
//! waits for a disk.
//! Invariants: the newest valid generation wins; a torn newest one over a valid older one is a crash in a save and
//! dropped; a torn one alone is reported, never read as "nothing there".
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
    /// Files are there, none valid; the text says what is wrong with the newest.
    Torn(String),
    /// No record at all.
    Absent,
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
/// Errors: the directory cannot be read; an absent one is [`Loaded::Absent`].
pub fn load<T: DeserializeOwned>(directory: &Path) -> io::Result<Loaded<T>> {
    let mut found = generations(directory)?;
    found.sort_by_key(|(generation, _)| std::cmp::Reverse(*generation));
    let mut complaint = None;
    for (index, (generation, path)) in found.iter().enumerate() {
        match decode(&fs::read(path)?) {
            Ok(value) => {
                for (other, (_, path)) in found.iter().enumerate() {
                    if other != index {
                        remove_if_there(path)?;
                    }
                }
                let slot = Slot {
                    directory: directory.to_owned(),
                    generation: *generation,
                };
                return Ok(Loaded::Found(value, slot));
            }
            Err(text) => {
                complaint.get_or_insert(format!("{}: {text}", path.display()));
            }
        }
    }
    Ok(complaint.map_or(Loaded::Absent, Loaded::Torn))
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

fn encode<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec(value)?;
    let mut bytes = format!("{MAGIC} {VERSION} {}\n", hex(&Sha256::digest(&body))).into_bytes();
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .ok_or("it has no header line")?;
    let header = std::str::from_utf8(&bytes[..end]).map_err(|_| "its header is no text")?;
    let body = &bytes[end + 1..];
    let mut words = header.split(' ');
    if words.next() != Some(MAGIC) {
        return Err(format!("its header does not begin with {MAGIC}"));
    }
    let version = words.next().and_then(|word| word.parse::<u32>().ok());
    if version != Some(VERSION) {
        return Err(format!(
            "its format is {version:?}, this build reads {VERSION}"
        ));
    }
    let got = hex(&Sha256::digest(body));
    if words.next() != Some(got.as_str()) {
        return Err(format!(
            "its {} bytes hash to {got}, its header says otherwise",
            body.len()
        ));
    }
    serde_json::from_slice(body).map_err(|error| error.to_string())
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
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    impl Scratch {
        fn names(&self) -> Vec<String> {
            let mut names: Vec<String> = fs::read_dir(&self.0)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }
    }

    fn read(dir: &Scratch) -> Option<String> {
        match load::<String>(&dir.0).unwrap() {
            Loaded::Found(text, _) => Some(text),
            Loaded::Torn(_) | Loaded::Absent => None,
        }
    }

    #[test]
    fn a_save_leaves_one_generation_and_load_returns_the_last() {
        let dir = Scratch::new("store-save");
        let mut slot = Slot::new(dir.0.clone());
        for text in ["one", "two", "three"] {
            slot.save(&text).unwrap();
        }
        assert_eq!(dir.names(), ["record.3"]);
        assert_eq!(read(&dir).as_deref(), Some("three"));
    }

    #[test]
    fn saving_goes_on_after_a_load() {
        let dir = Scratch::new("store-goon");
        Slot::new(dir.0.clone()).save(&"one").unwrap();
        let Loaded::Found(text, mut slot) = load::<String>(&dir.0).unwrap() else {
            panic!("no record")
        };
        slot.save(&format!("{text} two")).unwrap();
        assert_eq!(read(&dir).as_deref(), Some("one two"));
    }

    #[test]
    fn every_cut_of_the_newest_record_falls_back_to_the_older_one() {
        let dir = Scratch::new("store-torn");
        let older = encode(&"older").unwrap();
        let newer = encode(&"newer").unwrap();
        for cut in 0..newer.len() {
            fs::write(path_of(&dir.0, 7), &older).unwrap();
            fs::write(path_of(&dir.0, 8), &newer[..cut]).unwrap();
            assert_eq!(read(&dir).as_deref(), Some("older"), "cut at {cut}");
            assert_eq!(dir.names(), ["record.7"], "cut at {cut}");
        }
    }

    #[test]
    fn two_valid_generations_are_a_crash_before_the_unlink_and_the_newer_wins() {
        let dir = Scratch::new("store-two");
        fs::write(path_of(&dir.0, 9), encode(&"older").unwrap()).unwrap();
        fs::write(path_of(&dir.0, 10), encode(&"newer").unwrap()).unwrap();
        assert_eq!(read(&dir).as_deref(), Some("newer"));
        assert_eq!(dir.names(), ["record.10"]);
    }

    #[test]
    fn a_torn_record_alone_is_reported_and_kept() {
        let dir = Scratch::new("store-alone");
        let mut bytes = encode(&"text").unwrap();
        let last = bytes.len() - 2;
        bytes[last] ^= 1;
        fs::write(path_of(&dir.0, 3), &bytes).unwrap();
        let Loaded::Torn(text) = load::<String>(&dir.0).unwrap() else {
            panic!("it was taken")
        };
        assert!(text.contains("record.3") && text.contains("hash"), "{text}");
        assert_eq!(dir.names(), ["record.3"]);
    }

    #[test]
    fn a_record_of_another_format_is_not_read() {
        let dir = Scratch::new("store-format");
        let text = String::from_utf8(encode(&"text").unwrap()).unwrap();
        fs::write(path_of(&dir.0, 1), text.replacen(" 1 ", " 2 ", 1)).unwrap();
        let Loaded::Torn(text) = load::<String>(&dir.0).unwrap() else {
            panic!("it was taken")
        };
        assert!(text.contains("format"), "{text}");
    }

    #[test]
    fn an_erased_or_missing_object_is_absent() {
        let dir = Scratch::new("store-erased");
        let mut slot = Slot::new(dir.0.clone());
        slot.save(&"text").unwrap();
        slot.erase().unwrap();
        assert!(matches!(load::<String>(&dir.0).unwrap(), Loaded::Absent));
        assert!(matches!(
            load::<String>(&dir.0.join("none")).unwrap(),
            Loaded::Absent
        ));
        assert_eq!(dir.names(), [""; 0]);
    }

    #[test]
    fn a_failed_save_keeps_the_older_record() {
        let dir = Scratch::new("store-failed");
        let mut slot = Slot::new(dir.0.clone());
        slot.save(&"kept").unwrap();
        // The next name is taken by a directory: create_new fails, unlink of it fails as well.
        fs::create_dir(path_of(&dir.0, 2)).unwrap();
        assert!(slot.save(&"lost").is_err());
        fs::remove_dir(path_of(&dir.0, 2)).unwrap();
        assert_eq!(read(&dir).as_deref(), Some("kept"));
        slot.save(&"next").unwrap();
        assert_eq!(read(&dir).as_deref(), Some("next"));
    }

    #[test]
    fn quarantine_never_overwrites_an_earlier_one() {
        let dir = Scratch::new("store-quarantine");
        let away = dir.0.join("away");
        for _ in 0..2 {
            let broken = dir.0.join("broken");
            fs::create_dir(&broken).unwrap();
            quarantine(&broken, &away).unwrap();
        }
        assert!(away.join("broken").is_dir() && away.join("broken.2").is_dir());
    }
}
