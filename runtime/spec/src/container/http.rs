//! The server that a Wasm component with `wasi:http/incoming-handler` runs as: where it listens, and its limits.
//!
//! Part of [`super::WasmSpec`], decided when the container is created; the limits are also a table of the node's
//! configuration, from which those of each server are made. Invariants: every value is a limit that holds; zero is none
//! only where it says so; the keys are those that older builds recorded. Not here: how requests are served, which
//! values make sense.

use serde::{Deserialize, Serialize};

const MIB: u64 = 1 << 20;

/// An HTTP server in front of a component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpServer {
    /// The TCP port, at all addresses of the pod; never 0.
    pub port: u16,
    /// How many threads run requests; at least 1.
    pub threads: u16,
    /// Its limits, recorded beside the port.
    #[serde(flatten)]
    pub limits: HttpLimits,
}

/// The limits of a server, and what it logs: `[handlers.NAME.http]` of the configuration, `assets/config.toml` of which
/// says what each key means to an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpLimits {
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
    /// How long a connection may go without a whole head of a request, and a client take nothing of an answer. Seconds.
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
    pub request_ids: bool,
    /// How long after its last request the server's process ends, until somebody connects again; 0 is never. Seconds.
    pub idle_s: u32,
    /// Whether the kubelet's probes count as requests there.
    pub probes_keep_awake: bool,
    /// Whether they wake it; otherwise they are answered in its stead, once it has answered one itself.
    pub probes_wake: bool,
}

impl Default for HttpLimits {
    /// The defaults of the configuration.
    fn default() -> Self {
        Self {
            deadline_s: 60,
            max_requests: 128,
            max_connections: 512,
            max_header_bytes: 65_536,
            max_body_bytes: 128 * MIB,
            header_timeout_s: 30,
            max_instance_requests: 1,
            instance_idle_s: 10,
            request_memory_bytes: 0,
            access_log: false,
            request_ids: false,
            idle_s: 0,
            probes_keep_awake: false,
            probes_wake: true,
        }
    }
}

impl HttpServer {
    /// Whether its process may end while nobody calls it.
    pub fn may_sleep(&self) -> bool {
        self.limits.idle_s > 0
    }

    /// Whether somebody else answers probes while it sleeps.
    pub fn has_doorman(&self) -> bool {
        self.may_sleep() && !self.limits.probes_wake
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn records_have_the_limits_beside_the_port_and_keys_of_other_builds_are_skipped() {
        let recorded = r#"{"port":8080,"threads":2,"deadline_s":5,"max_requests":64,"max_connections":65,
            "max_header_bytes":8192,"max_body_bytes":6,"header_timeout_s":7,"max_instance_requests":8,
            "instance_idle_s":9,"request_memory_bytes":10,"access_log":true,"a_key_of_tomorrow":[1]}"#;
        let read: HttpServer = serde_json::from_str(recorded).unwrap();
        let limits = HttpLimits {
            deadline_s: 5,
            max_requests: 64,
            max_connections: 65,
            max_header_bytes: 8192,
            max_body_bytes: 6,
            header_timeout_s: 7,
            max_instance_requests: 8,
            instance_idle_s: 9,
            request_memory_bytes: 10,
            access_log: true,
            request_ids: false,
            idle_s: 0,
            probes_keep_awake: false,
            probes_wake: true,
        };
        let (port, threads) = (8080, 2);
        let server = HttpServer {
            port,
            threads,
            limits,
        };
        assert_eq!(read, server);
        let written = serde_json::to_value(&server).unwrap();
        assert_eq!(written["port"], 8080);
        assert_eq!(written["deadline_s"], 5);
        assert_eq!(
            serde_json::from_value::<HttpServer>(written).unwrap(),
            server
        );
    }
}
