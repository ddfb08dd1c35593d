//! Effects on one container except its start: build, signal, kill, clean up, forget.
//!
//! Called by: its pod's driver. Calls: cgroups, the pod's keeper, the file system.
//! Invariants: each can be repeated; a record is removed before the objects that it describes, so that a crash leaves
//! orphans, which the next start sweeps. Must not know: when any of this happens.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use coracle_control::exits;
use coracle_control::keeper::Keeper;
use coracle_control::process::Process;
use coracle_lifecycle::{ContainerConfig, Error, Kind, Payload, Plan, PodRecord, Slot, limits};
use coracle_spec::id::{ContainerId, PodId};
use tokio::sync::oneshot;

use super::{Host, blocking, io_error, linux, log, make_private, pass, runtime_error};

/// How long a keeper may take to drop its record of an exited container.
const FORGET_TIMEOUT: Duration = Duration::from_secs(1);

impl Host {
    /// Creates a container's cgroup, files and writable layer; its directory and record exist. Blocks.
    pub fn build(
        &self,
        pod: &PodRecord,
        id: &ContainerId,
        config: &ContainerConfig,
        plan: &Plan,
    ) -> Result<(), Error> {
        pass("create.cgroup")?;
        let limits = match &plan.payload {
            Payload::Wasm(_) => limits::wasm_limits(&config.resources),
            Payload::Linux(linux) => linux.limits.clone(),
        };
        let cgroups = &self.parts.cgroups;
        let made = cgroups.create_container(&plan.cgroup, &limits, plan.exposure());
        made.map_err(|error| {
            let invalid = error.is_invalid();
            Error::because(
                if invalid { Kind::Invalid } else { Kind::Io },
                format!("make the cgroup of container {id}"),
                error,
            )
        })?;
        pass("create.rootfs")?;
        let files = linux::files::PodFiles {
            pod,
            directory: &self.pod_files(&pod.id, id),
        };
        let label = match &plan.payload {
            Payload::Wasm(_) => None,
            Payload::Linux(linux) => linux.jail.mount_label.as_deref(),
        };
        files.write(&plan.mounts, label)?;
        let directory = self.layout.container_directory(&pod.id, id);
        make_private(&directory.join("work"))?;
        make_public(&directory.join("upper"))
    }

    /// Opens the container's log anew and hands it to the keeper.
    pub async fn reopen_log(
        &self,
        keeper: &Keeper,
        id: &ContainerId,
        log_directory: &str,
        path: &str,
    ) -> Result<(), Error> {
        let log_root = &self.config.log_root;
        let opened = log::open(&self.paths, log_root, log_directory, path);
        let Some(log) = opened.await? else {
            return Ok(());
        };
        let reopened = keeper.reopen_log(id, log).await;
        reopened.map_err(|error| runtime_error(format!("reopen the log of container {id}"), error))
    }

    /// Sends `signal` to the container's first process, which learns after how long it will be killed if `grace` says so.
    /// A process that has ended is fine.
    pub fn signal(
        &self,
        process: &Process,
        signal: i32,
        grace: Option<Duration>,
    ) -> Result<(), Error> {
        pass("stop.signal")?;
        let sent = match grace {
            Some(grace) => process.signal_with_grace(signal, grace),
            None => process.signal(signal),
        };
        sent.map(|_| ())
            .map_err(|error| runtime_error(format!("send signal {signal}"), error))
    }

    /// Kills all processes of a container and waits until all have ended, at most for the cgroup's own timeout.
    pub async fn kill(&self, process: Option<&Process>, cgroup: &str) -> Result<(), Error> {
        pass("stop.kill")?;
        // The first process by its pidfd: that needs no cgroup, and the rest of a pid namespace dies with it.
        let sent = process.map_or(Ok(true), |process| process.signal(libc::SIGKILL));
        self.empty_cgroup(cgroup).await?;
        sent.map(|_| ())
            .map_err(|error| runtime_error("kill a container's first process", error))
    }

