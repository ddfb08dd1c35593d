//! Promises that a real kubelet makes about pods on Coracle: probes, restarts, logs, numbers, streams, images.
//!
//! `make kubelet` builds the kubelet and runs them (as root); they are not part of `make test`, because the build takes
//! ten minutes and a pod's life by the kubelet's clock many seconds. Each test has a node of its own, see
//! `coracle_tests::kubelet`.
#![allow(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]

#[path = "kubelet/functions.rs"]
mod functions;
#[path = "kubelet/lives.rs"]
mod lives;
#[path = "kubelet/logs.rs"]
mod logs;
#[path = "kubelet/node.rs"]
mod node;
#[path = "kubelet/numbers.rs"]
mod numbers;
#[path = "kubelet/pods.rs"]
mod pods;
#[path = "kubelet/preloaded.rs"]
mod preloaded;
#[path = "kubelet/streams.rs"]
mod streams;
