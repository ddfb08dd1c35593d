//! What the driver of every pod does and waits for, to find what hangs.
//!
//! Called by: [`super::server`], and the shim when the daemon gets SIGUSR1. Calls: drivers, all at once. Invariant: a driver
//! that does not answer within `PATIENCE` is in the answer as just that.
//! Must not know: the form in which it is printed.

use coracle_lifecycle::{Inspection, Pods};
use coracle_proto::admin::v1 as admin;
use futures_util::future::join_all;

use super::PATIENCE;
use super::server::milliseconds;

/// The tasks of all pods. Those that wait for something come first, and of them the one that has waited longest.
pub async fn tasks(pods: &Pods) -> Vec<admin::Task> {
    let names = pods.names().into_iter();
    let inspected = names.map(|(namespace, pod, id)| one(pods, namespace, pod, id.to_string()));
    let mut tasks: Vec<admin::Task> = join_all(inspected).await.into_iter().flatten().collect();
    tasks.sort_by_key(|task| (task.waits.is_empty(), std::cmp::Reverse(task.phase_ms)));
    tasks
}

/// One line about a task, for people.
#[must_use]
pub fn line(task: &admin::Task) -> String {
    let admin::Task {
        namespace,
        pod,
        phase,
        phase_ms,
        ..
    } = task;
    let waits = match task.waits.as_slice() {
        [] => "waits for nothing".to_owned(),
        waits => waits.join("; "),
    };
    format!("{namespace}/{pod} has been {phase} for {phase_ms} ms: {waits}")
}

/// The task of one pod; `None` when it has gone meanwhile.
async fn one(pods: &Pods, namespace: String, pod: String, id: String) -> Option<admin::Task> {
    let task = admin::Task {
        namespace,
        pod,
        sandbox: id,
        ..admin::Task::default()
    };
    let id = task.sandbox.parse().ok()?;
    match tokio::time::timeout(PATIENCE, pods.inspect(&id)).await {
        Ok(Ok(found)) => Some(with(task, found)),
        Ok(Err(_)) => None,
        Err(_) => Some(admin::Task {
            phase: "unknown".to_owned(),
            phase_ms: milliseconds(PATIENCE),
            waits: vec!["its driver does not answer".to_owned()],
            ..task
        }),
    }
}

fn with(task: admin::Task, found: Inspection) -> admin::Task {
    admin::Task {
        phase: found.phase.to_owned(),
        phase_ms: milliseconds(found.since),
        waits: found.waits,
        ..task
    }
}
