//! The directory of network configurations: which file is used, and whether anything in it has changed.
//!
//! Called by: [`super::readiness`]; blocks on the disk. The first valid file by name wins, of `*.conflist`, `*.conf`
//! and `*.json`; a list takes further plugins from `NAME/*.conf` beside it, as libcni does.
//! Invariants: a configuration makes the daemon execute programs as root, so a file that others than root can write
//! is refused; only regular files are read, and at most [`MAX_FILE_BYTES`] of each.
//! Not here: the content of a list, whether its plugins are installed.

use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::list::NetworkList;

/// A larger file is refused. Bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Most entries of a directory that are read, in order of name.
const MAX_ENTRIES: usize = 1024;

/// The state of the directory: name, inode, size and times of every file that could matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint(Vec<(PathBuf, [i64; 6])>);

/// The result of reading the directory.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// The network that is used, with its file.
    pub chosen: Option<(PathBuf, NetworkList)>,
    /// Broken files that precede it, each with the reason; all of them if no network is used.
    pub broken: Vec<(PathBuf, String)>,
}

/// Takes the fingerprint without reading any file. Errors: the directory cannot be listed.
pub fn fingerprint(directory: &Path) -> io::Result<Fingerprint> {
    let mut seen = Vec::new();
    for path in entries(directory)? {
        let Ok(facts) = fs::metadata(&path) else {
            // A dangling link, or removed meanwhile: a later change will show.
            seen.push((path, [0; 6]));
            continue;
        };
        if facts.is_dir() {
            for inner in entries(&path).unwrap_or_default() {
                if has_extension(&inner, &["conf"])
                    && let Ok(facts) = fs::metadata(&inner)
                {
                    seen.push((inner, essence(&facts)));
                }
            }
        } else if has_extension(&path, &EXTENSIONS) {
            seen.push((path, essence(&facts)));
        }
    }
    Ok(Fingerprint(seen))
}

fn essence(facts: &Metadata) -> [i64; 6] {
    [
        facts.ino().cast_signed(),
        facts.size().cast_signed(),
        facts.mtime(),
        facts.mtime_nsec(),
        facts.ctime(),
        facts.ctime_nsec(),
    ]
}

const EXTENSIONS: [&str; 3] = ["conflist", "conf", "json"];

fn has_extension(path: &Path, of: &[&str]) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| of.contains(&extension))
}

fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory)? {
        paths.push(entry?.path());
    }
    paths.sort();
    paths.truncate(MAX_ENTRIES);
    Ok(paths)
}

/// The first file that should be a network configuration, valid or not.
pub fn first_configuration(directory: &Path) -> Option<PathBuf> {
    let mut found = entries(directory).unwrap_or_default().into_iter();
    found.find(|path| has_extension(path, &EXTENSIONS) && !path.is_dir())
}

/// Reads files in order until one is valid. Errors: the directory cannot be listed.
pub fn read(directory: &Path) -> io::Result<Reading> {
    let mut broken = Vec::new();
    for path in entries(directory)? {
        if !has_extension(&path, &EXTENSIONS) || path.is_dir() {
            continue;
        }
        match read_list(directory, &path) {
            Ok(list) => {
                return Ok(Reading {
                    chosen: Some((path, list)),
                    broken,
                });
            }
            Err(why) => broken.push((path, why)),
        }
    }
    Ok(Reading {
        chosen: None,
        broken,
    })
}

fn read_list(directory: &Path, path: &Path) -> Result<NetworkList, String> {
    let text = read_file(path)?;
    if !has_extension(path, &["conflist"]) {
        return NetworkList::parse_single(&text)?.complete();
    }
    let mut list = NetworkList::parse(&text)?;
    if !list.only_inlined {
        for path in entries(&directory.join(&list.name)).unwrap_or_default() {
            if has_extension(&path, &["conf"]) {
                let added = read_file(&path).and_then(|text| list.add_plugin(&text));
                added.map_err(|why| format!("its plugin {}: {why}", path.display()))?;
            }
        }
    }
    list.complete()
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let shown = |error: io::Error| error.to_string();
    // Without O_NONBLOCK, opening a FIFO would block.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(shown)?;
    let facts = file.metadata().map_err(shown)?;
    if let Some(why) = distrust(&facts) {
        return Err(why);
    }
    let mut text = Vec::new();
    let got = file
        .take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(shown)?;
    if got as u64 > MAX_FILE_BYTES {
        return Err(format!("it is larger than {MAX_FILE_BYTES} bytes"));
    }
    Ok(text)
}

