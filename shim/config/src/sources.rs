//! The files of a configuration: finds and reads them, and merges what they set.
//!
//! Called by: [`super::resolve`]. Invariants: a file or directory that others than root can write is refused unread;
//! each file is held to the same rules by itself, so that an error names the file and line that is to blame; a later
//! file wins key by key, and a list replaces a list.
//! Must not know: what a setting means, or whether its value is valid.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::error::Error;
use super::file::{ConfigFile, HandlersFile};
use super::keys::{self, Document};
use super::{DEFAULT_PATH, Overrides, known_keys};

/// Largest configuration file. Bytes.
pub(super) const MAX_FILE_BYTES: u64 = 1 << 20;
/// The table of handlers.
const HANDLERS: &str = "handlers";
/// The directory of drop-ins, beside the configuration file.
const DROP_INS: &str = "conf.d";

/// One file.
#[derive(Debug)]
pub(super) struct Source {
    pub path: PathBuf,
    pub text: String,
}

/// Reads the configuration file at `path`, or at [`DEFAULT_PATH`], where it may be absent, and then the drop-ins in the
/// order of their names.
pub(super) fn read_all(path: Option<&Path>, overrides: &Overrides) -> Result<Vec<Source>, Error> {
    let main = path.unwrap_or(Path::new(DEFAULT_PATH));
    let mut sources = Vec::new();
    match read(main) {
        Err(error) if path.is_none() && error.is_absence() => {}
        text => sources.push(Source {
            path: main.to_owned(),
            text: text?,
        }),
    }
    for path in drop_ins(main, overrides.config_dir.as_deref())? {
        let text = read(&path)?;
        sources.push(Source { path, text });
    }
    Ok(sources)
}

/// The drop-ins, sorted: of the directory that a flag names (empty for none), or of [`DROP_INS`] beside `main`, which may
/// be absent.
fn drop_ins(main: &Path, named: Option<&Path>) -> Result<Vec<PathBuf>, Error> {
    let beside = || main.parent().unwrap_or(Path::new("")).join(DROP_INS);
    let directory = named.map_or_else(beside, Path::to_owned);
    if directory.as_os_str().is_empty() {
        return Ok(Vec::new());
    }
    let mut paths = match list(&directory) {
        Err(error) if named.is_none() && error.is_absence() => return Ok(Vec::new()),
        paths => paths?,
    };
    paths.retain(|path| path.file_name().is_some_and(is_drop_in));
    paths.sort_by(|one, other| one.as_os_str().as_bytes().cmp(other.as_os_str().as_bytes()));
    Ok(paths)
}

fn is_drop_in(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.ends_with(b".toml") && !name.starts_with(b".")
}

/// The entries of a directory, after checking that only root can have put them there.
fn list(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::Read {
        path: directory.to_owned(),
        source,
    };
    let facts = std::fs::metadata(directory).map_err(failed)?;
    let found = match facts.is_dir() {
        true => distrust(&facts),
        false => Some("not a directory".to_owned()),
    };
    if let Some(found) = found {
        return Err(Error::UntrustedDirectory {
            path: directory.to_owned(),
            found,
        });
    }
    let entries = std::fs::read_dir(directory).map_err(failed)?;
    let paths: io::Result<Vec<PathBuf>> = entries.map(|entry| Ok(entry?.path())).collect();
    paths.map_err(failed)
}

/// Reads a file after checking, on the open file, that only root can have written it.
fn read(path: &Path) -> Result<String, Error> {
    let failed = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let facts = file.metadata().map_err(failed)?;
    let found = match facts.is_file() {
        true => distrust(&facts),
        false => Some("not a regular file".to_owned()),
    };
    if let Some(found) = found {
        return Err(Error::Untrusted {
            path: path.to_owned(),
            found,
        });
    }
    let mut text = String::new();
    let got = file
        .take(MAX_FILE_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if got as u64 > MAX_FILE_BYTES {
        return Err(Error::TooLarge {
            path: path.to_owned(),
            limit: MAX_FILE_BYTES,
        });
    }
    Ok(text)
}

/// Why a file or directory is not trusted, if there is a reason.
fn distrust(facts: &Metadata) -> Option<String> {
    let mode = facts.mode() & 0o7777;
    let group_writes = mode & 0o020 != 0 && facts.gid() != 0;
    if facts.uid() != 0 {
        Some(format!("owned by uid {}", facts.uid()))
    } else if mode & 0o002 != 0 || group_writes {
        Some(format!(
            "writable by others (mode {mode:04o}, gid {})",
            facts.gid()
        ))
    } else {
        None
    }
}

/// The run directory that files name which are not a valid configuration.
pub(super) fn run_of(sources: &[Source]) -> PathBuf {
    let tables = sources
        .iter()
        .rev()
        .filter_map(|source| source.text.parse::<Table>().ok());
    let run = tables
        .filter_map(|table| Some(PathBuf::from(table.get("run")?.as_str()?)))
        .next();
    run.unwrap_or_else(|| PathBuf::from(super::values::RUN))
}

/// What all files set together, and where.
pub(super) struct Merged<'t> {
    parts: Vec<(&'t Path, Document<'t>)>,
    table: Table,
}

