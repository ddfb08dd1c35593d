//! Namespaces of sandboxes and containers, including user namespaces.
//!
//! Called by `sandbox` and `container`. Invariant: a requested namespace or mapping that would not be made is refused,
//! never dropped.
//! Must not know: whether a container's config fits its sandbox; the lifecycle checks that.

use coracle_lifecycle::{
    IdMapping, NamespaceMode, Namespaces, PidNamespaceConfig, SecurityContext, UserNamespaceConfig,
};
use coracle_proto::runtime::v1 as cri;

use super::BadRequest;
use super::check;

/// Reads the namespaces of a sandbox. Without options it has its own of each.
pub(super) fn of_pod(
    field: &str,
    options: Option<&cri::NamespaceOption>,
) -> Result<(Namespaces, Option<UserNamespaceConfig>), BadRequest> {
    let absent = cri::NamespaceOption::default();
    let options = options.unwrap_or(&absent);
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
            "is Target, which a sandbox cannot have",
        ));
    }
    let namespaces = Namespaces {
        network: shared("network", options.network)?,
        pid,
        ipc: shared("ipc", options.ipc)?,
    };
    let field = format!("{field}.userns_options");
    let userns = userns(&field, options.userns_options.as_ref())?;
    if userns.is_some() {
        alone(&field, &namespaces)?;
    }
    Ok((namespaces, userns))
}

/// A pod with a user namespace shares no namespace with the node: root of one would be nobody in the other.
fn alone(field: &str, namespaces: &Namespaces) -> Result<(), BadRequest> {
    let shared = [
        ("network", namespaces.network),
        ("pid", namespaces.pid),
        ("ipc", namespaces.ipc),
    ];
    match shared.iter().find(|(_, mode)| *mode == NamespaceMode::Node) {
        Some((name, _)) => Err(BadRequest::unsupported(
            field,
            format!("asks for a user namespace in a pod whose {name} namespace is the node's"),
        )),
        None => Ok(()),
    }
}

/// Reads the namespaces of a container into `config`. Without options it stays as it is.
pub(super) fn of_container(
    field: &str,
    options: Option<&cri::NamespaceOption>,
    config: &mut SecurityContext,
) -> Result<(), BadRequest> {
    let Some(options) = options else {
        return Ok(());
    };
    config.node_network =
        mode(&format!("{field}.network"), options.network)? == NamespaceMode::Node;
    config.node_ipc = mode(&format!("{field}.ipc"), options.ipc)? == NamespaceMode::Node;
    config.pid = match mode(&format!("{field}.pid"), options.pid)? {
        NamespaceMode::Pod => PidNamespaceConfig::Pod,
        NamespaceMode::Container => PidNamespaceConfig::Container,
        NamespaceMode::Node => PidNamespaceConfig::Node,
        NamespaceMode::Target => {
            let field = format!("{field}.target_id");
            check::token(&field, &options.target_id, 64)?;
            PidNamespaceConfig::Target(options.target_id.clone())
        }
    };
    let field = format!("{field}.userns_options");
    let requested = options.userns_options.as_ref();
    let mapped = userns(&field, requested)?;
    config.userns = requested.map(|_| mapped);
    Ok(())
}

fn mode(field: &str, value: i32) -> Result<NamespaceMode, BadRequest> {
    match cri::NamespaceMode::try_from(value) {
        Ok(cri::NamespaceMode::Pod) => Ok(NamespaceMode::Pod),
        Ok(cri::NamespaceMode::Container) => Ok(NamespaceMode::Container),
        Ok(cri::NamespaceMode::Node) => Ok(NamespaceMode::Node),
        Ok(cri::NamespaceMode::Target) => Ok(NamespaceMode::Target),
        Err(_) => Err(BadRequest::invalid(
            field,
            format!("is {value}, which is not a namespace mode"),
        )),
    }
}

/// The kubelet sends `NODE` for every pod without a user namespace of its own.
fn userns(
    field: &str,
    userns: Option<&cri::UserNamespace>,
) -> Result<Option<UserNamespaceConfig>, BadRequest> {
    let Some(userns) = userns else {
        return Ok(None);
    };
    let mode_field = format!("{field}.mode");
    match mode(&mode_field, userns.mode)? {
        NamespaceMode::Node if userns.uids.is_empty() && userns.gids.is_empty() => Ok(None),
        NamespaceMode::Node => Err(BadRequest::invalid(
            mode_field,
            "is Node, and there are mappings",
        )),
        NamespaceMode::Pod => mapped(field, userns).map(Some),
        other => Err(BadRequest::invalid(
            mode_field,
            format!("is {other:?}, user namespaces are Pod or Node"),
        )),
    }
}

fn mapped(field: &str, userns: &cri::UserNamespace) -> Result<UserNamespaceConfig, BadRequest> {
    let uid = one(&format!("{field}.uids"), &userns.uids)?;
    let gid = one(&format!("{field}.gids"), &userns.gids)?;
    if uid != gid {
        return Err(BadRequest::unsupported(
            format!("{field}.gids"),
            "differs from uids, and a pod has one block of ids for both",
        ));
    }
    Ok(UserNamespaceConfig { uid, gid })
}

