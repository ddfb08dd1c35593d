//! What is counted of sessions, for metrics.
//!
//! Called by: [`super::serve`]; the shim, which shows [`all`]. Invariant: labels are names of kinds, protocols and results.
//! Must not know: whose a session is.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use coracle_metrics::{Counters, Family, Gauges, Held, Histograms, Kind, Metric};

static OPEN: Gauges<2> = Gauges::new(Family {
    name: "coracle_streaming_sessions",
    help: "Sessions that clients have open.",
    kind: Kind::Gauge,
    labels: &["kind", "protocol"],
});
static ENDED: Counters<3> = Counters::new(Family {
    name: "coracle_streaming_sessions_total",
    help: "Sessions that have ended, by how: by themselves, because they failed, or because the client left before.",
    kind: Kind::Counter,
    labels: &["kind", "protocol", "result"],
});

static DURATIONS: Histograms<2> = Histograms::new(Family {
    name: "coracle_streaming_session_duration_seconds",
    help: "How long sessions took that have ended, by how.",
    kind: Kind::Histogram,
    labels: &["kind", "result"],
});

/// Everything that is counted here.
#[must_use]
pub fn all() -> [&'static dyn Metric; 3] {
    [&OPEN, &ENDED, &DURATIONS]
}

/// A session that is being served. Dropped without a result it counts as left by its client.
pub struct Counted {
    kind: &'static str,
    protocol: &'static str,
    result: Result,
    began: Instant,
    _open: Held,
}

/// The result of a session, once it has one.
pub type Result = Arc<OnceLock<&'static str>>;

impl Counted {
    /// A session begins.
    pub fn begin(kind: &'static str, protocol: &'static str) -> Counted {
        Counted {
            kind,
            protocol,
            result: Arc::default(),
            began: Instant::now(),
            _open: OPEN.hold([kind, protocol]),
        }
    }

    /// Where its result is put.
    pub fn result(&self) -> Result {
        Arc::clone(&self.result)
    }

    /// It has ended.
    pub fn end(self, result: &'static str) {
        let _ = self.result.set(result);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let result = self.result.get().copied().unwrap_or("left");
        ENDED.count([self.kind, self.protocol, result]);
        DURATIONS.observe([self.kind, result], self.began.elapsed());
    }
}
