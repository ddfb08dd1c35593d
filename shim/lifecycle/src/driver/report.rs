//! What the log and the metrics say of a pod: one line at info for each change that an operator looks for.
//!
//! Called by: the driver, after each change of a phase. Invariants: every line of a driver stands in [`Driver::span`],
//! which names the pod, and a line about a container names it by name and id; times are of the change alone.
//! Must not know: why a phase changed.

use std::time::{Duration, Instant};

use coracle_spec::id::ContainerId;
use tracing::{Span, error_span, info};

use super::{Container, Driver};
use crate::clock;
use crate::counters;
use crate::error::Error;
use crate::history::HistoryEntry;
use crate::state::{ContainerPhase, Ended, PodPhase, Reason};
use crate::view::ContainerKind;

impl Driver {
    /// The span of all lines about this pod. At level error, so that it is there whatever is logged.
    pub(super) fn span(&self) -> Span {
        let name = &self.record.config.name;
        let pod = format!("{}/{}", name.namespace, name.name);
        error_span!("pod", pod, sandbox = %self.record.id)
    }

    /// The name of a container, for a line about it.
    pub(super) fn name_of(&self, id: &ContainerId) -> &str {
        self.containers
            .get(id)
            .map_or("", |container| container.config.name.name.as_str())
    }

    /// Reports that the pod is in another phase than `before`.
    pub(super) fn report_pod(&mut self, before: &PodPhase) {
        let took = self.since.elapsed();
        self.since = Instant::now();
        let took_ms = ms(took);
        let what = match (before, &self.record.phase) {
            (PodPhase::Starting, PodPhase::Ready(_)) => {
                let handler = self.record.config.handler;
                counters::sandbox_ready(handler, took);
                info!(handler = handler.shown(), took_ms, "sandbox ready");
                "ready".to_owned()
            }
            (PodPhase::Starting, PodPhase::Removing) => {
                let failure = self.failure.as_ref().map_or(String::new(), Error::chain);
                return self.remember(None, format!("was not created: {failure}"), took, true);
            }
            (PodPhase::Stopping(..), PodPhase::NotReady | PodPhase::Removing) => {
                info!(took_ms, "sandbox stopped");
                "stopped".to_owned()
            }
            (_, PodPhase::Gone) if self.failure.is_none() => "gone".to_owned(),
            _ => return,
        };
        self.remember(None, what, took, false);
    }

    /// Reports that a container is in another phase than `before`.
    pub(super) fn report_container(&mut self, id: &ContainerId, before: &ContainerPhase) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let Some(happened) = container.report(before) else {
            return;
        };
        let container = Some((container.config.name.name.clone(), id.to_string()));
        self.remember(container, happened.what, happened.took, happened.failed);
    }

    /// Adds to what operators can ask for.
    fn remember(
        &self,
        container: Option<(String, String)>,
        what: String,
        took: Duration,
        failed: bool,
    ) {
        let name = &self.record.config.name;
        self.shared.history.add(HistoryEntry {
            at: clock::wall(),
            pod: (name.namespace.clone(), name.name.clone()),
            sandbox: self.record.id.to_string(),
            container,
            what,
            took,
            failed,
        });
    }
}

/// What happened to a container.
struct Happened {
    what: String,
    took: Duration,
    failed: bool,
}

impl Container {
    /// Counts and logs that the container is in another phase than `before`; what to remember of it.
    fn report(&mut self, before: &ContainerPhase) -> Option<Happened> {
        use ContainerPhase::{Creating, Exited, Removing, Running, Starting, Stopping};
        let took = self.since.elapsed();
        self.since = Instant::now();
        if let (Creating(_), Removing(_), Some(failure)) = (before, &self.phase, &self.failure) {
            let what = format!("was not created: {}", failure.chain());
            return Some(Happened {
                what,
                took,
                failed: true,
            });
        }
        let kind = ContainerKind::from(&self.plan.as_ref()?.payload);
        if let (Starting(_) | Running(_) | Stopping(..), Exited(end) | Removing(Some(end))) =
            (before, &self.phase)
        {
            return Some(exited(self, kind, end, matches!(before, Stopping(..))));
        }
        let what = self.report_progress(before, kind, took)?.to_owned();
        Some(Happened {
            what,
            took,
            failed: false,
        })
    }

    /// Counts and logs a change that is neither a failure nor an exit and took `took`; its name.
    fn report_progress(
        &self,
        before: &ContainerPhase,
        kind: ContainerKind,
        took: Duration,
    ) -> Option<&'static str> {
        use ContainerPhase::{Created, Creating, Gone, Removing, Running, Starting, Stopping};
        let (name, id, took_ms) = (self.config.name.name.as_str(), &self.id, ms(took));
        match (before, &self.phase) {
            (Creating(_), Created) => {
                counters::container_created(kind, took);
                let image = self.config.user_specified_image.as_str();
                info!(container = name, %id, kind = kind.name(), image, took_ms, "container created");
                Some("created")
            }
            (Starting(_), Running(_)) => {
                counters::container_started(kind, took);
                info!(container = name, %id, took_ms, "container started");
                Some("started")
            }
            (Running(_), Stopping(..)) => {
                info!(container = name, %id, "container is being stopped");
                Some("is being stopped")
            }
            (Removing(_), Gone) if self.failure.is_none() => {
                info!(container = name, %id, took_ms, "container removed");
                Some("removed")
            }
            _ => None,
        }
    }
}

/// A container has ended. With `was_stopping` a code other than 0 is what StopContainer asked for, and no failure.
fn exited(container: &Container, kind: ContainerKind, end: &Ended, was_stopping: bool) -> Happened {
    let reason = end.reason.name();
    counters::container_exited(kind, reason);
    let ran = end.finished_at.saturating_sub(end.started_at);
    // A container that never ran has no start.
    let ran = if end.started_at > 0 { ran } else { 0 };
    let ran = Duration::from_nanos(u64::try_from(ran).unwrap_or(0));
    let (name, id, ran_ms) = (container.config.name.name.as_str(), &container.id, ms(ran));
    info!(container = name, %id, exit_code = end.code, reason, ran_ms, "container exited");
    let mut what = format!("exited {} ({reason})", end.code);
    if !end.message.is_empty() {
        what.push_str(": ");
        what.push_str(&end.message);
    }
    Happened {
        what,
        took: ran,
        failed: end.code != 0 && (!was_stopping || end.reason == Reason::CgroupOom),
    }
}

fn ms(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}
