//! The targets that read records.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::record::{ContainerRecord, PodRecord};
use super::store;

/// A pod's record: see [`record`].
pub(crate) fn pod(input: &[u8]) {
    if let Some(pod) = record::<PodRecord>(input) {
        let _ = pod.view();
    }
}

/// A container's record: see [`record`].
pub(crate) fn container(input: &[u8]) {
    if let Some(container) = record::<ContainerRecord>(input) {
        let _ = container.view(&pod_id());
    }
}

/// A pod id of no pod.
fn pod_id() -> coracle_runtime::id::PodId {
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
