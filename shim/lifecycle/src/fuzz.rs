//! Fuzz targets of this crate: each decodes one input as a record, and panics when a guarantee is broken.
//!
//! Called by: the `fuzz` binary of the shim, and the test below, which replays the corpora of `shim/lifecycle/fuzz` in
//! every `make test`. No release contains this module. docs/security/fuzzing.md lists what each target checks.
//! Invariant: a target touches nothing outside this process.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::record::{ContainerRecord, PodRecord};
use super::store;

/// A target: its name, and the function that takes one input.
pub type FuzzTarget = (&'static str, fn(&[u8]));

/// The targets by name.
pub const TARGETS: &[FuzzTarget] = &[("pod-record", pod), ("container-record", container)];

/// A pod's record: see [`record`].
fn pod(input: &[u8]) {
    if let Some(pod) = record::<PodRecord>(input) {
        let _ = pod.view();
    }
}

/// A container's record: see [`record`].
fn container(input: &[u8]) {
    if let Some(container) = record::<ContainerRecord>(input) {
        let _ = container.view(&pod_id());
    }
}

/// The id of a pod that does not exist.
fn pod_id() -> coracle_spec::id::PodId {
    "0".repeat(64)
        .parse()
        .expect("64 hexadecimal digits are an id")
}

/// Decodes the input as a record file, and once more as the body behind a valid header. A record that decodes must be
/// encoded and decoded again without a difference, and one byte less must be refused.
fn record<T: Serialize + DeserializeOwned>(input: &[u8]) -> Option<T> {
    let _ = store::decode::<T>(input);
    let value: T = serde_json::from_slice(input).ok()?;
    let written = store::encode(&value).expect("a record is JSON");
    let again: T = store::decode(&written).expect("what was written is read");
    let twice = store::encode(&again).expect("a record is JSON");
    assert_eq!(written, twice);
    let mut torn = written;
    torn.pop();
    assert!(store::decode::<T>(&torn).is_err(), "a torn record is read");
    Some(value)
}

#[cfg(test)]
#[path = "../../../runtime/fuzz/replay.rs"]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod replay;
