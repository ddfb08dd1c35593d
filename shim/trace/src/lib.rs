//! Traces: what a call did and how long, as OpenTelemetry spans, to the collector that the configuration names.
//!
//! ```text
//! code of any crate --tracing span, target "otel"--> layer --bounded queue--> exporter (a task) --OTLP--> collector
//! ```
//! Called by: the log's setup (the layer), `serve` (the exporter), CRI (the span of a call). Every other crate makes its spans
//! by `tracing` alone and knows nothing of this one. Source: OpenTelemetry; W3C Trace Context.
//! Invariants: without an endpoint there is neither layer nor task, and a span costs one load of an atomic; nothing waits for
//! the collector: what does not fit into the queue is dropped and counted; only calls begin traces; spans say what was done to
//! which object, never environments, arguments, credentials or what containers wrote; no environment variable is read.
//! Must not know: CRI, pods.

mod call;
mod collector;
mod exporter;
mod sampler;

use coracle_metrics::Metric;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::registry::LookupSpan;

pub use call::{begin, end, trace_id};
pub use collector::{Collector, Unusable};
pub use exporter::Exporter;

/// The target of spans that belong to traces; those of all other targets are for the log.
pub const TARGET: &str = "otel";

/// Everything that is counted here.
#[must_use]
pub fn metrics() -> [&'static dyn Metric; 2] {
    exporter::metrics()
}

/// The layer that makes OpenTelemetry spans of those with [`TARGET`], and what sends them. Of calls that come without a trace,
/// `samples_per_million` begin one.
#[must_use]
pub fn layer<S>(samples_per_million: u32) -> (impl Layer<S> + Send + Sync, Exporter)
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    let (queue, exporter) = exporter::new();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(queue)
        .with_sampler(sampler::new(samples_per_million))
        .with_resource(Resource::builder_empty().build())
        .build();
    let layer = tracing_opentelemetry::layer::<S>()
        .with_tracer(provider.tracer("coracle"))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_level(false)
        .with_target(false)
        .with_context_activation(false);
    let spans = Targets::new().with_target(TARGET, LevelFilter::INFO);
    (layer.with_filter(spans), exporter)
}
