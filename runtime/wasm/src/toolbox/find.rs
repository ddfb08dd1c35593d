//! `find [PATH...] [-name PATTERN] [-type f|d|l] [-maxdepth N]`: the paths below directories.
//!
//! Invariant: links are shown and not followed, so that every tree ends; entries come in the order of their names.
//! Not here: actions on what is found.

use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::pattern::is_named;
use super::{Job, Streams};

/// What is looked for, and where.
struct Query<'a> {
    roots: Vec<&'a str>,
    name: Option<&'a str>,
    kind: Option<&'a str>,
    depth: usize,
}

impl<'a> Query<'a> {
    /// Errors: a text.
    fn parse(job: &'a Job<'_>) -> Result<Self, String> {
        let mut query = Self {
            roots: Vec::new(),
            name: None,
            kind: None,
            depth: usize::MAX,
        };
        let mut arguments = job.wasm.args.iter().skip(1).map(String::as_str);
        while let Some(argument) = arguments.next() {
            if !argument.starts_with('-') {
                query.roots.push(argument);
                continue;
            }
            let value = arguments.next();
            match (argument, value) {
                ("-name", Some(pattern)) => query.name = Some(pattern),
                ("-type", Some(kind @ ("f" | "d" | "l"))) => query.kind = Some(kind),
                ("-maxdepth", Some(depth)) => {
                    let number = depth.parse();
                    query.depth = number.map_err(|_| format!("{depth:?} is no depth"))?;
                }
                _ => {
                    return Err(format!(
                        "{argument}: there are -name PATTERN, -type f, d or l, and -maxdepth N"
                    ));
                }
            }
        }
        if query.roots.is_empty() {
            query.roots.push(".");
        }
        Ok(query)
    }

    fn wants(&self, name: &[u8], kind: fs::FileType) -> bool {
        let is_kind = match self.kind {
            Some("f") => kind.is_file(),
            Some("d") => kind.is_dir(),
            Some(_) => kind.is_symlink(),
            None => true,
        };
        is_kind
            && self
                .name
                .is_none_or(|pattern| is_named(pattern.as_bytes(), name))
    }
}

pub(super) fn run<O: Write, E: Write>(
    job: &Job<'_>,
    streams: &mut Streams<O, E>,
) -> io::Result<()> {
    let query = match Query::parse(job) {
        Ok(query) => query,
        Err(text) => return streams.complain(job.name, &text),
    };
    for root in &query.roots {
        // What is still to be shown, the next one last: its path as it is shown, and its depth.
        let mut ahead = vec![(PathBuf::from(root), 0)];
        while let Some((shown, depth)) = ahead.pop() {
            let real = Path::new(&job.wasm.working_dir).join(&shown);
            let found = match fs::symlink_metadata(&real) {
                Ok(found) => found,
                Err(error) => {
                    streams.cannot(job, &shown.to_string_lossy(), &error)?;
                    continue;
                }
            };
            let name = shown.file_name().unwrap_or(shown.as_os_str());
            if query.wants(name.as_bytes(), found.file_type()) {
                streams.out.write_all(shown.as_os_str().as_bytes())?;
                streams.out.write_all(b"\n")?;
            }
            if found.is_dir() && depth < query.depth {
                match children(&real, &shown) {
                    Ok(children) => {
                        ahead.extend(children.into_iter().rev().map(|path| (path, depth + 1)));
                    }
                    Err(error) => streams.cannot(job, &shown.to_string_lossy(), &error)?,
                }
            }
        }
    }
    Ok(())
}

fn children(real: &Path, shown: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(real)?;
    let mut found: Vec<_> = entries
        .flatten()
        .map(|entry| shown.join(entry.file_name()))
        .collect();
    found.sort();
    Ok(found)
}
