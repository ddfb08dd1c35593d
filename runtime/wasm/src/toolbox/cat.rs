//! `cat`: files, and standard input for `-` or without any.
//!
//! Invariant: memory does not grow with the file. Flags change nothing.

use std::fs::File;
use std::io::{self, Read, Write};

use super::{Job, Streams};

pub(super) fn run<O: Write, E: Write>(
    job: &Job<'_>,
    streams: &mut Streams<O, E>,
) -> io::Result<()> {
    let all: &[&str] = match job.operands.as_slice() {
        [] => &["-"],
        operands => operands,
    };
    for operand in all {
        let opened: io::Result<Box<dyn Read>> = match *operand {
            "-" => Ok(Box::new(io::stdin().lock())),
            path => open(job, path).map(|file| Box::new(file) as _),
        };
        let copied = match opened {
            Ok(mut from) => copy(&mut from, &mut streams.out)?,
            Err(error) => Err(error),
        };
        if let Err(error) = copied {
            streams.cannot(job, operand, &error)?;
        }
    }
    Ok(())
}

pub(super) fn open(job: &Job<'_>, path: &str) -> io::Result<File> {
    let file = File::open(job.path(path))?;
    match file.metadata()?.is_dir() {
        true => Err(io::Error::from_raw_os_error(libc::EISDIR)),
        false => Ok(file),
    }
}

/// Outer error: the output is closed. Inner error: the input failed. Flushes after each read, for interactive input.
fn copy(from: &mut dyn Read, to: &mut impl Write) -> io::Result<io::Result<()>> {
    let mut part = vec![0; 64 * 1024];
    loop {
        match from.read(&mut part) {
            Ok(0) => return Ok(Ok(())),
            Ok(got) => {
                to.write_all(&part[..got])?;
                to.flush()?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Ok(Err(error)),
        }
    }
}
