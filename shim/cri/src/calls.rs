//! Counts calls and their durations.
//!
//! Called by: the wrapper around every call; `images`, for pulls; the shim, which shows [`all`]. Invariant: a call whose
//! client goes away is counted, too, as Cancelled, and so is its pull.
//! Must not know: what a call does.

use std::time::{Duration, Instant};

use coracle_lifecycle::{Error, ExecOutput, Kind as ErrorKind};
use coracle_metrics::{Counters, Family, Gauge, Gauges, Held, Histograms, Kind, Metric};
use tonic::Code;

static REQUESTS: Counters<2> = Counters::new(Family {
    name: "coracle_cri_requests_total",
    help: "Calls that were answered, or whose client went away.",
    kind: Kind::Counter,
    labels: &["rpc", "code"],
});
static DURATIONS: Histograms<1> = Histograms::new(Family {
    name: "coracle_cri_request_duration_seconds",
    help: "How long calls took; for streams, until they began.",
    kind: Kind::Histogram,
    labels: &["rpc"],
});
static IN_FLIGHT: Gauges<1> = Gauges::new(Family {
    name: "coracle_cri_requests_in_flight",
    help: "Calls that are being answered.",
    kind: Kind::Gauge,
    labels: &["rpc"],
});
static PULLS: Counters<2> = Counters::new(Family {
    name: "coracle_image_pulls_total",
    help: "Pulls of images, by result and reason of the failure.",
    kind: Kind::Counter,
    labels: &["result", "reason"],
});
static PULLS_IN_FLIGHT: Gauges<0> = Gauges::new(Family {
    name: "coracle_image_pulls_in_flight",
    help: "Pulls of images that clients wait for.",
    kind: Kind::Gauge,
    labels: &[],
});
static PULL_DURATIONS: Histograms<0> = Histograms::new(Family {
    name: "coracle_image_pull_duration_seconds",
    help: "How long successful pulls took.",
    kind: Kind::Histogram,
    labels: &[],
});

static SUBSCRIBERS: Gauges<0> = Gauges::new(Family {
    name: "coracle_event_subscribers",
    help: "Clients that follow container events.",
    kind: Kind::Gauge,
    labels: &[],
});
static EVENTS_DROPPED: Counters<0> = Counters::new(Family {
    name: "coracle_events_dropped_total",
    help: "Container events that clients lost because they read too slowly.",
    kind: Kind::Counter,
    labels: &[],
});
static EXEC_SYNCS: Histograms<1> = Histograms::new(Family {
    name: "coracle_exec_sync_duration_seconds",
    help: "How long programs of ExecSync took, probes among them, by how they ended.",
    kind: Kind::Histogram,
    labels: &["result"],
});
static NETWORK_READY: Gauge = Gauge::new(Family {
    name: "coracle_network_ready",
    help: "1 if the last Status said that pods get a network, else 0.",
    kind: Kind::Gauge,
    labels: &[],
});

/// Everything that is counted here.
#[must_use]
pub fn all() -> [&'static dyn Metric; 10] {
    PULLS.show(["ok", ""]);
    EVENTS_DROPPED.show([]);
    SUBSCRIBERS.show([]);
    PULLS_IN_FLIGHT.show([]);
    [
        &REQUESTS,
        &DURATIONS,
        &IN_FLIGHT,
        &PULLS,
        &PULLS_IN_FLIGHT,
        &PULL_DURATIONS,
        &SUBSCRIBERS,
        &EVENTS_DROPPED,
        &EXEC_SYNCS,
        &NETWORK_READY,
    ]
}

/// A client follows events until the value is dropped.
pub(super) fn subscribe() -> Held {
    SUBSCRIBERS.hold([])
}

/// A client lost events.
pub(super) fn lost_events(count: u64) {
    EVENTS_DROPPED.add([], count);
}

/// A program of ExecSync has ended, or was not started.
pub(super) fn exec_sync(took: Duration, ended: &Result<ExecOutput, Error>) {
    let result = match ended {
        Ok(output) if output.code == 0 => "ok",
        Ok(_) => "nonzero",
        Err(error) if error.kind() == ErrorKind::Deadline => "timeout",
        Err(_) => "failed",
    };
    EXEC_SYNCS.observe([result], took);
}

/// Status says whether pods get a network.
pub(super) fn network(is_ready: bool) {
    NETWORK_READY.set(u64::from(is_ready));
}

/// A call under way.
pub(super) struct Call {
    rpc: &'static str,
    began: Instant,
    code: Code,
    _in_flight: Held,
}

/// A call of `rpc` begins.
pub(super) fn begin(rpc: &'static str) -> Call {
    Call {
        rpc,
        began: Instant::now(),
        code: Code::Cancelled,
        _in_flight: IN_FLIGHT.hold([rpc]),
    }
}

impl Call {
    /// It was answered.
    pub fn end(mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        REQUESTS.count([self.rpc, code_name(self.code)]);
        DURATIONS.observe([self.rpc], self.began.elapsed());
    }
}

/// A pull under way. Dropped before its end it counts as failed, by its client.
pub(super) struct Pull {
    began: Instant,
    result: [&'static str; 2],
    _in_flight: Held,
}

/// A pull begins.
pub(super) fn begin_pull() -> Pull {
    Pull {
        began: Instant::now(),
        result: ["failed", "cancelled"],
        _in_flight: PULLS_IN_FLIGHT.hold([]),
    }
}

impl Pull {
    /// It has ended; `failure` says why it failed.
    pub(super) fn end(mut self, failure: Option<&coracle_images::Error>) {
        self.result = match failure {
            None => ["ok", ""],
            Some(error) => ["failed", reason(error.kind())],
        };
    }
}

impl Drop for Pull {
    fn drop(&mut self) {
        PULLS.count(self.result);
        if self.result[0] == "ok" {
            PULL_DURATIONS.observe([], self.began.elapsed());
        }
    }
}

fn reason(kind: coracle_images::ErrorKind) -> &'static str {
    use coracle_images::ErrorKind as Kind;
    match kind {
        Kind::Missing => "not_found",
        Kind::Invalid => "invalid",
        Kind::Unauthorized => "unauthorized",
        Kind::RegistryUnavailable => "unavailable",
        Kind::Exhausted => "disk",
        Kind::Limit => "limit",
        Kind::Corrupt => "digest",
        Kind::Cancelled => "cancelled",
        Kind::Signature => "signature",
        Kind::Io => "other",
    }
}

/// A code as the protocol spells it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Cancelled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use coracle_metrics::{Format, Text};

    use super::*;

    #[test]
    fn a_pull_that_is_dropped_counts_as_cancelled() {
        drop(begin_pull());
        let mut text = Text::new(Format::Prometheus);
        PULLS.write(&mut text);
        let text = text.take();
        let line = r#"{result="failed",reason="cancelled"} 1"#;
        assert!(text.contains(line), "{text}");
    }
}
