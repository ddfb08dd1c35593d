//! Tells systemd again and again that the daemon works. Sources: sd_watchdog_enabled(3), systemd.service(5), `WatchdogSec=`.
//!
//! Called by `serve`, once the daemon is ready. Invariants: a message is sent only after a request has gone the way of all
//! requests, through a new task, the lifecycle's locks and the mailbox of a pod's driver; a daemon in which that hangs is
//! silent, and systemd starts it again, which pods do not notice. Without systemd nothing happens.
//! Must not know: what requests do.

use std::time::{Duration, Instant};

use coracle_lifecycle::Pods;
use tokio::task::JoinSet;

use crate::notify::notify;

/// An answer that takes longer is logged.
const SLOW: Duration = Duration::from_secs(2);

/// Sends messages at half of the interval that systemd waits for, until the value that it returns is dropped.
pub fn start(pods: &Pods) -> JoinSet<()> {
    let mut task = JoinSet::new();
    let variable = |name| std::env::var(name).ok();
    let pid = std::process::id();
    if let Some(limit) = limit(variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"), pid) {
        task.spawn(watch(pods.clone(), limit));
    }
    task
}

/// How long systemd waits for a message; `None` if it does not, or waits for another process.
fn limit(microseconds: Option<String>, pid: Option<String>, own: u32) -> Option<Duration> {
    let limit: u64 = microseconds?.parse().ok()?;
    let is_ours = pid.is_none_or(|pid| pid.parse() == Ok(own));
    (is_ours && limit > 0).then(|| Duration::from_micros(limit))
}

async fn watch(pods: Pods, limit: Duration) {
    for turn in 0_usize.. {
        let began = Instant::now();
        let (pods, trip) = (pods.clone(), SLOW.min(limit / 2));
        let mut answer = tokio::spawn(async move { pods.round_trip(turn).await });
        if tokio::time::timeout(trip, &mut answer).await.is_err() {
            let (waited_ms, limit_s) = (trip.as_millis(), limit.as_secs());
            tracing::error!(
                waited_ms,
                limit_s,
                "requests are not answered; systemd restarts the daemon if that goes on"
            );
            let answered = answer.await;
            let pod = answered
                .ok()
                .flatten()
                .map(|(namespace, name)| format!("{namespace}/{name}"));
            tracing::warn!(
                pod,
                took_ms = began.elapsed().as_millis(),
                "requests are answered again"
            );
        }
        notify("WATCHDOG=1\n");
        tokio::time::sleep((limit / 2).saturating_sub(began.elapsed())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_process_that_systemd_watches_sends_messages() {
        let of = |microseconds: &str, pid: Option<&str>| {
            limit(Some(microseconds.to_owned()), pid.map(str::to_owned), 7)
        };
        let minute = Some(Duration::from_secs(60));
        assert_eq!(of("60000000", None), minute);
        assert_eq!(of("60000000", Some("7")), minute);
        for (microseconds, pid) in [
            ("60000000", Some("8")),
            ("60000000", Some("")),
            ("0", None),
            ("x", None),
        ] {
            assert_eq!(of(microseconds, pid), None, "{microseconds} {pid:?}");
        }
        assert_eq!(limit(None, None, 7), None);
    }
}
