//! The span of a call: its beginning, with the trace that the client is in, and its end.
//!
//! Called by: CRI's wrapper around every call. Source: W3C Trace Context; OpenTelemetry's conventions for RPC.
//! Invariants: a header that is none of W3C's is as if there were none; text of an error is cut.
//! Must not know: what calls do.

use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::TraceContextExt as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tracing::field::Empty;
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// Most bytes of the text of an error.
const MAX_TEXT: usize = 1_024;

struct Headers<'a>(&'a MetadataMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        Vec::new()
    }
}

/// The span of a call of `method` (`SERVICE/METHOD`), in the trace that `headers` name. Without traces, or none is recorded, a
/// span that costs nothing. Fields for what the call is about can be recorded later.
#[must_use]
pub fn begin(method: &'static str, headers: &MetadataMap) -> Span {
    let (service, name) = method.split_once('/').unwrap_or(("", method));
    let span = info_span!(
        target: "otel",
        parent: None,
        "call",
        otel.name = method,
        otel.kind = "server",
        otel.status_code = Empty,
        otel.status_description = Empty,
        rpc.system = "grpc",
        rpc.service = service,
        rpc.method = name,
        rpc.grpc.status_code = Empty,
        k8s.namespace.name = Empty,
        k8s.pod.name = Empty,
        k8s.pod.uid = Empty,
        k8s.container.name = Empty,
        container.id = Empty,
        container.image.name = Empty,
        coracle.sandbox.id = Empty,
        coracle.handler = Empty,
    );
    if !span.is_disabled() {
        let propagator = TraceContextPropagator::new();
        let parent = propagator.extract_with_context(&Context::new(), &Headers(headers));
        // It fails only for a span that has begun, or without the layer.
        let _ = span.set_parent(parent);
    }
    span
}

/// The call was answered, with an error if `status` is one.
pub fn end(span: &Span, status: Option<&Status>) {
    let code = status.map_or(Code::Ok, Status::code);
    span.record("rpc.grpc.status_code", i64::from(i32::from(code)));
    if let Some(status) = status {
        let text = status.message();
        span.record("otel.status_code", "ERROR");
        let text = &text[..text.floor_char_boundary(MAX_TEXT)];
        span.record("otel.status_description", text);
    }
}

/// The trace that `span` belongs to, if it is recorded: 32 hexadecimal digits.
#[must_use]
pub fn trace_id(span: &Span) -> Option<String> {
    if span.is_disabled() {
        return None;
    }
    let context = span.context();
    let of = context.span().span_context().clone();
    of.is_sampled().then(|| of.trace_id().to_string())
}
