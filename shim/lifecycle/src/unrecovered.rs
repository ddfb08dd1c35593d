//! A pod that could not be recovered: left as it is, shown as not ready with the reason, and tried again.
//!
//! ```text
//! recovery --UnrecoveredPod--> shown, its names taken --pause, ever longer--> recovered? --yes--> its driver takes over
//!                        ^                                              | no
//!                        +----------------------------------------------+
//! ```
//! Called by: [`super::Pods::open`], one task a pod. Calls: recovery, the host's effects on such pods.
//! Invariants: such a pod ends only when the kubelet stops or removes it; its records are never overwritten; each
//! request is answered at once, if need be with the reason for a refusal. Without such pods there is no task and no
//! timer.
//! Must not know: unreadable containers of a recovered pod, which its driver keeps.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use coracle_spec::id::PodId;
use futures_channel::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;

use super::clock;
use super::disk::{Known, ids_in};
use super::driver::unreadable::{FIRST_PAUSE, LONGEST_PAUSE};
use super::driver::{Driver, Inspection, Mailbox, Message, Request, Shared};
use super::error::{Error, Kind};
use super::recover::pod::{Outcome, recover_pod};
use super::registry::Claim;
use super::unreadable::{container_config, container_view, known_pod_view, pod_view};
use super::view::EventKind;
use crate::blocking::blocking;
use crate::host::Owned;

/// The task of one such pod.
pub struct UnrecoveredPod {
    shared: Arc<Shared>,
    id: PodId,
    known: Known,
    why: String,
    /// A recovery that is still under way.
    under_way: Option<JoinHandle<Outcome>>,
    sender: Mailbox,
    mailbox: UnboundedReceiver<Message>,
}

impl UnrecoveredPod {
    /// A pod that could not be recovered because of `why`; `under_way` is its recovery if that still runs.
    pub fn new(
        shared: &Arc<Shared>,
        id: PodId,
        known: Known,
        why: String,
        under_way: Option<JoinHandle<Outcome>>,
    ) -> UnrecoveredPod {
        let (sender, mailbox) = Driver::mailbox();
        UnrecoveredPod {
            shared: Arc::clone(shared),
            id,
            known,
            why,
            under_way,
            sender,
            mailbox,
        }
    }

    /// Claims the ids that it may hold, shows it, and adds it to what the sweep must leave alone.
    pub async fn add_to(&mut self, owned: &mut Owned) {
        tracing::error!(pod = %self.id, why = self.why, "a sandbox cannot be recovered; it is left as it is and tried again");
        let id = self.id.as_str().to_owned();
        owned.pods.insert(id.clone());
        owned.live.insert(id.clone());
        owned.unrecovered.insert(id);
        owned.has_unreadable = true;
        self.claim_ids().await;
        self.show();
    }

    async fn claim_ids(&mut self) {
        // The containers may not have been listed before, for example for lack of descriptors.
        if self.known.containers.is_empty()
            && let Ok(found) = ids_in(&self.shared.host.layout().containers_directory(&self.id))
        {
            self.known.containers = found;
        }
        if let Some(level) = self.known.level() {
            self.shared.host.claim_level(self.id.as_str(), &level);
        }
        if let Some(range) = self.known.range() {
            self.shared.host.claim_ids(range);
            return;
        }
        let (host, ids) = (Arc::clone(&self.shared.host), self.ids());
        let claimed = blocking("claiming host ids", move || {
            host.claim_ids_of(&ids);
            Ok(())
        });
        if let Err(error) = claimed.await {
            tracing::error!(pod = %self.id, error = error.chain(), "the host ids of an unrecovered sandbox are unknown");
        }
    }

    fn ids(&self) -> HashSet<String> {
        let containers = self.known.containers.iter();
        let containers = containers.map(|id| id.as_str().to_owned());
        containers.chain([self.id.as_str().to_owned()]).collect()
    }

    /// Shows the pod and routes its ids here.
    fn show(&self) {
        let registry = &self.shared.registry;
        let mail = self.sender.clone();
        match &self.known.record {
            Some(record) => {
                if let Claim::Held(..) = registry.claim(&record.config.name, &self.id, mail.clone())
                {
                    registry.adopt(&self.id, mail);
                }
            }
            None => registry.adopt(&self.id, mail),
        }
        for container in &self.known.containers {
            registry.add_container(container, &self.id);
        }
        if self.known.is_unborn() {
            return;
        }
        let view = match &self.known.record {
            Some(record) => known_pod_view(record, &self.why),
            None => pod_view(&self.id, self.known.json.as_ref(), &self.why),
        };
        self.shared.cache.show_pod(view);
        for container in &self.known.containers {
            let config = Arc::new(container_config(container, None));
            let view = container_view(container, &self.id, config, &self.why);
            self.shared.cache.show_container(view);
        }
    }

