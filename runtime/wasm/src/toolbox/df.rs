//! `df`: the space of the container's file systems, or of those that hold the given files. In KiB, or `-h`.
//!
//! A jail has no mount table: without arguments it lists the root and the mounts of the container's spec.
//! It does not count inodes.

use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, StatVfs, fstatfs, fstatvfs, openat};

use super::{Job, Streams, text};

pub(super) fn run<O: Write, E: Write>(
    job: &Job<'_>,
    streams: &mut Streams<O, E>,
) -> io::Result<()> {
    let paths: Vec<&str> = match job.operands.as_slice() {
        [] => {
            let mounts = job.spec.mounts.iter().map(|mount| mount.target.as_str());
            std::iter::once("/").chain(mounts).collect()
        }
        operands => operands.to_vec(),
    };
    let size = if job.has('h') { "Size" } else { "1K-blocks" };
    writeln!(
        streams.out,
        "{:<12} {size:>10} {:>10} {:>10} {:>4} Mounted on",
        "Filesystem", "Used", "Available", "Use%"
    )?;
    for path in paths {
        match space(&job.path(path)) {
            Ok((kind, space)) => show(job, (path, &kind), &space, &mut streams.out)?,
            Err(error) => streams.cannot(job, path, &error)?,
        }
    }
    Ok(())
}

fn space(path: &Path) -> io::Result<(String, StatVfs)> {
    // The seccomp filter does not allow the older open(2).
    let file = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    // The type's width differs between platforms; magic numbers have 32 bits.
    let magic = (fstatfs(&file)?.f_type as u64) & u64::from(u32::MAX);
    let known = MAGICS.iter().find(|(number, _)| *number == magic);
    let kind = known.map_or_else(|| format!("{magic:#x}"), |(_, name)| (*name).to_owned());
    Ok((kind, fstatvfs(&file)?))
}

/// Source: linux/magic.h.
const MAGICS: [(u64, &str); 8] = [
    (0x794c_7630, "overlay"),
    (0x0102_1994, "tmpfs"),
    (0xef53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0x6969, "nfs"),
    (0x6573_5546, "fuse"),
    (0x2fc1_2fc1, "zfs"),
];

fn show(
    job: &Job<'_>,
    (path, kind): (&str, &str),
    space: &StatVfs,
    out: &mut impl Write,
) -> io::Result<()> {
    let bytes = |blocks: u64| blocks.saturating_mul(space.f_frsize);
    let used = space.f_blocks.saturating_sub(space.f_bfree);
    let known = used + space.f_bavail;
    let percent = match known {
        0 => "-".to_owned(),
        _ => format!("{}%", (used.saturating_mul(100)).div_ceil(known)),
    };
    let shown = |blocks| match job.has('h') {
        true => text::human(bytes(blocks)),
        false => (bytes(blocks) / 1024).to_string(),
    };
    writeln!(
        out,
        "{kind:<12} {:>10} {:>10} {:>10} {percent:>4} {path}",
        shown(space.f_blocks),
        shown(used),
        shown(space.f_bavail)
    )
}
