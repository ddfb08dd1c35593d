//! Security contexts, namespaces and resources of sandboxes and containers.
//!
//! Called by `sandbox` and `container`. Invariants: a profile or mapping that was asked for and would not be
//! applied is refused, never dropped; what only widens a guest (privileged, capabilities) is not looked at,
//! because a Wasm guest has none of it either way.
//! Not here: paths, names, images.

use coracle_proto::runtime::v1 as cri;
use cri::security_profile::ProfileType;

use super::BadRequest;
use super::check;
use crate::lifecycle::{NamespaceMode, Namespaces, Resources, UserWish};

/// Kernel's bounds of a CPU period, in microseconds.
const CPU_PERIOD: (i64, i64) = (1_000, 1_000_000);

/// The shortest CPU quota the kernel takes, in microseconds.
const MIN_CPU_QUOTA: i64 = 1_000;

/// The most CPU shares there are; kubelet clamps to it, too.
const MAX_CPU_SHARES: i64 = 262_144;

/// Reads the namespaces of a sandbox. Absent options mean the pod's own of each.
pub(super) fn pod_namespaces(
    field: &str,
    options: Option<&cri::NamespaceOption>,
) -> Result<Namespaces, BadRequest> {
    let absent = cri::NamespaceOption::default();
    let options = options.unwrap_or(&absent);
    userns(
        &format!("{field}.userns_options"),
        options.userns_options.as_ref(),
    )?;
    let shared = |name: &str, value| {
        let field = format!("{field}.{name}");
        match mode(&field, value)? {
            found @ (NamespaceMode::Pod | NamespaceMode::Node) => Ok(found),
            other => Err(BadRequest::invalid(
                field,
                format!("is {other:?}, a sandbox takes Pod or Node"),
            )),
        }
    };
    let pid_field = format!("{field}.pid");
    let pid = mode(&pid_field, options.pid)?;
    if pid == NamespaceMode::Target {
        return Err(BadRequest::invalid(
            pid_field,
            "is Target, which a sandbox has not",
        ));
    }
    Ok(Namespaces {
        network: shared("network", options.network)?,
        pid,
        ipc: shared("ipc", options.ipc)?,
    })
}

/// Checks the namespaces of a container, which follow its sandbox's.
pub(super) fn container_namespaces(
    field: &str,
    options: Option<&cri::NamespaceOption>,
) -> Result<(), BadRequest> {
    let Some(options) = options else {
        return Ok(());
    };
    userns(
        &format!("{field}.userns_options"),
        options.userns_options.as_ref(),
    )?;
    mode(&format!("{field}.network"), options.network)?;
    mode(&format!("{field}.ipc"), options.ipc)?;
    let pid = format!("{field}.pid");
    match mode(&pid, options.pid)? {
        NamespaceMode::Target => Err(BadRequest::unsupported(
            pid,
            "asks for another container's namespace",
        )),
        NamespaceMode::Pod | NamespaceMode::Container | NamespaceMode::Node => Ok(()),
    }
}

fn mode(field: &str, value: i32) -> Result<NamespaceMode, BadRequest> {
    match cri::NamespaceMode::try_from(value) {
        Ok(cri::NamespaceMode::Pod) => Ok(NamespaceMode::Pod),
        Ok(cri::NamespaceMode::Container) => Ok(NamespaceMode::Container),
        Ok(cri::NamespaceMode::Node) => Ok(NamespaceMode::Node),
        Ok(cri::NamespaceMode::Target) => Ok(NamespaceMode::Target),
        Err(_) => Err(BadRequest::invalid(
            field,
            format!("is {value}, which is no namespace mode"),
        )),
    }
}

/// Kubelet sends `NODE` for every pod without a user namespace of its own.
fn userns(field: &str, userns: Option<&cri::UserNamespace>) -> Result<(), BadRequest> {
    let Some(userns) = userns else { return Ok(()) };
    let field = format!("{field}.mode");
    match mode(&field, userns.mode)? {
        NamespaceMode::Node => Ok(()),
        NamespaceMode::Pod => Err(BadRequest::unsupported(
            field,
            "asks for user namespaces, which are not built",
        )),
        other => Err(BadRequest::invalid(
            field,
            format!("is {other:?}, user namespaces are Pod or Node"),
        )),
    }
}

