//! The `VOLUME`s of an image: directories that are writable even in a read-only root.
//!
//! Called by [`super`]. Pure. Invariants: a volume is a clean path of the container; a mount wins over a volume; an
//! image has at most as many volumes as a container may have mounts.
//! Must not know: how they are created.

use coracle_lifecycle::Error;
use coracle_spec::Mount;

use crate::errors::invalid;

/// Most volumes of an image.
const MOST: usize = 512;

/// The volumes to create, except those covered by a mount. Errors: Invalid for too many of them, and for one in the
/// kernel's own file systems.
pub(super) fn of_image(volumes: &[String], mounts: &[Mount]) -> Result<Vec<String>, Error> {
    if volumes.len() > MOST {
        return Err(invalid(format!(
            "the image has {} volumes, {MOST} are allowed",
            volumes.len()
        )));
    }
    let mut taken: Vec<String> = Vec::new();
    for volume in volumes {
        if volume.contains('\0') {
            return Err(invalid(format!(
                "the image's volume {volume:?} holds a NUL"
            )));
        }
        let path = clean(volume);
        let is_kernels = ["/proc", "/sys", "/dev"].iter().any(|own| {
            path.strip_prefix(own)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
        if is_kernels {
            return Err(invalid(format!(
                "the image's volume {volume:?} is in a file system of the kernel's"
            )));
        }
        let is_mounted = mounts.iter().any(|mount| mount.target == path);
        if !path.is_empty() && !is_mounted && !taken.contains(&path) {
            taken.push(path);
        }
    }
    Ok(taken)
}

/// Cleans a path so that it cannot leave the root: `..` at the root is the root. Empty for the root itself.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    parts.iter().map(|part| format!("/{part}")).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn of(volumes: &[&str], mounted: &[&str]) -> Result<Vec<String>, Error> {
        let volumes: Vec<String> = volumes.iter().map(|v| (*v).to_owned()).collect();
        let mounts: Vec<Mount> = mounted
            .iter()
            .map(|target| Mount {
                target: (*target).to_owned(),
                ..Mount::default()
            })
            .collect();
        of_image(&volumes, &mounts)
    }

    #[test]
    fn a_volume_never_leaves_the_root() {
        for (volume, expected) in [
            ("/data", "/data"),
            ("data", "/data"),
            ("/../../../../canary", "/canary"),
            ("/a/../../canary", "/canary"),
            ("//a/./b/", "/a/b"),
            ("/process", "/process"),
        ] {
            assert_eq!(of(&[volume], &[]).unwrap(), [expected]);
        }
        for root in ["", "/", "/..", "/a/.."] {
            assert_eq!(of(&[root], &[]).unwrap(), [""; 0], "{root:?}");
        }
    }

    #[test]
    fn mounts_win_and_each_volume_is_created_once() {
        assert_eq!(of(&["/a", "/b", "/a/"], &["/b"]).unwrap(), ["/a"]);
    }

    #[test]
    fn too_many_and_the_kernels_own_are_refused() {
        let many: Vec<String> = (0..10_000).map(|index| format!("/v{index}")).collect();
        assert!(
            of_image(&many, &[])
                .unwrap_err()
                .to_string()
                .contains("10000")
        );
        for odd in ["/proc", "/proc/self", "/x/../sys/fs", "/dev", "/a\0b"] {
            assert!(of(&[odd], &[]).is_err(), "{odd:?}");
        }
    }
}
