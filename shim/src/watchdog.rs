//! Tells systemd again and again that the daemon works. Sources: sd_watchdog_enabled(3), systemd.service(5), `WatchdogSec=`.
//!
//! Called by `serve`, once the daemon is ready. Invariants: a message is sent only after a new task has run, the lifecycle's locks
//! were free, and the daemon has answered a call of its own through its socket; where that hangs it is silent, and systemd
//! starts it again, which pods do not notice. Nothing that a tenant can hold up decides: neither drivers of pods, and be it
//! all of them, nor threads for work that blocks. Drivers that hang are logged. Without systemd nothing happens.
//! Must not know: what requests do.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use coracle_lifecycle::{Pods, RoundTrip};
use tokio::task::JoinSet;

use crate::notify::notify;

/// An answer that takes longer is logged.
const SLOW: Duration = Duration::from_secs(2);

/// Sends messages at half of the interval that systemd waits for, until the value that it returns is dropped. `socket` is the
/// one that calls come by.
pub fn start(pods: &Pods, socket: &Path) -> JoinSet<()> {
    let mut task = JoinSet::new();
    let variable = |name| std::env::var(name).ok();
    let pid = std::process::id();
    if let Some(limit) = limit(variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"), pid) {
        task.spawn(watch(pods.clone(), socket.to_owned(), limit));
    }
    task
}

/// How long systemd waits for a message; `None` if it does not, or waits for another process.
fn limit(microseconds: Option<String>, pid: Option<String>, own: u32) -> Option<Duration> {
    let limit: u64 = microseconds?.parse().ok()?;
    let is_ours = pid.is_none_or(|pid| pid.parse() == Ok(own));
    (is_ours && limit > 0).then(|| Duration::from_micros(limit))
}

async fn watch(pods: Pods, socket: PathBuf, limit: Duration) {
    let (trip, mut seen) = (SLOW.min(limit / 4), Round::default());
    for turn in 0_usize.. {
        let began = Instant::now();
        let round = round(&pods, &socket, turn, trip).await;
        let is_answered = !round.hangs;
        if is_answered {
            notify("WATCHDOG=1\n");
        }
        if round != seen {
            log(&round, limit);
            seen = round;
        }
        tokio::time::sleep(pause(is_answered, limit, trip, began.elapsed())).await;
    }
}

/// What one round found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Round {
    /// The daemon's own call was not answered.
    hangs: bool,
    /// What the drivers of pods have answered.
    drivers: RoundTrip,
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

/// A round in a task of its own. Does not return while a lock that all requests take is held, and logs that.
async fn round(pods: &Pods, socket: &Path, turn: usize, trip: Duration) -> Round {
    let (pods, socket, began) = (pods.clone(), socket.to_owned(), Instant::now());
    let mut asked = tokio::spawn(async move {
        let drivers = pods.round_trip(turn, trip);
        let (drivers, is_answered) = tokio::join!(drivers, answers(&socket, trip));
        Round {
            hangs: !is_answered,
            drivers,
        }
    });
    if let Ok(round) = tokio::time::timeout(trip * 2, &mut asked).await {
        return round.unwrap_or_default();
    }
    let waited_ms = began.elapsed().as_millis();
    tracing::error!(
        waited_ms,
        "requests are not answered; systemd restarts the daemon if that goes on"
    );
    let round = asked.await.unwrap_or_default();
    let took_ms = began.elapsed().as_millis();
    tracing::warn!(took_ms, "requests are answered again");
    round
}

/// Whether the daemon answers a call in time. One that fails at once, for example without a free descriptor, hangs nowhere.
async fn answers(socket: &Path, trip: Duration) -> bool {
    match tokio::time::timeout(trip, coracle_cri::call_self(socket)).await {
        Ok(Ok(())) => true,
        Ok(Err(failure)) => {
            tracing::warn!(%failure, "the daemon's own call to its socket has failed");
            true
        }
        Err(_) => false,
    }
}

fn log(round: &Round, limit: Duration) {
    let RoundTrip { asked, silent } = &round.drivers;
    if round.hangs {
        let limit_s = limit.as_secs();
        tracing::error!(
            limit_s,
            "the daemon does not answer its own call; systemd restarts it if that goes on"
        );
    }
    if !silent.is_empty() {
        let pods = silent.join(", ");
        tracing::warn!(
            pods,
            asked,
            silent = silent.len(),
            "requests about these pods are not answered yet"
        );
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[tokio::test]
    async fn a_socket_that_nobody_serves_is_a_hang_and_a_failure_is_none() {
        let scratch = Scratch::new("watchdog");
        let path = scratch.0.join("socket");
        let trip = Duration::from_millis(100);
        let long = Duration::from_secs(60);
        assert!(answers(&path, long).await, "there is no such socket");
        // The kernel takes the connection, but nobody ever does.
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(!answers(&path, trip).await);
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
