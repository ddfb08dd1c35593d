//! Finds the cgroup hierarchies in the mount table.
//! Pure over the text of `/proc/self/mountinfo` (proc(5)) and names of `/sys/kernel/mm/hugepages`; the caller reads
//! them once.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// One mounted cgroup v1 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// Where it is mounted.
    pub(super) mount: PathBuf,
    /// Its controllers, e.g. `cpu` and `cpuacct`, or its name, e.g. `name=systemd`.
    pub(super) controllers: Vec<String>,
}

/// What the mount table shows.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Mounts {
    /// cgroup v1 hierarchies, in the order of mounting.
    pub(super) v1: Vec<Hierarchy>,
    /// The cgroup v2 tree.
    pub(super) unified: Option<PathBuf>,
    /// Whether that keeps a cgroup namespace from writing the limits at its root.
    pub(super) nsdelegate: bool,
}

/// Super block options that are not controllers.
const PLAIN_OPTIONS: [&str; 8] = [
    "rw",
    "ro",
    "xattr",
    "clone_children",
    "noprefix",
    "cpuset_v2_mode",
    "favordynmods",
    "seclabel",
];

/// Parses mountinfo. A hierarchy mounted more than once counts where it was mounted first.
pub(super) fn parse(mountinfo: &str) -> Mounts {
    let mut mounts = Mounts::default();
    for line in mountinfo.lines() {
        let Some((mount, fs)) = line.split_once(" - ") else {
            continue;
        };
        let Some(mount) = mount.split(' ').nth(4).map(unescape) else {
            continue;
        };
        let mut fs = fs.split(' ');
        match (fs.next(), fs.nth(1)) {
            (Some("cgroup2"), options) => {
                // The kernel has one such setting for all mounts of the tree.
                let mut options = options.unwrap_or_default().split(',');
                mounts.nsdelegate |= options.any(|option| option == "nsdelegate");
                mounts.unified.get_or_insert(mount);
            }
            (Some("cgroup"), Some(options)) => {
                let controllers = controllers(options);
                if !mounts
                    .v1
                    .iter()
                    .any(|known| known.controllers == controllers)
                {
                    mounts.v1.push(Hierarchy { mount, controllers });
                }
            }
            _ => {}
        }
    }
    mounts
}

fn controllers(options: &str) -> Vec<String> {
    let is_controller = |option: &&str| {
        let key = option.split('=').next().unwrap_or_default();
        !PLAIN_OPTIONS.contains(&key) && key != "release_agent"
    };
    options
        .split(',')
        .filter(is_controller)
        .map(str::to_owned)
        .collect()
}

/// mountinfo writes blanks, tabs, newlines and backslashes as `\ooo`.
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// The page size behind a directory name of `/sys/kernel/mm/hugepages` as cgroup files name it:
/// `hugepages-2048kB` is `2MB`.
pub(super) fn page_size(name: &str) -> Option<String> {
    let kilobytes: u64 = name
        .strip_prefix("hugepages-")?
        .strip_suffix("kB")?
        .parse()
        .ok()?;
    Some(match kilobytes {
        1_048_576.. => format!("{}GB", kilobytes >> 20),
        1024.. => format!("{}MB", kilobytes >> 10),
        _ => format!("{kilobytes}KB"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hierarchy(mount: &str, controllers: &[&str]) -> Hierarchy {
        Hierarchy {
            mount: mount.into(),
            controllers: controllers.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn hybrid_has_both() {
        let text = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/lib/agent,name=systemd
41 31 0:38 / /sys/fs/cgroup/uni\\040fied rw - cgroup2 cgroup2 rw
50 31 0:29 / /elsewhere/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
";
        let expected = Mounts {
            v1: vec![
                hierarchy("/sys/fs/cgroup/cpu,cpuacct", &["cpu", "cpuacct"]),
                hierarchy("/sys/fs/cgroup/systemd", &["name=systemd"]),
            ],
            unified: Some("/sys/fs/cgroup/uni fied".into()),
            nsdelegate: false,
        };
        assert_eq!(parse(text), expected);
    }

    #[test]
    fn unified_alone() {
        let text = "35 24 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";
        assert_eq!(
            parse(text),
            Mounts {
                v1: vec![],
                unified: Some("/sys/fs/cgroup".into()),
                nsdelegate: true,
            }
        );
        assert_eq!(
            parse("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"),
            Mounts::default()
        );
    }

    #[test]
    fn page_sizes_are_named_as_the_kernel_does() {
        for (name, expected) in [
            ("hugepages-2048kB", Some("2MB")),
            ("hugepages-1048576kB", Some("1GB")),
            ("hugepages-64kB", Some("64KB")),
            ("hugepages-16777216kB", Some("16GB")),
            ("demote", None),
        ] {
            assert_eq!(page_size(name).as_deref(), expected, "{name}");
        }
    }
}
