//! `ls`: one name per line; `-l` adds mode, links, owner, group, size and time (UTC); `-a`, `-A`, `-d`, `-h`.
//!
//! Invariant: entries are sorted by name. It has no columns and colours.

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{Job, Streams, inside, text};

/// One line.
struct Entry {
    name: Vec<u8>,
    path: PathBuf,
    metadata: Metadata,
}

impl Entry {
    fn of(name: &OsStr, path: PathBuf) -> io::Result<Self> {
        Ok(Self {
            metadata: fs::symlink_metadata(&path)?,
            name: name.as_bytes().to_vec(),
            path,
        })
    }
}

pub(super) fn run<O: Write, E: Write>(
    job: &Job<'_>,
    streams: &mut Streams<O, E>,
) -> io::Result<()> {
    let all: &[&str] = match job.operands.as_slice() {
        [] => &["."],
        operands => operands,
    };
    let (mut files, mut directories) = (Vec::new(), Vec::new());
    for operand in all {
        let path = job.path(operand);
        let is_dir = !job.has('d') && fs::metadata(&path).is_ok_and(|found| found.is_dir());
        match Entry::of(OsStr::new(operand), path) {
            Ok(entry) if is_dir => directories.push((operand, entry.path)),
            Ok(entry) => files.push(entry),
            Err(error) => streams.cannot(job, operand, &error)?,
        }
    }
    show(job, &files, streams)?;
    for (number, (operand, path)) in directories.iter().enumerate() {
        if all.len() > 1 {
            let gap = if number > 0 || !files.is_empty() {
                "\n"
            } else {
                ""
            };
            writeln!(streams.out, "{gap}{operand}:")?;
        }
        match entries(job, path) {
            Ok(entries) => show(job, &entries, streams)?,
            Err(error) => streams.cannot(job, operand, &error)?,
        }
    }
    Ok(())
}

fn entries(job: &Job<'_>, directory: &Path) -> io::Result<Vec<Entry>> {
    let mut found = Vec::new();
    if job.has('a') {
        for dots in [".", ".."] {
            found.push(Entry::of(OsStr::new(dots), directory.join(dots))?);
        }
    }
    let hidden = job.has('a') || job.has('A');
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        if hidden || !name.as_bytes().starts_with(b".") {
            // Skip an entry that was removed meanwhile.
            found.extend(Entry::of(&name, directory.join(&name)));
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn show<O: Write, E: Write>(
    job: &Job<'_>,
    entries: &[Entry],
    streams: &mut Streams<O, E>,
) -> io::Result<()> {
    for entry in entries {
        if job.has('l') {
            write!(streams.out, "{}", long(job, &entry.metadata))?;
        }
        streams.out.write_all(&entry.name)?;
        if job.has('l') && entry.metadata.is_symlink() {
            let target = fs::read_link(&entry.path).unwrap_or_default();
            streams.out.write_all(b" -> ")?;
            streams.out.write_all(target.as_os_str().as_bytes())?;
        }
        streams.out.write_all(b"\n")?;
    }
    Ok(())
}

fn long(job: &Job<'_>, metadata: &Metadata) -> String {
    let identity = &job.spec.identity;
    let time = text::time(metadata.mtime());
    format!(
        "{} {:>4} {:<5} {:<5} {:>10} {} ",
        text::mode(metadata),
        metadata.nlink(),
        inside(identity, metadata.uid()),
        inside(identity, metadata.gid()),
        job.size(metadata.len()),
        // Without seconds.
        &time[..time.len() - 3],
    )
}