/// Checks the group rule and the ranges that sandboxes and containers share.
pub(super) fn user(
    field: &str,
    uid: Option<&cri::Int64Value>,
    gid: Option<&cri::Int64Value>,
    groups: &[i64],
) -> Result<UserWish, BadRequest> {
    let (uid, gid) = (uid.map(|v| v.value), gid.map(|v| v.value));
    uid.map_or(Ok(()), |uid| {
        check::id(&format!("{field}.run_as_user"), uid)
    })?;
    gid.map_or(Ok(()), |gid| {
        check::id(&format!("{field}.run_as_group"), gid)
    })?;
    for (index, group) in groups.iter().enumerate() {
        check::id(&format!("{field}.supplemental_groups[{index}]"), *group)?;
    }
    Ok(UserWish {
        uid,
        username: String::new(),
        gid,
        groups: groups.to_vec(),
    })
}

/// Refuses a group that comes without a user.
pub(super) fn group_needs_user(field: &str, user: &UserWish) -> Result<(), BadRequest> {
    if user.gid.is_some() && user.uid.is_none() && user.username.is_empty() {
        let problem = "is set without run_as_user or run_as_username";
        return Err(BadRequest::invalid(
            format!("{field}.run_as_group"),
            problem,
        ));
    }
    Ok(())
}

/// Takes the default and the absent profile; the built-in filter of a Wasm guest is tighter than both. A
/// profile of the node's own would not be applied.
pub(super) fn seccomp(
    field: &str,
    profile: Option<&cri::SecurityProfile>,
    path: &str,
) -> Result<(), BadRequest> {
    localhost_profile(field, profile)?;
    let old = format!("{field}_profile_path");
    check::printable(&old, path)?;
    if path.starts_with("localhost/") {
        return Err(BadRequest::unsupported(
            old,
            "names a profile of the node, which this build does not load",
        ));
    }
    Ok(())
}

/// Takes the default and the absent profile; one that is loaded by name would not be applied.
pub(super) fn apparmor(
    field: &str,
    profile: Option<&cri::SecurityProfile>,
    name: &str,
) -> Result<(), BadRequest> {
    localhost_profile(field, profile)?;
    let old = format!("{field}_profile");
    check::printable(&old, name)?;
    if name.starts_with("localhost/") {
        return Err(BadRequest::unsupported(
            old,
            "names a profile of the node, which this build does not load",
        ));
    }
    Ok(())
}

fn localhost_profile(
    field: &str,
    profile: Option<&cri::SecurityProfile>,
) -> Result<(), BadRequest> {
    let Some(profile) = profile else {
        return Ok(());
    };
    match ProfileType::try_from(profile.profile_type) {
        Ok(ProfileType::RuntimeDefault | ProfileType::Unconfined) => Ok(()),
        Ok(ProfileType::Localhost) if profile.localhost_ref.is_empty() => Err(BadRequest::invalid(
            format!("{field}.localhost_ref"),
            "is empty for a Localhost profile",
        )),
        Ok(ProfileType::Localhost) => {
            check::printable(&format!("{field}.localhost_ref"), &profile.localhost_ref)?;
            let problem = "is Localhost, and this build does not load profiles of the node";
            Err(BadRequest::unsupported(
                format!("{field}.profile_type"),
                problem,
            ))
        }
        Err(_) => {
            let problem = format!("is {}, which is no profile type", profile.profile_type);
            Err(BadRequest::invalid(
                format!("{field}.profile_type"),
                problem,
            ))
        }
    }
}

