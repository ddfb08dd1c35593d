//! `stat`: the metadata of files; of a symbolic link itself unless `-L`.
//!
//! It has no custom formats.

use std::fs::{self, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt as _;

use super::{Job, Streams, inside, text};

pub(super) fn run<O: Write, E: Write>(
    job: &Job<'_>,
    streams: &mut Streams<O, E>,
) -> io::Result<()> {
    if job.operands.is_empty() {
        return streams.complain(job.name, "it needs the name of a file");
    }
    for operand in &job.operands {
        let path = job.path(operand);
        let found = match job.has('L') {
            true => fs::metadata(&path),
            false => fs::symlink_metadata(&path),
        };
        match found {
            Ok(metadata) => {
                let target = fs::read_link(&path).ok().filter(|_| metadata.is_symlink());
                let target = target.map(|to| format!(" -> {}", to.display()));
                let name = format!("{operand}{}", target.unwrap_or_default());
                show(job, &name, &metadata, &mut streams.out)?;
            }
            Err(error) => streams.cannot(job, operand, &error)?,
        }
    }
    Ok(())
}

fn show(job: &Job<'_>, name: &str, found: &Metadata, out: &mut impl Write) -> io::Result<()> {
    let identity = &job.spec.identity;
    writeln!(out, "  File: {name}")?;
    writeln!(
        out,
        "  Size: {:<12} Blocks: {:<10} IO Block: {:<6} {}",
        found.len(),
        found.blocks(),
        found.blksize(),
        text::kind(found)
    )?;
    writeln!(
        out,
        "Device: {:<12x} Inode: {:<11} Links: {}",
        found.dev(),
        found.ino(),
        found.nlink()
    )?;
    writeln!(
        out,
        "Access: ({:04o}/{})  Uid: {}  Gid: {}",
        found.mode() & 0o7777,
        text::mode(found),
        inside(identity, found.uid()),
        inside(identity, found.gid())
    )?;
    for (what, seconds) in [
        ("Access", found.atime()),
        ("Modify", found.mtime()),
        ("Change", found.ctime()),
    ] {
        writeln!(out, "{what}: {} UTC", text::time(seconds))?;
    }
    Ok(())
}