    /// Runs until the pod is recovered, and then runs its driver, or until it is removed.
    pub async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let task = match self.under_way.take() {
                Some(task) => task,
                None => {
                    let (shared, id) = (Arc::clone(&self.shared), self.id.clone());
                    tokio::spawn(async move {
                        tokio::time::sleep(pause).await;
                        recover_pod(shared, id).await
                    })
                }
            };
            let Some(outcome) = self.answer_until(task).await else {
                return;
            };
            match outcome {
                Outcome::Driver(driver) => return self.hand_over(*driver).await,
                Outcome::Dead(_) => {
                    if let Err(error) = self.stop(self.ids()).await {
                        tracing::error!(pod = %self.id, error = error.chain(), "the remains of a sandbox stay until the next start");
                    }
                    return self.end();
                }
                Outcome::Unrecovered(known, why) => {
                    (self.known, self.why) = (known, why);
                    self.claim_ids().await;
                    self.show();
                }
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Answers requests until `task` is done; `None` once the pod was removed.
    async fn answer_until(&mut self, mut task: JoinHandle<Outcome>) -> Option<Outcome> {
        loop {
            tokio::select! {
                biased;
                done = &mut task => return Some(match done {
                    Ok(outcome) => outcome,
                    Err(error) => {
                        let why = format!("its recovery did not finish: {error}");
                        Outcome::Unrecovered(std::mem::take(&mut self.known), why)
                    }
                }),
                // This task holds a sender, so the mailbox does not close while it runs.
                Ok(message) = self.mailbox.recv() => {
                    if self.handle_message(message).await {
                        task.abort();
                        return None;
                    }
                }
            }
        }
    }

    /// Handles one message; returns whether the pod is gone.
    async fn handle_message(&mut self, message: Message) -> bool {
        let Message::Request(request, _) = message else {
            return false;
        };
        match request {
            Request::StopPod(reply) => drop(reply.send(self.stop(self.ids()).await)),
            Request::RemovePod(reply) => {
                let removed = self.remove().await;
                let is_gone = removed.is_ok();
                if is_gone {
                    self.end();
                }
                let _ = reply.send(removed);
                return is_gone;
            }
            Request::Stop(id, _, reply) => {
                let ids = HashSet::from([id.as_str().to_owned()]);
                let _ = reply.send(self.end_container(ids).await);
            }
            Request::Remove(_, reply) | Request::Start(_, reply) | Request::ReopenLog(_, reply) => {
                drop(reply.send(Err(self.refusal())));
            }
            Request::Ready(_, reply) | Request::Update(_, _, _, reply) => {
                drop(reply.send(Err(self.refusal())));
            }
            Request::Create(_, reply) => drop(reply.send(Err(self.refusal()))),
            Request::Enter(_, _, reply) => drop(reply.send(Err(self.refusal()))),
            Request::Records(reply) => drop(reply.send(Err(self.refusal()))),
            Request::Inspect(reply) => drop(reply.send(Ok(self.inspect()))),
        }
        false
    }

    fn inspect(&self) -> Inspection {
        let name = self.known.record.as_ref().map(|record| &record.config.name);
        Inspection {
            pod: name.map_or_else(Default::default, |name| {
                (name.namespace.clone(), name.name.clone())
            }),
            phase: "not recovered",
            since: Duration::ZERO,
            waits: vec![format!("its recovery is tried again ({})", self.why)],
            keeper_pid: None,
            keeper_answers: false,
        }
    }

    fn refusal(&self) -> Error {
        let text = format!(
            "sandbox {} is left as it is because it could not be recovered ({}); only StopPodSandbox, StopContainer and \
             RemovePodSandbox are possible; its recovery is tried again",
            self.id, self.why
        );
        Error::new(Kind::WrongPhase, text)
    }

    /// The parent of its cgroups, or the default when unknown.
    fn cgroup_parent(&self) -> Option<String> {
        let known = self.known.cgroup_parent();
        known.or_else(|| Some(self.shared.host.default_cgroup_parent()))
    }

    async fn end_container(&self, ids: HashSet<String>) -> Result<(), Error> {
        let (host, parent) = (Arc::clone(&self.shared.host), self.cgroup_parent());
        blocking("ending a container", move || {
            host.end_processes(&ids, parent)
        })
        .await
    }

    async fn stop(&self, ids: HashSet<String>) -> Result<(), Error> {
        let parent = self.cgroup_parent();
        let host = self.shared.host();
        host.end_unreadable(&self.id, ids, parent).await?;
        tracing::info!(pod = %self.id, "an unreadable sandbox was stopped");
        Ok(())
    }

    async fn remove(&self) -> Result<(), Error> {
        self.stop(self.ids()).await?;
        let (host, id) = (Arc::clone(&self.shared.host), self.id.clone());
        let containers = self.known.containers.clone();
        blocking("forgetting an unreadable sandbox", move || {
            host.forget_unreadable(&id, &containers)
        })
        .await
    }

    /// Releases everything of the pod, which is gone.
    fn end(&mut self) {
        self.mailbox.close();
        let cache = &self.shared.cache;
        if let Some(range) = self.known.range() {
            self.shared.host.release_ids(range);
        }
        self.shared.host.release_level(self.id.as_str());
        for container in &self.known.containers {
            cache.hide_container(container);
        }
        if let Some(last) = cache.hide_pod(&self.id) {
            self.shared.registry.release(&last.config.name, &self.id);
            cache.publish(EventKind::Deleted, self.id.as_str(), clock::wall(), last);
        }
        tracing::info!(pod = %self.id, "sandbox gone");
    }

    /// Passes the remaining messages to the driver, which now owns names and snapshots, and runs it.
    async fn hand_over(mut self, driver: Driver) {
        tracing::info!(pod = %self.id, "an unrecovered sandbox is recovered now");
        self.mailbox.close();
        let driver_mail = self.shared.registry.pod(&self.id);
        // The end, and not before a message that is just being put in.
        while let Ok(message) = self.mailbox.recv().await {
            if let Some(mail) = &driver_mail {
                let _ = mail.unbounded_send(message);
            }
        }
        for container in &self.known.containers {
            if !driver.holds(container) {
                self.shared.cache.hide_container(container);
            }
        }
        if let Some(attachment) = driver.attachment()
            && let Err(error) = self.shared.host().restore_network(attachment).await
        {
            tracing::error!(pod = %self.id, error = error.chain(), "the addresses or ports of a recovered sandbox could not be claimed again");
        }
        driver.run().await;
    }
}
