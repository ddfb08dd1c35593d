//! Turns collected adjustments into what the lifecycle applies.
//!
//! Called by: [`super::events`], on the blocking pool: devices are looked up on the node.
//! Invariants: a device is one that the node has, with the numbers that the plugin gave; everything else is checked by
//! the rules for the kubelet's own requests when the container is planned again.
//! Must not know: plugins' protocol, how a container is planned.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use coracle_lifecycle::{
    Adjusted, Annotations, ContainerRecord, DeviceConfig, MountConfig, NetDevice, Propagation,
};
use coracle_proto::nri::v1 as nri;
use coracle_spec::Scheduling;

use super::adjust::{Adjustments, merge_limits, scheduling};
use super::convert::to_rlimit;
use super::owners::Field;

/// The container `record` as `adjustments` change it; `plugins` made them. Blocks. Errors: the plugin, the field and
/// what is wrong.
pub fn adjusted(
    record: &ContainerRecord,
    adjustments: &Adjustments,
    plugins: String,
) -> Result<Adjusted, String> {
    let mut config = (*record.config).clone();
    let mut annotations = config.annotations.echo();
    for (key, value) in &adjustments.annotations {
        match value {
            Some(value) => annotations.insert(key.clone(), value.clone()),
            None => annotations.remove(key),
        };
    }
    config.annotations = Annotations::new(annotations);
    config.mounts = mounts(record, adjustments)?;
    config.devices = devices(config.devices, adjustments)?;
    config
        .cdi_devices
        .extend(adjustments.cdi_devices.iter().cloned());
    let (resources, pids) = merge_limits(&config.resources, &adjustments.resources)
        .map_err(|why| format!("{plugins}: {why}"))?;
    config.resources = resources;
    if let Some(score) = oom_score(adjustments)? {
        config.resources.oom_score_adj = score;
    }
    let scheduling = scheduling(adjustments)?;
    let net_devices = adjustments.net_devices.iter();
    let env = adjustments.env.iter();
    let rlimits = adjustments.rlimits.values().map(to_rlimit);
    Ok(Adjusted {
        plugins,
        config,
        args: adjustments.args.clone(),
        env: env
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
        rlimits: rlimits.collect::<Result<_, _>>()?,
        pids,
        scheduling,
        net_devices: net_devices
            .map(|(name, device)| NetDevice::new(name, &device.name))
            .collect::<Result<_, _>>()?,
    })
}

fn oom_score(adjustments: &Adjustments) -> Result<Option<i64>, String> {
    match adjustments.oom_score_adj {
        Some(score) if !(-1000..=1000).contains(&score) => {
            let plugin = adjustments.owners.of(Field::OomScoreAdj, "");
            Err(format!(
                "plugin {plugin}: oom_score_adj: {score} is not between -1000 and 1000"
            ))
        }
        score => Ok(score),
    }
}

fn scheduling(adjustments: &Adjustments) -> Result<Scheduling, String> {
    let (cpu, io) = (&adjustments.scheduler, &adjustments.io_priority);
    let memory = &adjustments.memory_policy;
    Ok(Scheduling {
        cpu: cpu.as_ref().map(scheduling::cpu).transpose()?,
        io: io.as_ref().map(scheduling::io).transpose()?,
        memory: memory.as_ref().map(scheduling::memory).transpose()?,
    })
}

fn mounts(record: &ContainerRecord, adjustments: &Adjustments) -> Result<Vec<MountConfig>, String> {
    let clean = |path: &str| path.trim_end_matches('/').to_owned();
    let mut mounts = record.config.mounts.clone();
    for path in &adjustments.removed_mounts {
        let before = mounts.len();
        mounts.retain(|mount| clean(&mount.container_path) != clean(path));
        let mut planned = record.plan.mounts.iter();
        let is_ours = planned.any(|mount| mount.target == clean(path));
        if mounts.len() == before && is_ours {
            return Err(format!(
                "mounts: {path:?} is not a mount of the container's request and cannot be removed"
            ));
        }
    }
    for mount in adjustments.mounts.values().flatten() {
        let config = mount_config(mount).map_err(|why| {
            let path = &mount.destination;
            let plugin = adjustments.owners.of(Field::Mounts, path);
            format!("plugin {plugin}: mounts: {path:?}: {why}")
        })?;
        mounts.push(config);
    }
    Ok(mounts)
}

