//! Image volumes: checks that the requested part of an image exists.
//!
//! Called by: [`super::plan`], before the container is created, so that the kubelet learns the reason.
//! Invariant: an image that certainly lacks the path is refused; where a symlink is on the way, the container process
//! decides, which sees the merged layers.
//! Must not know: mounting, leases.

use std::path::{Path, PathBuf};

use coracle_lifecycle::{Error, Kind, MountConfig};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use super::io_error;

/// Checks the sub paths of all image volumes; `images` are their images in the same order.
pub fn check(configs: &[MountConfig], images: &[Vec<PathBuf>]) -> Result<(), Error> {
    let volumes = configs
        .iter()
        .filter_map(|config| Some((config, config.image.as_ref()?)));
    for ((config, volume), layers) in volumes.zip(images) {
        let named = |text: String| {
            let (image, target) = (&volume.image, &config.container_path);
            Error::new(
                Kind::ImageVolume,
                format!("mount of image {image:?} at {target:?}: {text}"),
            )
        };
        if layers.is_empty() {
            return Err(named(
                "it is a WebAssembly artifact and holds no files".to_owned(),
            ));
        }
        if volume.sub_path.is_empty() {
            continue;
        }
        let mut found = false;
        for layer in layers {
            found |= may_hold(layer, &volume.sub_path)?;
        }
        if !found {
            return Err(named(format!("it holds no {:?}", volume.sub_path)));
        }
    }
    Ok(())
}

/// Whether a layer contains the path, or a symlink that may lead to it.
fn may_hold(layer: &Path, path: &str) -> Result<bool, Error> {
    let failed =
        |errno: Errno| io_error(format!("look into layer {}", layer.display()), errno.into());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, layer, flags, Mode::empty()).map_err(failed)?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match openat2(
        &root,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        resolve,
    ) {
        Ok(_) | Err(Errno::LOOP) => Ok(true),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG | Errno::XDEV) => Ok(false),
        Err(errno) => Err(failed(errno)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use coracle_lifecycle::{ImageVolume, Propagation};

    fn config(sub_path: &str) -> MountConfig {
        MountConfig {
            host_path: PathBuf::new(),
            container_path: "/models".to_owned(),
            readonly: true,
            propagation: Propagation::Private,
            selinux_relabel: false,
            recursive_read_only: false,
            image: Some(ImageVolume {
                image: "files:1".to_owned(),
                user_specified_image: String::new(),
                sub_path: sub_path.to_owned(),
            }),
            options: Vec::new(),
            uid_mappings: Vec::new(),
            gid_mappings: Vec::new(),
        }
    }

    #[test]
    fn a_path_that_no_layer_holds_is_refused_as_the_kubelet_expects() {
        let scratch = Scratch::new("volumes");
        let root = &scratch.0;
        let layers = vec![root.join("low"), root.join("high")];
        std::fs::create_dir_all(layers[0].join("a/b")).unwrap();
        std::fs::create_dir_all(&layers[1]).unwrap();
        std::fs::write(layers[1].join("file"), "x").unwrap();
        std::os::unix::fs::symlink("a", layers[1].join("link")).unwrap();
        let images = [layers];
        for held in ["", "a/b", "file", "link", "link/b"] {
            assert!(check(&[config(held)], &images).is_ok(), "{held:?}");
        }
        for lacking in ["b", "a/c", "file/x"] {
            let error = check(&[config(lacking)], &images).unwrap_err();
            assert_eq!(error.kind(), Kind::ImageVolume);
            assert!(error.to_string().contains(lacking), "{error}");
        }
        assert!(check(&[config("")], &[Vec::new()]).is_err());
    }
}