/// Reads resource limits. Absent means none.
pub(super) fn resources(
    field: &str,
    limits: Option<&cri::LinuxContainerResources>,
) -> Result<Resources, BadRequest> {
    let Some(limits) = limits else {
        return Ok(Resources::default());
    };
    cpu(field, limits)?;
    memory(field, limits)?;
    check::within(
        &format!("{field}.oom_score_adj"),
        limits.oom_score_adj,
        -1000,
        1000,
    )?;
    for (index, huge) in limits.hugepage_limits.iter().enumerate() {
        if huge.limit != 0 {
            let field = format!("{field}.hugepage_limits[{index}]");
            return Err(BadRequest::unsupported(
                field,
                "asks for huge pages, which are not built",
            ));
        }
    }
    limits
        .unified
        .keys()
        .try_for_each(|key| unified(field, key))?;
    Ok(Resources {
        cpu_period: limits.cpu_period,
        cpu_quota: limits.cpu_quota,
        cpu_shares: limits.cpu_shares,
        memory_limit_bytes: limits.memory_limit_in_bytes,
        oom_score_adj: limits.oom_score_adj,
        cpuset_cpus: limits.cpuset_cpus.clone(),
        cpuset_mems: limits.cpuset_mems.clone(),
        unified: limits.unified.clone(),
        memory_swap_limit_bytes: limits.memory_swap_limit_in_bytes,
    })
}

fn cpu(field: &str, limits: &cri::LinuxContainerResources) -> Result<(), BadRequest> {
    if limits.cpu_period != 0 {
        check::within(
            &format!("{field}.cpu_period"),
            limits.cpu_period,
            CPU_PERIOD.0,
            CPU_PERIOD.1,
        )?;
    }
    if limits.cpu_quota != 0 && limits.cpu_quota != -1 {
        check::within(
            &format!("{field}.cpu_quota"),
            limits.cpu_quota,
            MIN_CPU_QUOTA,
            i64::MAX / 1_000,
        )?;
    }
    check::within(
        &format!("{field}.cpu_shares"),
        limits.cpu_shares,
        0,
        MAX_CPU_SHARES,
    )?;
    cpuset(&format!("{field}.cpuset_cpus"), &limits.cpuset_cpus)?;
    cpuset(&format!("{field}.cpuset_mems"), &limits.cpuset_mems)
}

fn memory(field: &str, limits: &cri::LinuxContainerResources) -> Result<(), BadRequest> {
    let (limit, with_swap) = (
        limits.memory_limit_in_bytes,
        limits.memory_swap_limit_in_bytes,
    );
    check::within(
        &format!("{field}.memory_limit_in_bytes"),
        limit,
        0,
        i64::MAX,
    )?;
    let field = format!("{field}.memory_swap_limit_in_bytes");
    check::within(&field, with_swap, -1, i64::MAX)?;
    if with_swap > 0 && with_swap < limit {
        return Err(BadRequest::invalid(
            field,
            format!("is {with_swap}, less than the memory limit {limit}"),
        ));
    }
    Ok(())
}

/// A kernel list of numbers: `0-3,7`.
fn cpuset(field: &str, list: &str) -> Result<(), BadRequest> {
    let number = |text: &str| {
        (text.len() <= 5)
            .then(|| text.parse::<u32>().ok())
            .flatten()
    };
    let good = |part: &str| match part.split_once('-') {
        Some((low, high)) => number(low)
            .zip(number(high))
            .is_some_and(|(low, high)| low <= high),
        None => number(part).is_some(),
    };
    if list.is_empty() || list.split(',').all(good) {
        return Ok(());
    }
    Err(BadRequest::invalid(field, "is not a list like 0-3,7"))
}

