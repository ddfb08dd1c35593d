//! Pods and containers as plugins see them.
//!
//! Called by: [`super::events`], [`super::sync`]. Pure. Must not know: what plugins do with them.

use coracle_lifecycle::{ContainerRecord, ContainerState, Payload, PodRecord, Resources};
use coracle_proto::nri::v1 as nri;
use coracle_spec::{Device, DeviceKind, Mount, MountKind, MountPropagation, ResourceLimit};

/// The resource limits that a plugin can name, in the kernel's order.
const RLIMITS: [&str; 16] = [
    "CPU",
    "FSIZE",
    "DATA",
    "STACK",
    "CORE",
    "RSS",
    "NPROC",
    "NOFILE",
    "MEMLOCK",
    "AS",
    "LOCKS",
    "SIGPENDING",
    "MSGQUEUE",
    "NICE",
    "RTPRIO",
    "RTTIME",
];

/// A pod.
pub fn pod(record: &PodRecord) -> nri::PodSandbox {
    let view = record.view();
    let config = &view.config;
    nri::PodSandbox {
        id: view.id.to_string(),
        name: config.name.name.clone(),
        uid: config.name.uid.clone(),
        namespace: config.name.namespace.clone(),
        labels: config.labels.clone(),
        annotations: config.annotations.echo(),
        runtime_handler: config.handler_name().to_owned(),
        linux: Some(nri::LinuxPodSandbox {
            cgroup_parent: view.cgroup_parent,
            ..nri::LinuxPodSandbox::default()
        }),
        ips: view.ips.iter().map(ToString::to_string).collect(),
    }
}

/// A container that is planned.
pub fn container(pod: &PodRecord, record: &ContainerRecord) -> nri::Container {
    let (view, plan) = (record.view(&pod.id), &record.plan);
    let config = &view.config;
    let state = match view.state {
        ContainerState::Created => nri::ContainerState::ContainerCreated,
        ContainerState::Running => nri::ContainerState::ContainerRunning,
        ContainerState::Exited => nri::ContainerState::ContainerStopped,
        ContainerState::Unknown => nri::ContainerState::ContainerUnknown,
    };
    let env = plan.env.iter();
    let rlimits = match &plan.payload {
        Payload::Linux(linux) => linux.jail.rlimits.iter().filter_map(rlimit).collect(),
        Payload::Wasm(wasm) => wasm.rlimits.iter().filter_map(rlimit).collect(),
    };
    let cdi = config.cdi_devices.iter();
    nri::Container {
        id: view.id.to_string(),
        pod_sandbox_id: pod.id.to_string(),
        name: config.name.name.clone(),
        state: state as i32,
        labels: config.labels.clone(),
        annotations: config.annotations.echo(),
        args: plan.args.clone(),
        env: env.map(|(name, value)| format!("{name}={value}")).collect(),
        mounts: plan.mounts.iter().map(mount).collect(),
        linux: Some(linux(record)),
        pid: record.pid().map_or(0, i32::cast_unsigned),
        rlimits,
        created_at: view.created_at,
        started_at: view.started_at,
        finished_at: view.finished_at,
        exit_code: view.exit_code,
        status_reason: view.reason,
        status_message: view.message,
        cdi_devices: cdi
            .map(|name| nri::CdiDevice { name: name.clone() })
            .collect(),
        user: Some(nri::User {
            uid: view.uid,
            gid: view.gid,
            additional_gids: view.groups,
        }),
        image: Some(nri::Image {
            name: config.user_specified_image.clone(),
            digest: String::new(),
            config_digest: view.image_id,
        }),
    }
}

/// Most processes of a container, as plugins are shown it.
pub fn pids(record: &ContainerRecord) -> Option<i64> {
    match &record.plan.payload {
        Payload::Linux(linux) => linux.limits.pids,
        Payload::Wasm(_) => None,
    }
}

fn linux(record: &ContainerRecord) -> nri::LinuxContainer {
    let devices = match &record.plan.payload {
        Payload::Linux(linux) => linux.jail.devices.as_slice(),
        Payload::Wasm(_) => &[],
    };
    let requested = &record.config.resources;
    let mut limits = resources(requested);
    limits.pids = pids(record).map(|limit| nri::LinuxPids { limit });
    nri::LinuxContainer {
        devices: devices.iter().map(device).collect(),
        resources: Some(limits),
        oom_score_adj: Some(nri::OptionalInt64 {
            value: requested.oom_score_adj,
        }),
        cgroups_path: record.plan.cgroup.clone(),
        ..nri::LinuxContainer::default()
    }
}

