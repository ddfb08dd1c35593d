//! CRI mounts, checked when the container is created.
//!
//! Called by: CreateContainer, on a thread of [`super::paths`]. The container process resolves sources again at start,
//! each only once.
//! Invariants: a mount that passes has an absolute source that exists (created if need be) or a leased image, and a
//! clean absolute target that no other mount has; parents come before the targets below them.
//! Must not know: mounting, looking up images.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use coracle_lifecycle::{Error, IdMapping, Kind, MountConfig, Propagation, UserNamespaceConfig};
use coracle_spec::{Mount, MountKind, MountPropagation};

use super::paths::{Lookup, Missing};
use super::propagation;

/// Most mounts of a container.
const MOST: usize = 512;

/// Files of `/proc` that a container may replace: those of lxcfs. Source: runc, `checkProcMount`.
const LXCFS: [&str; 8] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
];

/// The kind of container, and the pod, for which mounts are checked.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// It runs a program of a Linux image.
    pub is_linux: bool,
    /// The pod's user namespace.
    pub userns: Option<&'a UserNamespaceConfig>,
    /// The layers of the mounted images, in the order of the mounts with images.
    pub images: &'a [Vec<PathBuf>],
    /// What to do about a missing host path.
    pub missing: Missing,
}

/// The mounts to make, parents first. Blocks on the sources' file systems, through `lookup`.
/// Errors: Invalid, with the mount and what is wrong with it; ImageVolume for a mount of an image.
pub fn check(
    configs: &[MountConfig],
    setting: Setting<'_>,
    lookup: &Lookup<'_>,
) -> Result<Vec<Mount>, Error> {
    if configs.len() > MOST {
        return Err(Error::new(
            Kind::Invalid,
            format!("{} mounts are requested, {MOST} are allowed", configs.len()),
        ));
    }
    let mut images = setting.images.iter();
    let mut seen = BTreeSet::new();
    let mut mounts = Vec::with_capacity(configs.len());
    for config in configs {
        let layers = config.image.as_ref().and_then(|_| images.next());
        let mount = check_one(config, setting, layers).map_err(|why| refused(config, &why))?;
        if mount.kind == MountKind::Bind {
            check_source(config, setting, lookup)?;
        }
        if !seen.insert(mount.target.clone()) {
            return Err(refused(config, "another mount has the same container path"));
        }
        mounts.push(mount);
    }
    sort(&mut mounts);
    Ok(mounts)
}

/// Adds the mounts of devices. Errors: Invalid for one whose target has a mount.
pub fn add(mounts: &mut Vec<Mount>, more: &[Mount]) -> Result<(), Error> {
    for mount in more {
        if mounts.iter().any(|known| known.target == mount.target) {
            let text = format!(
                "a device's mount at {:?}: another mount is there",
                mount.target
            );
            return Err(Error::new(Kind::Invalid, text));
        }
        mounts.push(mount.clone());
    }
    sort(mounts);
    Ok(())
}

/// Sorts parents first. Stable, so that mounts of the same depth keep their order.
pub fn sort(mounts: &mut [Mount]) {
    mounts.sort_by_key(|mount| mount.target.matches('/').count());
}

fn refused(config: &MountConfig, why: &str) -> Error {
    let target = &config.container_path;
    match &config.image {
        Some(volume) => Error::new(
            Kind::ImageVolume,
            format!("mount of image {:?} at {target:?}: {why}", volume.image),
        ),
        None => {
            let host = config.host_path.display().to_string();
            Error::new(
                Kind::Invalid,
                format!("mount of host path {host:?} at {target:?}: {why}"),
            )
        }
    }
}

fn check_one(
    config: &MountConfig,
    setting: Setting<'_>,
    layers: Option<&Vec<PathBuf>>,
) -> Result<Mount, String> {
    let target = clean_target(&config.container_path)?;
    if setting.is_linux {
        outside_proc(&target)?;
    }
    check_options(config, setting.is_linux)?;
    check_maps(config, setting.userns)?;
    let kind = match (&config.image, layers) {
        (Some(volume), Some(layers)) => MountKind::Image {
            layers: layers.clone(),
            sub_path: volume.sub_path.clone(),
        },
        _ => MountKind::Bind,
    };
    let is_image = config.image.is_some();
    Ok(Mount {
        source: config.host_path.clone(),
        target,
        readonly: config.is_readonly(),
        kind,
        recursive_readonly: config.recursive_read_only,
        propagation: propagation(config, setting.is_linux),
        // Whoever built an image has no say about privileges here. Its libraries and tools may be what it is mounted for.
        nosuid: is_image || config.has_option("nosuid"),
        nodev: is_image || config.has_option("nodev"),
        noexec: config.has_option("noexec"),
    })
}

fn propagation(config: &MountConfig, is_linux: bool) -> MountPropagation {
    match config.propagation {
        _ if !is_linux || config.image.is_some() => MountPropagation::Private,
        Propagation::Private => MountPropagation::Private,
        Propagation::HostToContainer => MountPropagation::Slave,
        Propagation::Bidirectional => MountPropagation::Shared,
    }
}

