//! The last check of a sandbox config before anything is created: host name, log directory, cgroup parent.
//!
//! Called by: [`super::Pods::run_pod`]. Invariant: no text that passes can leave a directory or break a line of a file.
//! Must not know: CRI fields; the API layer checks those and names them.

use crate::config::SandboxConfig;
use crate::error::{Error, Kind};

/// Longest host name, in bytes: what the kernel takes.
const MAX_HOSTNAME: usize = 64;

/// Checks host name, log directory and cgroup parent. Errors: Invalid, with the sandbox and the value.
pub(super) fn check_sandbox(config: &SandboxConfig) -> Result<(), Error> {
    let invalid = |text: String| {
        Err(Error::new(
            Kind::Invalid,
            format!("sandbox {}: {text}", config.name),
        ))
    };
    let hostname = &config.hostname;
    if hostname.len() > MAX_HOSTNAME
        || hostname.contains(|c: char| c.is_control() || c.is_whitespace() || c == '/')
    {
        return invalid(format!(
            "host name {hostname:?} is longer than {MAX_HOSTNAME} bytes or contains invalid characters"
        ));
    }
    let directory = &config.log_directory;
    if !directory.is_empty()
        && (!directory.starts_with('/') || directory.split('/').any(|part| part == ".."))
    {
        return invalid(format!(
            "log directory {directory:?} is not a clean absolute path"
        ));
    }
    let parent = &config.cgroup_parent;
    if parent.split('/').any(|part| part == "..") || parent.contains(['\0', '\n']) {
        return invalid(format!("cgroup parent {parent:?} is not a clean path"));
    }
    Ok(())
}
