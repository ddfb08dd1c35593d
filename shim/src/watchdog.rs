//! Tells systemd again and again that the daemon works. Sources: sd_watchdog_enabled(3), systemd.service(5), `WatchdogSec=`.
//!
//! Called by `serve`, once the daemon is ready. Invariants: a message is sent only after a request has gone the way of all
//! requests, through a new task, the lifecycle's locks and the mailboxes of several drivers; a daemon in which that hangs is
//! silent, and systemd starts it again, which pods do not notice. A driver that hangs is logged and decides nothing: only
//! if none of several answers it is the daemon that hangs. Without systemd nothing happens.
//! Must not know: what requests do.

use std::time::{Duration, Instant};

use coracle_lifecycle::{Pods, RoundTrip};
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
    let (trip, mut silent) = (SLOW.min(limit / 4), Vec::new());
    for turn in 0_usize.. {
        let began = Instant::now();
        let answer = round_trip(&pods, turn, trip).await;
        let is_answered = is_answered(&answer);
        if is_answered {
            notify("WATCHDOG=1\n");
        }
        if answer.silent != silent {
            log(&answer, limit);
            silent = answer.silent;
        }
        tokio::time::sleep(pause(is_answered, limit, trip, began.elapsed())).await;
    }
}

/// How long after a round the next begins. Others are asked soon where none answered: one bad moment must not use up the time
/// that systemd waits.
fn pause(is_answered: bool, limit: Duration, trip: Duration, took: Duration) -> Duration {
    if is_answered {
        (limit / 2).saturating_sub(took)
    } else {
        trip / 2
    }
}

/// A round trip in a task of its own. Does not return while it hangs, and logs that.
async fn round_trip(pods: &Pods, turn: usize, trip: Duration) -> RoundTrip {
    let (pods, began) = (pods.clone(), Instant::now());
    let mut asked = tokio::spawn(async move { pods.round_trip(turn, trip).await });
    if let Ok(answer) = tokio::time::timeout(trip * 2, &mut asked).await {
        return answer.unwrap_or_default();
    }
    let waited_ms = began.elapsed().as_millis();
    tracing::error!(
        waited_ms,
        "requests are not answered; systemd restarts the daemon if that goes on"
    );
    let answer = asked.await.unwrap_or_default();
    let took_ms = began.elapsed().as_millis();
    tracing::warn!(took_ms, "requests are answered again");
    answer
}

/// Whether the daemon works: one pod alone decides nothing.
fn is_answered(answer: &RoundTrip) -> bool {
    answer.asked < 2 || answer.silent.len() < answer.asked
}

fn log(answer: &RoundTrip, limit: Duration) {
    let (asked, limit_s) = (answer.asked, limit.as_secs());
    let pods = answer.silent.join(", ");
    if !is_answered(answer) {
        tracing::error!(
            pods,
            limit_s,
            "no pod answers requests; systemd restarts the daemon if that goes on"
        );
    } else if !answer.silent.is_empty() {
        tracing::warn!(
            pods,
            asked,
            "requests about a pod are not answered; others are"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pod_that_hangs_decides_nothing() {
        for (asked, silent, answered) in [
            (0, 0, true),
            (1, 0, true),
            (1, 1, true),
            (2, 1, true),
            (8, 7, true),
            (2, 2, false),
            (8, 8, false),
        ] {
            let answer = RoundTrip {
                asked,
                silent: vec!["default/p".to_owned(); silent],
            };
            assert_eq!(is_answered(&answer), answered, "{silent} of {asked}");
        }
    }

    #[test]
    fn a_bad_moment_leaves_time_for_many_more_rounds() {
        let limit = Duration::from_secs(60);
        let after = |is_answered, took| pause(is_answered, limit, SLOW, took);
        assert_eq!(after(true, SLOW), Duration::from_secs(28));
        assert_eq!(after(true, limit), Duration::ZERO);
        // From half of the limit on.
        assert!((SLOW + after(false, SLOW)) * 10 <= limit / 2);
        assert!(after(false, limit) > Duration::ZERO);
    }

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
