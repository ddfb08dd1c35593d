//! The part of a driver that listens to its keeper: events, reconnecting, the keeper's death.

use std::sync::Arc;
use std::time::Duration;

use coracle_control::exits;
use coracle_control::keeper::KeeperEvent;
use coracle_control::process::Process;
use coracle_spec::id::ContainerId;
use coracle_spec::{Cause, Exit};

use super::{Connection, Driver, Message, Progress};
use crate::blocking::{blocking, pass, runtime_error};
use crate::clock;
use crate::counters;
use crate::error::Error;
use crate::host::GREETING_TIMEOUT;
use crate::state::{ContainerPhase, PodEvent, PodPhase};

/// The pause before another try to connect to a keeper that does not answer: the first one, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

impl Driver {
    /// Stores the keeper's process, counts it and watches for its end; `None` if there is none any more.
    pub(super) fn keep(&mut self, process: Option<Arc<Process>>) {
        self.keeper_watch = process.clone().map(|process| {
            self.watch(async move {
                process.ended().await;
                Message::KeeperEnded
            })
        });
        let counted = process.as_ref().map(|process| process.pid());
        self.keeper_counted = counted.map(counters::keeper);
        self.keeper_process = process;
    }

    pub(super) async fn handle_keeper_event(&mut self, event: Option<KeeperEvent>) {
        match event {
            Some(KeeperEvent::Exited { container, exit }) => match pass("exit.event") {
                Ok(()) => self.exited(&container, exit).await,
                Err(error) => {
                    tracing::warn!(container = self.name_of(&container), id = %container, error = error.chain(), "the exit of a container could not be taken from its keeper")
                }
            },
            Some(KeeperEvent::Closed) | None => {
                (self.events, self.keeper) = (None, None);
                self.reconnect();
            }
        }
    }

    /// Tries to connect to a keeper that does not answer, with growing pauses, while it lives. Its pidfd reports its
    /// death.
    pub(super) fn reconnect(&mut self) {
        let alive = self
            .keeper_process
            .as_ref()
            .is_some_and(|process| process.is_alive());
        if !alive || self.record.phase.live().is_none() || self.progress == Progress::Busy {
            return;
        }
        let (shared, pod) = (Arc::clone(&self.shared), self.record.id.clone());
        self.calling = Some(self.watch(async move {
            let mut pause = FIRST_PAUSE;
            loop {
                tokio::time::sleep(pause).await;
                match shared.host().connect(&pod, GREETING_TIMEOUT).await {
                    Ok((keeper, greeting, events)) => {
                        let connection = Connection {
                            keeper,
                            greeting,
                            events,
                        };
                        return Message::Reconnected(Box::new(connection));
                    }
                    Err(error) if pause == FIRST_PAUSE => {
                        tracing::warn!(
                            error = error.chain(),
                            "the keeper hung up and does not answer"
                        );
                    }
                    Err(_) => {}
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }));
    }

    /// Uses a new connection, and learns from the greeting which containers ended meanwhile.
    pub(super) async fn connected(&mut self, connection: Connection) {
        self.keeper = Some(connection.keeper);
        self.events = Some(connection.events);
        self.engine_hash = connection.greeting.engine_hash;
        self.calling = None;
        for greeted in connection.greeting.containers {
            if let Some(exit) = greeted.exit {
                self.exited(&greeted.id, exit).await;
            }
        }
    }

    /// The keeper has died: its containers have died with it, unless it had recorded their exits.
    pub(super) async fn keeper_ended(&mut self) {
        if self.record.phase.live().is_none() || self.progress == Progress::Busy {
            return;
        }
        if matches!(self.record.phase, PodPhase::Ready(_)) {
            counters::keeper_lost();
            tracing::error!("the keeper has died; its sandbox ends");
        } else {
            // Its stop had begun, in an earlier daemon or in an attempt that failed.
            tracing::info!("the keeper has ended; the stop of its sandbox continues");
        }
        (self.keeper, self.events, self.calling) = (None, None, None);
        self.keep(None);
        let lost = || Exit {
            code: 137,
            signal: Some(libc::SIGKILL),
            finished_at: clock::wall(),
            cause: Cause::KeeperLost,
            message: String::new(),
        };
        for id in self.containers.keys().cloned().collect::<Vec<_>>() {
            self.exited_as_recorded(&id, lost()).await;
        }
        self.pod_step_or_log(PodEvent::KeeperLost).await;
    }

    /// The process of a container is gone: it has ended as its keeper recorded, else as `unrecorded` says. With an exit
    /// record that cannot be used, the container becomes unreadable.
    pub(super) async fn exited_as_recorded(&mut self, id: &ContainerId, unrecorded: Exit) {
        let phase = self.containers.get(id).map(|container| &container.phase);
        if !phase.is_some_and(ContainerPhase::is_live) {
            return;
        }
        match self.recorded_exit(id).await {
            Ok(recorded) => self.exited(id, recorded.unwrap_or(unrecorded)).await,
            Err(error) => self.set_unreadable(id, error.chain()),
        }
    }

    /// How a container ended, if its keeper has recorded that. Errors: the exit record cannot be used.
    pub(super) async fn recorded_exit(&self, id: &ContainerId) -> Result<Option<Exit>, Error> {
        let directory = self.shared.host.layout().exits_directory(&self.record.id);
        let id = id.clone();
        blocking("reading an exit record", move || {
            exits::read(&directory, &id)
                .map_err(|error| runtime_error(format!("learn how container {id} ended"), error))
        })
        .await
    }
}
