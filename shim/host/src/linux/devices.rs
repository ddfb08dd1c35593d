//! Devices of a container: which device nodes it gets, and which access its cgroup allows.
//!
//! Called by [`super`]. Source: containerd's `WithDevices` and `WithHostDevices`.
//! Invariants: a granted node is a device of the host, with the same numbers; a directory grants the devices below it,
//! except links and directories of special file systems; a path has one device.
//! Must not know: how nodes are created, cgroup files.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use coracle_cgroup::{DeviceClass, DeviceRule};
use coracle_lifecycle::{ContainerConfig, DeviceConfig, Error};
use coracle_spec::{Device, DeviceKind};

use crate::errors::invalid;
use crate::mounts::clean_target;
use crate::paths::{Lookup, Missing};

/// Most nodes of a container.
const MOST: usize = 4096;

/// Depth limit below a requested directory.
const MAX_DEPTH: usize = 16;

/// Directories and nodes of `/dev` that no container gets from the host. Source: containerd, `getDevices`; containers
/// have terminals of their own.
const NOT_PASSED_ON: [&str; 10] = [
    "pts",
    "shm",
    "fd",
    "mqueue",
    "console",
    "ptmx",
    ".lxc",
    ".lxd-mounts",
    ".udev",
    "hugepages",
];

/// Nodes that every container has.
const USUAL: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// A device and the access to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    /// The node.
    pub device: Device,
    /// Some of `r`, `w` and `m`; empty for a node that nobody may open.
    pub permissions: String,
}

/// The user and group that devices belong to; those of the host's node where one is not given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Owner {
    /// The user, as the container sees it.
    pub uid: Option<u32>,
    /// The group, as the container sees it.
    pub gid: Option<u32>,
}

impl Owner {
    /// Those that a container's security context names. Source: containerd's
    /// `device_ownership_from_security_context`.
    pub(super) fn of(config: &ContainerConfig) -> Self {
        let id = |id: Option<i64>| id.and_then(|id| u32::try_from(id).ok());
        Self {
            uid: id(config.user.uid),
            gid: id(config.user.gid),
        }
    }

    /// The device with this owner.
    pub(super) fn owns(self, device: Device) -> Device {
        Device {
            uid: self.uid.unwrap_or(device.uid),
            gid: self.gid.unwrap_or(device.gid),
            ..device
        }
    }
}

/// The devices that CRI requests.
/// Errors: Invalid, naming the path and what is wrong with it.
pub(super) fn requested(
    configs: &[DeviceConfig],
    owner: Owner,
    lookup: &Lookup<'_>,
) -> Result<Vec<Grant>, Error> {
    let mut grants = Vec::new();
    for config in configs {
        let refused = |why: String| {
            let (host, target) = (&config.host_path, &config.container_path);
            invalid(format!("device {host:?} at {target:?}: {why}"))
        };
        let target = device_target(&config.container_path).map_err(refused)?;
        // A link is resolved once, here; the node that it leads to is granted.
        let host = lookup
            .resolve(Path::new(&config.host_path))
            .map_err(|error| refused(format!("the host path cannot be used: {error}")))?;
        let found = if host.metadata.is_dir() {
            all_below(&host.path, &target, lookup).map_err(refused)?
        } else {
            vec![one(&host.path, &target, &host.metadata).map_err(refused)?]
        };
        if found.is_empty() {
            return Err(refused("the directory holds no device".to_owned()));
        }
        grants.extend(found.into_iter().map(|device| Grant {
            device: owner.owns(device),
            permissions: config.permissions.clone(),
        }));
    }
    Ok(grants)
}

/// Every device node of the host, for a privileged container.
pub(super) fn of_host(dev: &Path, lookup: &Lookup<'_>) -> Result<Vec<Grant>, Error> {
    let found = all_below(dev, "/dev", lookup)
        .map_err(|why| invalid(format!("the host's devices: {why}")))?;
    let is_own = |device: &Device| {
        let name = device.path.strip_prefix("/dev/").unwrap_or_default();
        USUAL.contains(&name)
    };
    let others = found.into_iter().filter(|device| !is_own(device));
    Ok(others
        .map(|device| Grant {
            device,
            permissions: "rwm".to_owned(),
        })
        .collect())
}

/// Merges grants by path: a second one of the same device adds permissions, one of another device is refused.
pub(super) fn merged(grants: Vec<Grant>) -> Result<Vec<Grant>, Error> {
    let mut taken: Vec<Grant> = Vec::new();
    for grant in grants {
        let numbers = |device: &Device| (device.kind, device.major, device.minor);
        let path = &grant.device.path;
        match taken.iter_mut().find(|known| known.device.path == *path) {
            None => taken.push(grant),
            Some(known) if numbers(&known.device) == numbers(&grant.device) => {
                for letter in grant.permissions.chars() {
                    if !known.permissions.contains(letter) {
                        known.permissions.push(letter);
                    }
                }
            }
            Some(_) => {
                return Err(invalid(format!(
                    "two different devices are requested at {path:?}"
                )));
            }
        }
    }
    if taken.len() > MOST {
        return Err(invalid(format!(
            "{} devices are requested, {MOST} are allowed",
            taken.len()
        )));
    }
    Ok(taken)
}

