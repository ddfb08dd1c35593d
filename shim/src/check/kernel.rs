//! Checks the features of the kernel.
//!
//! Called by: `check::examine`, first. Invariant: a feature that can be tried is tried by `probe`; only a feature whose
//! absence shows late is judged by version.
//! Must not know: how the node is set up.

use std::fs;
use std::io;
use std::path::Path;

use coracle_config::Config;
use coracle_host::{DefaultProfile, default_profile};
use coracle_sandbox::landlock;

use super::probe::{self, UserNamespace};
use super::{Finding, directories};

/// The oldest kernel with every feature that we use without a fallback: idmapped layers of an overlay, cgroup.kill.
const OLDEST: (u32, u32) = (5, 19);
/// From this version on tmpfs, where the kubelet puts Secrets, can be idmapped.
const TMPFS_IDMAP: (u32, u32) = (6, 3);
/// From this version on the exit code of a keeper's child is known even without the keeper.
const PIDFD_EXIT: (u32, u32) = (6, 15);

const NEWER_KERNEL: &str =
    "boot a newer kernel: apt-get install linux-image-amd64, or your distribution's";

/// Every finding about the kernel.
pub(super) fn findings(config: &Config) -> Vec<Finding> {
    let mut findings = vec![kernel(), overlayfs(), seccomp(), landlock(), apparmor()];
    findings.push(tried("openat2", probe::openat2()));
    findings.push(tried("pidfd", probe::pidfd()));
    findings.push(veth(probe::veth()));
    findings.push(own_processes());
    findings.push(namespaces(Path::new("/proc/sys/user")));
    match UserNamespace::new(config.sandbox.id_base, config.sandbox.id_count) {
        Ok(namespace) => {
            findings.push(Finding::ok("user namespaces", "made and mapped one"));
            findings.push(idmapped("idmapped mounts", &config.root, &namespace));
            findings.push(idmapped(
                "idmapped volumes",
                "/var/lib/kubelet".as_ref(),
                &namespace,
            ));
        }
        Err(error) => findings.push(no_user_namespace(&error)),
    }
    findings
}

fn kernel() -> Finding {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    judge_release(&release)
}

fn judge_release(release: &str) -> Finding {
    let subject = "kernel";
    match version(release) {
        None => Finding::warning(
            subject,
            format!("{release}, which is not a version"),
            NEWER_KERNEL,
        ),
        Some(found) if found < OLDEST => {
            let wanted = format!(
                "{release}, {}.{} is the oldest that works",
                OLDEST.0, OLDEST.1
            );
            Finding::missing(subject, wanted, NEWER_KERNEL)
        }
        Some(found) if found < TMPFS_IDMAP => Finding::warning(
            subject,
            format!(
                "{release}: Secrets on tmpfs cannot be idmapped before {}.{}",
                TMPFS_IDMAP.0, TMPFS_IDMAP.1
            ),
            NEWER_KERNEL,
        ),
        Some(found) if found < PIDFD_EXIT => Finding::ok(
            subject,
            format!(
                "{release} (exit codes without a keeper need {}.{})",
                PIDFD_EXIT.0, PIDFD_EXIT.1
            ),
        ),
        Some(_) => Finding::ok(subject, release),
    }
}

/// `6.1.0-18-amd64` to (6, 1).
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|other: char| !other.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Whether pods can have user namespaces: every file system on which the kubelet puts volumes can be idmapped.
pub fn maps_users() -> bool {
    let node = rustix::system::uname();
    version(&node.release().to_string_lossy()).is_some_and(|found| found >= TMPFS_IDMAP)
}

fn overlayfs() -> Finding {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    match known
        .lines()
        .any(|line| line.split_whitespace().last() == Some("overlay"))
    {
        true => Finding::ok("overlayfs", "known to the kernel"),
        false => Finding::missing("overlayfs", "unknown to the kernel", "modprobe overlay"),
    }
}

