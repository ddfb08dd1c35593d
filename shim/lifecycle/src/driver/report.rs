//! What the log and the metrics say of a pod: one line at info for each change that an operator looks for.
//!
//! Called by: the driver, after each change of a phase. Invariants: every line of a driver stands in [`Driver::span`],
//! which names the pod, and a line about a container names it by name and id; times are of the change alone.
//! Must not know: why a phase changed.

use std::time::{Duration, Instant};

use coracle_spec::id::ContainerId;
use tracing::{Span, error_span, info};

use super::{Container, Driver};
use crate::counters;
use crate::state::{ContainerPhase, Ended, PodPhase};
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
        match (before, &self.record.phase) {
            (PodPhase::Starting, PodPhase::Ready(_)) => {
                let handler = self.record.config.handler;
                counters::sandbox_ready(handler, took);
                info!(handler = handler.as_str(), took_ms, "sandbox ready");
            }
            (PodPhase::Stopping(..), PodPhase::NotReady | PodPhase::Removing) => {
                info!(took_ms, "sandbox stopped");
            }
            _ => {}
        }
    }
}

impl Container {
    /// Reports that the container is in another phase than `before`.
    pub(super) fn report(&mut self, before: &ContainerPhase) {
        use ContainerPhase::{
            Created, Creating, Exited, Gone, Removing, Running, Starting, Stopping,
        };
        let took = self.since.elapsed();
        self.since = Instant::now();
        let Some(plan) = &self.plan else { return };
        let kind = ContainerKind::from(&plan.payload);
        let (container, id, took_ms) = (self.config.name.name.as_str(), &self.id, ms(took));
        match (before, &self.phase) {
            (Creating(_), Created) => {
                counters::container_created(kind, took);
                let image = self.config.user_specified_image.as_str();
                info!(container, %id, kind = kind.name(), image, took_ms, "container created");
            }
            (Starting(_), Running(_)) => {
                counters::container_started(kind, took);
                info!(container, %id, took_ms, "container started");
            }
            (Running(_), Stopping(..)) => info!(container, %id, "container is being stopped"),
            (Starting(_) | Running(_) | Stopping(..), Exited(end) | Removing(Some(end))) => {
                exited(self, kind, end);
            }
            (Exited(_) | Created, Removing(_)) => {}
            (Removing(_), Gone) if self.failure.is_none() => {
                info!(container, %id, took_ms, "container removed");
            }
            _ => {}
        }
    }
}

fn exited(container: &Container, kind: ContainerKind, end: &Ended) {
    let reason = end.reason.name();
    counters::container_exited(kind, reason);
    let ran = end.finished_at.saturating_sub(end.started_at);
    // A container that never ran has no start.
    let ran_ms = if end.started_at > 0 {
        ran / 1_000_000
    } else {
        0
    };
    let (name, id) = (container.config.name.name.as_str(), &container.id);
    info!(container = name, %id, exit_code = end.code, reason, ran_ms, "container exited");
}

fn ms(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}
