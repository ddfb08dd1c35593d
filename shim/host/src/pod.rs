//! Effects on one pod: create it (namespaces, network, cgroup, keeper), tear it down, forget it.
//!
//! Called by: its driver and recovery. Calls: network, cgroups, the spawner, keepers.
//! Invariants: a failed creation leaves nothing; tearing down can be repeated, succeeds for absent parts, and continues
//! after an error so that one stuck part does not keep the others. Until a pod is committed its keeper lives only while
//! this process holds its lifeline. Plugins connect a pod while its keeper starts; its namespace stays until they have
//! detached it.
//! Must not know: records of phases.

mod plugins;
mod scope;
mod setup;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_control::keeper::{Greeting, Keeper, KeeperEvent};
use coracle_control::process::Process;
use coracle_control::spawner::NewKeeper;
use coracle_lifecycle::{
    CreatedSandbox, Error, GREETING_TIMEOUT, Kind, NamespaceMode, PodRecord, Slot, counters,
};
use coracle_network::{self as network, Attachment, Namespaces, cni};
use coracle_spec::id::PodId;
use futures_channel::mpsc::Receiver;
use tracing::{Instrument as _, info_span};

use super::errors::network_error;
use super::{Host, blocking, io_error, pass, remove_tree, runtime_error};

/// How long a keeper may take to exit by itself, and again after it was killed.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

/// The input for starting a keeper.
struct KeeperSetup {
    namespaces: Namespaces,
    attachment: Option<Attachment>,
    /// The plugins to call, where plugins connect pods.
    cni_plan: Option<cni::Plan>,
    entrance: Option<OwnedFd>,
    cgroup_procs: Vec<PathBuf>,
    listener: OwnedFd,
}

impl Host {
    /// Creates namespaces, network, cgroup and keeper of a pod whose record is saved. Undoes all of it on failure.
    pub async fn create_sandbox(
        self: &Arc<Self>,
        record: &PodRecord,
    ) -> Result<CreatedSandbox, Error> {
        let (host, plan) = (Arc::clone(self), record.clone());
        let span = info_span!(target: "otel", "sandbox.prepare");
        let (setup, attachment) = blocking("making a sandbox", move || {
            let mut attachment = None;
            let made = span.in_scope(|| host.setup(&plan, &mut attachment));
            Ok((made, attachment))
        })
        .await?;
        let created = match setup {
            Ok(setup) => self.start_keeper_with_plugins(record, setup).await,
            Err(error) => Err(error),
        };
        if created.is_err() {
            self.undo(record, attachment).await;
        }
        created
    }

    async fn start_keeper(
        &self,
        record: &PodRecord,
        setup: KeeperSetup,
    ) -> Result<CreatedSandbox, Error> {
        let began = Instant::now();
        pass("run.keeper")?;
        let attachment = setup.attachment.clone();
        let born = self.parts.spawner.keeper(self.new_keeper(record, setup));
        let born = born.instrument(info_span!(target: "otel", "keeper.fork"));
        let born = born
            .await
            .map_err(|error| runtime_error(named("fork the keeper", record), error))?;
        let enclosed = self.make_scope(record, born.process.pid()).await;
        let connected = match enclosed.and_then(|()| pass("run.connect")) {
            Ok(()) => self.connect(&record.id, GREETING_TIMEOUT).await,
            Err(error) => Err(error),
        };
        match connected {
            Ok((keeper, greeting, events)) => {
                counters::keeper_started(record.config.handler, began.elapsed());
                Ok(CreatedSandbox {
                    process: Arc::new(born.process),
                    keeper,
                    greeting,
                    events,
                    attachment,
                    lifeline: born.lifeline,
                })
            }
            Err(error) => {
                drop(born.lifeline);
                end_process(&born.process, true).await;
                Err(error)
            }
        }
    }

    fn new_keeper(&self, record: &PodRecord, setup: KeeperSetup) -> NewKeeper {
        NewKeeper {
            pod: record.id.clone(),
            listener: setup.listener,
            exits: self.layout.exits_directory(&record.id),
            namespaces: setup.namespaces,
            host_pid: record.config.namespaces.pid == NamespaceMode::Node,
            oom_score_adj: self.config.keeper_oom_score_adj,
            cgroup: setup.entrance,
            cgroup_procs: setup.cgroup_procs,
            range: record.range,
        }
    }

    /// Connects to a pod's keeper and reads its greeting. Errors: Deadline; Io when nobody listens.
    pub async fn connect(
        &self,
        pod: &PodId,
        timeout: Duration,
    ) -> Result<(Keeper, Greeting, Receiver<KeeperEvent>), Error> {
        let connected = Keeper::connect(&self.control_socket(pod), timeout).await;
        connected
            .map_err(|error| runtime_error(format!("greet the keeper of sandbox {pod}"), error))
    }

    /// Lets the keeper live on without its lifeline.
    pub async fn commit(&self, pod: &PodId, keeper: &Keeper) -> Result<(), Error> {
        pass("run.commit")?;
        keeper
            .commit()
            .await
            .map_err(|error| runtime_error(format!("commit the keeper of sandbox {pod}"), error))
    }

