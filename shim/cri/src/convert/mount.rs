//! Reads the mounts and devices of a container and checks their form.
//!
//! Called by `container`. Invariants: a mount has a host path or an image, never both; refusals that the kubelet
//! recognises carry its [`KubeletError`].
//! Must not know: whether paths, images and devices exist.

use coracle_lifecycle::{DeviceConfig, IdMapping, ImageVolume, MountConfig, Propagation};
use coracle_proto::runtime::v1 as cri;

use super::annotations::{self, OpensAll, Reader};
use super::{BadRequest, check, namespaces};
use crate::bad_request::KubeletError;

/// The longest image name, in bytes.
const MAX_IMAGE_BYTES: usize = 1024;

/// The longest path of a device or a sub path, in bytes.
const MAX_PATH_BYTES: usize = 4096;

/// The most devices of a container, and the most names of CDI devices.
const MAX_DEVICES: usize = 256;

/// The longest name of a CDI device, in bytes.
const MAX_CDI_BYTES: usize = 256;

/// Annotations with names of CDI devices. Source: the CDI specification, for containerd and CRI-O. The kubelet writes
/// them for device plugins; annotations of a pod are not copied to its containers.
const CDI_ANNOTATIONS: OpensAll = OpensAll("cdi.k8s.io/");

/// Reads all mounts of a container.
pub(super) fn mounts(mounts: Vec<cri::Mount>) -> Result<Vec<MountConfig>, BadRequest> {
    mounts
        .into_iter()
        .enumerate()
        .map(|(index, requested)| mount(index, requested))
        .collect()
}

fn mount(index: usize, mount: cri::Mount) -> Result<MountConfig, BadRequest> {
    let field = format!("config.mounts[{index}]");
    let shown: String = mount
        .container_path
        .chars()
        .filter(|c| !c.is_control())
        .take(128)
        .collect();
    let propagation = propagation(&field, mount.propagation)?;
    let readonly = mount.readonly || mount.mount_options.iter().any(|option| option == "ro");
    if mount.recursive_read_only {
        recursive_read_only(&field, &shown, readonly, propagation)?;
    }
    options(&field, &shown, &mount.mount_options)?;
    let image = image(&field, &shown, readonly, &mount)?;
    Ok(MountConfig {
        host_path: mount.host_path.into(),
        container_path: mount.container_path,
        readonly: mount.readonly,
        propagation,
        selinux_relabel: mount.selinux_relabel,
        recursive_read_only: mount.recursive_read_only,
        image,
        options: mount.mount_options,
        uid_mappings: mappings(&format!("{field}.uidMappings"), &mount.uid_mappings)?,
        gid_mappings: mappings(&format!("{field}.gidMappings"), &mount.gid_mappings)?,
    })
}

fn mappings(field: &str, requested: &[cri::IdMapping]) -> Result<Vec<IdMapping>, BadRequest> {
    if requested.len() > 1 {
        let problem = format!("has {} mappings, a pod has exactly 1", requested.len());
        return Err(BadRequest::invalid(field, problem));
    }
    requested
        .iter()
        .map(|mapping| namespaces::id_mapping(field, mapping))
        .collect()
}

fn options(field: &str, path: &str, options: &[String]) -> Result<(), BadRequest> {
    let known = |option: &&String| MountConfig::OPTIONS.contains(&option.as_str());
    let Some(odd) = options.iter().find(|option| !known(option)) else {
        return Ok(());
    };
    let shown: String = odd.chars().filter(|c| !c.is_control()).take(32).collect();
    let problem = format!(
        "asks for {shown:?} at {path}, known options are {}",
        MountConfig::OPTIONS.join(", ")
    );
    Err(BadRequest::invalid(
        format!("{field}.mount_options"),
        problem,
    ))
}

/// The image of an image volume; `None` for a mount of a host path.
fn image(
    field: &str,
    path: &str,
    readonly: bool,
    mount: &cri::Mount,
) -> Result<Option<ImageVolume>, BadRequest> {
    let Some(image) = &mount.image else {
        if mount.image_sub_path.is_empty() {
            return Ok(None);
        }
        let problem = format!("is set at {path}, where no image is mounted");
        return Err(BadRequest::invalid(
            format!("{field}.image_sub_path"),
            problem,
        ));
    };
    check::token(
        &format!("{field}.image.image"),
        &image.image,
        MAX_IMAGE_BYTES,
    )?;
    check_image_volume(field, path, readonly, mount)?;
    Ok(Some(ImageVolume {
        image: image.image.clone(),
        user_specified_image: image.user_specified_image.clone(),
        sub_path: mount.image_sub_path.trim_end_matches('/').to_owned(),
    }))
}

