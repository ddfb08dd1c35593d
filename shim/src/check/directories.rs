//! The directories and the socket that the configuration names: root, run, socket.
//!
//! Called by: `check::examine`, last. Invariant: nothing is created; a directory that does not exist yet is judged by
//! its nearest existing ancestor.
//! Must not know: what will be stored there.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use coracle_config::Config;
use rustix::fs::{StatVfs, StatVfsMountFlags};

use super::Finding;

const MIB: u64 = 1 << 20;
/// With less room than this nothing can be pulled.
const MIN_FREE_BYTES: u64 = 256 * MIB;
/// Less room than this is full after a few images.
const LOW_FREE_BYTES: u64 = 4_096 * MIB;
const MIN_FREE_INODES: u64 = 10_000;
/// `f_type` of overlayfs, tmpfs and NFS in statfs(2).
const OVERLAYFS: i64 = 0x794c_7630;
const TMPFS: i64 = 0x0102_1994;
const NFS: i64 = 0x6969;

/// Every finding about them.
pub(super) fn findings(config: &Config) -> Vec<Finding> {
    let root = nearest_existing(&config.root);
    let mut findings = Vec::new();
    match rustix::fs::statvfs(&root) {
        Ok(facts) => findings.extend([executable(&root, &facts), room(&root, &facts)]),
        Err(error) => findings.push(unreadable("root", &root, error.into())),
    }
    findings.push(root_filesystem(&root));
    findings.push(run_filesystem(&nearest_existing(&config.run)));
    findings.push(trusted(&root));
    findings.push(socket(&config.socket));
    findings
}

/// The path itself or its nearest existing ancestor.
pub(super) fn nearest_existing(path: &Path) -> PathBuf {
    path.ancestors()
        .find(|above| above.exists())
        .unwrap_or(Path::new("/"))
        .to_owned()
}

fn unreadable(subject: &'static str, path: &Path, error: io::Error) -> Finding {
    Finding::missing(
        subject,
        format!("{}: {error}", path.display()),
        format!("ls -ld {}", path.display()),
    )
}

fn executable(root: &Path, facts: &StatVfs) -> Finding {
    let subject = "root is executable";
    if facts.f_flag.contains(StatVfsMountFlags::RDONLY) {
        let remedy = format!(
            "mount -o remount,rw \"$(findmnt -no TARGET -T {})\"",
            root.display()
        );
        return Finding::missing(
            subject,
            format!("{} is mounted read-only", root.display()),
            remedy,
        );
    }
    if facts.f_flag.contains(StatVfsMountFlags::NOEXEC) {
        let remedy = format!(
            "mount -o remount,exec \"$(findmnt -no TARGET -T {})\"",
            root.display()
        );
        let found = format!(
            "{} is mounted noexec; compiled modules are mapped from it",
            root.display()
        );
        return Finding::missing(subject, found, remedy);
    }
    Finding::ok(
        subject,
        format!("{} is mounted read-write and exec", root.display()),
    )
}

fn room(root: &Path, facts: &StatVfs) -> Finding {
    let free = facts.f_bavail.saturating_mul(facts.f_frsize);
    let found = format!(
        "{} MiB and {} inodes free at {}",
        free / MIB,
        facts.f_favail,
        root.display()
    );
    let remedy = "free some room, or set root to a larger filesystem";
    // Filesystems without a table of inodes report none at all.
    let no_inodes = facts.f_files > 0 && facts.f_favail < MIN_FREE_INODES;
    if free < MIN_FREE_BYTES || no_inodes {
        Finding::missing("room", found, remedy)
    } else if free < LOW_FREE_BYTES {
        Finding::warning("room", found, remedy)
    } else {
        Finding::ok("room", found)
    }
}

fn filesystem(path: &Path) -> io::Result<i64> {
    Ok(rustix::fs::statfs(path)?.f_type as i64)
}

fn root_filesystem(root: &Path) -> Finding {
    let subject = "root filesystem";
    let remedy = "set root to a directory on ext4, xfs or btrfs";
    match filesystem(root) {
        Ok(OVERLAYFS) => Finding::missing(
            subject,
            format!(
                "{} is on overlayfs, which cannot carry another",
                root.display()
            ),
            remedy,
        ),
        Ok(NFS) => Finding::missing(
            subject,
            format!(
                "{} is on NFS, which overlayfs cannot write to",
                root.display()
            ),
            remedy,
        ),
        Ok(TMPFS) => Finding::warning(
            subject,
            format!(
                "{} is on tmpfs: images are gone after a reboot",
                root.display()
            ),
            remedy,
        ),
        Ok(_) => Finding::ok(
            subject,
            format!("{} can carry containers' roots", root.display()),
        ),
        Err(error) => unreadable(subject, root, error),
    }
}

