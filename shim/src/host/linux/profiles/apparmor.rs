//! The AppArmor profile of a container, and the default one, which is ours.
//!
//! Called by [`super::super::plan`], and once at the daemon's start. The default profile is loaded by AppArmor's own
//! parser when none of its name is loaded: at the start, and again when a container needs it and it is gone.
//! Invariants: a profile that was asked for and is not loaded is refused. Nobody runs without a profile but who asks for
//! that or is privileged, and everybody on a node that has no parser, as under containerd and CRI-O; `coracle check`
//! says so.
//! Not here: taking a profile on.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use coracle_lifecycle::{Error, Kind, SecurityProfile};

use super::SecurityFiles;
use crate::host::io_error;
use crate::host::plan::invalid;

/// The profile that stands for `RuntimeDefault`.
const DEFAULT: &str = "coracle-default";
/// Its text; a daemon that is itself confined adds a line.
const DEFAULT_TEXT: &str = include_str!("../../../../assets/apparmor.profile");
/// A policy that names its ABI keeps its meaning when a newer kernel mediates more.
const ABI: (&str, &str) = ("/etc/apparmor.d/abi/3.0", "abi <abi/3.0>,\n");
/// How long the parser may take.
const PARSER_PATIENCE: Duration = Duration::from_secs(20);
/// What stands before the name of a profile of the node in CRI's older field, and by some clients in the newer.
const PREFIX: &str = "localhost/";

/// What there is of the default profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultProfile {
    /// The kernel runs without AppArmor.
    Unsupported,
    /// It is loaded.
    Loaded,
    /// It is not loaded; once it was to be: nor is there a parser to load it with.
    Absent,
}

/// The AppArmor profile to change to, if any. Blocks; may run the parser.
pub(in crate::host::linux) fn apparmor(
    config: &SecurityProfile,
    privileged: bool,
    files: &SecurityFiles<'_>,
) -> Result<Option<String>, Error> {
    let name = match config {
        _ if privileged => return Ok(None),
        SecurityProfile::Unconfined => return Ok(None),
        SecurityProfile::Unset | SecurityProfile::Default => {
            let there = load_default(files)?;
            return Ok((there == DefaultProfile::Loaded).then(|| DEFAULT.to_owned()));
        }
        SecurityProfile::Localhost(name) => name.strip_prefix(PREFIX).unwrap_or(name),
    };
    match loaded(files.apparmor)? {
        None => Err(invalid(format!(
            "AppArmor profile {name:?} is asked for, and this kernel runs without AppArmor"
        ))),
        Some(loaded) if contains(&loaded, name) => Ok(Some(name.to_owned())),
        Some(_) if name == DEFAULT && load_default(files)? == DefaultProfile::Loaded => {
            Ok(Some(name.to_owned()))
        }
        Some(_) => Err(invalid(format!(
            "AppArmor profile {name:?} is not loaded on this node"
        ))),
    }
}

/// Loads the default profile unless one of its name is there. Blocks; one caller at a time runs the parser.
///
/// Errors: the parser refuses, or takes too long; the list of profiles cannot be read.
pub(in crate::host::linux) fn load_default(
    files: &SecurityFiles<'_>,
) -> Result<DefaultProfile, Error> {
    static LOADING: Mutex<()> = Mutex::new(());
    let is_there = || -> Result<Option<bool>, Error> {
        Ok(loaded(files.apparmor)?.map(|list| contains(&list, DEFAULT)))
    };
    match is_there()? {
        None => return Ok(DefaultProfile::Unsupported),
        Some(true) => return Ok(DefaultProfile::Loaded),
        Some(false) => {}
    }
    let _turn = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
    if is_there()? == Some(true) {
        return Ok(DefaultProfile::Loaded);
    }
    let Some(parser) = parser(files) else {
        return Ok(DefaultProfile::Absent);
    };
    let text = default_text(&own_profile(), Path::new(ABI.0).exists());
    parse(parser, &text).map_err(|why| {
        let parser = parser.display();
        let text = format!(
            "load AppArmor profile {DEFAULT:?}: {parser} {why}; load it by hand or mend the parser"
        );
        Error::new(Kind::Io, text)
    })?;
    match is_there()? {
        Some(true) => Ok(DefaultProfile::Loaded),
        _ => {
            let text = format!(
                "{} loaded AppArmor profile {DEFAULT:?}, and the kernel does not list it",
                parser.display()
            );
            Err(Error::new(Kind::Io, text))
        }
    }
}

