//! Effects on a pod of whose records little is known: everything follows from its id and those of its containers.
//!
//! Called by: recovery and [`coracle_lifecycle`]'s keeper of such pods.
//! Invariants: nothing is ended before the kubelet asks for it; what is ended is found by cgroups that have the ids for
//! names; each effect can be repeated.
//! Not here: why the records cannot be used.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use coracle_lifecycle::{Error, Kind, quarantine};
use coracle_network::{self as network, Attachment};
use coracle_spec::id::{ContainerId, PodId};

use super::sweep::cgroups_of_processes;
use super::{Host, blocking, io_error, remove_tree};

impl Host {
    /// Whether a process runs in a cgroup named after one of `ids`, wherever that lies. Blocks.
    pub fn has_processes(&self, ids: &HashSet<String>) -> bool {
        !cgroups_of_processes(ids).is_empty()
    }

    /// Keeps the host ids and SELinux categories of processes in cgroups named after `ids` from being given out again.
    /// Blocks.
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

    /// Ends everything of a pod of whose records little is known, and gives back what it holds, as far as its id and
    /// those of its containers tell. Its records stay. Can be repeated.
    pub async fn end_unreadable(
        self: &Arc<Self>,
        pod: &PodId,
        ids: HashSet<String>,
        parent: Option<String>,
    ) -> Result<(), Error> {
        let host = Arc::clone(self);
        blocking("ending an unreadable sandbox", move || {
            host.end_processes(&ids, parent)
        })
        .await?;
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

    /// Takes back what a pod that is understood again holds of the network.
    pub async fn restore_network(self: &Arc<Self>, attachment: Attachment) -> Result<(), Error> {
        let host = Arc::clone(self);
        blocking("restoring the network of a sandbox", move || {
            let restored = host.parts.network.restore(&attachment);
            restored.map_err(|error| {
                let what = format!("restore the network of sandbox {}", attachment.pod);
                Error::because(Kind::Io, what, error)
            })
        })
        .await
    }

    /// Kills what runs in cgroups named after `ids` and removes those, under `parent` also the empty ones. Blocks.
    pub fn end_processes(
        &self,
        ids: &HashSet<String>,
        parent: Option<String>,
    ) -> Result<(), Error> {
        let mut parents: BTreeSet<String> = parent.into_iter().collect();
        for path in cgroups_of_processes(ids).into_keys() {
            self.remove_cgroup(&path)?;
            parents.extend(path.rsplit_once('/').map(|(parent, _)| parent.to_owned()));
        }
        for (parent, id) in parents
            .iter()
            .flat_map(|parent| ids.iter().map(move |id| (parent, id)))
        {
            self.remove_cgroup(&format!("{}/{id}", parent.trim_end_matches('/')))?;
        }
        Ok(())
    }

    /// Removes the records and directories of a pod that was given up, or moves aside what cannot be removed. Blocks.
    pub fn forget_unreadable(&self, pod: &PodId, containers: &[ContainerId]) -> Result<(), Error> {
        if let Err(error) = self.forget_pod(pod) {
            let directory = self.layout.pod_directory(pod);
            let moved = quarantine(&directory, &self.layout.quarantine()).map_err(|moving| {
                io_error(
                    format!(
                        "{}; move {} to quarantine",
                        error.chain(),
                        directory.display()
                    ),
                    moving,
                )
            })?;
            tracing::warn!(pod = %pod, error = error.chain(), quarantine = %moved.display(), "what is left of a sandbox was moved aside");
        }
        for container in containers {
            self.parts.images.release(container.as_str());
            self.categories.release(container.as_str());
        }
        Ok(())
    }
}

/// The level of a process' SELinux label; none of one that is gone, or without SELinux.
fn level(pid: i32) -> Option<String> {
    let label = std::fs::read_to_string(format!("/proc/{pid}/attr/current")).ok()?;
    let label = label.trim_end_matches(['\0', '\n']);
    label.splitn(4, ':').nth(3).map(str::to_owned)
}

/// The host users that a process runs as, real and effective; none of one that is gone.
fn host_ids(pid: i32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Uid:"));
    let ids = line.unwrap_or_default().split_ascii_whitespace();
    ids.take(2).filter_map(|id| id.parse().ok()).collect()
}