/// Refuses image volumes that cannot be mounted, with the text by which the kubelet recognises that.
fn check_image_volume(
    field: &str,
    path: &str,
    readonly: bool,
    mount: &cri::Mount,
) -> Result<(), BadRequest> {
    let refused = |field: String, problem: String| {
        Err(BadRequest::Recognised {
            error: KubeletError::ImageVolumeMountFailed,
            field,
            problem,
        })
    };
    if !mount.host_path.is_empty() {
        let problem = format!("at {path} names an image beside a host path");
        return refused(field.to_owned(), problem);
    }
    if !readonly {
        let problem = format!("at {path} is an image, and those are mounted readonly only");
        return refused(field.to_owned(), problem);
    }
    let sub_path = &mount.image_sub_path;
    let odd = |part: &str| matches!(part, ".." | ".");
    if sub_path.starts_with('/')
        || sub_path.contains('\0')
        || sub_path.len() > MAX_PATH_BYTES
        || sub_path.split('/').any(odd)
    {
        let problem = format!("at {path} is not a clean relative path");
        return refused(format!("{field}.image_sub_path"), problem);
    }
    Ok(())
}

fn propagation(field: &str, value: i32) -> Result<Propagation, BadRequest> {
    match cri::MountPropagation::try_from(value) {
        Ok(cri::MountPropagation::PropagationPrivate) => Ok(Propagation::Private),
        Ok(cri::MountPropagation::PropagationHostToContainer) => Ok(Propagation::HostToContainer),
        Ok(cri::MountPropagation::PropagationBidirectional) => Ok(Propagation::Bidirectional),
        Err(_) => {
            let problem = format!("is {value}, which is not a propagation");
            Err(BadRequest::invalid(format!("{field}.propagation"), problem))
        }
    }
}

/// Checks the two conditions of the protocol for recursively read-only mounts.
fn recursive_read_only(
    field: &str,
    path: &str,
    readonly: bool,
    propagation: Propagation,
) -> Result<(), BadRequest> {
    let problem = if !readonly {
        format!("of {path} is set on a mount that is not readonly")
    } else if propagation != Propagation::Private {
        format!("of {path} is set on a mount whose propagation is {propagation:?}, not Private")
    } else {
        return Ok(());
    };
    Err(BadRequest::Recognised {
        error: KubeletError::RroUnsupported,
        field: format!("{field}.recursive_read_only"),
        problem,
    })
}

/// Reads the devices of a container.
pub(super) fn devices(devices: Vec<cri::Device>) -> Result<Vec<DeviceConfig>, BadRequest> {
    if devices.len() > MAX_DEVICES {
        let problem = format!("has {} entries, the limit is {MAX_DEVICES}", devices.len());
        return Err(BadRequest::invalid("config.devices", problem));
    }
    devices.into_iter().enumerate().map(device).collect()
}

fn device((index, device): (usize, cri::Device)) -> Result<DeviceConfig, BadRequest> {
    let field = format!("config.devices[{index}]");
    for (name, path) in [
        ("host_path", &device.host_path),
        ("container_path", &device.container_path),
    ] {
        let field = format!("{field}.{name}");
        check::given(&field, path)?;
        check::absolute_or_empty(&field, path)?;
        if path.len() > MAX_PATH_BYTES {
            let problem = format!(
                "is {} bytes long, the limit is {MAX_PATH_BYTES}",
                path.len()
            );
            return Err(BadRequest::invalid(field, problem));
        }
    }
    let letters = device.permissions.as_str();
    if letters.is_empty() || letters.len() > 3 || letters.bytes().any(|b| !b"rwm".contains(&b)) {
        return Err(BadRequest::invalid(
            format!("{field}.permissions"),
            "is not made of r, w and m",
        ));
    }
    Ok(DeviceConfig {
        container_path: device.container_path,
        host_path: device.host_path,
        permissions: device.permissions,
    })
}