fn parser<'a>(files: &SecurityFiles<'a>) -> Option<&'a Path> {
    files
        .parsers
        .iter()
        .map(Path::new)
        .find(|path| path.is_file())
}

/// Has the parser load `text`. Errors: what it said, or how it ended.
fn parse(parser: &Path, text: &str) -> Result<(), String> {
    let child = Command::new(parser)
        .args(["--replace", "--skip-cache", "--quiet"])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.map_err(|error| format!("could not be run: {error}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // Less than a pipe holds. One that does not read says why when it ends.
        let _ = stdin.write_all(text.as_bytes());
    }
    let deadline = Instant::now() + PARSER_PATIENCE;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(format!("ended with {status}: {}", said(&mut child))),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) => break,
            Err(error) => return Err(format!("could not be waited for: {error}")),
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    Err(format!(
        "did not end within {} s",
        PARSER_PATIENCE.as_secs()
    ))
}

/// What an ended parser wrote, on one line and bounded. A child of it that holds the pipe is not waited for.
fn said(child: &mut Child) -> String {
    let mut bytes = [0; 1024];
    let pipe = child.stderr.take();
    let got = pipe.and_then(|pipe| {
        rustix::io::ioctl_fionbio(&pipe, true).ok()?;
        rustix::io::read(&pipe, &mut bytes).ok()
    });
    let text = String::from_utf8_lossy(&bytes[..got.unwrap_or(0)]);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The profile's text for a daemon that runs under `own`: who stops a container has to be allowed to.
fn default_text(own: &str, with_abi: bool) -> String {
    let mut text = String::new();
    if with_abi {
        text.push_str(ABI.1);
    }
    text.push_str(DEFAULT_TEXT.trim_end().trim_end_matches('}'));
    let is_name = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\\' | '{' | '}' | ',');
    if !matches!(own, "" | "unconfined") && own.chars().all(is_name) {
        text.push_str(&format!("  signal (receive) peer=\"{own}\",\n"));
    }
    text.push_str("}\n");
    text
}

/// Under which profile this daemon runs; empty without one.
fn own_profile() -> String {
    let places = [
        "/proc/self/attr/apparmor/current",
        "/proc/self/attr/current",
    ];
    let read = places.iter().find_map(|path| fs::read_to_string(path).ok());
    let text = read.unwrap_or_default();
    profile_name(text.trim_end_matches(['\n', '\0'])).to_owned()
}

/// The list of loaded profiles; `None` without AppArmor.
fn loaded(directory: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(directory.join("profiles")) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("read the list of AppArmor profiles", error)),
    }
}

fn contains(loaded: &str, name: &str) -> bool {
    loaded.lines().any(|line| profile_name(line) == name)
}

/// A line is `NAME (enforce)`.
fn profile_name(line: &str) -> &str {
    line.rsplit_once(" (").map_or(line, |(name, _)| name)
}

/// What this node has of the default profile, without loading it; the profile may be waiting for a parser to load it.
///
/// Errors: the list of profiles cannot be read.
pub fn default_profile() -> Result<(DefaultProfile, Option<PathBuf>), Error> {
    let files = SecurityFiles::of_node();
    let there = match loaded(files.apparmor)? {
        None => DefaultProfile::Unsupported,
        Some(list) if contains(&list, DEFAULT) => DefaultProfile::Loaded,
        Some(_) => DefaultProfile::Absent,
    };
    Ok((there, parser(&files).map(Path::to_owned)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests;