fn mount_config(mount: &nri::Mount) -> Result<MountConfig, String> {
    let has = |name: &str| mount.options.iter().any(|option| option == name);
    let is_bind = match mount.r#type.as_str() {
        "bind" => true,
        "" | "none" => has("bind") || has("rbind"),
        _ => false,
    };
    if !is_bind {
        return Err(format!(
            "type {:?} is not a bind mount, the only kind that plugins can add",
            mount.r#type
        ));
    }
    let mut config = MountConfig {
        host_path: PathBuf::from(&mount.source),
        container_path: mount.destination.clone(),
        readonly: false,
        propagation: Propagation::Private,
        selinux_relabel: false,
        recursive_read_only: false,
        image: None,
        options: Vec::new(),
        uid_mappings: Vec::new(),
        gid_mappings: Vec::new(),
    };
    for option in &mount.options {
        match option.as_str() {
            "ro" => config.readonly = true,
            "slave" | "rslave" => config.propagation = Propagation::HostToContainer,
            "shared" | "rshared" => config.propagation = Propagation::Bidirectional,
            "nosuid" | "nodev" | "noexec" => config.options.push(option.clone()),
            "bind" | "rbind" | "private" | "rprivate" | "rw" | "relatime" => {}
            other => return Err(format!("{other:?} is not a known option")),
        }
    }
    Ok(config)
}

fn devices(
    mut devices: Vec<DeviceConfig>,
    adjustments: &Adjustments,
) -> Result<Vec<DeviceConfig>, String> {
    for (path, device) in &adjustments.devices {
        devices.retain(|known| known.container_path != *path);
        let Some(device) = device else { continue };
        let host = host_node(device).map_err(|why| {
            let plugin = adjustments.owners.of(Field::Devices, path);
            format!("plugin {plugin}: devices: {path:?}: {why}")
        })?;
        devices.push(DeviceConfig {
            container_path: path.clone(),
            host_path: host.display().to_string(),
            permissions: "rwm".to_owned(),
        });
    }
    Ok(devices)
}

/// The node's own device with these numbers.
fn host_node(device: &nri::LinuxDevice) -> Result<PathBuf, String> {
    let class = match device.r#type.as_str() {
        "c" | "u" => "char",
        "b" => "block",
        other => return Err(format!("type {other:?} is neither c nor b")),
    };
    if device.file_mode.is_some() || device.uid.is_some() || device.gid.is_some() {
        return Err("mode and owner are those of the node's device and cannot be set".to_owned());
    }
    let numbers = format!("{}:{}", device.major, device.minor);
    let is_it = |path: &Path| {
        let found = std::fs::metadata(path).ok().filter(|found| {
            let kind = found.file_type();
            let rdev = found.rdev();
            let same =
                format!("{}:{}", rustix::fs::major(rdev), rustix::fs::minor(rdev)) == numbers;
            same && match class {
                "char" => kind.is_char_device(),
                _ => kind.is_block_device(),
            }
        });
        found.is_some()
    };
    let own = Path::new(&device.path);
    if own.starts_with("/dev") && is_it(own) {
        return Ok(own.to_owned());
    }
    let facts = format!("/sys/dev/{class}/{numbers}/uevent");
    let facts = std::fs::read_to_string(facts)
        .map_err(|error| format!("the node has no {class} device {numbers}: {error}"))?;
    let mut names = facts
        .lines()
        .filter_map(|line| line.strip_prefix("DEVNAME="));
    let path = names.next().map(|name| Path::new("/dev").join(name));
    path.filter(|path| is_it(path))
        .ok_or_else(|| format!("the node has no file for {class} device {numbers}"))
}
