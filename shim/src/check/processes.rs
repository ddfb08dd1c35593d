//! Checks that no container can have all processes of the node.
//!
//! Called by: `check::examine`. Invariant: reads only files of /proc and of the cgroup trees. Must not know: pods.

use std::fs;
use std::path::{Path, PathBuf};

use coracle_config::Config;
use coracle_host::{node_pids, pids_limit};

use super::Finding;

/// What the kubelet calls the parent of all pods, by its cgroup driver.
const PARENTS: [&str; 2] = ["kubepods.slice", "kubepods"];
const SUBJECT: &str = "container processes";

/// The finding about the limits of processes.
pub(super) fn finding(config: &Config) -> Finding {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let handlers = config.handlers.all().iter();
    let handlers = handlers.filter(|handler| !handler.policy.base.is_wasm_only());
    let limits: Vec<_> = handlers
        .map(|handler| (handler.name.as_str(), pids_limit(handler.pids_limit)))
        .collect();
    judge(&limits, node_pids(), of_all_pods(&trees(&mounts)))
}

/// The directories of the trees that count processes: that of cgroup v2, that of the v1 controller.
fn trees(mountinfo: &str) -> Vec<PathBuf> {
    let tree = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let counts = match right.next()? {
            "cgroup2" => true,
            "cgroup" => right.nth(1)?.split(',').any(|option| option == "pids"),
            _ => false,
        };
        counts.then(|| left.split(' ').nth(4).map(PathBuf::from))?
    };
    mountinfo.lines().filter_map(tree).collect()
}

/// The limit of the kubelet's parent of all pods; `None` if there is none.
fn of_all_pods(trees: &[PathBuf]) -> Option<u64> {
    let of = |tree: &Path| {
        let read = |name| fs::read_to_string(tree.join(name).join("pids.max")).ok();
        PARENTS.into_iter().find_map(read)?.trim().parse().ok()
    };
    trees.iter().find_map(|tree| of(tree))
}

/// `limits` are those of the handlers that run Linux programs.
fn judge(limits: &[(&str, Option<u64>)], node: Option<u64>, pods: Option<u64>) -> Finding {
    let of_node = node.map_or(String::new(), |node| format!(" of the node's {node}"));
    let bounded = pods.filter(|pods| node.is_none_or(|node| *pods < node));
    if let Some((name, _)) = limits.iter().find(|(_, limit)| limit.is_none()) {
        return match bounded {
            Some(all) => Finding::ok(
                SUBJECT,
                format!(
                    "all pods together have at most {all}{of_node} (handlers.{name} has no limit of its own)"
                ),
            ),
            None => Finding::warning(
                SUBJECT,
                format!(
                    "one container of handlers.{name} can have all{of_node}: daemon and kubelet then start nothing"
                ),
                format!(
                    "set handlers.{name}.pids_limit, or podPidsLimit and systemReserved.pid of the kubelet"
                ),
            ),
        };
    }
    let most = limits.iter().filter_map(|(_, limit)| *limit).max();
    let each = format!("a container has at most {}{of_node}", most.unwrap_or(0));
    match bounded {
        Some(all) => Finding::ok(SUBJECT, format!("{each}, all pods together {all}")),
        None => Finding::ok(
            SUBJECT,
            format!(
                "{each}; the kubelet bounds neither pods (podPidsLimit) nor all of them (systemReserved.pid), as far as can be seen"
            ),
        ),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::super::Level;
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_handler_without_a_limit_is_named_unless_the_kubelet_bounds_all_pods() {
        let bound = [("coracle", Some(8_192))];
        let unbound = [("coracle", Some(8_192)), ("own", None)];
        for (limits, pods, level, text) in [
            (
                &bound[..],
                None,
                Level::Ok,
                "at most 8192 of the node's 32768; the kubelet",
            ),
            (
                &bound[..],
                Some(30_000),
                Level::Ok,
                "all pods together 30000",
            ),
            (
                &unbound[..],
                Some(30_000),
                Level::Ok,
                "at most 30000 of the node's 32768",
            ),
            (
                &unbound[..],
                Some(32_768),
                Level::Warning,
                "handlers.own can have all",
            ),
            (
                &unbound[..],
                None,
                Level::Warning,
                "handlers.own can have all",
            ),
        ] {
            let finding = judge(limits, Some(32_768), pods);
            assert_eq!(finding.level, level, "{finding:?}");
            assert!(finding.found.contains(text), "{finding:?}");
        }
    }

    #[test]
    fn the_kubelets_limit_is_found_in_both_versions() {
        let dir = Scratch::new("check-processes");
        let (v1, v2) = (dir.0.join("pids"), dir.0.join("unified"));
        let mounts = format!(
            "1 2 0:1 / {} rw - cgroup cgroup rw,pids\n1 2 0:1 / /cpu rw - cgroup cgroup rw,cpu\n\
             3 2 0:2 / {} rw shared:4 - cgroup2 cgroup2 rw\n4 2 0:3 / /x rw - tmpfs x rw\n",
            v1.display(),
            v2.display()
        );
        let found = trees(&mounts);
        assert_eq!(found, [v1.clone(), v2.clone()]);
        assert_eq!(of_all_pods(&found), None);
        fs::create_dir_all(v2.join("kubepods.slice")).unwrap();
        fs::write(v2.join("kubepods.slice/pids.max"), "max\n").unwrap();
        assert_eq!(of_all_pods(&found), None);
        fs::create_dir_all(v1.join("kubepods")).unwrap();
        fs::write(v1.join("kubepods/pids.max"), "30000\n").unwrap();
        assert_eq!(of_all_pods(&found), Some(30_000));
    }
}
