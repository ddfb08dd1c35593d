//! SIGUSR1: what the driver of each pod does and waits for, to the log, for a daemon whose admin service does not answer either.
//!
//! Called by `serve`, one task for the life of the daemon. Invariant: the signal never ends the daemon.
//! Must not know: drivers.

use coracle_admin::tasks;
use coracle_lifecycle::Pods;
use tokio::signal::unix::Signal;
use tokio::task::JoinSet;

/// Logs the tasks at each `signal`, until the value that it returns is dropped. At warn, so that whoever asked sees them.
pub fn log_on(mut signal: Signal, pods: &Pods) -> JoinSet<()> {
    let pods = pods.clone();
    let mut task = JoinSet::new();
    task.spawn(async move {
        while signal.recv().await.is_some() {
            let tasks = tasks::tasks(&pods).await;
            let waiting = tasks.iter().filter(|task| !task.waits.is_empty());
            for task in waiting.clone() {
                tracing::warn!(sandbox = task.sandbox, "{}", tasks::line(task));
            }
            tracing::warn!(
                pods = tasks.len(),
                waiting = waiting.count(),
                "tasks were listed for SIGUSR1"
            );
        }
    });
    task
}
