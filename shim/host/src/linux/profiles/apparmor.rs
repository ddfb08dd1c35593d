//! The AppArmor profile of a container, and our own default profile.
//!
//! Called by [`super::super::plan`], and once at the daemon's start. AppArmor's own parser loads the default profile
//! when no profile of its name is loaded: at the start, and again when a container needs it and it is gone.
//! Invariants: a requested profile that is not loaded is refused, and one that does not confine is unless the operator
//! lists it: a pod that may choose among profiles must not thereby choose to have none. Only privileged containers, those that request it,
//! and all containers of a node without a parser run without a profile, as under containerd and CRI-O; `coracle check`
//! reports such a node.
//! Must not know: how a process changes to a profile.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use coracle_lifecycle::{Error, Kind, SecurityProfile};

use super::SecurityFiles;
use crate::errors::invalid;
use crate::io_error;

/// The profile for `RuntimeDefault`.
const DEFAULT: &str = "coracle-default";
/// Its text; a daemon that is itself confined adds a line.
const DEFAULT_TEXT: &str = include_str!("../../../../assets/apparmor.profile");
/// With its ABI, a policy keeps its meaning when a newer kernel mediates more.
const ABI: (&str, &str) = ("/etc/apparmor.d/abi/3.0", "abi <abi/3.0>,\n");
/// How long the parser may take.
const PARSER_TIMEOUT: Duration = Duration::from_secs(20);
/// The prefix before the name of a profile of the node in CRI's older field, which some clients use in the newer one.
const PREFIX: &str = "localhost/";

/// The state of the default profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultProfile {
    /// The kernel runs without AppArmor.
    Unsupported,
    /// It is loaded.
    Loaded,
    /// It is not loaded. After an attempt to load it: there is no parser, either.
    Absent,
}

/// The AppArmor profile to change to, if any. Blocks; may run the parser.
pub(in crate::linux) fn apparmor(
    config: &SecurityProfile,
    privileged: bool,
    listed: &[String],
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
            "AppArmor profile {name:?} is requested, but this kernel runs without AppArmor"
        ))),
        Some(loaded) if contains(&loaded, name) => {
            confines(&loaded, name, listed)?;
            Ok(Some(name.to_owned()))
        }
        Some(_) if name == DEFAULT && load_default(files)? == DefaultProfile::Loaded => {
            Ok(Some(name.to_owned()))
        }
        Some(_) => Err(invalid(format!(
            "AppArmor profile {name:?} is not loaded on this node"
        ))),
    }
}

/// Refuses a loaded profile that the kernel does not enforce, unless the operator has `listed` it. Source of the modes:
/// security/apparmor/lib.c, `aa_profile_mode_names`.
fn confines(loaded: &str, name: &str, listed: &[String]) -> Result<(), Error> {
    let mut lines = loaded.lines();
    let line = lines.find(|line| profile_name(line) == name);
    let mode = line.and_then(|line| line.rsplit_once(" ("));
    let mode = mode.map_or("", |(_, mode)| mode.trim_end_matches(')'));
    let is_listed = listed.iter().any(|pattern| fits(pattern, name));
    match is_listed || matches!(mode, "enforce" | "kill") {
        true => Ok(()),
        false => Err(invalid(format!(
            "AppArmor profile {name:?} is requested, and this node has it in mode {mode:?}, which does not confine: put it in enforce mode (aa-enforce), or list it in apparmor_profiles of the pod's handler"
        ))),
    }
}

/// Whether the pattern, a whole name or a prefix and `*`, matches `name`.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => pattern == name,
    }
}

/// Loads the default profile unless one of its name is loaded. Blocks; one caller at a time runs the parser.
///
/// Errors: the parser refuses, or takes too long; the list of profiles cannot be read.
pub(in crate::linux) fn load_default(files: &SecurityFiles<'_>) -> Result<DefaultProfile, Error> {
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

/// Has the parser load `text`. Errors: its message, or how it ended.
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
        // Less than a pipe holds. A parser that does not read gives the reason when it ends.
        let _ = stdin.write_all(text.as_bytes());
    }
    let deadline = Instant::now() + PARSER_TIMEOUT;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(format!("ended with {status}: {}", output(&mut child))),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) => break,
            Err(error) => return Err(format!("could not be waited for: {error}")),
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    Err(format!("did not end within {} s", PARSER_TIMEOUT.as_secs()))
}

/// The output of an ended parser, on one line and bounded. A child of it that holds the pipe is not waited for.
fn output(child: &mut Child) -> String {
    let mut bytes = [0; 1024];
    let pipe = child.stderr.take();
    let got = pipe.and_then(|pipe| {
        rustix::io::ioctl_fionbio(&pipe, true).ok()?;
        rustix::io::read(&pipe, &mut bytes).ok()
    });
    let text = String::from_utf8_lossy(&bytes[..got.unwrap_or(0)]);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The profile's text for a daemon that is confined by `own`: it must be allowed to signal containers.
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

/// The profile that confines this daemon; empty without one.
fn own_profile() -> String {
    let paths = [
        "/proc/self/attr/apparmor/current",
        "/proc/self/attr/current",
    ];
    let read = paths.iter().find_map(|path| fs::read_to_string(path).ok());
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

/// The state of the default profile on this node. Does not load it.
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
