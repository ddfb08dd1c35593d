//! The spans of a call: what its lines in the log, and its trace, say of the object that it is about.
//!
//! Called by: the wrapper around every call, and each call once it knows its object. Invariants: a sandbox is named by
//! namespace, name and id, a container also by its own name; what a client sent is printed without control characters and
//! cut; the look-up costs the same however many pods there are.
//! Must not know: what a call does.

use coracle_lifecycle::{ContainerView, PodName, PodView};
use coracle_spec::id::{ContainerId, PodId};
use tonic::Status;
use tonic::metadata::MetadataMap;
use tracing::field::Empty;
use tracing::{Instrument as _, Span, error_span};

use super::Shared;

/// The most that is printed of what a client sent, in characters.
const MAX_CHARS: usize = 256;

tokio::task_local! {
    /// The call that this task answers.
    static CALL: Spans;
}

/// The spans of a call.
#[derive(Clone)]
struct Spans {
    log: Span,
    trace: Span,
}

/// A call under way.
pub(super) struct Call {
    /// The name of the RPC.
    pub rpc: &'static str,
    spans: Spans,
}

/// A call of `method` (`SERVICE/RPC`) begins, in the trace that `headers` name.
pub(super) fn call(method: &'static str, headers: &MetadataMap) -> Call {
    let rpc = method.rsplit('/').next().unwrap_or(method);
    // At level error, so that it is there whatever is logged.
    let log = error_span!(
        "cri",
        rpc,
        pod = Empty,
        sandbox = Empty,
        container = Empty,
        id = Empty,
        image = Empty,
        trace_id = Empty
    );
    let trace = coracle_trace::begin(method, headers);
    if let Some(id) = coracle_trace::trace_id(&trace) {
        log.record("trace_id", id);
    }
    Call {
        rpc,
        spans: Spans { log, trace },
    }
}

impl Call {
    /// Runs `work` in the spans of the call. That of the log is the inner one: tasks that `work` starts take it along.
    pub async fn run<A>(self, work: impl Future<Output = Result<A, Status>>) -> Result<A, Status> {
        let Spans { log, trace } = self.spans.clone();
        let answer = CALL.scope(self.spans, work).instrument(log);
        let answer = answer.instrument(trace.clone()).await;
        coracle_trace::end(&trace, answer.as_ref().err());
        answer
    }
}

/// The call is about the sandbox with this id, or beginning of an id.
pub(super) fn sandbox(shared: &Shared, named: &str) {
    record("sandbox", "coracle.sandbox.id", named);
    let id = named.parse::<PodId>().ok();
    if let Some(view) = id.and_then(|id| shared.pods.pod(&id)) {
        known_pod(&view);
    }
}

/// The call is about the container with this id, or beginning of an id.
pub(super) fn container(shared: &Shared, named: &str) {
    record("id", "container.id", named);
    let id = named.parse::<ContainerId>().ok();
    let Some(view) = id.and_then(|id| shared.pods.container(&id)) else {
        return;
    };
    let view: &ContainerView = &view;
    new_container(&view.config.name.name);
    record("sandbox", "coracle.sandbox.id", view.pod.as_str());
    if let Some(of) = shared.pods.pod(&view.pod) {
        known_pod(&of);
    }
}

fn known_pod(view: &PodView) {
    pod(&view.config.name);
    handler(view.config.shown_handler());
}

/// The call is about the pod of this name.
pub(super) fn pod(name: &PodName) {
    let of = format!("{}/{}", name.namespace, name.name);
    with(|spans| {
        spans.log.record("pod", printable(&of));
        let trace = &spans.trace;
        trace.record("k8s.namespace.name", printable(&name.namespace));
        trace.record("k8s.pod.name", printable(&name.name));
        trace.record("k8s.pod.uid", printable(&name.uid));
    });
}

/// The call is about a pod with this handler.
pub(super) fn handler(name: &str) {
    with(|spans| {
        spans.trace.record("coracle.handler", printable(name));
    });
}

/// The call is about a container of this name, which may not exist yet.
pub(super) fn new_container(name: &str) {
    record("container", "k8s.container.name", name);
}

/// The call is about the image of this name.
pub(super) fn image(name: &str) {
    record("image", "container.image.name", name);
}

/// The call made this sandbox or container; the trace learns its id.
pub(super) fn made(attribute: &'static str, id: &str) {
    with(|spans| {
        spans.trace.record(attribute, id);
    });
}

fn record(field: &'static str, attribute: &'static str, text: &str) {
    with(|spans| {
        spans.log.record(field, printable(text));
        spans.trace.record(attribute, printable(text));
    });
}

/// What is answered outside of a call has no spans.
fn with(use_them: impl FnOnce(&Spans)) {
    let _ = CALL.try_with(use_them);
}

fn printable(text: &str) -> String {
    let printable = text.chars().filter(|c| !c.is_control());
    printable.take(MAX_CHARS).collect()
}
