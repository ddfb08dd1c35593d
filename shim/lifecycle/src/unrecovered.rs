//! A pod that could not be recovered: left as it is, shown as not ready with the reason, and tried again.
//!
//! ```text
//! recovery --UnrecoveredPod--> shown, its names taken --pause, ever longer--> recovered? --yes--> its driver takes over
//!                        ^                                              | no
//!                        +----------------------------------------------+
//! ```
//! Called by: [`super::Pods::open`], one task a pod. Calls: recovery, the host's effects on such pods.
//! Invariants: such a pod ends only when the kubelet stops or removes it; its records are never overwritten; each
//! request is answered at once, if need be with the reason for a refusal, but for those to end something, which run beside
//! this task; it is not handed over while one of them does. Without such pods there is no task and no timer.
//! Must not know: unreadable containers of a recovered pod, which its driver keeps.

mod ending;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use coracle_spec::id::PodId;
use futures_channel::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;

use super::disk::{Known, ids_in};
use super::driver::unreadable::{FIRST_PAUSE, LONGEST_PAUSE};
use super::driver::{Driver, Inspection, Mailbox, Message, Request, Shared};
use super::error::{Error, Kind};
use super::recover::pod::{Outcome, recover_pod};
use super::registry::Claim;
use super::unreadable::{container_config, container_view, known_pod_view, pod_view};
use crate::blocking::blocking;
use crate::host::Owned;
use crate::host_ids;
use ending::{Ending, ended};

/// The task of one such pod.
pub struct UnrecoveredPod {
    shared: Arc<Shared>,
    id: PodId,
    known: Known,
    why: String,
    /// A recovery that is still under way.
    under_way: Option<JoinHandle<Outcome>>,
    /// What is being ended, one after the other.
    ending: Option<(Ending, JoinHandle<Result<(), Error>>)>,
    /// What is to be ended after that.
    endings: VecDeque<Ending>,
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
            ending: None,
            endings: VecDeque::new(),
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
        if let Some(record) = &self.known.record {
            host_ids::claim(self.shared.host.as_ref(), record);
            return;
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
                    self.push(Ending::Remains);
                    let never = tokio::spawn(std::future::pending());
                    self.answer_until(never).await;
                    return;
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
                result = ended(&mut self.ending) => {
                    if self.finish(result) {
                        task.abort();
                        return None;
                    }
                }
                done = &mut task, if self.ending.is_none() => return Some(match done {
                    Ok(outcome) => outcome,
                    Err(error) => {
                        let why = format!("its recovery did not finish: {error}");
                        Outcome::Unrecovered(std::mem::take(&mut self.known), why)
                    }
                }),
                // This task holds a sender, so the mailbox does not close while it runs.
                Ok(message) = self.mailbox.recv() => self.handle_message(message),
            }
        }
    }

    fn handle_message(&mut self, message: Message) {
        let Message::Request(request, _) = message else {
            return;
        };
        match request {
            Request::StopPod(reply) => self.push(Ending::Pod(reply)),
            Request::RemovePod(reply) => self.push(Ending::Removal(reply)),
            Request::Stop(id, _, reply) => self.push(Ending::Container(id, reply)),
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