/// The names of a container's CDI devices, those of the field first, without duplicates.
pub(super) fn cdi_devices(
    devices: &[cri::CdiDevice],
    reader: &Reader,
) -> Result<Vec<String>, BadRequest> {
    let fields = devices.iter().enumerate();
    let fields =
        fields.map(|(index, device)| (format!("config.CDI_devices[{index}]"), &*device.name));
    let annotations = reader.all_opening(&CDI_ANNOTATIONS)?;
    let annotations = annotations.into_iter().flat_map(|(key, names)| {
        let names = names.split(',').take(MAX_DEVICES + 1);
        names.map(move |name| (annotations::field(key), name))
    });
    let mut found: Vec<String> = Vec::new();
    for (field, name) in fields.chain(annotations) {
        check::token(&field, name, MAX_CDI_BYTES)?;
        if !found.iter().any(|known| known == name) {
            found.push(name.to_owned());
        }
        if found.len() > MAX_DEVICES {
            let problem = format!("asks for more than {MAX_DEVICES} CDI devices");
            return Err(BadRequest::invalid(field, problem));
        }
    }
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::super::annotations::tests::reader;
    use super::super::render::samples;
    use super::*;

    fn one(requested: cri::Mount) -> Result<MountConfig, BadRequest> {
        mounts(vec![requested]).map(|mut taken| taken.remove(0))
    }

    fn image_mount(change: impl FnOnce(&mut cri::Mount)) -> Result<MountConfig, BadRequest> {
        let mut requested = samples::image_mount();
        change(&mut requested);
        one(requested)
    }

    fn kubelet_error(refused: Result<MountConfig, BadRequest>) -> (KubeletError, String) {
        match refused {
            Err(BadRequest::Recognised { error, problem, .. }) => (error, problem),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn image_volumes_are_readonly_and_stay_inside_the_image() {
        let taken = image_mount(|m| m.image_sub_path = "a/b/".into()).unwrap();
        let image = taken.image.unwrap();
        assert_eq!(
            (image.image.as_str(), image.sub_path.as_str()),
            ("files:1", "a/b")
        );
        type Change = fn(&mut cri::Mount);
        let cases: [(Change, &str); 6] = [
            (|m| m.readonly = false, "readonly only"),
            (|m| m.host_path = "/srv".into(), "beside a host path"),
            (
                |m| m.image_sub_path = "../x".into(),
                "not a clean relative path",
            ),
            (
                |m| m.image_sub_path = "/etc".into(),
                "not a clean relative path",
            ),
            (
                |m| m.image_sub_path = "a/../../b".into(),
                "not a clean relative path",
            ),
            (
                |m| m.image_sub_path = "a\0".into(),
                "not a clean relative path",
            ),
        ];
        for (change, why) in cases {
            let (found, problem) = kubelet_error(image_mount(change));
            assert_eq!(found, KubeletError::ImageVolumeMountFailed);
            assert!(
                problem.contains(why) && problem.contains("/models"),
                "{problem}"
            );
        }
        let lost = one(cri::Mount {
            image_sub_path: "a".into(),
            ..Default::default()
        });
        assert!(matches!(lost, Err(BadRequest::Invalid { .. })));
    }

    #[test]
    fn recursively_read_only_needs_readonly_and_private() {
        let rro = cri::Mount {
            recursive_read_only: true,
            container_path: "/data".into(),
            ..Default::default()
        };
        let (found, problem) = kubelet_error(one(rro.clone()));
        assert_eq!(
            (found, problem.as_str()),
            (
                KubeletError::RroUnsupported,
                "of /data is set on a mount that is not readonly"
            )
        );
        for propagation in [1, 2] {
            let (_, problem) = kubelet_error(one(cri::Mount {
                readonly: true,
                propagation,
                ..rro.clone()
            }));
            assert!(problem.contains("not Private"), "{problem}");
        }
        let taken = one(cri::Mount {
            readonly: true,
            ..rro
        });
        assert!(taken.unwrap().recursive_read_only);
    }

    #[test]
    fn unknown_options_are_refused() {
        let with = |options: &[&str]| {
            one(cri::Mount {
                mount_options: options.iter().map(|o| (*o).to_owned()).collect(),
                ..Default::default()
            })
        };
        let taken = with(&["noexec", "ro"]).unwrap();
        assert!(taken.is_readonly() && taken.has_option("noexec") && !taken.readonly);
        for odd in ["", "bind", "suid", "exec", "noexec,suid", "size=1"] {
            assert!(with(&["nodev", odd]).is_err(), "{odd:?}");
        }
    }

    #[test]
    fn devices_are_paths_with_permissions() {
        let with = |host: &str, container: &str, permissions: &str| {
            devices(vec![cri::Device {
                container_path: container.into(),
                host_path: host.into(),
                permissions: permissions.into(),
            }])
        };
        assert_eq!(with("/dev/fuse", "/dev/fuse", "rwm").unwrap().len(), 1);
        for (host, container, permissions, field) in [
            ("", "/dev/x", "r", "host_path"),
            ("dev/x", "/dev/x", "r", "host_path"),
            ("/dev/../x", "/dev/x", "r", "host_path"),
            ("/dev/x", "", "r", "container_path"),
            ("/dev/x", "/dev/x\0", "r", "container_path"),
            ("/dev/x", "/dev/x", "", "permissions"),
            ("/dev/x", "/dev/x", "rwx", "permissions"),
            ("/dev/x", "/dev/x", "rwmr", "permissions"),
        ] {
            let refused = with(host, container, permissions).unwrap_err().to_string();
            assert!(
                refused.starts_with(&format!("config.devices[0].{field}")),
                "{refused}"
            );
        }
    }

    #[test]
    fn cdi_names_come_from_field_and_annotations_once_each() {
        let field = [cri::CdiDevice {
            name: "v.com/gpu=0".into(),
        }];
        let annotations = [
            ("cdi.k8s.io/a", "v.com/gpu=1,v.com/gpu=0"),
            ("cdi.k8s.io.example/b", "no,such"),
        ];
        let granted = reader(&annotations, &["cdi.k8s.io/*"]);
        let names = cdi_devices(&field, &granted).unwrap();
        assert_eq!(names, ["v.com/gpu=0", "v.com/gpu=1"]);
        let closed = cdi_devices(&field, &reader(&annotations, &[])).unwrap_err();
        assert!(closed.to_string().contains("cdi.k8s.io/a"), "{closed}");
        let odd = reader(&[("cdi.k8s.io/a", "v.com/gpu=1,")], &["cdi.k8s.io/*"]);
        assert!(cdi_devices(&[], &odd).is_err());
    }
}