fn seccomp() -> Finding {
    let subject = "seccomp";
    match fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail") {
        Ok(actions)
            if actions
                .split_whitespace()
                .any(|action| action == "kill_process") =>
        {
            Finding::ok(subject, "filters can kill a process")
        }
        Ok(actions) => Finding::missing(subject, format!("only {}", actions.trim()), NEWER_KERNEL),
        Err(_) => Finding::missing(
            subject,
            "no filters",
            "boot a kernel with CONFIG_SECCOMP_FILTER=y",
        ),
    }
}

fn landlock() -> Finding {
    const REMEDY: &str = "boot with landlock in the lsm= list and CONFIG_SECURITY_LANDLOCK=y";
    let subject = "landlock";
    match landlock::version() {
        Ok(Some(version)) => {
            let restrictions = landlock::restrictions(version).join(", ");
            let found =
                format!("version {version} holds WebAssembly guests to their {restrictions}");
            Finding::ok(subject, found)
        }
        Ok(None) => Finding::warning(
            subject,
            "this kernel runs without it: WebAssembly guests lack one of their walls",
            REMEDY,
        ),
        Err(error) => Finding::warning(subject, error.chain(), REMEDY),
    }
}

fn apparmor() -> Finding {
    match default_profile() {
        Ok((profile, parser)) => judge_apparmor(profile, parser.is_some()),
        Err(error) => Finding::warning("apparmor", error.chain(), "run as root"),
    }
}

fn judge_apparmor(profile: DefaultProfile, has_parser: bool) -> Finding {
    let subject = "apparmor";
    match profile {
        DefaultProfile::Unsupported => Finding::ok(subject, "this kernel runs without it"),
        DefaultProfile::Loaded => Finding::ok(subject, "profile coracle-default is loaded"),
        DefaultProfile::Absent if has_parser => {
            Finding::ok(subject, "the daemon loads profile coracle-default")
        }
        DefaultProfile::Absent => Finding::warning(
            subject,
            "there is no apparmor_parser to load profile coracle-default with: Linux containers run without a profile",
            "apt-get install apparmor, or your distribution's package",
        ),
    }
}

fn tried(subject: &'static str, outcome: io::Result<()>) -> Finding {
    match outcome {
        Ok(()) => Finding::ok(subject, "works"),
        Err(error) => Finding::missing(subject, error.to_string(), NEWER_KERNEL),
    }
}

/// The protections of the runtime's own processes against containers, tried on a thread that ends afterwards.
fn own_processes() -> Finding {
    let subject = "own processes";
    let tried = std::thread::spawn(coracle_runtime::isolate_daemon).join();
    match tried {
        Ok(Ok(())) => Finding::ok(subject, "closed to containers, in keyrings of their own"),
        Ok(Err(error)) => Finding::missing(
            subject,
            error.chain(),
            "sysctl -w fs.suid_dumpable=2; a kernel with CONFIG_KEYS; no seccomp filter on the runtime that blocks keyctl",
        ),
        Err(_) => Finding::missing(subject, "could not be tried", "run coracle check again"),
    }
}

fn veth(outcome: io::Result<()>) -> Finding {
    match outcome {
        Ok(()) => Finding::ok("veth", "made one in a network namespace of its own"),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Finding::missing(
            "veth",
            error.to_string(),
            "run as root, with CAP_SYS_ADMIN and CAP_NET_ADMIN",
        ),
        Err(error) => Finding::missing("veth", error.to_string(), "modprobe veth"),
    }
}

/// What the kernel lets one user have of each kind of namespace. Each that we make is another user's, so a few are enough.
fn namespaces(limits: &Path) -> Finding {
    const KINDS: [&str; 6] = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];
    const ENOUGH: u64 = 8;
    let low = KINDS.iter().find_map(|kind| {
        let name = format!("max_{kind}_namespaces");
        let most = fs::read_to_string(limits.join(&name)).ok()?;
        let most: u64 = most.trim().parse().ok()?;
        (most < ENOUGH).then_some((name, most))
    });
    let subject = "namespaces";
    match low {
        None => Finding::ok(subject, "the kernel lets each user make some of every kind"),
        Some((name, most)) => Finding::missing(
            subject,
            format!("user.{name} is {most}, and a pod takes up to {ENOUGH}"),
            format!("sysctl -w user.{name}=65536"),
        ),
    }
}

