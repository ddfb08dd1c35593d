//! The span of a call: what its lines in the log say of the object that it is about.
//!
//! Called by: the wrapper around every call, and each call once it knows its object. Invariants: a sandbox is named by
//! namespace, name and id, a container also by its own name; what a client sent is printed without control characters and
//! cut; the look-up costs the same however many pods there are.
//! Must not know: what a call does.

use coracle_lifecycle::{ContainerView, PodName};
use coracle_spec::id::{ContainerId, PodId};
use tracing::field::Empty;
use tracing::{Span, error_span};

use super::Shared;

/// The most that is printed of what a client sent, in characters.
const MAX_CHARS: usize = 256;

/// The span of a call of `rpc`. At level error, so that it is there whatever is logged.
pub(super) fn call(rpc: &'static str) -> Span {
    error_span!(
        "cri",
        rpc,
        pod = Empty,
        sandbox = Empty,
        container = Empty,
        id = Empty,
        image = Empty
    )
}

/// The call is about the sandbox with this id, or beginning of an id.
pub(super) fn sandbox(shared: &Shared, named: &str) {
    record("sandbox", named);
    let id = named.parse::<PodId>().ok();
    if let Some(view) = id.and_then(|id| shared.pods.pod(&id)) {
        pod(&view.config.name);
    }
}

/// The call is about the container with this id, or beginning of an id.
pub(super) fn container(shared: &Shared, named: &str) {
    record("id", named);
    let id = named.parse::<ContainerId>().ok();
    let Some(view) = id.and_then(|id| shared.pods.container(&id)) else {
        return;
    };
    let view: &ContainerView = &view;
    record("container", &view.config.name.name);
    record("sandbox", view.pod.as_str());
    if let Some(of) = shared.pods.pod(&view.pod) {
        pod(&of.config.name);
    }
}

/// The call is about the pod of this name.
pub(super) fn pod(name: &PodName) {
    record("pod", &format!("{}/{}", name.namespace, name.name));
}

/// The call is about a container of this name, which may not exist yet.
pub(super) fn new_container(name: &str) {
    record("container", name);
}

/// The call is about the image of this name.
pub(super) fn image(name: &str) {
    record("image", name);
}

fn record(field: &'static str, text: &str) {
    let printable = text.chars().filter(|c| !c.is_control());
    let printable: String = printable.take(MAX_CHARS).collect();
    Span::current().record(field, printable);
}
