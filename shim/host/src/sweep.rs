//! Removes objects without an owner, which daemons, keepers and nodes left behind when they died.
//!
//! Called by: recovery, once, after all records were read and all live keepers found.
//! Invariants: only objects with a mark of ours are touched: ids with a directory under our own root or run directory,
//! which is created before anything else of a pod and removed last, and addresses in our leases. A cgroup, namespace or
//! interface with another name belongs to somebody else, whatever its parent, directory or prefix. Nothing of a pod
//! with unusable records is touched. Every step is tried and every failure reported; none stops the rest.
//! Must not know: which record is right.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use coracle_lifecycle::{Error, Kind, Owned, Swept};
use coracle_network as network;
use coracle_spec::id::PodId;
use futures_util::future::join_all;

use super::{Host, blocking, pass, remove_tree, runtime_error};

/// Adds the result of one removal.
fn add_result(found: &mut Swept, what: String, result: Result<(), Error>) {
    match result {
        Ok(()) => found.removed.push(what),
        Err(error) => found.errors.push(error),
    }
}

impl Host {
    /// Removes what `owned` does not name.
    pub async fn sweep(self: &Arc<Self>, owned: Owned) -> Swept {
        let mut found = Swept::default();
        if let Err(error) = pass("recover.sweep") {
            found.errors.push(error);
        }
        let (host, owned) = (Arc::clone(self), Arc::new(owned));
        let (looker, of) = (Arc::clone(self), Arc::clone(&owned));
        let cgroups = blocking("looking for cgroups", move || Ok(looker.dead_cgroups(&of)));
        match cgroups.await {
            Ok(cgroups) => self.sweep_cgroups(cgroups, &mut found).await,
            Err(error) => found.errors.push(error),
        }
        let rest = blocking("sweeping", move || {
            let mut found = Swept::default();
            host.sweep_directories(&owned, &mut found);
            host.sweep_network(&owned, &mut found);
            Ok(found)
        });
        match rest.await {
            Ok(rest) => {
                found.removed.extend(rest.removed);
                found.errors.extend(rest.errors);
            }
            Err(error) => found.errors.push(error),
        }
        found
    }

    fn sweep_network(&self, owned: &Owned, found: &mut Swept) {
        let network = &self.parts.network;
        let live = self.config.live.get();
        let denied = live.denied_node_ports.as_slice();
        match network.sweep(&owned.attachments, &owned.unrecovered, denied) {
            Ok(interfaces) => found
                .removed
                .extend(interfaces.into_iter().map(|name| format!("network {name}"))),
            Err(error) => found.errors.push(Error::because(
                Kind::Io,
                "sweep addresses and interfaces",
                error,
            )),
        }
        network.resume(&owned.live);
    }

    /// Removes what the network of pods has on the node, if there are none. Blocks.
    pub fn retire(&self) {
        self.parts.network.retire();
    }

    /// Removes compiled code that neither this daemon's engine nor one of `hashes` can run. Blocks.
    pub fn sweep_compiled(&self, mut hashes: Vec<String>) -> Result<(), Error> {
        hashes.push(self.own_engine().hash);
        self.parts
            .compiler
            .sweep(&hashes)
            .map_err(|error| runtime_error("sweep compiled code", error))
    }

    /// Ids that occur in our own directories but have no record, with their containers.
    fn orphans(&self, owned: &Owned) -> HashSet<String> {
        let mut ids: HashSet<String> = ids_in(&self.run_directory())
            .into_iter()
            .filter(|id| !owned.live.contains(id))
            .collect();
        for id in ids_in(&self.layout.pods_directory()) {
            if owned.pods.contains(&id) {
                continue;
            }
            ids.extend(ids_in(
                &self.layout.pods_directory().join(&id).join("containers"),
            ));
            ids.insert(id);
        }
        ids
    }