impl<'t> Merged<'t> {
    /// Parses and merges files. Errors: the first file in the order of reading that is malformed, or has an unknown key or a
    /// value of the wrong type.
    pub(super) fn new(sources: &'t [Source]) -> Result<Self, Error> {
        let mut merged = Self {
            parts: Vec::new(),
            table: Table::new(),
        };
        let mut known = known_keys();
        for Source { path, text } in sources {
            let (document, table) = parse(path, text, &mut known)?;
            merged.parts.push((path, document));
            merge(&mut merged.table, table);
        }
        Ok(merged)
    }

    /// The settings of all files, with defaults where none of them sets a key.
    pub(super) fn file(&self) -> Result<ConfigFile, Error> {
        // Each file alone has the right types, and so has every value of the merged table.
        let file = self.table.clone().try_into();
        let mut file: ConfigFile = file.map_err(|error: toml::de::Error| Error::Malformed {
            path: self
                .parts
                .last()
                .map_or(PathBuf::new(), |(path, _)| (*path).to_owned()),
            line: 1,
            what: error.message().to_owned(),
        })?;
        file.handlers.fill();
        Ok(file)
    }

    /// `FILE:LINE` of the value in force of a dotted key; `None` where no file sets it.
    pub(super) fn place_of(&self, key: &str) -> Option<String> {
        let mut parts = self.parts.iter().rev();
        parts.find_map(|(path, document)| {
            let line = document.line_of(key)?;
            Some(format!("{}:{line}", path.display()))
        })
    }
}

/// Parses one file and holds it to the rules of the whole. `known` are the keys that there are; the keys of handlers that the
/// file adds are added to them.
fn parse<'t>(
    path: &Path,
    text: &'t str,
    known: &mut Table,
) -> Result<(Document<'t>, Table), Error> {
    let document = Document::parse(text).map_err(|error| malformed(path, text, None, &error))?;
    add_handlers(known, &document);
    if let Some(unknown) = document.first_unknown(known) {
        let is_handler = unknown.key.matches('.').count() == 1 && unknown.key.starts_with(HANDLERS);
        let hint = match unknown.meant {
            Some(meant) => format!("did you mean {meant}?"),
            None if is_handler => {
                "a handler of your own needs kind = \"any\" or \"wasm\"".to_owned()
            }
            None => "`coracle config default` lists the settings".to_owned(),
        };
        return Err(Error::UnknownKey {
            path: path.to_owned(),
            line: unknown.line,
            key: unknown.key,
            hint,
        });
    }
    let typed = toml::from_str::<ConfigFile>(text).and_then(|_| toml::from_str::<Table>(text));
    let table = typed.map_err(|error| malformed(path, text, Some(&document), &error))?;
    Ok((document, table))
}

/// Adds the keys of handlers that are not built in, which are those that set `kind`. A misspelt name does not.
fn add_handlers(known: &mut Table, document: &Document<'_>) {
    let Some(Value::Table(handlers)) = known.get_mut(HANDLERS) else {
        return;
    };
    for name in document.tables_with(HANDLERS, "kind") {
        handlers.entry(name).or_insert_with(|| {
            let template = Value::try_from(HandlersFile::template());
            template.expect("the file's types are TOML's own: tables, strings and numbers")
        });
    }
}

/// Takes over what `later` sets.
fn merge(table: &mut Table, later: Table) {
    for (key, value) in later {
        match (table.get_mut(&key), value) {
            (Some(Value::Table(inner)), Value::Table(value)) => merge(inner, value),
            (_, value) => {
                table.insert(key, value);
            }
        }
    }
}

fn malformed(
    path: &Path,
    text: &str,
    document: Option<&Document<'_>>,
    error: &toml::de::Error,
) -> Error {
    let span = error.span().unwrap_or(0..0);
    let problem = error.message().lines().collect::<Vec<_>>().join("; ");
    let what = match document.and_then(|document| document.key_at(&span)) {
        Some(key) => format!("{key}: {problem}"),
        None => problem,
    };
    Error::Malformed {
        path: path.to_owned(),
        line: keys::line_at(text, span.start),
        what,
    }
}
