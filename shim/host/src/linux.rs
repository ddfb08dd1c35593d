//! The part of a plan that only a Linux container has: its jail, its filter, its limits, its pod's files.
//!
//! Called by: [`super::plan`], on the blocking pool. Calls: the submodules, each with one rule of CRI.
//! Invariants: a container's request beyond its pod's is refused; a request that the node cannot meet is refused; the
//! jail of a plan can be built without asking anybody again.
//! Must not know: building the jail, names of users, mounts of the kubelet.

mod capabilities;
pub(crate) mod cdi;
mod devices;
pub(super) mod files;
mod pids;
mod profiles;
mod volumes;

use std::path::Path;

use coracle_cgroup::{Exposure, Limits};
use coracle_images::Image;
use coracle_lifecycle::{
    ContainerConfig, Error, HandlerSettings, Kind, LinuxPlan, NamespaceMode, PidNamespaceConfig,
    PodRecord, SeccompPlan, UserNamespaceConfig, limits,
};
use coracle_spec::id::ContainerId;
use coracle_spec::{
    Floor, Hook, Identity, LinuxJail, Mount, PIDS_LIMIT, PidNamespaceMode, ResourceLimit,
    Scheduling,
};

pub use self::capabilities::usual as usual_capabilities;
use self::cdi::Additions;
use self::devices::{Grant, Owner};
pub use self::pids::{node_pids, pids_limit};
pub use self::profiles::{DefaultProfile, default_profile};
use self::profiles::{LabelRequest, SecurityFiles};
use super::config::DeviceSettings;
use super::errors::invalid;
use super::mounts;
use super::paths::Lookup;

/// The search path of a container whose image has none. Source: containerd, `WithDefaultPathEnv`.
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Size of a pod's `/dev/shm`: that of other runtimes. Bytes.
const SHM_BYTES: u64 = 64 << 20;

/// Open files: systemd's default for a service, independent of the daemon's own limit.
const OPEN_FILES: ResourceLimit = ResourceLimit {
    resource: libc::RLIMIT_NOFILE,
    soft: 1024,
    hard: 524_288,
};

/// The container that is planned, and the directories of its pod.
pub(super) struct Subject<'a> {
    /// The pod's current record.
    pub pod: &'a PodRecord,
    /// What its handler sets.
    pub handler: HandlerSettings,
    /// Whether the kernel keeps every container from writing the limits of its cgroup.
    pub guards_limits: bool,
    /// The container.
    pub id: &'a ContainerId,
    /// Its config.
    pub config: &'a ContainerConfig,
    /// Its image.
    pub image: &'a Image,
    /// The directories of the pod's containers.
    pub containers: &'a Path,
    /// The directory for the pod's files of this container.
    pub files: &'a Path,
}

/// Loads the AppArmor profile for containers that request no other, if it is not loaded. Blocks.
///
/// Errors: AppArmor's parser refuses it; containers that need it will be refused, too.
pub fn load_default_profile() -> Result<DefaultProfile, Error> {
    profiles::load_default(&SecurityFiles::of_node())
}

/// The environment that an image and a container override.
pub(super) fn usual_environment(subject: &Subject<'_>, home: &str) -> Vec<(&'static str, String)> {
    let mut usual = vec![
        ("PATH", USUAL_PATH.to_owned()),
        ("HOSTNAME", files::hostname(subject.pod)),
        ("HOME", home.to_owned()),
    ];
    if subject.config.tty {
        usual.push(("TERM", "xterm".to_owned()));
    }
    usual
}

/// The node's devices for a container.
#[derive(Default)]
pub(super) struct Hardware {
    /// Nodes, each once: the host's if the container is privileged, the requested ones, those of CDI.
    grants: Vec<Grant>,
    /// What CDI adds in addition.
    pub additions: Additions,
}

impl Hardware {
    /// Whether a container requests any of it.
    pub(super) fn is_requested_by(config: &ContainerConfig) -> bool {
        config.security.privileged || !config.devices.is_empty() || !config.cdi_devices.is_empty()
    }

    /// Looks up the node's devices and specifications. Errors: Invalid, with the device and what is wrong with it;
    /// Exhausted when too many calls wait for its file system.
    pub(super) fn find(
        config: &ContainerConfig,
        settings: &DeviceSettings,
        lookup: &Lookup<'_>,
    ) -> Result<Self, Error> {
        Self::look(config, settings, lookup).map_err(|refusal| match lookup.was_refused() {
            true => Error::new(Kind::Exhausted, refusal.to_string()),
            false => refusal,
        })
    }

    fn look(
        config: &ContainerConfig,
        settings: &DeviceSettings,
        lookup: &Lookup<'_>,
    ) -> Result<Self, Error> {
        let owner = match settings.owned_by_user {
            true => Owner::of(config),
            false => Owner::default(),
        };
        let additions = cdi::additions(&config.cdi_devices, settings, owner, lookup)?;
        let mut grants = match config.security.privileged {
            true => devices::of_host(Path::new("/dev"), lookup)?,
            false => Vec::new(),
        };
        grants.extend(devices::requested(&config.devices, owner, lookup)?);
        grants.extend(additions.grants.iter().cloned());
        let grants = devices::merged(grants)?;
        Ok(Self { grants, additions })
    }
}

