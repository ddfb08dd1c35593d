//! The queue of spans that have ended, and the task that sends them.
//!
//! Called by: the SDK, on whatever thread a span ends; `serve`, once. Invariants: to end a span never waits; memory is bounded
//! by the queue and one batch; each span is sent once, or counted as dropped; a collector that stays away is one line in the log.
//! Must not know: the protocol.

use std::time::Duration;

use coracle_metrics::{Counters, Family, Kind, Metric};
use opentelemetry::Context;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{Instant, timeout_at};

use super::collector::{Client, Collector};

/// Spans that wait.
const QUEUE: usize = 2_048;
/// Spans of one message.
const BATCH: usize = 512;
/// How long a message waits for more spans.
const FILL: Duration = Duration::from_millis(500);

static SENT: Counters<0> = Counters::new(Family {
    name: "coracle_traces_sent_total",
    help: "Spans of traces that the collector has.",
    kind: Kind::Counter,
    labels: &[],
});
static DROPPED: Counters<1> = Counters::new(Family {
    name: "coracle_traces_dropped_total",
    help: "Spans of traces that were dropped: the queue was full, the collector was away, or it refused them.",
    kind: Kind::Counter,
    labels: &["reason"],
});

/// Everything that is counted here.
pub(super) fn metrics() -> [&'static dyn Metric; 2] {
    for reason in ["queue", "collector", "refused"] {
        DROPPED.show([reason]);
    }
    SENT.show([]);
    [&SENT, &DROPPED]
}

/// The end of the queue that spans are put into.
#[derive(Debug)]
pub(super) struct Queue(Sender<SpanData>);

/// Sends what is in the queue.
#[derive(Debug)]
pub struct Exporter(Receiver<SpanData>);

/// A queue, and who sends what is in it.
pub(super) fn new() -> (Queue, Exporter) {
    let (sender, receiver) = channel(QUEUE);
    (Queue(sender), Exporter(receiver))
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.0.try_send(span).is_err() {
            DROPPED.count(["queue"]);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

impl Exporter {
    /// Sends spans to `collector` as long as the daemon runs. `version` is the daemon's.
    pub async fn run(mut self, collector: Collector, version: &'static str) {
        let mut client = collector.client(version);
        let mut is_away = false;
        while let Some(batch) = self.batch().await {
            is_away = send(&mut client, batch, is_away).await;
        }
    }

    /// The next spans; `None` when there will be no more.
    async fn batch(&mut self) -> Option<Vec<SpanData>> {
        let mut batch = Vec::new();
        if self.0.recv_many(&mut batch, BATCH).await == 0 {
            return None;
        }
        let until = Instant::now() + FILL;
        while batch.len() < BATCH {
            let room = BATCH - batch.len();
            match timeout_at(until, self.0.recv_many(&mut batch, room)).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
        Some(batch)
    }
}

/// Sends one message; `was_away` says whether the last one failed. Returns whether this one did.
async fn send(client: &mut Client, batch: Vec<SpanData>, was_away: bool) -> bool {
    let number = batch.len() as u64;
    let refused = match client.send(batch).await {
        Ok(refused) => refused,
        Err(code) => {
            DROPPED.add(["collector"], number);
            if !was_away {
                tracing::warn!(
                    ?code,
                    "the collector does not take spans of traces; they are dropped until it does"
                );
            }
            return true;
        }
    };
    SENT.add([], number - refused);
    DROPPED.add(["refused"], refused);
    if was_away {
        tracing::info!("the collector takes spans of traces again");
    }
    false
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use opentelemetry::trace::{Tracer as _, TracerProvider as _};
    use opentelemetry_sdk::trace::SdkTracerProvider;

    use super::*;

    #[tokio::test]
    async fn a_full_queue_drops_and_counts_and_a_batch_is_bounded() {
        let (queue, mut exporter) = new();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(queue)
            .build();
        let tracer = provider.tracer("test");
        for _ in 0..QUEUE + 3 {
            drop(tracer.start("span"));
        }
        for _ in 0..QUEUE / BATCH {
            assert_eq!(exporter.batch().await.unwrap().len(), BATCH);
        }
        let mut text = coracle_metrics::Text::new(coracle_metrics::Format::Prometheus);
        DROPPED.write(&mut text);
        let text = text.take();
        assert!(text.contains("{reason=\"queue\"} 3\n"), "{text}");
        drop(tracer.start("span"));
        let began = std::time::Instant::now();
        assert_eq!(exporter.batch().await.unwrap().len(), 1);
        assert!(began.elapsed() >= FILL);
    }
}
