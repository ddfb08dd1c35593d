//! Security profiles and labels of the node: seccomp files here, AppArmor and SELinux in submodules.
//!
//! Called by [`super`]. Invariant: a requested profile that is absent is refused; no container runs unconfined for lack
//! of a profile.
//! Must not know: compiling filters, applying profiles.

mod apparmor;
mod selinux;

use std::io::Read as _;
use std::path::Path;

use coracle_lifecycle::{Error, SeccompPlan, SecurityProfile};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

use crate::errors::invalid;
use crate::io_error;

pub use self::apparmor::{DefaultProfile, default_profile};
pub(super) use self::apparmor::{apparmor, load_default};
pub(super) use self::selinux::{LabelRequest, has_selinux, selinux};

/// Largest seccomp profile that is read. Bytes.
const MAX_PROFILE_BYTES: u64 = 1 << 20;

/// The files in which a kernel shows its security modules.
pub(super) struct SecurityFiles<'a> {
    /// AppArmor's directory in securityfs.
    pub apparmor: &'a Path,
    /// SELinux' file system.
    pub selinux: &'a Path,
    /// Paths of AppArmor's parser; the first that exists counts.
    pub parsers: &'a [&'a str],
}

impl SecurityFiles<'static> {
    /// The paths on every node.
    pub(super) fn of_node() -> Self {
        Self {
            apparmor: Path::new("/sys/kernel/security/apparmor"),
            selinux: Path::new("/sys/fs/selinux"),
            parsers: &["/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"],
        }
    }
}

/// Reads the requested profile. Blocks on the disk.
pub(super) fn seccomp(config: &SecurityProfile, privileged: bool) -> Result<SeccompPlan, Error> {
    match config {
        _ if privileged => Ok(SeccompPlan::Unconfined),
        SecurityProfile::Unset | SecurityProfile::Unconfined => Ok(SeccompPlan::Unconfined),
        SecurityProfile::Default => Ok(SeccompPlan::Default),
        SecurityProfile::Localhost(path) => Ok(SeccompPlan::Localhost {
            profile: read_profile(path)?,
        }),
    }
}

fn read_profile(path: &str) -> Result<String, Error> {
    let failed = |error| io_error(format!("read seccomp profile {path:?}"), error);
    let file = open_profile(path)?;
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
    check_json(path, &bytes)?;
    String::from_utf8(bytes).map_err(|_| invalid(format!("seccomp profile {path:?} is not text")))
}

fn open_profile(path: &str) -> Result<std::fs::File, Error> {
    // The directory may be a link of the administrator; the profile itself is a regular file.
    let flags =
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS);
    opened.map(Into::into).map_err(|errno| {
        Error::because(
            coracle_lifecycle::Kind::Invalid,
            format!("open seccomp profile {path:?}"),
            std::io::Error::from(errno),
        )
    })
}

fn check_json(path: &str, bytes: &[u8]) -> Result<(), Error> {
    match serde_json::from_slice::<serde_json::Value>(bytes) {
        Ok(serde_json::Value::Object(_)) => Ok(()),
        Ok(_) => Err(invalid(format!(
            "seccomp profile {path:?} is not a JSON object"
        ))),
        Err(error) => Err(Error::because(
            coracle_lifecycle::Kind::Invalid,
            format!("read seccomp profile {path:?} as JSON"),
            error,
        )),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    fn localhost(path: &str) -> SecurityProfile {
        SecurityProfile::Localhost(path.to_owned())
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
            seccomp(&SecurityProfile::Default, false).unwrap(),
            SeccompPlan::Default
        );
        assert_eq!(
            seccomp(&SecurityProfile::Unset, false).unwrap(),
            SeccompPlan::Unconfined
        );
    }

    #[test]
    fn an_invalid_profile_is_refused_never_unconfined() {
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
            assert_eq!(error.kind(), coracle_lifecycle::Kind::Invalid, "{error}");
            assert!(error.to_string().contains(&path), "{error}");
        }
    }
}