    /// Cgroups named after what is dead: those with processes wherever they are, with a description, and those without
    /// under the parents of pods.
    fn dead_cgroups(&self, owned: &Owned) -> BTreeMap<String, String> {
        let mut dead = owned.dead.clone();
        dead.extend(self.orphans(owned));
        let mut found = BTreeMap::new();
        if dead.is_empty() {
            return found;
        }
        for (parent, leaf) in owned
            .parents
            .iter()
            .flat_map(|parent| dead.iter().map(move |leaf| (parent, leaf)))
        {
            let path = format!("{}/{leaf}", parent.trim_end_matches('/'));
            let opened = self.parts.cgroups.open(&path);
            if opened.is_ok_and(|cgroup| cgroup.exists()) {
                let what = format!("cgroup {path}");
                found.insert(path, what);
            }
        }
        for (path, pids) in cgroups_of_processes(&dead) {
            let what = format!("cgroup {path} with processes {pids:?}");
            found.insert(path, what);
        }
        found
    }

    /// All at the same time: one that resists does not delay the start by more than its own timeout.
    async fn sweep_cgroups(&self, cgroups: BTreeMap<String, String>, found: &mut Swept) {
        let removals = cgroups
            .into_iter()
            .map(|(path, what)| async move { (what, self.remove_cgroup(&path).await) });
        for (what, removed) in join_all(removals).await {
            add_result(found, what, removed);
        }
    }

    fn sweep_directories(&self, owned: &Owned, found: &mut Swept) {
        // Pins in a directory that the operator chose may belong to another daemon.
        let are_all_ours = self.pins_directory().starts_with(&self.config.run);
        for id in ids_in(&self.pins_directory()) {
            let is_ours = are_all_ours || self.layout.pods_directory().join(&id).exists();
            if !is_ours || owned.unrecovered.contains(&id) {
                continue;
            }
            // A namespace that plugins still have to detach is unpinned afterwards.
            if owned.live.contains(&id) || self.parts.network.cni().is_owed(&id) {
                continue;
            }
            let unpinned = network::unpin(&self.pins_directory().join(&id));
            let unpinned = unpinned
                .map_err(|error| Error::because(Kind::Io, format!("unpin namespace {id}"), error));
            add_result(found, format!("network namespace {id}"), unpinned);
        }
        for id in ids_in(&self.run_directory()) {
            if !owned.live.contains(&id) {
                add_result(
                    found,
                    format!("control socket {id}"),
                    remove_tree(&self.run_directory().join(&id)),
                );
            }
        }
        for directory in &owned.debris {
            let removed = self.discard_tree(directory);
            add_result(found, format!("directory {}", directory.display()), removed);
        }
        for id in ids_in(&self.layout.pods_directory()) {
            if !owned.pods.contains(&id) {
                add_result(
                    found,
                    format!("directory of sandbox {id}"),
                    self.discard_tree(&self.layout.pods_directory().join(&id)),
                );
            }
        }
    }
}

/// Entries of a directory that are ids; none when it is absent.
fn ids_in(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let names = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    // Pod and container ids have the same form.
    names.filter(|name| name.parse::<PodId>().is_ok()).collect()
}

/// The cgroups whose last part is one of `leaves` and that contain processes, in themselves or below.
pub(super) fn cgroups_of_processes(leaves: &HashSet<String>) -> BTreeMap<String, BTreeSet<i32>> {
    let mut found: BTreeMap<String, BTreeSet<i32>> = BTreeMap::new();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return found;
    };
    for entry in entries.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let text: io::Result<String> = std::fs::read_to_string(format!("/proc/{pid}/cgroup"));
        // A process that ended meanwhile does not matter.
        for path in text
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.splitn(3, ':').nth(2))
        {
            let own = path
                .split_inclusive('/')
                .scan(0, |end, part| {
                    *end += part.len();
                    Some((part.trim_end_matches('/'), *end))
                })
                .find(|(part, _)| leaves.contains(*part));
            if let Some((_, end)) = own {
                let path = path[..end].trim_end_matches('/');
                found.entry(path.to_owned()).or_default().insert(pid);
            }
        }
    }
    found
}
