//! The SELinux labels of a container.
//!
//! Called by [`super::super::plan`]. Invariants: a label that the loaded policy does not have is refused; a kernel
//! without SELinux gives no labels, whatever was asked for, as containerd and CRI-O have it.
//! Not here: taking a label on.

use std::io::Write as _;
use std::path::Path;

use coracle_lifecycle::{Error, SelinuxOptions};

use super::SecurityFiles;
use crate::host::io_error;
use crate::host::plan::invalid;

/// The labels of a process and of its mounts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::host::linux) struct Labels {
    pub process: Option<String>,
    pub mount: Option<String>,
}

/// Completes a label; without a wish or without SELinux there is none. Errors: Invalid for what the policy has not.
pub(in crate::host::linux) fn selinux(
    wish: Option<&SelinuxOptions>,
    privileged: bool,
    files: &SecurityFiles<'_>,
) -> Result<Labels, Error> {
    let Some(wish) = wish.filter(|_| !privileged) else {
        return Ok(Labels::default());
    };
    if !is_on(files.selinux) {
        tracing::debug!(
            ?wish,
            "SELinux options are passed over: this kernel runs without SELinux"
        );
        return Ok(Labels::default());
    }
    let or = |text: &str, usual: &str| if text.is_empty() { usual } else { text }.to_owned();
    let (user, level) = (or(&wish.user, "system_u"), or(&wish.level, "s0"));
    let (role, kind) = (or(&wish.role, "system_r"), or(&wish.kind, "container_t"));
    let process = format!("{user}:{role}:{kind}:{level}");
    let mount = format!("{user}:object_r:container_file_t:{level}");
    for label in [&process, &mount] {
        known_to_policy(label, files.selinux)?;
    }
    Ok(Labels {
        mount: Some(mount),
        process: Some(process),
    })
}

/// Whether this kernel runs SELinux; it shows its file system then.
fn is_on(selinux: &Path) -> bool {
    selinux.join("enforce").exists()
}

/// Refuses a label that the loaded policy has not. The kernel checks what is written to `context`.
fn known_to_policy(label: &str, selinux: &Path) -> Result<(), Error> {
    let file = std::fs::File::options()
        .write(true)
        .open(selinux.join("context"));
    let checked = file.and_then(|mut file| file.write_all(label.as_bytes()));
    checked.map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidInput => invalid(format!(
            "SELinux label {label:?} is none of the policy on this node"
        )),
        _ => io_error(format!("check SELinux label {label:?}"), error),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_label_is_completed_or_passed_over_without_selinux() {
        let scratch = Scratch::new("profiles-selinux");
        let absent = scratch.0.join("absent");
        let wish = SelinuxOptions {
            level: "s0:c1,c2".to_owned(),
            ..SelinuxOptions::default()
        };
        let files = |selinux| SecurityFiles {
            apparmor: &absent,
            selinux,
            parsers: &[],
        };
        assert_eq!(
            selinux(Some(&wish), false, &files(&scratch.0)).unwrap(),
            Labels::default()
        );
        assert_eq!(
            selinux(None, false, &files(&scratch.0)).unwrap(),
            Labels::default()
        );
        scratch.put("enforce", b"1");
        scratch.put("context", b"");
        let labels = selinux(Some(&wish), false, &files(&scratch.0)).unwrap();
        assert_eq!(
            labels.process.as_deref(),
            Some("system_u:system_r:container_t:s0:c1,c2")
        );
        assert_eq!(
            labels.mount.as_deref(),
            Some("system_u:object_r:container_file_t:s0:c1,c2")
        );
        assert_eq!(
            selinux(Some(&wish), true, &files(&scratch.0)).unwrap(),
            Labels::default()
        );
    }
}
