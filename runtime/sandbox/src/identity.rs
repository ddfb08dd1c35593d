//! A Wasm container's ids on the host: never root, from a range of its pod alone, with an id map for its mounts.
//!
//! Called by [`super::build`]. Container ids 0 to 65,471 map to the pod's range in order; ids above that (OpenShift
//! hands out ids near 10^9) take the range's last 64 slots.
//! If a volume's filesystem does not support id maps, a non-root user has the same id on the host; root is refused,
//! because no container becomes host root.
//! Invariants: a mapped id is always inside the pod's range; an unmapped one is never 0.
//! It must not know how mounts are made.

use std::os::fd::{BorrowedFd, OwnedFd};

use coracle_spec::error::{Context as _, Error, Kind, Result};
use coracle_spec::{ContainerSpec, IdRange};
use coracle_sys::userns::{self, Extent, Holder};

/// The overflow id, which owns files with unmapped ids.
pub(super) const NOBODY: u32 = 65_534;

/// A container's ids on the host, and the id map of its mounts.
#[derive(Debug)]
pub struct HostIdentity {
    /// Host user.
    pub uid: u32,
    /// Host group.
    pub gid: u32,
    /// Host supplementary groups.
    pub groups: Vec<u32>,
    /// Host id of container id 0, the owner of mount points.
    pub root: u32,
    /// A user namespace whose id map every mount of the container has; `None` if its ids are the host's own, or nothing is
    /// mounted.
    pub map: Option<OwnedFd>,
}

/// The id map of a pod whose containers use only ids below 65,472, as nearly every pod's do. Making it takes half a
/// millisecond, so a keeper makes it before it is needed, in the `empty` mount namespace.
///
/// Errors: the kernel refuses user namespaces.
pub fn pod_id_map(range: IdRange, empty: BorrowedFd<'_>) -> Result<OwnedFd> {
    let extents = extents(range, &[])?;
    map_namespace(&extents, &extents, Some(empty))
        .during(|| "make the pod's id map (a user namespace)".into())
}

/// Computes the host ids of `spec` and makes the id map, or uses `usual` if it covers them.
///
/// Errors: more than one distinct id beyond 65,534 of a kind, or the kernel refuses user namespaces.
pub fn host_identity(spec: &ContainerSpec, usual: Option<&OwnedFd>) -> Result<HostIdentity> {
    let (users, groups) = maps(spec)?;
    let what = || "make the pod's id map (a user namespace)".to_owned();
    let map = match usual.filter(|_| users.len() == 1 && groups.len() == 1) {
        Some(usual) => usual.try_clone().during(what)?,
        None => map_namespace(&users, &groups, None).during(what)?,
    };
    Ok(HostIdentity {
        map: Some(map),
        ..mapped(spec, &users, &groups)?
    })
}

/// The identity of a container that was built and is in its jail as host `user`, without a map: nothing is mounted any more.
///
/// Errors: nothing of `spec` makes a process that user, which is a bug.
pub fn of_built(spec: &ContainerSpec, user: u32) -> Result<HostIdentity> {
    let (users, groups) = maps(spec)?;
    let mapped = mapped(spec, &users, &groups)?;
    if mapped.uid == user {
        return Ok(mapped);
    }
    let unmapped = unmapped_identity(spec).filter(|unmapped| unmapped.uid == user);
    unmapped.ok_or_else(|| {
        let text = format!(
            "the container's process is host user {user}, and its user {} is {} by the pod's map",
            spec.identity.uid, mapped.uid
        );
        Error::new(Kind::Bug, text)
    })
}

/// What the ids of `spec` take of a map: users and groups.
fn maps(spec: &ContainerSpec) -> Result<(Vec<Extent>, Vec<Extent>)> {
    let who = &spec.identity;
    let mut ids = vec![who.gid];
    ids.extend(&who.groups);
    Ok((extents(who.range, &[who.uid])?, extents(who.range, &ids)?))
}

/// The ids of `spec` by a map, which is not made here.
fn mapped(spec: &ContainerSpec, users: &[Extent], groups: &[Extent]) -> Result<HostIdentity> {
    let who = &spec.identity;
    let supplementary = who.groups.iter().map(|id| host_id(groups, *id));
    Ok(HostIdentity {
        uid: host_id(users, who.uid)?,
        gid: host_id(groups, who.gid)?,
        groups: supplementary.collect::<Result<_>>()?,
        root: who.range.base,
        map: None,
    })
}

/// The ids of `spec` unchanged, without a map. `None` for root, which is never unmapped.
pub fn unmapped_identity(spec: &ContainerSpec) -> Option<HostIdentity> {
    let who = &spec.identity;
    (who.uid != 0).then(|| HostIdentity {
        uid: who.uid,
        gid: who.gid,
        groups: who.groups.clone(),
        root: 0,
        map: None,
    })
}