/// Decides how the container is confined. Adds its pod's files to `mounts`, which contain the kubelet's. Blocks.
/// Errors: Invalid, with the request and why it cannot be met.
pub(super) fn plan(
    subject: &Subject<'_>,
    hardware: &Hardware,
    mounts: &mut Vec<Mount>,
) -> Result<LinuxPlan, Error> {
    let (config, security) = (subject.config, &subject.config.security);
    fits_its_pod(subject)?;
    let seccomp = profiles::seccomp(&security.seccomp, security.privileged)?;
    let volumes = volumes::of_image(&subject.image.config.volumes, mounts)?;
    let grants = &hardware.grants;
    let jail = jail(subject, grants, volumes)?;
    let floor = floor(subject, &jail);
    let exposure = exposure(subject, &jail, &seccomp, floor);
    let hooks = hardware.additions.hooks.clone();
    are_apart(&jail, &hooks)?;
    let net_devices = hardware.additions.net_devices.clone();
    let own = files::PodFiles {
        pod: subject.pod,
        directory: subject.files,
    };
    own.add(config.readonly_rootfs, mounts);
    mounts::sort(mounts);
    let plan = LinuxPlan {
        jail: Box::new(jail),
        seccomp,
        floor,
        limits: Limits {
            devices: Some(devices::rules(grants, security.privileged)),
            pids: pids_limit(subject.handler.pids_limit.unwrap_or(PIDS_LIMIT))
                .and_then(|limit| limit.try_into().ok()),
            ..limits::linux_limits(&config.resources)
        },
        exposure,
        hooks,
        node_hooks: hardware.additions.node_hooks.clone(),
        net_devices,
    };
    plan.can_move_devices(subject.pod)?;
    Ok(plan)
}

/// Refuses hooks in a pid namespace with other containers, whose programs could trace these programs of the node.
fn are_apart(jail: &LinuxJail, hooks: &[Hook]) -> Result<(), Error> {
    match (hooks.first(), &jail.pid) {
        (Some(hook), PidNamespaceMode::Pod | PidNamespaceMode::Target(_)) => Err(invalid(format!(
            "a requested CDI device has the hook {:?}, which cannot run where containers share their processes \
             (shareProcessNamespace): give the container a pid namespace of its own",
            hook.path
        ))),
        _ => Ok(()),
    }
}

/// What the container can do to its own cgroup: a program that may make a user namespace can write it, unless the kernel
/// guards the limits itself, or the container's root is not the node's.
fn exposure(
    subject: &Subject<'_>,
    jail: &LinuxJail,
    seccomp: &SeccompPlan,
    floor: Floor,
) -> Exposure {
    let is_default = *seccomp == SeccompPlan::Default && !is_admin(jail);
    let is_filtered = is_default || floor.no_user_namespaces;
    let has_userns = subject.pod.config.userns.is_some();
    match subject.config.security.privileged {
        true => Exposure::Privileged,
        false if subject.guards_limits || is_filtered || has_userns => Exposure::Guarded,
        false => Exposure::Inner,
    }
}

/// What the container may not do whatever its filter allows: what its handler forbids, and sockets that a list of
/// destinations does not see.
fn floor(subject: &Subject<'_>, jail: &LinuxJail) -> Floor {
    let pod = &subject.pod.config;
    Floor {
        no_user_namespaces: subject.handler.no_user_namespaces && !is_admin(jail),
        only_governed_sockets: pod.egress.is_some() || pod.is_offline(),
    }
}

fn is_admin(jail: &LinuxJail) -> bool {
    jail.capabilities.bounding & capabilities::SYS_ADMIN != 0
}

fn jail(subject: &Subject<'_>, grants: &[Grant], volumes: Vec<String>) -> Result<LinuxJail, Error> {
    let security = &subject.config.security;
    let node = SecurityFiles::of_node();
    let requested = label_request(subject.pod, subject.config);
    let labels = profiles::selinux(&requested, &node)?;
    // It belongs to the pod, whichever container comes first.
    let shared = LabelRequest {
        own: None,
        privileged: false,
        ..requested
    };
    let shown = |paths: &[String]| match security.privileged {
        true => Vec::new(),
        false => paths.to_vec(),
    };
    Ok(LinuxJail {
        tty: subject.config.tty,
        pid: pid_space(subject)?,
        privileged: security.privileged,
        capabilities: capabilities::sets(security, capabilities::own()?)?,
        no_new_privs: security.no_new_privs,
        masked_paths: shown(&security.masked_paths),
        readonly_paths: shown(&security.readonly_paths),
        devices: grants.iter().map(|grant| grant.device.clone()).collect(),
        rlimits: rlimits(&subject.handler.rlimits),
        umask: 0o022,
        apparmor: profiles::apparmor(
            &security.apparmor,
            security.privileged,
            &subject.handler.apparmor_profiles,
            &node,
        )?,
        selinux: labels.process,
        mount_label: labels.mount,
        volumes,
        shm_bytes: SHM_BYTES,
        shm_label: profiles::selinux(&shared, &node)?.mount,
        scheduling: Scheduling::default(),
    })
}

