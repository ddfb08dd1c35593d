//! Fuzz targets of this crate, which read records: each reads one input as hostile bytes and panics where a promise is
//! broken.
//!
//! Called by: the `fuzz` binary of the shim, and the test below, which replays the corpora of `shim/lifecycle/fuzz` with
//! every `make test`. Built only for those two; no release has it. docs/security/fuzzing.md says what each target promises.
//! Invariant: a target touches nothing outside this process.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::record::{ContainerRecord, PodRecord};
use super::store;

/// A target: its name, and what reads one input.
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

/// A pod id of no pod.
fn pod_id() -> coracle_spec::id::PodId {
    "0".repeat(64)
        .parse()
        .expect("64 hexadecimal digits are an id")
}

/// A record is read only behind its own checksum; what is read is written as one that is read the same. As a file, and
/// as what is behind a right header.
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
