//! When a server has nothing to do: what counts as activity, and when the server may end because nothing does.
//!
//! Called by [`super::connections`]. Two things are counted: what is busy (requests under way, and connections whose
//! first request has not come yet) and what is open (connections). A server that was started again by a newcomer may end
//! a second later if the newcomer was no more than a health probe. What probes are answered is remembered until the end, so
//! that somebody else can vouch for a function that sleeps.
//! Invariants: nobody's first request is lost because its connection was opened just before the end; while requests come
//! one timer is armed, and moved once for each that fires.
//! Not here: closing connections, the end of the process.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{Request, StatusCode, header::USER_AGENT};
use tokio::sync::Notify;

use crate::end::Probes;
use coracle_spec::HttpServer;

/// How the kubelet's probes begin to name themselves; its gRPC probes add a library's name behind it.
const PROBE: &[u8] = b"kube-probe/";
/// How long a server stays that was started again and has seen no request that counts.
const LINGER: Duration = Duration::from_secs(1);
/// Most paths of failing probes that are remembered; a pod has three probes.
const MAX_FAILING: usize = 16;

/// The activity of one server.
pub(super) struct Idle {
    /// How long nothing may happen; none: for ever.
    limit: Option<Duration>,
    probes_count: bool,
    begun: Instant,
    busy: AtomicUsize,
    open: AtomicUsize,
    /// Milliseconds since `begun`.
    due_at: AtomicU64,
    /// Something was counted down to nothing.
    emptied: Notify,
    /// A probe has been answered.
    is_probed: AtomicBool,
    /// Where probes went wrong last.
    failing: Mutex<BTreeSet<String>>,
}

/// An open connection, which is busy until its first request has begun.
pub(super) struct Open {
    idle: Arc<Idle>,
    is_new: AtomicBool,
}

/// A request under way.
pub(super) struct Busy {
    idle: Arc<Idle>,
    counts: bool,
    /// The path of a probe.
    probes: Option<String>,
}

impl Idle {
    /// Nothing has happened yet. `is_again`: not the first server of its container.
    pub(super) fn new(settings: &HttpServer, is_again: bool) -> Self {
        let limit = Duration::from_secs(settings.limits.idle_s.into());
        let first = if is_again { LINGER.min(limit) } else { limit };
        Self {
            limit: Some(limit).filter(|limit| !limit.is_zero()),
            probes_count: settings.limits.probes_keep_awake,
            begun: Instant::now(),
            busy: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            due_at: AtomicU64::new(millis(first)),
            emptied: Notify::new(),
            is_probed: AtomicBool::new(false),
            failing: Mutex::default(),
        }
    }

    /// Counts a connection.
    pub(super) fn open(self: &Arc<Self>) -> Open {
        self.open.fetch_add(1, Ordering::SeqCst);
        self.busy.fetch_add(1, Ordering::SeqCst);
        Open {
            idle: Arc::clone(self),
            is_new: AtomicBool::new(true),
        }
    }

    /// Counts a request.
    pub(super) fn request<B>(self: &Arc<Self>, request: &Request<B>) -> Busy {
        let name = request.headers().get(USER_AGENT);
        let is_probe = name.is_some_and(|name| is_probe(name.as_bytes()));
        self.busy.fetch_add(1, Ordering::SeqCst);
        Busy {
            idle: Arc::clone(self),
            counts: self.probes_count || !is_probe,
            probes: is_probe.then(|| request.uri().path().to_owned()),
        }
    }

    /// What probes were told.
    pub(super) fn probes(&self) -> Probes {
        let failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        match self.is_probed.load(Ordering::SeqCst) {
            false => Probes::None,
            true if failing.is_empty() => Probes::Succeeded,
            true => Probes::Failed,
        }
    }

    /// Waits until nothing has happened for long enough and nothing is under way; without a limit, for ever.
    pub(super) async fn due(&self) {
        if self.limit.is_none() {
            return std::future::pending().await;
        }
        loop {
            let due_at = Duration::from_millis(self.due_at.load(Ordering::SeqCst));
            if self.begun.elapsed() < due_at {
                tokio::time::sleep_until((self.begun + due_at).into()).await;
            } else if self.busy.load(Ordering::SeqCst) == 0 {
                return;
            } else {
                self.emptied.notified().await;
            }
        }
    }

    /// Waits until no connection is open.
    pub(super) async fn closed(&self) {
        while self.open.load(Ordering::SeqCst) > 0 {
            self.emptied.notified().await;
        }
    }

    fn calm(&self) {
        if self.busy.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.emptied.notify_one();
        }
    }
}

impl Open {
    /// The first request has begun; others change nothing.
    pub(super) fn speaks(&self) {
        if self.is_new.swap(false, Ordering::SeqCst) {
            self.idle.calm();
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.speaks();
        if self.idle.open.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.idle.emptied.notify_one();
        }
    }
}