/// The limits of a container's programs: those of its handler, and the usual one of open files unless the handler sets that.
fn rlimits(own: &[ResourceLimit]) -> Vec<ResourceLimit> {
    let sets_files = own
        .iter()
        .any(|limit| limit.resource == OPEN_FILES.resource);
    let usual = (!sets_files).then_some(OPEN_FILES);
    usual.into_iter().chain(own.iter().cloned()).collect()
}

/// The label request of a container: its own parts, then its pod's.
fn label_request<'a>(pod: &'a PodRecord, config: &'a ContainerConfig) -> LabelRequest<'a> {
    LabelRequest {
        own: config.security.selinux.as_ref(),
        pod: pod.config.selinux.as_ref(),
        level: pod.selinux_level.as_deref(),
        privileged: config.security.privileged,
        // Such a pod works on the node's own files.
        with_node: [pod.config.namespaces.pid, pod.config.namespaces.ipc]
            .contains(&NamespaceMode::Node),
    }
}

/// The label for the files of a container's volumes, where volumes are relabelled.
///
/// Errors: as for a container's own label.
pub(super) fn volume_label(
    pod: &PodRecord,
    config: &ContainerConfig,
) -> Result<Option<String>, Error> {
    let labels = profiles::selinux(&label_request(pod, config), &SecurityFiles::of_node())?;
    Ok(labels.mount)
}

/// Whether this kernel runs SELinux.
pub(super) fn has_selinux() -> bool {
    profiles::has_selinux(&SecurityFiles::of_node())
}

/// Refuses namespaces of the node that the pod does not have.
fn fits_its_pod(subject: &Subject<'_>) -> Result<(), Error> {
    let (pod, security) = (&subject.pod.config, &subject.config.security);
    if security.privileged && !pod.privileged {
        return Err(invalid(
            "a privileged container is requested in a sandbox that is not privileged".to_owned(),
        ));
    }
    let node = NamespaceMode::Node;
    for (name, requested, own) in [
        ("network", security.node_network, pod.namespaces.network),
        ("ipc", security.node_ipc, pod.namespaces.ipc),
        (
            "pid",
            security.pid == PidNamespaceConfig::Node,
            pod.namespaces.pid,
        ),
    ] {
        if requested && own != node {
            return Err(invalid(format!(
                "the node's {name} namespace is requested, but the sandbox has {own:?} as its own"
            )));
        }
    }
    let shown = |userns: Option<UserNamespaceConfig>| match userns {
        None => "the node's users".to_owned(),
        Some(own) => format!("{} users from host id {}", own.uid.count, own.uid.outside),
    };
    match security.userns {
        Some(requested) if requested != pod.userns => Err(invalid(format!(
            "the container asks for {}, its sandbox has {}",
            shown(requested),
            shown(pod.userns)
        ))),
        _ => Ok(()),
    }
}

/// In a pod with a user namespace, every id must be in the pod's map.
pub(super) fn has_ids(pod: &PodRecord, who: &Identity) -> Result<(), Error> {
    let Some(userns) = &pod.config.userns else {
        return Ok(());
    };
    let users = [("user", who.uid)].into_iter();
    let groups = [who.gid].into_iter().chain(who.groups.iter().copied());
    let mut ids = users.chain(groups.map(|gid| ("group", gid)));
    match ids.find(|(_, id)| *id >= userns.uid.count) {
        Some((what, id)) => Err(invalid(format!(
            "{what} id {id} is requested, but the sandbox's users are 0 to {}",
            userns.uid.count - 1
        ))),
        None => Ok(()),
    }
}

fn pid_space(subject: &Subject<'_>) -> Result<PidNamespaceMode, Error> {
    let in_node = subject.pod.config.namespaces.pid == NamespaceMode::Node;
    match &subject.config.security.pid {
        PidNamespaceConfig::Node => Ok(PidNamespaceMode::Node),
        // The sandbox uses the node's.
        PidNamespaceConfig::Unset | PidNamespaceConfig::Pod if in_node => {
            Ok(PidNamespaceMode::Node)
        }
        PidNamespaceConfig::Unset | PidNamespaceConfig::Container => Ok(PidNamespaceMode::Own),
        PidNamespaceConfig::Pod => Ok(PidNamespaceMode::Pod),
        PidNamespaceConfig::Target(id) => target(subject, id),
    }
}

/// Another container of the same pod; it exists if its directory does.
fn target(subject: &Subject<'_>, id: &str) -> Result<PidNamespaceMode, Error> {
    let absent = || {
        invalid(format!(
            "the processes of container {id:?} are requested, but sandbox {} has no such container",
            subject.pod.id
        ))
    };
    let target: ContainerId = id.parse().map_err(|_| absent())?;
    if target == *subject.id || !subject.containers.join(target.as_str()).is_dir() {
        return Err(absent());
    }
    Ok(PidNamespaceMode::Target(target))
}

#[cfg(test)]
#[path = "linux/tests.rs"]
mod tests;