fn run_filesystem(run: &Path) -> Finding {
    let subject = "run filesystem";
    match filesystem(run) {
        Ok(TMPFS) => Finding::ok(subject, format!("{} is on tmpfs", run.display())),
        Ok(_) => Finding::warning(
            subject,
            format!(
                "{} is not on tmpfs: facts about processes outlive a reboot and cost disk writes",
                run.display()
            ),
            "set run to a directory on a tmpfs, such as /run/coracle where /run is one",
        ),
        Err(error) => unreadable(subject, run, error),
    }
}

/// Refuses a root below a directory that others can write to: they could replace everything in it.
fn trusted(root: &Path) -> Finding {
    let subject = "root is ours";
    for above in root.ancestors() {
        let Ok(facts) = fs::metadata(above) else {
            continue;
        };
        let sticky = facts.mode() & 0o1000 != 0;
        let others_write = facts.mode() & 0o002 != 0 && !sticky;
        if facts.uid() != 0 || others_write {
            let found = format!(
                "{} has owner {} and mode {:04o}",
                above.display(),
                facts.uid(),
                facts.mode() & 0o7777
            );
            let remedy = format!("chown root:root {0} && chmod go-w {0}", above.display());
            return Finding::missing(subject, found, remedy);
        }
    }
    Finding::ok(
        subject,
        format!("only root can write above {}", root.display()),
    )
}

fn socket(path: &Path) -> Finding {
    let subject = "socket";
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Finding::ok(subject, format!("{} is free", path.display()))
        }
        Err(error) => unreadable(subject, path, error),
        Ok(facts) if !facts.file_type().is_socket() => Finding::missing(
            subject,
            format!("{} exists and is not a socket", path.display()),
            format!("rm {}", path.display()),
        ),
        Ok(_) if UnixStream::connect(path).is_ok() => Finding::warning(
            subject,
            format!("a process already serves {}", path.display()),
            format!(
                "fine if that is coracle; else find it: ss -xlp src {}",
                path.display()
            ),
        ),
        Ok(_) => Finding::ok(
            subject,
            format!("{} is left over and will be replaced", path.display()),
        ),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use std::os::unix::net::UnixListener;

    use rustix::mount::{MountFlags, UnmountFlags};

    use super::super::Level;
    use super::*;

    /// A directory that is removed at the end of the test.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("coracle-check-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_real_noexec_mount_is_found_and_a_full_one_too() {
        let scratch = Scratch::new("noexec");
        rustix::mount::mount("tmpfs", &scratch.0, "tmpfs", MountFlags::NOEXEC, c"size=1m").unwrap();
        let facts = rustix::fs::statvfs(&scratch.0).unwrap();
        let finding = executable(&scratch.0, &facts);
        assert_eq!(finding.level, Level::Missing);
        assert!(finding.remedy.unwrap().contains("remount,exec"));
        assert_eq!(room(&scratch.0, &facts).level, Level::Missing);
        assert_eq!(root_filesystem(&scratch.0).level, Level::Warning);
        assert_eq!(run_filesystem(&scratch.0).level, Level::Ok);
    }

    #[test]
    fn live_sockets_dead_sockets_and_files_are_recognised() {
        let _alone = crate::forking::held();
        let scratch = Scratch::new("socket");
        let path = scratch.0.join("c.sock");
        assert_eq!(socket(&path).level, Level::Ok);
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(socket(&path).level, Level::Warning);
        drop(listener);
        assert_eq!(socket(&path).level, Level::Ok);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        assert_eq!(socket(&path).level, Level::Missing);
    }

    #[test]
    fn a_missing_directory_is_judged_by_its_nearest_ancestor() {
        let scratch = Scratch::new("nearest");
        assert_eq!(nearest_existing(&scratch.0.join("a/b/c")), scratch.0);
        assert_eq!(nearest_existing(&scratch.0), scratch.0);
    }

    #[test]
    fn a_root_below_a_directory_of_another_user_is_refused() {
        let scratch = Scratch::new("owner");
        let inner = scratch.0.join("inner");
        fs::create_dir(&inner).unwrap();
        assert_eq!(trusted(&inner).level, Level::Ok);
        std::os::unix::fs::chown(&scratch.0, Some(65_534), None).unwrap();
        let finding = trusted(&inner);
        assert_eq!(finding.level, Level::Missing);
        assert!(
            finding.found.starts_with(&scratch.0.display().to_string()),
            "{finding:?}"
        );
    }
}