impl Busy {
    /// The request has an answer with this status. Source: the kubelet's probes, which take 200 to 399 for success.
    pub(super) fn answered(&self, status: StatusCode) {
        let Some(path) = &self.probes else {
            return;
        };
        let idle = &self.idle;
        let mut failing = idle.failing.lock().unwrap_or_else(PoisonError::into_inner);
        if status.is_success() || status.is_redirection() {
            failing.remove(path);
        } else if failing.len() < MAX_FAILING {
            failing.insert(path.clone());
        }
        idle.is_probed.store(true, Ordering::SeqCst);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(limit) = self.idle.limit.filter(|_| self.counts) {
            let due_at = millis(self.idle.begun.elapsed() + limit);
            self.idle.due_at.fetch_max(due_at, Ordering::SeqCst);
        }
        self.idle.calm();
    }
}

/// Whether this `User-Agent` is that of the kubelet's probes.
pub(super) fn is_probe(agent: &[u8]) -> bool {
    agent.starts_with(PROBE)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::super::tests::server;
    use super::*;
    use tokio::time::timeout;

    fn idle(idle_s: u32, is_again: bool) -> Arc<Idle> {
        let mut settings = server();
        settings.limits.idle_s = idle_s;
        Arc::new(Idle::new(&settings, is_again))
    }

    /// How long is waited for what must happen, on however slow a machine.
    const PATIENCE_MS: u64 = 60_000;
    /// A second as times are kept here, in whole milliseconds.
    const SECOND: Duration = Duration::from_millis(999);

    async fn is_due(idle: &Idle, within_ms: u64) -> bool {
        timeout(Duration::from_millis(within_ms), idle.due())
            .await
            .is_ok()
    }

    fn probe(path: &str) -> Request<()> {
        let agent = "kube-probe/1.36 grpc-go/1.72";
        let request = Request::get(path).header(USER_AGENT, agent);
        request.body(()).unwrap()
    }

    #[tokio::test]
    async fn what_probes_are_told_last_at_each_path_is_remembered() {
        let idle = idle(1, false);
        let ask = |request: Request<()>, status| {
            let status = StatusCode::from_u16(status).unwrap();
            idle.request(&request).answered(status);
            idle.probes()
        };
        // Others' requests say nothing about health.
        assert_eq!(ask(Request::new(()), 500), Probes::None);
        assert_eq!(ask(probe("/ready"), 200), Probes::Succeeded);
        assert_eq!(ask(probe("/live"), 503), Probes::Failed);
        assert_eq!(ask(probe("/ready"), 302), Probes::Failed);
        assert_eq!(ask(probe("/live"), 204), Probes::Succeeded);
        for path in 0..1_000 {
            ask(probe(&format!("/{path}")), 404);
        }
        assert_eq!(idle.failing.lock().unwrap().len(), MAX_FAILING);
    }

    #[tokio::test]
    async fn without_a_limit_it_never_ends() {
        assert!(!is_due(&idle(0, false), 1_200).await);
        assert!(!is_due(&idle(0, true), 1_200).await);
    }

    #[tokio::test]
    async fn it_ends_after_the_limit_and_not_while_anything_is_under_way() {
        let begun = Instant::now();
        let idle = idle(1, false);
        assert!(is_due(&idle, PATIENCE_MS).await && begun.elapsed() >= SECOND);
        let request = idle.request(&Request::new(()));
        assert!(!is_due(&idle, 1_500).await);
        // The limit begins again with the end of the request.
        let ended = Instant::now();
        drop(request);
        assert!(is_due(&idle, PATIENCE_MS).await && ended.elapsed() >= SECOND);
    }

    #[tokio::test]
    async fn a_connection_that_has_not_spoken_holds_it_and_a_silent_old_one_does_not() {
        let idle = idle(1, false);
        let open = idle.open();
        assert!(!is_due(&idle, 1_300).await);
        open.speaks();
        open.speaks();
        assert!(is_due(&idle, PATIENCE_MS).await);
        assert!(
            timeout(Duration::from_millis(50), idle.closed())
                .await
                .is_err()
        );
        drop(open);
        assert!(
            timeout(Duration::from_millis(PATIENCE_MS), idle.closed())
                .await
                .is_ok()
        );
    }

    #[tokio::test]
    async fn a_server_that_a_probe_started_ends_soon_unless_probes_count() {
        let idle = idle(3_600, true);
        drop(idle.request(&probe("/")));
        assert!(is_due(&idle, PATIENCE_MS).await);
        drop(idle.request(&Request::new(())));
        assert!(!is_due(&idle, 1_500).await);
        let mut settings = server();
        settings.limits.idle_s = 3_600;
        settings.limits.probes_keep_awake = true;
        let idle = Arc::new(Idle::new(&settings, true));
        drop(idle.request(&probe("/")));
        assert!(!is_due(&idle, 1_500).await);
    }
}
