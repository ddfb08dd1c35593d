//! Reads and writes single cgroup files; creates and removes cgroup directories.
//! Called by all other modules, so that each error names its file and value.
//! Not here: which controller a file belongs to.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::error::Error;
use super::walk;

/// Writes `value` in one write(2), as cgroup files require.
pub(super) fn write(file: &Path, value: &str) -> Result<(), Error> {
    OpenOptions::new()
        .write(true)
        .open(file)
        .and_then(|mut opened| opened.write_all(value.as_bytes()))
        .map_err(|source| Error::io(format!("write {:?} to", value.trim_end()), file, source))
}

/// The whole text of `file`.
pub(super) fn read(file: &Path) -> Result<String, Error> {
    fs::read_to_string(file).map_err(|source| Error::io("read", file, source))
}

/// The single number in `file`; `None` stands for `max`.
pub(super) fn read_number(file: &Path) -> Result<Option<u64>, Error> {
    parse_number(file, &read(file)?)
}

/// The single number in `text`, which `file` holds; `None` stands for `max`.
pub(super) fn parse_number(file: &Path, text: &str) -> Result<Option<u64>, Error> {
    match text.trim() {
        "max" => Ok(None),
        digits => digits
            .parse()
            .map(Some)
            .map_err(|_| malformed(file, digits, "a number")),
    }
}

/// The number behind `key` in a file of `key number` lines.
pub(super) fn read_keyed(file: &Path, key: &str) -> Result<u64, Error> {
    let text = read(file)?;
    keyed(&text, key).ok_or_else(|| malformed(file, &text, "a list of keys with the one we need"))
}

/// The number behind `key` in lines of `key number`.
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    let (_, number) = lines.find(|(name, _)| *name == key)?;
    number.trim().parse().ok()
}

fn malformed(file: &Path, text: &str, expected: &'static str) -> Error {
    let text = text.chars().take(80).collect();
    Error::Malformed {
        file: file.to_owned(),
        text,
        expected,
    }
}

/// Makes `mount` + `path` and its missing parents. True if the last directory is new.
pub(super) fn make_dirs(mount: &Path, path: &str) -> Result<bool, Error> {
    let leaf = join(mount, path);
    match make_dir(&leaf) {
        Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {}
        done => return done,
    }
    let mut dir = mount.to_owned();
    let mut is_new = false;
    for part in path.split('/').filter(|part| !part.is_empty()) {
        dir.push(part);
        is_new = make_dir(&dir)?;
    }
    Ok(is_new)
}

/// Makes one directory. False if it was there.
pub(super) fn make_dir(dir: &Path) -> Result<bool, Error> {
    match fs::create_dir(dir) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(Error::io("create", dir, error)),
    }
}

/// `mount` + an absolute cgroup path.
pub(super) fn join(mount: &Path, path: &str) -> PathBuf {
    mount.join(path.trim_start_matches('/'))
}

/// Removes the cgroups `dirs` and the cgroups below them, if they exist. The kernel returns EBUSY
/// while a killed process has not ended: it is tried again until `deadline`, after which one short pass is made. What was
/// removed by then stays removed, so that a later call goes on. Errors: the first one, after all were tried.
pub(super) fn remove_trees(dirs: &[PathBuf], deadline: Instant) -> Result<(), Error> {
    each_of(dirs, |dir| remove_tree(dir, deadline))
}

/// As [`remove_trees`], but it does not wait: [`Error::is_busy`] says that a later call may go on.
pub(super) fn remove_some(dirs: &[PathBuf], deadline: Instant) -> Result<(), Error> {
    each_of(dirs, |dir| remove_tree_now(dir, deadline))
}

/// The first error of `remove`, after all of `dirs`.
fn each_of(dirs: &[PathBuf], remove: impl Fn(&Path) -> Result<(), Error>) -> Result<(), Error> {
    let removed: Vec<_> = dirs.iter().map(|dir| remove(dir)).collect();
    removed.into_iter().collect()
}

/// Removes one cgroup of [`remove_trees`] with those below it.
pub(super) fn remove_tree(dir: &Path, deadline: Instant) -> Result<(), Error> {
    let mut pause = Duration::from_micros(100);
    loop {
        match remove_tree_now(dir, deadline) {
            Err(error) if error.is_busy() && Instant::now() < deadline => {}
            removed => return removed,
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// Goes on while anything can be removed, and until `deadline`; after it, makes one short pass.
fn remove_tree_now(dir: &Path, deadline: Instant) -> Result<(), Error> {
    loop {
        let error = match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => Error::io("remove", dir, error),
        };
        let is_late = Instant::now() >= deadline;
        if !error.is_busy() || !walk::empty(dir, deadline)? || is_late {
            return Err(error);
        }
    }
}

/// Adds the processes of `dir` and of the cgroups below it to `pids`. A cgroup that is gone has
/// none; a threaded one lists its processes in its parent. Processes outside our pid namespace
/// read as 0 and are left out.
pub(super) fn collect_pids(dir: &Path, pids: &mut Vec<i32>) -> Result<(), Error> {
    walk::each(dir, |cgroup| {
        match cgroup.read("cgroup.procs") {
            Ok(text) => pids.extend(
                text.lines()
                    .filter_map(|line| line.parse::<i32>().ok())
                    .filter(|pid| *pid > 0),
            ),
            Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
        Ok(())
    })
}
