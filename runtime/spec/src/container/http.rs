//! The server that a Wasm component with `wasi:http/incoming-handler` runs as: where it listens, and its limits.
//!
//! Part of [`super::WasmSpec`], decided when the container is created. Invariant: every value is a limit that holds;
//! zero is none only where it says so. Not here: how requests are served.

use serde::{Deserialize, Serialize};

/// An HTTP server in front of a component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpServer {
    /// The TCP port, at all addresses of the pod; never 0.
    pub port: u16,
    /// How many threads run requests; at least 1.
    pub threads: u16,
    /// How long a guest may work on one request, its answer's body included. Seconds.
    pub deadline_s: u32,
    /// Most requests at a time; more are answered 503.
    pub max_requests: u32,
    /// Most connections at a time; more wait until one is closed.
    pub max_connections: u32,
    /// Largest head of a request: request line and header fields. Bytes.
    pub max_header_bytes: u32,
    /// Largest body of a request; 0 is any size. Bytes.
    pub max_body_bytes: u64,
    /// How long a connection may go without a whole head of a request. Seconds.
    pub header_timeout_s: u32,
    /// How many requests one instance answers, one after the other; 1 is a fresh instance a request.
    pub max_instance_requests: u32,
    /// How long an instance that may answer more waits for the next request. Seconds.
    pub instance_idle_s: u32,
    /// Most linear memory of one instance; 0 leaves it to the container's own limit. Bytes.
    pub request_memory_bytes: u64,
    /// Whether each request is logged, one line on standard output.
    pub access_log: bool,
    /// Whether each line that a guest writes, and each of the access log, begins with the id of its request.
    #[serde(default)]
    pub request_ids: bool,
    /// How long after its last request the server's process ends, until somebody connects again; 0 is never. Seconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub idle_s: u32,
    /// Whether the kubelet's probes count as requests there.
    #[serde(default)]
    pub probes_keep_awake: bool,
}

impl HttpServer {
    /// Whether its process may end while nobody calls it.
    pub fn may_sleep(&self) -> bool {
        self.idle_s > 0
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}