/// Looks up the source of a mount. Errors: Invalid; Exhausted when too many calls wait for its file system.
fn check_source(
    config: &MountConfig,
    setting: Setting<'_>,
    lookup: &Lookup<'_>,
) -> Result<(), Error> {
    if !config.host_path.is_absolute() {
        return Err(refused(config, "the host path is not absolute"));
    }
    if let Err(error) = lookup.open(&config.host_path, setting.missing) {
        let refusal = refused(config, &format!("the host path cannot be used: {error}"));
        return Err(match error.kind() {
            std::io::ErrorKind::TimedOut => Error::new(Kind::Exhausted, refusal.to_string()),
            _ => refusal,
        });
    }
    if setting.is_linux {
        let flows = propagation::check(&config.host_path, config.propagation);
        flows.map_err(|why| refused(config, &why))?;
    }
    Ok(())
}

fn check_options(config: &MountConfig, is_linux: bool) -> Result<(), String> {
    if config.propagation == Propagation::Bidirectional && !is_linux {
        return Err("bidirectional propagation is not given to WebAssembly".to_owned());
    }
    if config.recursive_read_only && !config.is_readonly() {
        return Err("recursive_read_only needs readonly".to_owned());
    }
    if config.recursive_read_only && config.propagation != Propagation::Private {
        return Err("recursive_read_only needs private propagation".to_owned());
    }
    Ok(())
}

/// Id maps of a mount must repeat the pod's; other maps are most likely a mistake.
fn check_maps(config: &MountConfig, userns: Option<&UserNamespaceConfig>) -> Result<(), String> {
    let same = |requested: &[IdMapping], own: Option<IdMapping>| {
        requested.is_empty() || own.is_some_and(|own| requested == [own])
    };
    let uids = same(&config.uid_mappings, userns.map(|own| own.uid));
    let gids = same(&config.gid_mappings, userns.map(|own| own.gid));
    if !uids || !gids || config.uid_mappings.is_empty() != config.gid_mappings.is_empty() {
        return Err("its id mappings differ from its pod's".to_owned());
    }
    Ok(())
}

/// Refuses targets in `/proc`, on whose files the kernel's security depends.
fn outside_proc(target: &str) -> Result<(), String> {
    let inside = target == "/proc" || target.starts_with("/proc/");
    if inside && !LXCFS.contains(&target) {
        return Err("the container path is inside /proc".to_owned());
    }
    Ok(())
}