/// Limits as CRI requests them; 0 and empty are not set.
pub fn resources(requested: &Resources) -> nri::LinuxResources {
    let signed = |value: i64| (value != 0).then_some(nri::OptionalInt64 { value });
    let unsigned = |value: i64| {
        let value = u64::try_from(value).ok().filter(|value| *value > 0);
        value.map(|value| nri::OptionalUInt64 { value })
    };
    let hugepages = requested.hugepages.iter();
    nri::LinuxResources {
        memory: Some(nri::LinuxMemory {
            limit: signed(requested.memory_limit_bytes),
            swap: signed(requested.memory_swap_limit_bytes),
            ..nri::LinuxMemory::default()
        }),
        cpu: Some(nri::LinuxCpu {
            shares: unsigned(requested.cpu_shares),
            quota: signed(requested.cpu_quota),
            period: unsigned(requested.cpu_period),
            cpus: requested.cpuset_cpus.clone(),
            mems: requested.cpuset_mems.clone(),
            ..nri::LinuxCpu::default()
        }),
        hugepage_limits: hugepages
            .map(|(size, limit)| nri::HugepageLimit {
                page_size: size.clone(),
                limit: *limit,
            })
            .collect(),
        unified: requested.unified.clone(),
        ..nri::LinuxResources::default()
    }
}

fn mount(mount: &Mount) -> nri::Mount {
    let kind = match &mount.kind {
        MountKind::Bind => "bind",
        _ => "",
    };
    let propagation = match mount.propagation {
        MountPropagation::Slave => "rslave",
        MountPropagation::Shared => "rshared",
        _ => "rprivate",
    };
    let mut options = vec!["rbind", propagation];
    options.push(if mount.readonly { "ro" } else { "rw" });
    for (name, is_set) in [
        ("nosuid", mount.nosuid),
        ("nodev", mount.nodev),
        ("noexec", mount.noexec),
    ] {
        if is_set {
            options.push(name);
        }
    }
    nri::Mount {
        destination: mount.target.clone(),
        r#type: kind.to_owned(),
        source: mount.source.display().to_string(),
        options: options.into_iter().map(str::to_owned).collect(),
    }
}

fn device(device: &Device) -> nri::LinuxDevice {
    let number = |value: u32| Some(nri::OptionalUInt32 { value });
    let kind = match device.kind {
        DeviceKind::Char => "c",
        DeviceKind::Block => "b",
    };
    nri::LinuxDevice {
        path: device.path.clone(),
        r#type: kind.to_owned(),
        major: i64::from(device.major),
        minor: i64::from(device.minor),
        file_mode: number(device.mode),
        uid: number(device.uid),
        gid: number(device.gid),
    }
}

fn rlimit(limit: &ResourceLimit) -> Option<nri::PosixRlimit> {
    let name = RLIMITS.get(limit.resource as usize)?;
    Some(nri::PosixRlimit {
        r#type: format!("RLIMIT_{name}"),
        hard: limit.hard,
        soft: limit.soft,
    })
}

/// A limit that a plugin named. Errors: there is no such resource; the soft limit is above the hard one.
pub fn to_rlimit(limit: &nri::PosixRlimit) -> Result<ResourceLimit, String> {
    let name = limit
        .r#type
        .strip_prefix("RLIMIT_")
        .unwrap_or(&limit.r#type);
    let number = RLIMITS.iter().position(|known| *known == name);
    let Some(resource) = number.and_then(|number| u32::try_from(number).ok()) else {
        return Err(format!("there is no resource {:?}", limit.r#type));
    };
    if limit.soft > limit.hard {
        return Err(format!(
            "{}: the soft limit {} is above the hard limit {}",
            limit.r#type, limit.soft, limit.hard
        ));
    }
    Ok(ResourceLimit {
        resource,
        soft: limit.soft,
        hard: limit.hard,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn limits_have_the_kernels_numbers() {
        for (name, number) in [
            ("RLIMIT_CPU", libc::RLIMIT_CPU),
            ("RLIMIT_CORE", libc::RLIMIT_CORE),
            ("NOFILE", libc::RLIMIT_NOFILE),
            ("RLIMIT_MEMLOCK", libc::RLIMIT_MEMLOCK),
            ("RLIMIT_RTTIME", libc::RLIMIT_RTTIME),
        ] {
            let limit = |soft, hard| nri::PosixRlimit {
                r#type: name.to_owned(),
                hard,
                soft,
            };
            let read = to_rlimit(&limit(1, 2)).unwrap();
            assert_eq!((read.resource, read.soft, read.hard), (number, 1, 2));
            assert!(rlimit(&read).unwrap().r#type.ends_with(name));
            assert!(to_rlimit(&limit(3, 2)).is_err());
        }
        let unknown = nri::PosixRlimit {
            r#type: "RLIMIT_X".to_owned(),
            ..nri::PosixRlimit::default()
        };
        assert!(to_rlimit(&unknown).is_err());
    }
}
