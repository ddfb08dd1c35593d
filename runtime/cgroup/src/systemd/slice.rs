//! Names of slices and scopes, and where systemd puts their cgroups.
//! Called by `systemd`. Pure. Source: systemd.slice(5), systemd.unit(5).

use super::error::Error;
use coracle_spec::id::PodId;

/// Longest name of a unit, its suffix included. Bytes; systemd's UNIT_NAME_MAX less the final zero.
const MAX_NAME_BYTES: usize = 255;
const SUFFIX: &str = ".slice";
const SCOPE_PREFIX: &str = "coracle-";
const SCOPE_SUFFIX: &str = ".scope";

/// Whether `parent` is a slice: its name, or the path of its cgroup.
pub(super) fn is_slice(parent: &str) -> bool {
    parent.ends_with(SUFFIX)
}

/// The cgroup of a slice: `/a.slice/a-b.slice` for `a-b.slice`; empty for the root slice, `-.slice`.
///
/// The path of a slice's cgroup is accepted as well.
pub(super) fn cgroup_of(parent: &str) -> Result<String, Error> {
    let refused = |why| Error::Slice {
        parent: parent.to_owned(),
        why,
    };
    let name = parent.rsplit('/').next().unwrap_or_default();
    let Some(stem) = name.strip_suffix(SUFFIX) else {
        return Err(refused("does not end in .slice"));
    };
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    if name.len() > MAX_NAME_BYTES || !stem.bytes().all(is_plain) {
        return Err(refused("is not a valid unit name of systemd"));
    }
    let mut cgroup = String::new();
    if stem != "-" {
        let mut ends = stem
            .match_indices('-')
            .map(|(at, _)| at)
            .collect::<Vec<_>>();
        ends.push(stem.len());
        for (part, end) in stem.split('-').zip(ends) {
            if part.is_empty() {
                return Err(refused("has nothing before or after a dash"));
            }
            cgroup.push('/');
            cgroup.push_str(&stem[..end]);
            cgroup.push_str(SUFFIX);
        }
    }
    if parent.contains('/') && parent.trim_end_matches('/') != cgroup {
        return Err(refused("is not where systemd puts that slice"));
    }
    Ok(cgroup)
}

/// The slice for a plain cgroup path of the configuration: `a-b_c.slice` for `/a/b-c`, as the kubelet names them.
pub(super) fn slice_for(path: &str) -> String {
    let parts = path.split('/').filter(|part| !part.is_empty());
    let parts: Vec<String> = parts.map(|part| part.replace('-', "_")).collect();
    match parts.is_empty() {
        true => "-.slice".to_owned(),
        false => format!("{}{SUFFIX}", parts.join("-")),
    }
}

/// The scope of a pod: `coracle-POD.scope`.
pub(super) fn scope_of(pod: &PodId) -> String {
    format!("{SCOPE_PREFIX}{pod}{SCOPE_SUFFIX}")
}

/// The slice and the scope in a cgroup path that ends in a pod's scope; `None` for every other path.
pub(super) fn split(path: &str) -> Option<(&str, &str)> {
    let (above, scope) = path.rsplit_once('/')?;
    let pod = scope
        .strip_prefix(SCOPE_PREFIX)?
        .strip_suffix(SCOPE_SUFFIX)?;
    pod.parse::<PodId>().ok()?;
    let slice = above.rsplit('/').next().unwrap_or_default();
    Some((if slice.is_empty() { "-.slice" } else { slice }, scope))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const POD: &str = "00000000000000000000000000000000000000000000000000000000000000ab";

    #[test]
    fn a_slice_lies_in_the_slices_that_its_name_begins_with() {
        for (name, cgroup) in [
            ("-.slice", ""),
            ("kubepods.slice", "/kubepods.slice"),
            (
                "kubepods-burstable-pod0a_1b.slice",
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0a_1b.slice",
            ),
            ("/a.slice/a-b.slice", "/a.slice/a-b.slice"),
        ] {
            assert_eq!(cgroup_of(name).unwrap(), cgroup);
        }
    }

    #[test]
    fn what_is_no_slice_is_refused_by_name() {
        for (parent, why) in [
            ("/kubepods/pod1", "does not end in .slice"),
            ("a--b.slice", "dash"),
            ("-a.slice", "dash"),
            ("a-.slice", "dash"),
            ("a b.slice", "valid unit name"),
            ("..slice/x", "does not end"),
            ("/b/a.slice", "puts that slice"),
            ("../a.slice", "puts that slice"),
            (".slice", "dash"),
            (&format!("{}.slice", "a".repeat(250)), "valid unit name"),
        ] {
            let error = cgroup_of(parent).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
            assert!(error.contains(parent), "{error}");
        }
    }

    #[test]
    fn a_configured_path_has_a_slice_of_its_own() {
        for (path, slice) in [
            ("/coracle", "coracle.slice"),
            ("/a/b-c", "a-b_c.slice"),
            ("/", "-.slice"),
        ] {
            assert_eq!(slice_for(path), slice);
            cgroup_of(slice).unwrap();
        }
    }

    #[test]
    fn only_a_pods_scope_is_taken_apart() {
        let pod: PodId = POD.parse().unwrap();
        let scope = scope_of(&pod);
        let path = format!("/a.slice/a-b.slice/{scope}");
        assert_eq!(split(&path), Some(("a-b.slice", scope.as_str())));
        let root = format!("/{scope}");
        assert_eq!(split(&root), Some(("-.slice", scope.as_str())));
        for other in [
            "/a.slice",
            "/a/coracle-x.scope",
            &format!("/a/{POD}"),
            &format!("/a/cri-{POD}.scope"),
        ] {
            assert_eq!(split(other), None);
        }
    }
}
