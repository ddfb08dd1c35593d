//! The part of a driver that answers requests which waited for a container to change its phase.
//!
//! Called by: the driver after each message. Invariants: a request is answered once its container's phase decides it, and
//! not before plugins were told what a creation, a start or a change has led to; how long that may take is limited.
//! Must not know: what plugins do.

use coracle_spec::id::ContainerId;
use tracing::Instrument as _;

use super::{Container, Driver, Reply};
use crate::error::Error;
use crate::state::ContainerPhase;

impl Container {
    /// The requests that its phase answers, and that wait until plugins know of it: to create, and to start it.
    fn answered(&mut self) -> (Vec<Reply<ContainerId>>, Vec<Reply<()>>) {
        let phase = &self.phase;
        let is_made = matches!(phase, ContainerPhase::Created | ContainerPhase::Gone);
        let waits = matches!(phase, ContainerPhase::Created | ContainerPhase::Starting(_));
        let waiting = &mut self.waiting;
        let create = is_made.then(|| std::mem::take(&mut waiting.create));
        let start = (!waits).then(|| std::mem::take(&mut waiting.start));
        (create.unwrap_or_default(), start.unwrap_or_default())
    }

    fn answer_waiting(&mut self) {
        let gone = self.phase == ContainerPhase::Gone;
        // A busy unreadable container is being killed.
        let is_unreadable = matches!(self.phase, ContainerPhase::Unreadable(_));
        if !(self.phase.is_live() || is_unreadable && self.busy > 0) {
            answer(&mut self.waiting.stop, &Ok(()));
        }
        if gone {
            answer(&mut self.waiting.remove, &Ok(()));
        }
    }
}

/// Gives all waiting requests the same answer.
pub(super) fn answer<T: Clone>(waiting: &mut Vec<Reply<T>>, result: &Result<T, Error>) {
    for reply in waiting.drain(..) {
        let _ = reply.send(result.clone());
    }
}

impl Driver {
    pub(super) fn answer_containers(&mut self) {
        let mut answered = Vec::new();
        for container in self.containers.values_mut() {
            let (create, start) = container.answered();
            if !(create.is_empty() && start.is_empty()) {
                let (id, failure) = (container.id.clone(), container.failure.clone());
                answered.push((create, start, failure.map_or(Ok(id), Err)));
            }
            container.answer_waiting();
        }
        for (create, start, result) in answered {
            self.answer_when_notified(start, result.clone().map(drop));
            self.answer_when_notified(create, result);
        }
    }

    /// Answers requests whose answer is `result`, once plugins were told of what it says.
    pub(super) fn answer_when_notified<T: Clone + Send + 'static>(
        &self,
        mut waiting: Vec<Reply<T>>,
        result: Result<T, Error>,
    ) {
        if waiting.is_empty() {
            return;
        }
        let Some(notified) = self.notified() else {
            return answer(&mut waiting, &result);
        };
        let work = self.shared.work.begin();
        let answered = async move {
            notified.await;
            answer(&mut waiting, &result);
            drop(work);
        };
        tokio::spawn(answered.in_current_span());
    }
}