/// A key of `unified` is the name of a file in a cgroup: `memory.oom.group`.
fn unified(field: &str, key: &str) -> Result<(), BadRequest> {
    let is_file = key.contains('.')
        && key.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
        && key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_'));
    if is_file && !key.starts_with("cgroup.") {
        return Ok(());
    }
    Err(BadRequest::invalid(
        format!("{field}.unified"),
        "has a key that is no controller's file",
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn limits(
        change: impl FnOnce(&mut cri::LinuxContainerResources),
    ) -> Result<Resources, BadRequest> {
        let mut limits = cri::LinuxContainerResources::default();
        change(&mut limits);
        resources("linux.resources", Some(&limits))
    }

    #[test]
    fn impossible_resources_are_refused_by_field() {
        type Change = fn(&mut cri::LinuxContainerResources);
        let cases: [(&str, Change); 12] = [
            ("cpu_period", |l| l.cpu_period = 999),
            ("cpu_period", |l| l.cpu_period = -1),
            ("cpu_quota", |l| l.cpu_quota = 1),
            ("cpu_quota", |l| l.cpu_quota = -2),
            ("cpu_shares", |l| l.cpu_shares = i64::MAX),
            ("cpuset_cpus", |l| l.cpuset_cpus = "3-1".into()),
            ("cpuset_cpus", |l| l.cpuset_cpus = "0\n".into()),
            ("cpuset_mems", |l| l.cpuset_mems = "all".into()),
            ("memory_limit_in_bytes", |l| l.memory_limit_in_bytes = -5),
            ("memory_swap_limit_in_bytes", |l| {
                (l.memory_limit_in_bytes, l.memory_swap_limit_in_bytes) = (10, 5)
            }),
            ("oom_score_adj", |l| l.oom_score_adj = 1001),
            ("unified", |l| {
                drop(l.unified.insert("../memory.max".into(), "1".into()))
            }),
        ];
        for (field, change) in cases {
            let refused = limits(change).unwrap_err();
            assert!(matches!(refused, BadRequest::Invalid { .. }), "{refused}");
            assert!(
                refused
                    .to_string()
                    .starts_with(&format!("linux.resources.{field}")),
                "{refused}"
            );
        }
    }

    #[test]
    fn what_kubelet_sends_is_taken_as_it_is() {
        let taken = limits(|l| {
            (l.cpu_period, l.cpu_quota, l.cpu_shares) = (100_000, 50_000, 512);
            (l.memory_limit_in_bytes, l.oom_score_adj) = (64 << 20, 985);
            l.cpuset_cpus = "0-3,7".into();
            l.unified.insert("memory.oom.group".into(), "1".into());
            l.hugepage_limits.push(cri::HugepageLimit {
                page_size: "2MB".into(),
                limit: 0,
            });
        });
        let taken = taken.unwrap();
        assert_eq!(
            (taken.cpu_period, taken.cpu_quota, taken.cpu_shares),
            (100_000, 50_000, 512)
        );
        assert_eq!(
            (taken.memory_limit_bytes, taken.oom_score_adj),
            (64 << 20, 985)
        );
        assert_eq!(taken.unified["memory.oom.group"], "1");
    }

    #[test]
    fn user_namespaces_of_the_node_are_no_wish() {
        let with = |mode: i32| cri::NamespaceOption {
            userns_options: Some(cri::UserNamespace {
                mode,
                ..Default::default()
            }),
            ..Default::default()
        };
        assert!(pod_namespaces("o", Some(&with(2))).is_ok());
        assert!(matches!(
            pod_namespaces("o", Some(&with(0))),
            Err(BadRequest::Unsupported { .. })
        ));
        for odd in [1, 3, 9] {
            assert!(
                matches!(
                    pod_namespaces("o", Some(&with(odd))),
                    Err(BadRequest::Invalid { .. })
                ),
                "{odd}"
            );
        }
    }

    #[test]
    fn profiles_that_would_not_be_applied_are_refused() {
        let profile = |profile_type, localhost_ref: &str| cri::SecurityProfile {
            profile_type,
            localhost_ref: localhost_ref.into(),
        };
        assert!(seccomp("s", None, "").is_ok());
        assert!(seccomp("s", Some(&profile(0, "")), "runtime/default").is_ok());
        assert!(matches!(
            seccomp("s", Some(&profile(2, "")), ""),
            Err(BadRequest::Invalid { .. })
        ));
        assert!(matches!(
            seccomp("s", Some(&profile(2, "a.json")), ""),
            Err(BadRequest::Unsupported { .. })
        ));
        assert!(matches!(
            seccomp("s", Some(&profile(7, "")), ""),
            Err(BadRequest::Invalid { .. })
        ));
        assert!(matches!(
            apparmor("a", None, "localhost/x"),
            Err(BadRequest::Unsupported { .. })
        ));
    }

    #[test]
    fn a_group_needs_a_user() {
        let group = cri::Int64Value { value: 1 };
        let mut wish = user("s", None, Some(&group), &[]).unwrap();
        assert!(group_needs_user("s", &wish).is_err());
        wish.username = "nobody".into();
        assert!(group_needs_user("s", &wish).is_ok());
        let too_large = cri::Int64Value { value: 1 << 31 };
        assert!(user("s", Some(&too_large), None, &[]).is_err());
        assert!(
            user("s", None, None, &[0, -1])
                .unwrap_err()
                .to_string()
                .contains("supplemental_groups[1]")
        );
    }
}
