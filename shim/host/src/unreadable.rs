//! Effects on a pod with unusable records: everything follows from its id and those of its containers.
//!
//! Called by: recovery and [`coracle_lifecycle`]'s task for such pods.
//! Invariants: nothing is ended before the kubelet asks for it; processes are found by cgroups that are named after the
//! ids; each effect can be repeated.
//! Must not know: why the records cannot be used.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use coracle_lifecycle::{Error, Kind, quarantine};
use coracle_network::{self as network, Attachment};
use coracle_spec::id::{ContainerId, PodId};
use futures_util::future::join_all;

use super::sweep::cgroups_of_processes;
use super::{Host, blocking, io_error, remove_tree};

impl Host {
    /// Whether a process runs in a cgroup named after one of `ids`, wherever it is. Blocks.
    pub fn has_processes(&self, ids: &HashSet<String>) -> bool {
        !cgroups_of_processes(ids).is_empty()
    }

    /// Reserves the host ids and SELinux categories of processes in cgroups named after `ids`. Blocks.
    pub fn claim_ids_of(&self, ids: &HashSet<String>) {
        for (cgroup, pids) in cgroups_of_processes(ids) {
            let holder = cgroup.rsplit('/').find(|name| ids.contains(*name));
            for pid in pids {
                for id in host_ids(pid) {
                    self.ids().claim_holding(id);
                }
                if let (Some(holder), Some(level)) = (holder, level(pid)) {
                    self.categories.claim(holder, &level);
                }
            }
        }
    }

    /// Ends a pod whose records cannot be used and releases what it holds, as far as its id and those of its containers
    /// tell. Its records stay. Can be repeated.
    pub async fn end_unreadable(
        self: &Arc<Self>,
        pod: &PodId,
        ids: HashSet<String>,
        parent: Option<String>,
    ) -> Result<(), Error> {
        self.end_processes(ids, parent).await?;
        let left = self.parts.network.cni().del(pod.as_str()).await;
        let what = |what: &str| format!("{what} of sandbox {pod}");
        left.map_err(|error| Error::because(Kind::Io, what("detach the network"), error))?;
        let (host, pod) = (Arc::clone(self), pod.clone());
        blocking("taking an unreadable sandbox down", move || {
            let what = |what: &str| format!("{what} of sandbox {pod}");
            network::unpin(&host.pin(&pod)).map_err(|error| {
                Error::because(Kind::Io, what("unpin the network namespace"), error)
            })?;
            let detached = host.parts.network.detach_unknown(pod.as_str());
            detached
                .map_err(|error| Error::because(Kind::Io, what("detach the network"), error))?;
            host.drop_shared_memory(&pod)?;
            remove_tree(&host.run_directory().join(pod.as_str()))
        })
        .await
    }

    /// Claims again what a recovered pod holds of the network.
    pub async fn restore_network(self: &Arc<Self>, attachment: Attachment) -> Result<(), Error> {
        let host = Arc::clone(self);
        blocking("restoring the network of a sandbox", move || {
            let live = host.config.live.get();
            let restored = (host.parts.network).restore(&attachment, &live.denied_node_ports);
            restored.map_err(|error| {
                let what = format!("restore the network of sandbox {}", attachment.pod);
                Error::because(Kind::Io, what, error)
            })
        })
        .await
    }

    /// Kills the processes in cgroups named after `ids` and removes those cgroups, under `parent` also empty ones.
    /// All at the same time: one that resists delays no other.
    pub async fn end_processes(
        &self,
        ids: HashSet<String>,
        parent: Option<String>,
    ) -> Result<(), Error> {
        let found: (BTreeSet<String>, _) = blocking("looking for processes", move || {
            Ok((cgroups_of_processes(&ids).into_keys().collect(), ids))
        })
        .await?;
        let (paths, ids) = found;
        self.remove_cgroups(&paths).await?;
        let of_paths = paths
            .iter()
            .filter_map(|path| Some(path.rsplit_once('/')?.0));
        let parents: BTreeSet<&str> = of_paths.chain(parent.as_deref()).collect();
        let mut all = BTreeSet::new();
        for parent in parents {
            let parent = parent.trim_end_matches('/');
            all.extend(ids.iter().map(|id| format!("{parent}/{id}")));
        }
        self.remove_cgroups(&all).await
    }

    /// Errors: the first one, after all were tried.
    async fn remove_cgroups(&self, paths: &BTreeSet<String>) -> Result<(), Error> {
        let removals = paths.iter().map(|path| self.remove_cgroup(path));
        join_all(removals).await.into_iter().collect()
    }

    /// Removes the records and directories of such a pod, or moves aside what cannot be removed. Blocks.
    pub fn forget_unreadable(&self, pod: &PodId, containers: &[ContainerId]) -> Result<(), Error> {
        if let Err(error) = self.forget_pod(pod) {
            let directory = self.layout.pod_directory(pod);
            let moved = quarantine(&directory, &self.layout.quarantines()).map_err(|moving| {
                io_error(
                    format!(
                        "{}; move {} to quarantine",
                        error.chain(),
                        directory.display()
                    ),
                    moving,
                )
            })?;
            tracing::warn!(pod = %pod, error = error.chain(), quarantine = %moved.display(), "the remains of a sandbox were moved aside");
        }
        for container in containers {
            self.parts.images.release(container.as_str());
            self.categories.release(container.as_str());
        }
        Ok(())
    }
}

/// The level of a process's SELinux label; `None` when it is gone, or without SELinux.
fn level(pid: i32) -> Option<String> {
    let label = std::fs::read_to_string(format!("/proc/{pid}/attr/current")).ok()?;
    let label = label.trim_end_matches(['\0', '\n']);
    label.splitn(4, ':').nth(3).map(str::to_owned)
}

/// The host users of a process, real and effective; none when it is gone.
fn host_ids(pid: i32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Uid:"));
    let ids = line.unwrap_or_default().split_ascii_whitespace();
    ids.take(2).filter_map(|id| id.parse().ok()).collect()
}