fn no_user_namespace(error: &io::Error) -> Finding {
    let most = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    let remedy = match (most.trim(), error.raw_os_error()) {
        ("0", _) => "sysctl -w user.max_user_namespaces=65536",
        (_, Some(libc::ENOSPC)) => {
            "find the container of the node's root that has made user.max_user_namespaces of them; pods start all the same"
        }
        (_, Some(libc::EPERM)) => "run as root, with CAP_SYS_ADMIN, CAP_SETUID and CAP_SETGID",
        _ => "boot a kernel with CONFIG_USER_NS=y",
    };
    Finding::missing("user namespaces", error.to_string(), remedy)
}

fn idmapped(subject: &'static str, path: &std::path::Path, namespace: &UserNamespace) -> Finding {
    let directory = directories::nearest_existing(path);
    match probe::idmapped_mount(&directory, namespace) {
        Ok(()) => Finding::ok(subject, format!("{} can be idmapped", directory.display())),
        Err(error) => Finding::warning(
            subject,
            format!(
                "{} cannot be idmapped ({error}): such volumes need a non-root user",
                directory.display()
            ),
            format!(
                "keep {} on ext4, xfs, btrfs or, from 6.3 on, tmpfs",
                path.display()
            ),
        ),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn releases_are_judged_by_their_first_two_numbers() {
        let cases = [
            ("4.19.0-26-amd64", Level::Missing),
            ("5.18.21", Level::Missing),
            ("5.19.0-1", Level::Warning),
            ("6.2.9", Level::Warning),
            ("6.3.0", Level::Ok),
            ("6.15-rc1", Level::Ok),
            ("10.0.0+", Level::Ok),
            ("plan9", Level::Warning),
        ];
        for (release, level) in cases {
            assert_eq!(judge_release(release).level, level, "{release}");
        }
    }

    #[test]
    fn a_kind_of_namespace_that_is_shut_is_named() {
        let scratch =
            std::env::temp_dir().join(format!("coracle-namespaces-{}", std::process::id()));
        fs::create_dir_all(&scratch).unwrap();
        for kind in ["cgroup", "ipc", "mnt", "net", "pid", "uts"] {
            fs::write(scratch.join(format!("max_{kind}_namespaces")), "8\n").unwrap();
        }
        assert_eq!(namespaces(&scratch).level, Level::Ok);
        fs::write(scratch.join("max_net_namespaces"), "0\n").unwrap();
        assert_eq!(namespaces(&scratch).level, Level::Missing);
        fs::remove_dir_all(&scratch).unwrap();
        assert_eq!(namespaces(&scratch).level, Level::Ok);
    }

    #[test]
    fn an_apparmor_without_a_profile_is_a_warning_unless_the_daemon_loads_it() {
        use DefaultProfile::{Absent, Loaded, Unsupported};
        for (profile, has_parser, level) in [
            (Unsupported, false, Level::Ok),
            (Loaded, false, Level::Ok),
            (Absent, true, Level::Ok),
            (Absent, false, Level::Warning),
        ] {
            assert_eq!(
                judge_apparmor(profile, has_parser).level,
                level,
                "{profile:?}"
            );
        }
    }

    #[test]
    fn a_refused_veth_differs_from_an_unknown_one() {
        let refused = veth(Err(io::Error::from_raw_os_error(libc::EPERM)));
        assert!(refused.remedy.is_some_and(|remedy| remedy.contains("root")));
        let unknown = veth(Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)));
        assert_eq!(unknown.remedy.as_deref(), Some("modprobe veth"));
    }
}