    /// The exit code that the keeper recorded for a container.
    pub async fn exit_code(&self, pod: &PodId, id: &ContainerId) -> Option<i32> {
        let (exits, id) = (self.layout.exits_directory(pod), id.clone());
        let read = move || {
            let exit = exits::read(&exits, &id);
            Ok(exit.ok().flatten().map(|exit| exit.code))
        };
        blocking("reading an exit record", read)
            .await
            .ok()
            .flatten()
    }

    /// How often the kernel killed a process of a cgroup for lack of memory; 0 when the cgroup is gone.
    pub fn oom_kills(&self, cgroup: &str) -> u64 {
        self.parts
            .cgroups
            .open(cgroup)
            .and_then(|cgroup| cgroup.oom_kills())
            .unwrap_or(0)
    }

    /// Removes the cgroup of a container that has ended.
    pub async fn clean_up(&self, cgroup: &str) -> Result<(), Error> {
        self.remove_cgroup(cgroup).await
    }

    /// Removes the keeper's record of an ended container, in memory and on disk, once `recorded` reports that the
    /// container's own record is on the disk. Returns at once. Removes nothing if `recorded` is closed, so that a later
    /// daemon can read it.
    pub fn drop_exit(
        &self,
        keeper: Option<Keeper>,
        pod: &PodId,
        id: &ContainerId,
        recorded: oneshot::Receiver<()>,
    ) {
        let (id, exits) = (id.clone(), self.layout.exits_directory(pod));
        tokio::spawn(async move {
            if recorded.await.is_ok() {
                dismiss(keeper, &id);
                let remove = move || exits::remove(&exits, &id);
                let _ = tokio::task::spawn_blocking(remove).await;
            }
        });
    }

    /// Removes everything of a container, in its keeper as well.
    pub async fn forget_container(
        self: &Arc<Self>,
        keeper: Option<Keeper>,
        pod: &PodId,
        id: &ContainerId,
        cgroup: String,
    ) -> Result<(), Error> {
        let forgotten = self.forget(pod, id, &cgroup).await;
        dismiss(keeper, id);
        forgotten
    }

    /// Removes a container's record, then cgroup, files, exit record and image lease.
    async fn forget(
        self: &Arc<Self>,
        pod: &PodId,
        id: &ContainerId,
        cgroup: &str,
    ) -> Result<(), Error> {
        let (host, owner, own) = (Arc::clone(self), pod.clone(), id.clone());
        blocking("erasing a record", move || host.erase(&owner, &own)).await?;
        self.remove_cgroup(cgroup).await?;
        let (host, owner, own) = (Arc::clone(self), pod.clone(), id.clone());
        blocking("forgetting a container", move || host.discard(&owner, &own)).await
    }

    fn erase(&self, pod: &PodId, id: &ContainerId) -> Result<(), Error> {
        pass("remove.record")?;
        let directory = self.layout.container_directory(pod, id);
        let erased = Slot::new(directory, self.syncer()).erase();
        erased.map_err(|error| io_error(format!("erase the record of container {id}"), error))?;
        pass("remove.cgroup")
    }

    /// Removes what is left of a container without a record and a cgroup.
    fn discard(&self, pod: &PodId, id: &ContainerId) -> Result<(), Error> {
        self.orphaned_leaves.forget(id);
        pass("remove.rootfs")?;
        self.discard_tree(&self.layout.container_directory(pod, id))?;
        self.meter.forget_layer(id);
        exits::remove(&self.layout.exits_directory(pod), id);
        self.parts.images.release(id.as_str());
        self.categories.release(id.as_str());
        Ok(())
    }
}

/// Lets the keeper drop its record of an exited container, without waiting for it.
fn dismiss(keeper: Option<Keeper>, id: &ContainerId) {
    let Some(keeper) = keeper else { return };
    let id = id.clone();
    tokio::spawn(async move {
        // A keeper that does not answer keeps a few hundred bytes; we remove the exit record ourselves.
        let _ = tokio::time::timeout(FORGET_TIMEOUT, keeper.forget(&id)).await;
    });
}

/// The top of the writable layer is the container's `/`: all its users may read it.
fn make_public(directory: &Path) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt as _;
    make_private(directory)?;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755))
        .map_err(|error| io_error(format!("set the mode of {}", directory.display()), error))
}
