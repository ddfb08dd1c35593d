//! Security profiles and labels that the node must have: seccomp files, AppArmor profiles, SELinux.
//!
//! Called by [`super`]. Invariant: what was asked for and is not there is refused; nobody runs unconfined for want of
//! a profile.
//! Not here: compiling filters, applying any of it.

use std::io::{Read as _, Write as _};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

use crate::host::io_error;
use crate::host::plan::invalid;
use crate::lifecycle::{Error, ProfileWish, SeccompPlan, SelinuxWish};

/// Largest seccomp profile that is read. Bytes.
const MAX_PROFILE_BYTES: u64 = 1 << 20;

/// The profile that stands for `RuntimeDefault` if an administrator has loaded one of this name.
const DEFAULT_APPARMOR: &str = "coracle-default";

/// Where a kernel tells of its security modules.
pub(super) struct SecurityFiles<'a> {
    /// AppArmor's directory in securityfs.
    pub apparmor: &'a Path,
    /// SELinux' file system.
    pub selinux: &'a Path,
}

impl SecurityFiles<'static> {
    /// Where they are on every node.
    pub(super) fn of_node() -> Self {
        Self {
            apparmor: Path::new("/sys/kernel/security/apparmor"),
            selinux: Path::new("/sys/fs/selinux"),
        }
    }
}

/// Reads the profile that is asked for. Blocks on the disk.
pub(super) fn seccomp(wish: &ProfileWish, privileged: bool) -> Result<SeccompPlan, Error> {
    match wish {
        _ if privileged => Ok(SeccompPlan::Unconfined),
        ProfileWish::Unset | ProfileWish::Unconfined => Ok(SeccompPlan::Unconfined),
        ProfileWish::Default => Ok(SeccompPlan::Default),
        ProfileWish::Localhost(path) => Ok(SeccompPlan::Localhost {
            profile: read_profile(path)?,
        }),
    }
}

fn read_profile(path: &str) -> Result<String, Error> {
    let failed = |error| io_error(format!("read seccomp profile {path:?}"), error);
    // The directory may be a link of the administrator's making; the profile itself is a file, not a device.
    let flags =
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS);
    let file: std::fs::File = match opened {
        Ok(file) => file.into(),
        Err(errno) => {
            return Err(Error::because(
                crate::lifecycle::Kind::Invalid,
                format!("open seccomp profile {path:?}"),
                std::io::Error::from(errno),
            ));
        }
    };
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(invalid(format!(
            "seccomp profile {path:?} is not a regular file"
        )));
    }
    let mut bytes = Vec::new();
    file.take(MAX_PROFILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_PROFILE_BYTES {
        return Err(invalid(format!(
            "seccomp profile {path:?} is larger than {MAX_PROFILE_BYTES} bytes"
        )));
    }
    match serde_json::from_slice::<serde_json::Value>(&bytes) {
        Ok(serde_json::Value::Object(_)) => {}
        Ok(_) => {
            return Err(invalid(format!(
                "seccomp profile {path:?} is no JSON object"
            )));
        }
        Err(error) => {
            return Err(Error::because(
                crate::lifecycle::Kind::Invalid,
                format!("read seccomp profile {path:?} as JSON"),
                error,
            ));
        }
    }
    String::from_utf8(bytes).map_err(|_| invalid(format!("seccomp profile {path:?} is not text")))
}

/// What stands before the name of a profile of the node in CRI's older field, and by some clients in the newer.
const APPARMOR_PREFIX: &str = "localhost/";

/// The AppArmor profile to change to, if any.
pub(super) fn apparmor(
    wish: &ProfileWish,
    privileged: bool,
    files: &SecurityFiles<'_>,
) -> Result<Option<String>, Error> {
    let asked = match wish {
        _ if privileged => return Ok(None),
        ProfileWish::Unconfined => return Ok(None),
        ProfileWish::Unset | ProfileWish::Default => None,
        ProfileWish::Localhost(name) => Some(name.strip_prefix(APPARMOR_PREFIX).unwrap_or(name)),
    };
    let Some(loaded) = loaded(files.apparmor)? else {
        return match asked {
            None => Ok(None),
            Some(name) => Err(invalid(format!(
                "AppArmor profile {name:?} is asked for, and this kernel runs without AppArmor"
            ))),
        };
    };
    let is_loaded = |name: &str| loaded.lines().any(|line| profile_name(line) == name);
    match asked {
        None => Ok(is_loaded(DEFAULT_APPARMOR).then(|| DEFAULT_APPARMOR.to_owned())),
        Some(name) if is_loaded(name) => Ok(Some(name.to_owned())),
        Some(name) => Err(invalid(format!(
            "AppArmor profile {name:?} is not loaded on this node"
        ))),
    }
}

/// The list of loaded profiles; `None` without AppArmor.
fn loaded(directory: &Path) -> Result<Option<String>, Error> {
    match std::fs::read_to_string(directory.join("profiles")) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("read the list of AppArmor profiles", error)),
    }
}

/// A line is `NAME (enforce)`.
fn profile_name(line: &str) -> &str {
    line.rsplit_once(" (").map_or(line, |(name, _)| name)
}

/// The labels of a process and of its mounts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Labels {
    pub process: Option<String>,
    pub mount: Option<String>,
}