    /// Ends a pod's keeper and releases namespaces, address, cgroup and control socket.
    pub async fn tear_down_sandbox(
        self: &Arc<Self>,
        record: &PodRecord,
        keeper: Option<Keeper>,
        process: Option<Arc<Process>>,
    ) -> Result<(), Error> {
        pass("stoppod.leave")?;
        let leaves = match keeper {
            Some(keeper) => matches!(
                tokio::time::timeout(LEAVE_TIMEOUT, keeper.leave()).await,
                Ok(Ok(()))
            ),
            None => false,
        };
        if let Some(process) = process
            && !end_process(&process, leaves).await
        {
            return Err(Error::new(
                Kind::Deadline,
                format!(
                    "the keeper of sandbox {} (pid {}) outlives SIGKILL",
                    record.id,
                    process.pid()
                ),
            ));
        }
        let left = self.detach_plugins(record).await;
        let attachment = record.phase.live().and_then(|live| live.attachment.clone());
        let span = info_span!(target: "otel", "sandbox.release");
        let down = self.release_resources(record, attachment);
        left.and(down.instrument(span).await)
    }

    /// Tries every step and returns the first error.
    async fn release_resources(
        self: &Arc<Self>,
        record: &PodRecord,
        attachment: Option<Attachment>,
    ) -> Result<(), Error> {
        let (host, of) = (Arc::clone(self), record.clone());
        let network = blocking("releasing a network", move || {
            host.release_network(&of, attachment.as_ref())
        })
        .await;
        let removed = self.remove_cgroup(&self.keeper_cgroup(record)).await;
        let released = self.release_scope(record).await;
        let (host, pod) = (Arc::clone(self), record.id.clone());
        let files = blocking("taking a sandbox down", move || {
            let shm = host.drop_shared_memory(&pod);
            shm.and(remove_tree(&host.run_directory().join(pod.as_str())))
        });
        network.and(removed).and(released).and(files.await)
    }

    /// Where plugins have not detached the pod, the network namespace stays for them; if nobody will ask again, it goes
    /// when they have. Blocks.
    fn release_network(
        &self,
        record: &PodRecord,
        attachment: Option<&Attachment>,
    ) -> Result<(), Error> {
        self.end_refusals(record);
        let is_owed = self.parts.network.cni().is_owed(record.id.as_str());
        let unpinned = pass("stoppod.unpin").and_then(|()| match is_owed {
            true => Ok(()),
            false => network::unpin(&self.pin(&record.id)).map_err(|error| {
                network_error(named("unpin the network namespace", record), error)
            }),
        });
        let detached = pass("stoppod.detach").and_then(|()| match attachment {
            Some(attachment) => {
                let detached = self.detach_builtin(attachment);
                detached.map_err(|error| network_error(named("detach the network", record), error))
            }
            None => Ok(()),
        });
        unpinned.and(detached)
    }

    /// Unmounts a pod's shared memory, where it had to be mounted.
    pub(super) fn drop_shared_memory(&self, pod: &PodId) -> Result<(), Error> {
        use rustix::mount::{UnmountFlags, unmount};
        let mount_point = self.shared_memory(pod);
        if !mount_point.exists() {
            return Ok(());
        }
        let failed =
            |error: std::io::Error| io_error(format!("unmount {}", mount_point.display()), error);
        match unmount(&mount_point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // It is not mounted (any more).
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(failed(error.into())),
        }
        std::fs::remove_dir(&mount_point).map_err(failed)
    }

    /// Undoes a failed creation; what fails now is logged, and undone later or swept at the next start.
    async fn undo(self: &Arc<Self>, record: &PodRecord, attachment: Option<Attachment>) {
        let left = self.detach_plugins(record).await;
        let down = self.release_resources(record, attachment);
        if let Err(error) = left.and(down.await) {
            tracing::warn!(pod = %record.id, error = error.chain(), "a failed sandbox was not undone completely");
        }
    }

    /// Removes a pod's records and directories, the record first. Blocks.
    pub fn forget_pod(&self, pod: &PodId) -> Result<(), Error> {
        let directory = self.layout.pod_directory(pod);
        let erased = Slot::new(directory.clone(), self.syncer()).erase();
        erased.map_err(|error| io_error(format!("erase the record of sandbox {pod}"), error))?;
        self.parts.network.cni().abandon(pod.as_str());
        self.discard_tree(&directory)
    }

    /// The path of the keeper's cgroup.
    pub fn keeper_cgroup(&self, record: &PodRecord) -> String {
        format!(
            "{}/{}",
            record.cgroup_parent.trim_end_matches('/'),
            record.id
        )
    }
}

/// Kills a process; first gives it time to exit if it `leaves` by itself. Returns whether it has ended.
async fn end_process(process: &Process, leaves: bool) -> bool {
    if leaves
        && tokio::time::timeout(LEAVE_TIMEOUT, process.ended())
            .await
            .is_ok()
    {
        return true;
    }
    if process.signal(libc::SIGKILL).is_err() {
        return !process.is_alive();
    }
    tokio::time::timeout(LEAVE_TIMEOUT, process.ended())
        .await
        .is_ok()
}

fn named(what: &str, record: &PodRecord) -> String {
    format!("{what} of sandbox {}", record.id)
}
