//! Which spans are recorded: those of traces whose caller records them, and a share of the calls that come without a trace.
//!
//! Called by: the SDK, for each span that begins. Invariants: a caller's decision always holds; only a call begins a trace, so
//! that work in the background never makes one.
//! Must not know: what spans are about.

use opentelemetry::trace::{Link, SpanKind, TraceId, TraceState};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{Sampler, SamplingDecision, SamplingResult, ShouldSample};

/// The decision about spans without a parent.
#[derive(Clone, Debug)]
struct Calls(Sampler);

/// A sampler. Of calls without a trace, `per_million` are recorded.
pub(super) fn new(per_million: u32) -> Sampler {
    let share = f64::from(per_million) / 1e6;
    Sampler::ParentBased(Box::new(Calls(Sampler::TraceIdRatioBased(share))))
}

impl ShouldSample for Calls {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        if *kind == SpanKind::Server {
            return self
                .0
                .should_sample(parent, trace, name, kind, attributes, links);
        }
        SamplingResult {
            decision: SamplingDecision::Drop,
            attributes: Vec::new(),
            trace_state: TraceState::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_begin_traces() {
        let of = |per_million, kind| {
            let trace = TraceId::from_bytes([1; 16]);
            let result = new(per_million).should_sample(None, trace, "x", &kind, &[], &[]);
            result.decision == SamplingDecision::RecordAndSample
        };
        assert!(of(1_000_000, SpanKind::Server));
        assert!(!of(1_000_000, SpanKind::Internal));
        assert!(!of(0, SpanKind::Server));
    }
}