fn extents(range: IdRange, ids: &[u32]) -> Result<Vec<Extent>> {
    let ordinary = range.size - 1 - spare(range);
    let mut extents = vec![(0, range.base, ordinary)];
    let mut large: Vec<u32> = ids.iter().copied().filter(|id| *id >= ordinary).collect();
    large.sort_unstable();
    large.dedup();
    if large.len() > spare(range) as usize + 1 {
        return Err(Error::new(
            Kind::Invalid,
            format!(
                "{} ids at or above {ordinary} were requested; a pod has room for {}",
                large.len(),
                spare(range) + 1
            ),
        ));
    }
    for (slot, id) in (range.base + ordinary..).zip(large) {
        extents.push((id, slot, 1));
    }
    Ok(extents)
}

/// Slots at the end of the range for large ids.
fn spare(range: IdRange) -> u32 {
    63.min(range.size / 2)
}

fn host_id(extents: &[Extent], id: u32) -> Result<u32> {
    let found = extents
        .iter()
        .find(|(inside, _, count)| id >= *inside && id - inside < *count);
    found
        .map(|(inside, outside, _)| outside + (id - inside))
        .ok_or_else(|| {
            Error::new(
                Kind::Bug,
                format!("container id {id} is not in the pod's map {extents:?}"),
            )
        })
}

/// Makes a user namespace with these maps. No process stays in it; mounts use its map.
///
/// The inside ids of the map are those on disk, the outside ids those that the mount shows.
fn map_namespace(
    users: &[Extent],
    groups: &[Extent],
    empty: Option<BorrowedFd<'_>>,
) -> std::io::Result<OwnedFd> {
    let holder = Holder {
        flags: 0,
        root: empty,
        title: Some("coracle idmap"),
    };
    userns::hold(holder, users, groups)?.open("user")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    const RANGE: IdRange = IdRange {
        base: 1_879_048_192,
        size: IdRange::SIZE,
    };

    #[test]
    fn ids_stay_inside_the_pods_range() {
        for ids in [
            vec![0],
            vec![65_534, 1000],
            vec![1_000_650_000, 4_294_967_294, 7],
        ] {
            let map = extents(RANGE, &ids).unwrap();
            for id in ids {
                let host = host_id(&map, id).unwrap();
                assert!(
                    host >= RANGE.base && host - RANGE.base < RANGE.size,
                    "{id} became {host}"
                );
            }
        }
        assert_eq!(
            host_id(&extents(RANGE, &[]).unwrap(), 1000).unwrap(),
            RANGE.base + 1000
        );
        let many: Vec<u32> = (1_000_000..1_000_100).collect();
        assert!(extents(RANGE, &many).is_err());
    }

    /// A container of a user with this id.
    fn spec(uid: u32) -> ContainerSpec {
        let text = serde_json::json!({
            "version": 1, "pod": "a".repeat(64), "id": "b".repeat(64),
            "workload": { "Wasm": {
                "kind": "module", "args": [], "env": [], "working_dir": "/", "stdin": false, "network": "off",
            } },
            "root": { "layers": [], "upper": "/u", "work": "/w", "readonly": false }, "mounts": [],
            "identity": { "uid": uid, "gid": 7, "groups": [8], "range": { "base": RANGE.base, "size": RANGE.size } },
            "cgroup_procs": [], "memory_limit_bytes": null, "oom_score_adj": 0, "spawn": "fork", "staging": "/s",
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn an_exec_is_whoever_its_container_is() {
        let ids =
            |uid, user| of_built(&spec(uid), user).map(|host| (host.uid, host.gid, host.groups));
        let base = RANGE.base;
        assert_eq!(
            ids(1000, base + 1000).unwrap(),
            (base + 1000, base + 7, vec![base + 8])
        );
        // A volume took no id map.
        assert_eq!(ids(1000, 1000).unwrap(), (1000, 7, vec![8]));
        for (uid, user) in [(0, 0), (1000, 0), (1000, base), (0, 1000)] {
            assert_eq!(
                ids(uid, user).unwrap_err().kind(),
                Kind::Bug,
                "{uid} as {user}"
            );
        }
    }

    #[test]
    fn the_map_namespace_holds_the_map() {
        // As in the daemon, which has threads, too: without an empty root the forked process makes one, and allocates.
        let empty = coracle_sys::empty::namespace().unwrap();
        let extents = [(0, RANGE.base, 10)];
        let map = map_namespace(&extents, &extents, Some(empty.as_fd()));
        assert!(map.is_ok(), "{map:?}");
    }
}