/// The access that the cgroup allows: the default devices and the granted ones, or everything.
pub(super) fn rules(grants: &[Grant], privileged: bool) -> Vec<DeviceRule> {
    if privileged {
        return DeviceRule::everything();
    }
    let rule = |grant: &Grant| {
        let device = &grant.device;
        let kind = match device.kind {
            DeviceKind::Char => DeviceClass::Char,
            DeviceKind::Block => DeviceClass::Block,
        };
        let (major, minor) = (Some(device.major), Some(device.minor));
        DeviceRule::new(kind, major, minor, &grant.permissions)
    };
    let mut rules = DeviceRule::defaults();
    let open = grants.iter().filter(|grant| !grant.permissions.is_empty());
    rules.extend(open.map(rule));
    rules
}

/// A clean path for a node, outside the kernel's own file systems.
pub(super) fn device_target(path: &str) -> Result<String, String> {
    let target = clean_target(path)?;
    let is_kernels = ["/proc", "/sys"].iter().any(|own| {
        target
            .strip_prefix(own)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    });
    if is_kernels || target == "/dev" {
        return Err("no device can be there".to_owned());
    }
    Ok(target)
}

/// The device of a host's node. Errors: it is not a device.
pub(super) fn one(
    host: &Path,
    target: &str,
    metadata: &std::fs::Metadata,
) -> Result<Device, String> {
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => DeviceKind::Char,
        kind if kind.is_block_device() => DeviceKind::Block,
        _ => return Err("the host path is not a device".to_owned()),
    };
    Ok(Device {
        path: target.to_owned(),
        source: host.to_owned(),
        kind,
        major: rustix::fs::major(metadata.rdev()),
        minor: rustix::fs::minor(metadata.rdev()),
        mode: metadata.mode() & 0o777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    })
}

/// All devices below a directory, by path.
fn all_below(directory: &Path, target: &str, lookup: &Lookup<'_>) -> Result<Vec<Device>, String> {
    let mut found = Vec::new();
    below(directory, target, 0, lookup, &mut found)?;
    found.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(found)
}

/// The device at a path; `None` for another kind of file, or when it has gone.
fn device_at(path: &Path, target: &str, kind: std::fs::FileType) -> Option<Device> {
    if !kind.is_char_device() && !kind.is_block_device() {
        return None;
    }
    let metadata = std::fs::symlink_metadata(path).ok()?;
    one(path, target, &metadata).ok()
}