/// Cleans an absolute path: no `.`, `..` and doubled slashes. Errors: what is wrong, as the rest of a sentence.
pub fn clean_target(path: &str) -> Result<String, String> {
    if !path.starts_with('/') {
        return Err("the container path is not absolute".to_owned());
    }
    if path.contains('\0') {
        return Err("the container path holds a NUL byte".to_owned());
    }
    let mut clean = String::new();
    for component in Path::new(path).components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => {
                clean.push('/');
                clean.push_str(&name.to_string_lossy());
            }
            Component::ParentDir | Component::Prefix(_) => {
                return Err("the container path has a `..`".to_owned());
            }
        }
    }
    if clean.is_empty() {
        return Err("the container path is the root".to_owned());
    }
    Ok(clean)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use coracle_lifecycle::ImageVolume;

    const WASM: Setting<'static> = Setting {
        is_linux: false,
        userns: None,
        images: &[],
        missing: Missing::Refuse,
    };
    const LINUX: Setting<'static> = Setting {
        is_linux: true,
        ..WASM
    };

    fn config(host: &str, target: &str) -> MountConfig {
        MountConfig {
            host_path: host.into(),
            container_path: target.into(),
            readonly: false,
            propagation: Propagation::Private,
            selinux_relabel: false,
            recursive_read_only: false,
            image: None,
            options: Vec::new(),
            uid_mappings: Vec::new(),
            gid_mappings: Vec::new(),
        }
    }

    fn check(configs: &[MountConfig], setting: Setting<'_>) -> Result<Vec<Mount>, Error> {
        super::super::paths::with_lookup(|lookup| super::check(configs, setting, lookup))
    }

    fn why(config: &MountConfig, setting: Setting<'_>) -> String {
        let error = check(std::slice::from_ref(config), setting).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        let text = error.to_string();
        assert!(
            text.contains(&format!("{:?}", config.container_path)),
            "{text}"
        );
        text
    }

    #[test]
    fn each_bad_mount_is_refused_with_its_reason() {
        let readonly_below = MountConfig {
            recursive_read_only: true,
            ..config("/etc", "/a")
        };
        let table = [
            (config("/etc", "relative"), "not absolute"),
            (config("/etc", ""), "not absolute"),
            (config("/etc", "/"), "the root"),
            (config("/etc", "//."), "the root"),
            (config("/etc", "/a/../b"), "`..`"),
            (config("/etc", "/a\0b"), "NUL"),
            (config("etc", "/a"), "host path is not absolute"),
            (config("", "/a"), "host path is not absolute"),
            (config("/no/such/path", "/a"), "cannot be used"),
            (readonly_below, "needs readonly"),
        ];
        for (config, expected) in table {
            for setting in [WASM, LINUX] {
                let text = why(&config, setting);
                assert!(text.contains(expected), "{text}");
            }
        }
        let both_ways = MountConfig {
            propagation: Propagation::Bidirectional,
            ..config("/etc", "/a")
        };
        assert!(why(&both_ways, WASM).contains("bidirectional"));
    }

    #[test]
    fn nothing_but_what_lxcfs_offers_is_mounted_into_proc() {
        for target in [
            "/proc",
            "/proc/",
            "//proc/./x",
            "/proc/self/exe",
            "/proc/sys/kernel",
            "/proc/cpuinfo/x",
        ] {
            let text = why(&config("/etc", target), LINUX);
            assert!(text.contains("inside /proc"), "{text}");
        }
        for target in ["/proc/cpuinfo", "/process", "/sys/x", "/dev/shm", "/a/proc"] {
            assert!(check(&[config("/etc", target)], LINUX).is_ok(), "{target}");
        }
    }

    #[test]
    fn options_become_flags() {
        let requested = MountConfig {
            options: vec!["ro".to_owned(), "noexec".to_owned()],
            recursive_read_only: true,
            ..config("/etc", "/a")
        };
        let mount = check(&[requested], LINUX).unwrap().remove(0);
        assert!(mount.readonly && mount.noexec && mount.recursive_readonly);
        assert!(!mount.nosuid && !mount.nodev);
    }

    #[test]
    fn id_maps_of_a_mount_must_be_the_pods() {
        let map = |outside| IdMapping {
            inside: 0,
            outside,
            count: 65_536,
        };
        let userns = UserNamespaceConfig {
            uid: map(70_000),
            gid: map(70_000),
        };
        let own = Setting {
            userns: Some(&userns),
            ..LINUX
        };
        let requested = |outside| MountConfig {
            uid_mappings: vec![map(outside)],
            gid_mappings: vec![map(outside)],
            ..config("/etc", "/a")
        };
        assert!(check(&[requested(70_000)], own).is_ok());
        assert!(check(&[config("/etc", "/a")], own).is_ok());
        assert!(why(&requested(70_001), own).contains("differ from its pod's"));
        assert!(why(&requested(70_000), LINUX).contains("differ from its pod's"));
        let half = MountConfig {
            gid_mappings: Vec::new(),
            ..requested(70_000)
        };
        assert!(why(&half, own).contains("differ from its pod's"));
    }

    #[test]
    fn an_image_is_mounted_from_its_layers() {
        let volume = |image: &str| ImageVolume {
            image: image.to_owned(),
            user_specified_image: String::new(),
            sub_path: "s".to_owned(),
        };
        let requested = |target: &str, image: &str| MountConfig {
            image: Some(volume(image)),
            readonly: true,
            propagation: Propagation::HostToContainer,
            ..config("", target)
        };
        let images = [vec![PathBuf::from("/l/1")], vec![PathBuf::from("/l/2")]];
        let setting = Setting {
            images: &images,
            ..LINUX
        };
        let configs = [
            requested("/a", "one"),
            config("/etc", "/b"),
            requested("/c", "two"),
        ];
        let mounts = check(&configs, setting).unwrap();
        let kind = MountKind::Image {
            layers: images[1].clone(),
            sub_path: "s".to_owned(),
        };
        assert_eq!(mounts[2].kind, kind);
        assert_eq!(mounts[2].propagation, MountPropagation::Private);
        assert!(mounts[2].nosuid && mounts[2].nodev && !mounts[2].noexec);
        assert_eq!(mounts[1].kind, MountKind::Bind);
        let data = MountConfig {
            options: vec!["noexec".to_owned()],
            ..requested("/a", "one")
        };
        assert!(check(&[data], setting).unwrap()[0].noexec);
        let error = check(&[requested("/proc/x", "one")], setting).unwrap_err();
        assert_eq!(error.kind(), Kind::ImageVolume);
        assert!(error.to_string().contains("\"one\""), "{error}");
    }

    #[test]
    fn targets_are_cleaned_duplicates_refused_and_parents_come_first() {
        let configs = [
            config("/etc", "/a/b//c/"),
            config("/etc", "/a"),
            config("/etc/passwd", "/x/./y"),
        ];
        let mounts = check(&configs, WASM).unwrap();
        let targets: Vec<&str> = mounts.iter().map(|mount| mount.target.as_str()).collect();
        assert_eq!(targets, ["/a", "/x/y", "/a/b/c"]);
        assert!(
            check(&[config("/etc", "/a"), config("/usr", "/a/")], LINUX)
                .unwrap_err()
                .to_string()
                .contains("same container path")
        );
        assert!(check(&vec![config("/etc", "/a"); MOST + 1], LINUX).is_err());
    }
}
