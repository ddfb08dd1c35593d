//! The SELinux labels of a container.
//!
//! Called by [`super::super::plan`]. Invariants: a requested label that the loaded policy does not know is refused; a
//! kernel without SELinux gives no labels, whatever was requested, as in containerd and CRI-O; with SELinux, containers
//! without privileges and without namespaces of the node are confined to their pod's categories by default.
//! Must not know: how a process gets a label, who leases categories.

use std::io::Write as _;
use std::path::Path;

use coracle_lifecycle::{Error, SelinuxOptions};

use super::SecurityFiles;
use crate::errors::invalid;
use crate::io_error;

/// Level of a pod without one, which an older build created.
const NO_CATEGORIES: &str = "s0";

/// The labels of a process and of its mounts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::linux) struct Labels {
    pub process: Option<String>,
    pub mount: Option<String>,
}

/// The parts of which a container's label is made.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::linux) struct LabelRequest<'a> {
    /// The container's own request.
    pub own: Option<&'a SelinuxOptions>,
    /// The pod's request, for parts that the container leaves out.
    pub pod: Option<&'a SelinuxOptions>,
    /// The level that its pod was given.
    pub level: Option<&'a str>,
    /// The container gets no label.
    pub privileged: bool,
    /// Its pod uses the node's pid or ipc namespace: it gets a label only on request.
    pub with_node: bool,
}

impl LabelRequest<'_> {
    /// The first request that sets a part.
    fn part<'a>(&'a self, of: impl Fn(&'a SelinuxOptions) -> &'a str) -> Option<&'a str> {
        let requested = [self.own, self.pod].into_iter().flatten();
        requested.map(of).find(|text| !text.is_empty())
    }
}

/// Completes a label. Errors: Invalid for a requested label that the policy does not know.
pub(in crate::linux) fn selinux(
    request: &LabelRequest<'_>,
    files: &SecurityFiles<'_>,
) -> Result<Labels, Error> {
    if request.privileged || !is_on(files.selinux) {
        return Ok(Labels::default());
    }
    let is_requested = request.own.is_some() || request.pod.is_some();
    if !is_requested && (request.with_node || request.level.is_none()) {
        return Ok(Labels::default());
    }
    let user = request.part(|config| &config.user).unwrap_or("system_u");
    let role = request.part(|config| &config.role).unwrap_or("system_r");
    let kind = request.part(|config| &config.kind).unwrap_or("container_t");
    let own_level = request.own.map(|config| config.level.as_str());
    let level = own_level.filter(|level| !level.is_empty());
    let level = level.or(request.level).unwrap_or(NO_CATEGORIES);
    let process = format!("{user}:{role}:{kind}:{level}");
    let mount = format!("{user}:object_r:container_file_t:{level}");
    for label in [&process, &mount] {
        if is_known(label, files.selinux)? {
            continue;
        }
        if !is_requested {
            tracing::debug!(
                label,
                "the policy on this node knows no containers; they get no label"
            );
            return Ok(Labels::default());
        }
        return Err(invalid(format!(
            "SELinux label {label:?} is unknown to the policy of this node"
        )));
    }
    Ok(Labels {
        mount: Some(mount),
        process: Some(process),
    })
}

/// Whether this kernel runs SELinux.
pub(crate) fn has_selinux(files: &SecurityFiles<'_>) -> bool {
    is_on(files.selinux)
}

/// Its file system is then mounted and a policy is loaded: without one the kernel's own label is its bare name, and no
/// other label means anything (the kernel's security/selinux/ss/services.c: security_sid_to_context_core).
fn is_on(selinux: &Path) -> bool {
    let kernel = std::fs::read(selinux.join("initial_contexts/kernel"));
    let has_policy = kernel.map_or(true, |label| label.contains(&b':'));
    selinux.join("enforce").exists() && has_policy
}

/// Whether the loaded policy knows a label. The kernel checks what is written to `context`.
fn is_known(label: &str, selinux: &Path) -> Result<bool, Error> {
    let file = std::fs::File::options()
        .write(true)
        .open(selinux.join("context"));
    let checked = file.and_then(|mut file| file.write_all(label.as_bytes()));
    match checked {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => Ok(false),
        Err(error) => Err(io_error(format!("check SELinux label {label:?}"), error)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn without_a_policy_selinux_is_off() {
        let scratch = Scratch::new("profiles-selinux-policy");
        assert!(!is_on(&scratch.0));
        scratch.put("enforce", b"0");
        std::fs::create_dir(scratch.0.join("initial_contexts")).unwrap();
        scratch.put("initial_contexts/kernel", b"kernel\0");
        assert!(!is_on(&scratch.0));
        let label = b"system_u:system_r:kernel_t:s0\0";
        scratch.put("initial_contexts/kernel", label);
        assert!(is_on(&scratch.0));
    }

    #[test]
    fn a_label_is_completed_or_ignored_without_selinux() {
        let scratch = Scratch::new("profiles-selinux");
        let absent = scratch.0.join("absent");
        let files = SecurityFiles {
            apparmor: &absent,
            selinux: &scratch.0,
            parsers: &[],
        };
        let labels = |request: LabelRequest<'_>| {
            let labels = selinux(&request, &files).unwrap();
            assert_eq!(labels.process.is_some(), labels.mount.is_some());
            labels.process.zip(labels.mount)
        };
        let own = SelinuxOptions {
            level: "s0:c1,c2".to_owned(),
            ..SelinuxOptions::default()
        };
        let pod = SelinuxOptions {
            kind: "web_t".to_owned(),
            level: "s0:c5,c6".to_owned(),
            ..SelinuxOptions::default()
        };
        let request = LabelRequest {
            own: Some(&own),
            pod: Some(&pod),
            level: Some("s0:c5,c6"),
            ..LabelRequest::default()
        };
        assert_eq!(labels(request), None);
        scratch.put("enforce", b"1");
        scratch.put("context", b"");
        let both = |kind: &str, level: &str| {
            let process = format!("system_u:system_r:{kind}:{level}");
            Some((
                process,
                format!("system_u:object_r:container_file_t:{level}"),
            ))
        };
        assert_eq!(labels(request), both("web_t", "s0:c1,c2"));
        let of_pod = LabelRequest {
            own: None,
            ..request
        };
        assert_eq!(labels(of_pod), both("web_t", "s0:c5,c6"));
        let unrequested = LabelRequest {
            pod: None,
            ..of_pod
        };
        assert_eq!(labels(unrequested), both("container_t", "s0:c5,c6"));
        let with_node = LabelRequest {
            with_node: true,
            ..unrequested
        };
        assert_eq!(labels(with_node), None);
        let requested = LabelRequest {
            with_node: true,
            ..request
        };
        assert_eq!(labels(requested), both("web_t", "s0:c1,c2"));
        let privileged = LabelRequest {
            privileged: true,
            ..request
        };
        assert_eq!(labels(privileged), None);
        // A pod of an older daemon.
        assert_eq!(labels(LabelRequest::default()), None);
    }
}