/// Completes a label; without a wish there is none. Errors: Invalid without SELinux, or for what its policy has not.
pub(super) fn selinux(
    wish: Option<&SelinuxWish>,
    privileged: bool,
    files: &SecurityFiles<'_>,
) -> Result<Labels, Error> {
    let Some(wish) = wish.filter(|_| !privileged) else {
        return Ok(Labels::default());
    };
    let or = |text: &str, usual: &str| if text.is_empty() { usual } else { text }.to_owned();
    let (user, level) = (or(&wish.user, "system_u"), or(&wish.level, "s0"));
    let (role, kind) = (or(&wish.role, "system_r"), or(&wish.kind, "container_t"));
    let process = format!("{user}:{role}:{kind}:{level}");
    if !files.selinux.join("enforce").exists() {
        return Err(invalid(format!(
            "SELinux label {process:?} is asked for, and this kernel runs without SELinux"
        )));
    }
    let mount = format!("{user}:object_r:container_file_t:{level}");
    for label in [&process, &mount] {
        known_to_policy(label, files.selinux)?;
    }
    Ok(Labels {
        mount: Some(mount),
        process: Some(process),
    })
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

    fn localhost(path: &str) -> ProfileWish {
        ProfileWish::Localhost(path.to_owned())
    }

    #[test]
    fn a_seccomp_profile_is_read_once_and_privileged_has_none() {
        let scratch = Scratch::new("profiles-seccomp");
        let text = r#"{"defaultAction": "SCMP_ACT_ERRNO"}"#;
        let path = localhost(&scratch.put("a.json", text.as_bytes()));
        let expected = SeccompPlan::Localhost {
            profile: text.to_owned(),
        };
        assert_eq!(seccomp(&path, false).unwrap(), expected);
        assert_eq!(seccomp(&path, true).unwrap(), SeccompPlan::Unconfined);
        assert_eq!(
            seccomp(&ProfileWish::Default, false).unwrap(),
            SeccompPlan::Default
        );
        assert_eq!(
            seccomp(&ProfileWish::Unset, false).unwrap(),
            SeccompPlan::Unconfined
        );
    }

    #[test]
    fn what_is_no_profile_is_refused_never_unconfined() {
        let scratch = Scratch::new("profiles-odd");
        let fifo = scratch.0.join("fifo");
        rustix::fs::mknodat(CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
        let good = scratch.put("good.json", b"{}");
        let link = scratch.0.join("link.json");
        std::os::unix::fs::symlink(&good, &link).unwrap();
        let cases = [
            scratch.0.join("missing.json").to_str().unwrap().to_owned(),
            scratch.0.to_str().unwrap().to_owned(),
            fifo.to_str().unwrap().to_owned(),
            link.to_str().unwrap().to_owned(),
            scratch.put("list.json", b"[]"),
            scratch.put("text.json", b"root:x:0:0"),
            scratch.put("empty.json", b""),
            scratch.put("large.json", vec![b' '; (1 << 20) + 1]),
            "/dev/zero".to_owned(),
        ];
        for path in cases {
            let error = seccomp(&localhost(&path), false).unwrap_err();
            assert_eq!(error.kind(), crate::lifecycle::Kind::Invalid, "{error}");
            assert!(error.to_string().contains(&path), "{error}");
        }
    }

    #[test]
    fn an_apparmor_profile_is_loaded_or_refused() {
        let scratch = Scratch::new("profiles-apparmor");
        scratch.put(
            "profiles",
            b"/usr/bin/man (enforce)\nweb (complain)\na (b) (enforce)\n",
        );
        let absent = scratch.0.join("absent");
        let with = SecurityFiles {
            apparmor: &scratch.0,
            selinux: &absent,
        };
        let without = SecurityFiles {
            apparmor: &absent,
            selinux: &absent,
        };
        let web = Some("web".to_owned());
        assert_eq!(apparmor(&localhost("web"), false, &with).unwrap(), web);
        assert_eq!(
            apparmor(&localhost("localhost/web"), false, &with).unwrap(),
            web
        );
        assert_eq!(apparmor(&localhost("web"), true, &with).unwrap(), None);
        assert!(apparmor(&localhost("we"), false, &with).is_err());
        assert_eq!(
            apparmor(&localhost("a (b)"), false, &with)
                .unwrap()
                .as_deref(),
            Some("a (b)")
        );
        assert!(apparmor(&localhost("web"), false, &without).is_err());
        assert_eq!(apparmor(&ProfileWish::Default, false, &with).unwrap(), None);
        assert_eq!(
            apparmor(&ProfileWish::Default, false, &without).unwrap(),
            None
        );
        scratch.put("profiles", b"coracle-default (enforce)\n");
        assert_eq!(
            apparmor(&ProfileWish::Unset, false, &with)
                .unwrap()
                .as_deref(),
            Some("coracle-default")
        );
    }

    #[test]
    fn a_label_is_completed_or_refused() {
        let scratch = Scratch::new("profiles-selinux");
        let absent = scratch.0.join("absent");
        let wish = SelinuxWish {
            level: "s0:c1,c2".to_owned(),
            ..SelinuxWish::default()
        };
        let files = |selinux| SecurityFiles {
            apparmor: &absent,
            selinux,
        };
        assert!(selinux(Some(&wish), false, &files(&scratch.0)).is_err());
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