/// The one mapping of a pod. Source: the comments of cri-api `UserNamespace`.
fn one(field: &str, mappings: &[cri::IdMapping]) -> Result<IdMapping, BadRequest> {
    let [mapping] = mappings else {
        let problem = format!("has {} mappings, a pod has exactly 1", mappings.len());
        return Err(BadRequest::invalid(field, problem));
    };
    let mapping = id_mapping(&format!("{field}[0]"), mapping)?;
    if mapping.inside != 0 {
        let problem = format!("begins at container id {}, not 0", mapping.inside);
        return Err(BadRequest::invalid(format!("{field}[0]"), problem));
    }
    if mapping.outside == 0 {
        let problem = "maps to the node's root";
        return Err(BadRequest::invalid(format!("{field}[0].host_id"), problem));
    }
    Ok(mapping)
}

/// One mapping: not empty, and within 32 bits at both ends.
pub(super) fn id_mapping(field: &str, mapping: &cri::IdMapping) -> Result<IdMapping, BadRequest> {
    let count = mapping.length;
    let fits = |first: u32| first.checked_add(count).is_some();
    if count == 0 || !fits(mapping.host_id) || !fits(mapping.container_id) {
        let problem = format!("has length {count}, which is 0 or too long");
        return Err(BadRequest::invalid(field, problem));
    }
    Ok(IdMapping {
        inside: mapping.container_id,
        outside: mapping.host_id,
        count,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn map(container_id: u32, host_id: u32, length: u32) -> cri::IdMapping {
        cri::IdMapping {
            container_id,
            host_id,
            length,
        }
    }

    fn options(mode: i32, ids: &[cri::IdMapping]) -> cri::NamespaceOption {
        cri::NamespaceOption {
            userns_options: Some(cri::UserNamespace {
                mode,
                uids: ids.to_vec(),
                gids: ids.to_vec(),
            }),
            ..Default::default()
        }
    }

    #[test]
    fn a_pods_users_are_one_block_that_begins_at_container_root() {
        let (_, userns) = of_pod("o", Some(&options(0, &[map(0, 1000, 100_000)]))).unwrap();
        let expected = IdMapping {
            inside: 0,
            outside: 1000,
            count: 100_000,
        };
        let expected = UserNamespaceConfig {
            uid: expected,
            gid: expected,
        };
        assert_eq!(userns, Some(expected));
        assert_eq!(of_pod("o", Some(&options(2, &[]))).unwrap().1, None);
        let good = map(0, 1000, 65_536);
        let cases: [(i32, Vec<cri::IdMapping>, &str); 9] = [
            (0, vec![], "o.userns_options.uids has 0 mappings"),
            (0, vec![good, good], "has 2 mappings"),
            (0, vec![map(1, 1000, 9)], "begins at container id 1"),
            (0, vec![map(0, 0, 9)], "the node's root"),
            (0, vec![map(0, 1000, 0)], "length 0"),
            (0, vec![map(0, u32::MAX, 2)], "too long"),
            (1, vec![good], "is Container"),
            (3, vec![good], "is Target"),
            (2, vec![good], "is Node, and there are mappings"),
        ];
        for (mode, ids, why) in cases {
            let refused = of_pod("o", Some(&options(mode, &ids))).unwrap_err();
            assert!(refused.to_string().contains(why), "{refused}");
            assert!(matches!(refused, BadRequest::Invalid { .. }), "{refused}");
        }
        let mut uneven = options(0, &[good]);
        uneven.userns_options.as_mut().unwrap().gids[0].host_id = 7;
        assert!(matches!(
            of_pod("o", Some(&uneven)),
            Err(BadRequest::Unsupported { .. })
        ));
    }

    #[test]
    fn a_user_namespace_and_a_namespace_of_the_node_exclude_each_other() {
        let mut requested = options(0, &[map(0, 1000, 65_536)]);
        requested.network = 2;
        let refused = of_pod("o", Some(&requested)).unwrap_err();
        assert!(
            refused
                .to_string()
                .contains("network namespace is the node's"),
            "{refused}"
        );
    }

    #[test]
    fn a_container_requests_whose_processes_it_sees() {
        let read = |pid: i32, target: &str| {
            let mut config = SecurityContext::default();
            let options = cri::NamespaceOption {
                pid,
                target_id: target.to_owned(),
                ..Default::default()
            };
            of_container("o", Some(&options), &mut config).map(|()| config.pid)
        };
        assert_eq!(read(0, "").unwrap(), PidNamespaceConfig::Pod);
        assert_eq!(read(1, "").unwrap(), PidNamespaceConfig::Container);
        assert_eq!(read(2, "").unwrap(), PidNamespaceConfig::Node);
        assert_eq!(
            read(3, "abc").unwrap(),
            PidNamespaceConfig::Target("abc".to_owned())
        );
        assert_eq!(read(3, "").unwrap_err().to_string(), "o.target_id is empty");
        assert!(read(4, "").is_err());
    }

    #[test]
    fn a_sandbox_has_no_target_and_no_user_namespace_by_default() {
        let target = cri::NamespaceOption {
            pid: 3,
            ..Default::default()
        };
        assert!(of_pod("o", Some(&target)).is_err());
        let mut config = SecurityContext::default();
        of_container("o", Some(&target_free()), &mut config).unwrap();
        assert_eq!(config.userns, None);
        of_container("o", Some(&options(2, &[])), &mut config).unwrap();
        assert_eq!(config.userns, Some(None));
    }

    fn target_free() -> cri::NamespaceOption {
        cri::NamespaceOption::default()
    }
}