/// Why a file is refused; `None` if it may be read.
fn distrust(facts: &Metadata) -> Option<String> {
    let mode = facts.mode() & 0o7777;
    let group_writes = mode & 0o020 != 0 && facts.gid() != 0;
    if !facts.is_file() {
        Some("it is no regular file".to_owned())
    } else if facts.uid() != 0 {
        Some(format!("it belongs to uid {}, must be root's", facts.uid()))
    } else if mode & 0o002 != 0 || group_writes {
        Some(format!(
            "others than root can write it (mode {mode:04o}, gid {})",
            facts.gid()
        ))
    } else {
        None
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    use super::super::tests::Temp;
    use super::*;

    fn list(name: &str) -> String {
        format!(r#"{{"name": "{name}", "cniVersion": "1.0.0", "plugins": [{{"type": "p"}}]}}"#)
    }

    fn chosen(directory: &Path) -> Option<String> {
        read(directory).unwrap().chosen.map(|(_, list)| list.name)
    }

    #[test]
    fn the_first_valid_file_by_name_wins() {
        let temp = Temp::new();
        let dir = temp.dir();
        assert_eq!(chosen(dir), None);
        fs::write(dir.join("05-notes.txt"), list("ignored")).unwrap();
        fs::create_dir(dir.join("06-directory.conflist")).unwrap();
        fs::write(dir.join("20-b.conflist"), list("b")).unwrap();
        assert_eq!(chosen(dir).unwrap(), "b");
        let single = r#"{"name": "a", "cniVersion": "1.0.0", "type": "p"}"#;
        fs::write(dir.join("10-a.conf"), single).unwrap();
        assert_eq!(chosen(dir).unwrap(), "a");
        fs::write(dir.join("10-a.conf"), "{").unwrap();
        let reading = read(dir).unwrap();
        assert_eq!(reading.chosen.unwrap().1.name, "b");
        assert_eq!(reading.broken[0].0, dir.join("10-a.conf"));
        assert!(reading.broken[0].1.contains("no JSON"));
        fs::write(dir.join("10-a.json"), single).unwrap();
        assert_eq!(chosen(dir).unwrap(), "a");
    }

    #[test]
    fn a_list_loads_plugins_from_its_own_directory_unless_disabled() {
        let temp = Temp::new();
        let dir = temp.dir();
        fs::write(dir.join("10.conflist"), list("n")).unwrap();
        fs::create_dir(dir.join("n")).unwrap();
        fs::write(dir.join("n/2.conf"), r#"{"type": "two"}"#).unwrap();
        fs::write(dir.join("n/1.conf"), r#"{"type": "one"}"#).unwrap();
        fs::write(dir.join("n/3.json"), r#"{"type": "three"}"#).unwrap();
        let kinds = || {
            let (_, list) = read(dir).unwrap().chosen.unwrap();
            let kinds: Vec<String> = list.plugins.into_iter().map(|plugin| plugin.kind).collect();
            kinds.join(" ")
        };
        assert_eq!(kinds(), "p one two");
        let alone = list("n").replace("\"name\"", "\"loadOnlyInlinedPlugins\": true, \"name\"");
        fs::write(dir.join("10.conflist"), alone).unwrap();
        assert_eq!(kinds(), "p");
        fs::write(
            dir.join("10.conflist"),
            r#"{"name": "n", "cniVersion": "1.1.0"}"#,
        )
        .unwrap();
        assert_eq!(kinds(), "one two");
        fs::write(dir.join("n/1.conf"), r#"{"type": "../sh"}"#).unwrap();
        let broken = read(dir).unwrap().broken.remove(0).1;
        assert!(
            broken.contains("n/1.conf") && broken.contains("../sh"),
            "{broken}"
        );
    }

    #[test]
    fn files_that_others_can_write_are_not_read() {
        let temp = Temp::new();
        let file = temp.dir().join("10.conflist");
        fs::write(&file, list("n")).unwrap();
        for (mode, good) in [(0o644, true), (0o600, true), (0o666, false), (0o646, false)] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(chosen(temp.dir()).is_some(), good, "{mode:o}");
        }
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        std::os::unix::fs::chown(&file, Some(1000), None).unwrap();
        assert!(read(temp.dir()).unwrap().broken[0].1.contains("uid 1000"));
    }

    #[test]
    fn hostile_files_neither_block_nor_exhaust_memory() {
        let temp = Temp::new();
        let dir = temp.dir();
        let made = Command::new("mkfifo").arg(dir.join("01.conflist")).status();
        assert!(made.unwrap().success());
        std::os::unix::fs::symlink("/dev/zero", dir.join("02.conflist")).unwrap();
        std::os::unix::fs::symlink("02-loop.conflist", dir.join("02-loop.conflist")).unwrap();
        fs::write(dir.join("03.conflist"), vec![b' '; 2 << 20]).unwrap();
        fs::write(dir.join("04.conflist"), "[".repeat(1 << 20)).unwrap();
        fs::write(dir.join("09.conflist"), list("n")).unwrap();
        let reading = read(dir).unwrap();
        assert_eq!(reading.chosen.unwrap().1.name, "n");
        assert_eq!(reading.broken.len(), 5);
        assert!(fingerprint(dir).is_ok());
        assert!(fingerprint(&dir.join("absent")).is_err());
    }

    #[test]
    fn every_change_that_matters_is_seen() {
        let temp = Temp::new();
        let dir = temp.dir();
        let mut before = fingerprint(dir).unwrap();
        let mut changed = |what: &str| {
            let now = fingerprint(dir).unwrap();
            assert_ne!(now, before, "{what}");
            before = now;
        };
        fs::write(dir.join("1.conflist"), list("n")).unwrap();
        changed("a new file");
        fs::write(dir.join("1.conflist"), list("m")).unwrap();
        changed("other text of the same length");
        fs::create_dir(dir.join("n")).unwrap();
        fs::write(dir.join("n/1.conf"), "{}").unwrap();
        changed("a plugin's file");
        fs::write(dir.join("n/1.conf"), "[]").unwrap();
        changed("its text");
        fs::remove_file(dir.join("1.conflist")).unwrap();
        changed("a file gone");
        fs::write(dir.join("notes.txt"), "").unwrap();
        assert_eq!(
            fingerprint(dir).unwrap(),
            before,
            "a file that is no configuration"
        );
    }
}
