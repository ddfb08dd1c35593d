//! CRI mounts, checked when the container is created.
//!
//! Called by: CreateContainer. The guest resolves sources again at start, each only once.
//! Invariants: a mount that passes has an absolute source that exists and a clean absolute target that no other mount
//! has; parents come before what lies in them. Not here: mounting.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use coracle_runtime::spec::Mount;

use crate::lifecycle::{Error, Kind, MountWish, Propagation};

/// Most mounts of a container.
const MOST: usize = 512;

/// The mounts to make, parents first. Blocks on the sources' file systems.
/// Errors: Invalid, naming the mount and what is wrong with it.
pub fn check(wishes: &[MountWish]) -> Result<Vec<Mount>, Error> {
    if wishes.len() > MOST {
        return Err(Error::new(
            Kind::Invalid,
            format!("{} mounts are asked for, {MOST} are allowed", wishes.len()),
        ));
    }
    let mut seen = BTreeSet::new();
    let mut mounts = Vec::with_capacity(wishes.len());
    for wish in wishes {
        let mount = check_one(wish).map_err(|why| refused(wish, &why))?;
        if !seen.insert(mount.target.clone()) {
            return Err(refused(wish, "another mount has the same container path"));
        }
        mounts.push(mount);
    }
    // Stable, so that mounts of the same depth keep the kubelet's order.
    mounts.sort_by_key(|mount| mount.target.matches('/').count());
    Ok(mounts)
}

fn refused(wish: &MountWish, why: &str) -> Error {
    let (host, target) = (wish.host_path.display(), &wish.container_path);
    Error::new(
        Kind::Invalid,
        format!(
            "mount of host path {host:?} at {target:?}: {why}",
            host = host.to_string()
        ),
    )
}

fn check_one(wish: &MountWish) -> Result<Mount, String> {
    let target = clean_target(&wish.container_path)?;
    check_options(wish)?;
    if !wish.host_path.is_absolute() {
        return Err("the host path is not absolute".to_owned());
    }
    if let Err(error) = std::fs::metadata(&wish.host_path) {
        return Err(format!("the host path cannot be used: {error}"));
    }
    Ok(Mount {
        source: wish.host_path.clone(),
        target,
        readonly: wish.readonly,
        ..Mount::default()
    })
}

fn check_options(wish: &MountWish) -> Result<(), String> {
    if wish.propagation == Propagation::Bidirectional {
        return Err("bidirectional propagation is not given to WebAssembly".to_owned());
    }
    if wish.recursive_read_only && !wish.readonly {
        return Err("recursive_read_only needs readonly".to_owned());
    }
    if wish.recursive_read_only && wish.propagation != Propagation::Private {
        return Err("recursive_read_only needs private propagation".to_owned());
    }
    Ok(())
}

fn clean_target(path: &str) -> Result<String, String> {
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

    fn wish(host: &str, target: &str) -> MountWish {
        MountWish {
            host_path: host.into(),
            container_path: target.into(),
            readonly: false,
            propagation: Propagation::Private,
            selinux_relabel: false,
            recursive_read_only: false,
        }
    }

    #[test]
    fn each_bad_mount_is_refused_with_its_reason() {
        let table = [
            (wish("/etc", "relative"), "not absolute"),
            (wish("/etc", ""), "not absolute"),
            (wish("/etc", "/"), "the root"),
            (wish("/etc", "//."), "the root"),
            (wish("/etc", "/a/../b"), "`..`"),
            (wish("/etc", "/a\0b"), "NUL"),
            (wish("etc", "/a"), "host path is not absolute"),
            (wish("", "/a"), "host path is not absolute"),
            (wish("/no/such/path", "/a"), "cannot be used"),
            (
                MountWish {
                    propagation: Propagation::Bidirectional,
                    ..wish("/etc", "/a")
                },
                "bidirectional",
            ),
            (
                MountWish {
                    recursive_read_only: true,
                    ..wish("/etc", "/a")
                },
                "needs readonly",
            ),
        ];
        for (wish, why) in table {
            let error = check(std::slice::from_ref(&wish)).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            let text = error.to_string();
            assert!(
                text.contains(why) && text.contains(&format!("{:?}", wish.container_path)),
                "{text}"
            );
        }
    }

    #[test]
    fn targets_are_cleaned_duplicates_refused_and_parents_come_first() {
        let mounts = check(&[
            wish("/etc", "/a/b//c/"),
            wish("/etc", "/a"),
            wish("/etc/passwd", "/x/./y"),
        ])
        .unwrap();
        let targets: Vec<&str> = mounts.iter().map(|mount| mount.target.as_str()).collect();
        assert_eq!(targets, ["/a", "/x/y", "/a/b/c"]);
        assert!(
            check(&[wish("/etc", "/a"), wish("/usr", "/a/")])
                .unwrap_err()
                .to_string()
                .contains("same container path")
        );
        assert!(check(&vec![wish("/etc", "/a"); MOST + 1]).is_err());
    }
}