/// Adds the devices below a directory to `found`: first its own entries, then those of each subdirectory.
fn below(
    directory: &Path,
    target: &str,
    depth: usize,
    lookup: &Lookup<'_>,
    found: &mut Vec<Device>,
) -> Result<(), String> {
    let cannot =
        |error: std::io::Error| format!("{} cannot be listed: {error}", directory.display());
    if depth > MAX_DEPTH {
        return Err(format!("{} lies too deep", directory.display()));
    }
    lookup.open(directory, Missing::Refuse).map_err(cannot)?;
    let mut directories = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| !NOT_PASSED_ON.contains(name)) else {
            continue;
        };
        // Nodes come and go while we look. The directory itself tells the type, without touching a mount on an entry.
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        let path = entry.path();
        let target = format!("{}/{name}", target.trim_end_matches('/'));
        if kind.is_dir() {
            directories.push((path, target));
        } else {
            found.extend(device_at(&path, &target, kind));
        }
        if found.len() > MOST {
            return Err(format!("there are more than {MOST} devices"));
        }
    }
    directories
        .into_iter()
        .try_for_each(|(path, target)| below(&path, &target, depth + 1, lookup, found))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

    use super::*;
    use crate::scratch::Scratch;

    impl Scratch {
        /// A directory with two devices, a link and a FIFO.
        fn with_devices(name: &str) -> Scratch {
            let scratch = Scratch::new(&format!("devices-{name}"));
            let root = &scratch.0;
            std::fs::create_dir_all(root.join("sub")).unwrap();
            std::fs::create_dir_all(root.join("pts")).unwrap();
            let node = |path: &str, kind, minor| {
                let mode = Mode::from_raw_mode(0o640);
                mknodat(CWD, root.join(path), kind, mode, makedev(1, minor)).unwrap();
            };
            node("a", FileType::CharacterDevice, 3);
            node("sub/b", FileType::BlockDevice, 5);
            node("pts/0", FileType::CharacterDevice, 7);
            node("null", FileType::CharacterDevice, 3);
            node("fifo", FileType::Fifo, 0);
            std::os::unix::fs::symlink("a", root.join("link")).unwrap();
            scratch
        }

        fn config(&self, host: &str, target: &str) -> DeviceConfig {
            DeviceConfig {
                container_path: target.to_owned(),
                host_path: self.0.join(host).to_str().unwrap().to_owned(),
                permissions: "rw".to_owned(),
            }
        }
    }

    fn requested(configs: &[DeviceConfig]) -> Result<Vec<Grant>, Error> {
        crate::paths::with_lookup(|lookup| super::requested(configs, Owner::default(), lookup))
    }

    fn of_host(dev: &Path) -> Result<Vec<Grant>, Error> {
        crate::paths::with_lookup(|lookup| super::of_host(dev, lookup))
    }

    fn paths(grants: &[Grant]) -> Vec<&str> {
        grants
            .iter()
            .map(|grant| grant.device.path.as_str())
            .collect()
    }

    #[test]
    fn a_device_is_what_the_host_has_at_that_path() {
        let scratch = Scratch::with_devices("one");
        let grants = requested(&[scratch.config("link", "/dev//x/")]).unwrap();
        let device = &grants[0].device;
        assert_eq!(device.path, "/dev/x");
        assert_eq!(device.source, scratch.0.join("a").canonicalize().unwrap());
        assert_eq!(
            (device.kind, device.major, device.minor),
            (DeviceKind::Char, 1, 3)
        );
        assert_eq!(grants[0].permissions, "rw");
    }

    #[test]
    fn a_directory_grants_the_devices_below_it() {
        let scratch = Scratch::with_devices("below");
        let grants = requested(&[scratch.config("", "/dev/d")]).unwrap();
        assert_eq!(paths(&grants), ["/dev/d/a", "/dev/d/null", "/dev/d/sub/b"]);
        assert_eq!(grants[2].device.kind, DeviceKind::Block);
    }

    #[test]
    fn files_that_are_not_devices_are_refused_by_path() {
        let scratch = Scratch::with_devices("none");
        for (host, target, why) in [
            ("fifo", "/dev/x", "not a device"),
            ("missing", "/dev/x", "cannot be used"),
            ("pts", "/x/../y", "`..`"),
            ("a", "relative", "not absolute"),
            ("a", "/", "the root"),
            ("a", "/proc/x", "no device can be there"),
            ("a", "/dev", "no device can be there"),
        ] {
            let text = requested(&[scratch.config(host, target)])
                .unwrap_err()
                .to_string();
            assert!(
                text.contains(why) && text.contains(&format!("{target:?}")),
                "{text}"
            );
        }
        std::fs::create_dir(scratch.0.join("empty")).unwrap();
        let text = requested(&[scratch.config("empty", "/dev/x")]).unwrap_err();
        assert!(text.to_string().contains("holds no device"), "{text}");
    }

    #[test]
    fn a_path_has_one_device() {
        let scratch = Scratch::with_devices("merge");
        let mut twice =
            requested(&[scratch.config("a", "/dev/x"), scratch.config("a", "/dev/x")]).unwrap();
        twice[1].permissions = "m".to_owned();
        let merged_once = merged(twice).unwrap();
        assert_eq!(
            (merged_once.len(), merged_once[0].permissions.as_str()),
            (1, "rwm")
        );
        let differing = requested(&[
            scratch.config("a", "/dev/x"),
            scratch.config("sub/b", "/dev/x"),
        ]);
        assert!(merged(differing.unwrap()).is_err());
    }

    #[test]
    fn the_cgroup_allows_granted_devices_and_no_more() {
        let scratch = Scratch::with_devices("rules");
        let grants = requested(&[scratch.config("sub/b", "/dev/x")]).unwrap();
        let rules = rules(&grants, false);
        let (usual, own) = rules.split_at(DeviceRule::defaults().len());
        assert_eq!(usual, DeviceRule::defaults());
        let expected = DeviceRule::new(DeviceClass::Block, Some(1), Some(5), "rw");
        assert_eq!(own, [expected]);
        assert_eq!(super::rules(&grants, true), DeviceRule::everything());
    }

    #[test]
    fn a_privileged_container_gets_all_devices_except_its_own() {
        let scratch = Scratch::with_devices("host");
        let grants = of_host(&scratch.0).unwrap();
        assert_eq!(paths(&grants), ["/dev/a", "/dev/sub/b"]);
        let grants = of_host(Path::new("/dev")).unwrap();
        assert!(!grants.is_empty());
        assert!(grants.iter().all(|grant| {
            let path = &grant.device.path;
            !path.starts_with("/dev/pts/") && path != "/dev/console" && path != "/dev/null"
        }));
    }
}
