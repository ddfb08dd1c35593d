//! The scope of a pod, which systemd makes around its keeper and stops after it.
//!
//! Called by: [`super`]. Calls: systemd, cgroups. No effect where the pod's cgroups are ours.
//! Invariants: systemd is asked by few threads at a time, and never to stop processes: it waits as long as they live, and
//! a process in uninterruptible sleep lives as long as its disk is dead.
//! Must not know: the keeper.

use coracle_cgroup::systemd;
use coracle_lifecycle::{Error, Kind, PodRecord};
use tokio::sync::Semaphore;
use tracing::{Instrument as _, info_span};

use crate::{Host, blocking};

/// Most threads that wait for systemd at a time.
const AT_A_TIME: usize = 4;

/// Turns of threads, which wait for systemd.
static TURNS: Semaphore = Semaphore::const_new(AT_A_TIME);

impl Host {
    /// Has systemd create the pod's scope around its keeper. No effect where the pod's cgroups are ours.
    pub(super) async fn make_scope(&self, record: &PodRecord, keeper: i32) -> Result<(), Error> {
        let scope_path = record.cgroup_parent.clone();
        if !systemd::is_scope(&scope_path) {
            return Ok(());
        }
        let span = info_span!(target: "otel", "cgroup.scope");
        let (cgroups, scopes) = (self.parts.cgroups.clone(), self.parts.scopes.clone());
        let (leaf, pod) = (self.keeper_cgroup(record), record.id.clone());
        in_turn("making a scope", move || {
            let adopted = scopes.adopt(&cgroups, &scope_path, &leaf, keeper);
            adopted.map_err(|error| {
                Error::because(Kind::Io, format!("make the scope of sandbox {pod}"), error)
            })
        })
        .instrument(span)
        .await
    }

    /// Kills what is in the pod's scope, and has systemd stop it. Errors: processes outlive SIGKILL.
    pub(super) async fn release_scope(&self, record: &PodRecord) -> Result<(), Error> {
        let scope_path = record.cgroup_parent.clone();
        if !systemd::is_scope(&scope_path) {
            return Ok(());
        }
        self.empty_cgroup(&scope_path).await?;
        let (scopes, pod) = (self.parts.scopes.clone(), record.id.clone());
        in_turn("releasing a scope", move || {
            let released = scopes.release(&scope_path);
            released.map_err(|error| {
                let what = format!("release the scope of sandbox {pod}");
                Error::because(Kind::Io, what, error)
            })
        })
        .await
    }
}

async fn in_turn<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let turn = TURNS
        .acquire()
        .await
        .map_err(|error| Error::because(Kind::Bug, "wait for a turn at systemd", error))?;
    blocking(what, move || {
        let _turn = turn;
        work()
    })
    .await
}
