//! The cgroup of one exec: created for it, killed with it, removed once it is empty.
//!
//! Called by: [`super`]. Invariants: cancelling an exec kills everything it started; processes that an ended exec left
//! running stay with the container, and their cgroup is removed by the first later exec in that container that finds it
//! empty. Must not know: forking.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use coracle_cgroup::{ExecLeaf, REMOVE_TIMEOUT};
use coracle_control::process::Process;
use coracle_lifecycle::{Error, Kind, StartRequest};
use coracle_spec::id::ContainerId;

use crate::ending::{killed, removed};
use crate::{Host, blocking, io_error};

/// How long a cancelled exec is killed again and again: it may be on its way into its cgroup.
const KILLING: Duration = Duration::from_secs(5);
/// The pause between two kills.
const PAUSE: Duration = Duration::from_millis(20);

/// Cgroups in which ended execs left processes running, by container.
#[derive(Default)]
pub struct OrphanedLeaves(Mutex<HashMap<ContainerId, Vec<ExecLeaf>>>);

impl OrphanedLeaves {
    fn lock(&self) -> MutexGuard<'_, HashMap<ContainerId, Vec<ExecLeaf>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The container and its cgroups are gone.
    pub fn forget(&self, container: &ContainerId) {
        self.lock().remove(container);
    }

    /// Removes those of a container that are empty now. Blocks.
    fn tidy(&self, container: &ContainerId) {
        let Some(leaves) = self.lock().remove(container) else {
            return;
        };
        let left: Vec<_> = leaves
            .into_iter()
            .filter(|leaf| !is_removed(leaf))
            .collect();
        if !left.is_empty() {
            self.lock()
                .entry(container.clone())
                .or_default()
                .extend(left);
        }
    }
}

fn is_removed(leaf: &ExecLeaf) -> bool {
    leaf.pids().is_ok_and(|pids| pids.is_empty()) && leaf.remove_some().is_ok()
}

/// The cgroup of one exec; dropping it before the exec has ended kills its processes.
pub(super) struct Leaf {
    pub(super) cgroup: ExecLeaf,
    /// Its first process, once it exists.
    pub(super) process: Option<Process>,
    pub(super) ended: bool,
    host: Arc<Host>,
    container: ContainerId,
}

impl Drop for Leaf {
    fn drop(&mut self) {
        let (cgroup, ended) = (self.cgroup.clone(), self.ended);
        if let Some(process) = self.process.take().filter(|_| !ended) {
            // Without a cgroup of its own nothing else would kill it.
            let _ = process.signal(libc::SIGKILL);
        }
        // Without a runtime the daemon ends, and the keeper kills the exec.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if !ended {
            drop(runtime.spawn(end(cgroup)));
            return;
        }
        let (host, container) = (Arc::clone(&self.host), self.container.clone());
        drop(runtime.spawn(async move {
            if !is_gone(&cgroup).await {
                let mut left = host.orphaned_leaves.lock();
                left.entry(container).or_default().push(cgroup);
            }
        }));
    }
}

/// Removes the cgroup of an ended exec if no process is left in it.
async fn is_gone(cgroup: &ExecLeaf) -> bool {
    let leaf = cgroup.clone();
    let looked = blocking("removing an exec's cgroup", move || {
        let is_empty = leaf.pids().is_ok_and(|pids| pids.is_empty());
        Ok((is_empty, is_empty && leaf.remove_some().is_ok()))
    });
    match looked.await {
        Ok((true, false)) => {}
        Ok((_, is_removed)) => return is_removed,
        Err(_) => return false,
    }
    // A process is not listed any more, and has not ended yet.
    let leaf = cgroup.clone();
    let what = || "remove an exec's cgroup".to_owned();
    removed(move || leaf.remove_some(), REMOVE_TIMEOUT, what)
        .await
        .is_ok()
}

/// Kills the processes in the cgroup until it can be removed.
async fn end(cgroup: ExecLeaf) {
    let limit = Instant::now() + KILLING;
    let what = || "end an exec".to_owned();
    loop {
        let leaf = cgroup.clone();
        let ended = match killed(cgroup.killing(), what).await {
            Ok(()) => removed(move || leaf.remove_some(), REMOVE_TIMEOUT, what).await,
            Err(error) => Err(error),
        };
        let Err(error) = ended else {
            return;
        };
        if Instant::now() > limit {
            tracing::error!(
                cgroup = cgroup.path(),
                error = error.chain(),
                "an exec was not killed"
            );
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

impl Host {
    /// Creates a cgroup for one exec in the container of `request`. Errors: the container's own is gone.
    pub(super) async fn exec_leaf(self: &Arc<Self>, request: &StartRequest) -> Result<Leaf, Error> {
        let parent = self.home(&request.plan)?;
        let name = ContainerId::random().map_err(|error| io_error("draw an exec's name", error))?;
        let (host, container) = (Arc::clone(self), request.id.clone());
        let made = blocking("making an exec's cgroup", move || {
            host.orphaned_leaves.tidy(&container);
            parent
                .exec_leaf(name.short())
                .map_err(|error| Error::because(Kind::Io, "make an exec's cgroup", error))
        });
        Ok(Leaf {
            cgroup: made.await?,
            process: None,
            ended: false,
            host: Arc::clone(self),
            container: request.id.clone(),
        })
    }
}
