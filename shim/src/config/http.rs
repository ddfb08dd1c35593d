//! `[handlers.NAME.http]`: the limits of the HTTP servers in front of components.
//!
//! Place in the flow: [`super::handlers`] has one for each handler and calls [`check`]; the plan of a container reads it.
//! Invariant: the unit of a number is the end of its key; 0 is no limit only where it says so.
//! Not here: what a pod's annotations say, serving.

use serde::{Deserialize, Serialize};

use super::values::{Invalid, invalid};

const MIB: u64 = 1 << 20;

/// `[handlers.NAME.http]`. See `assets/config.toml` for what each key means to an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpFile {
    /// How long a guest may work on one request.
    pub deadline_s: u32,
    /// Most requests at a time.
    pub max_requests: u32,
    /// Most connections at a time.
    pub max_connections: u32,
    /// Largest head of a request.
    pub max_header_bytes: u32,
    /// Largest body of a request; 0 is any size.
    pub max_body_bytes: u64,
    /// How long a connection may go without a whole head of a request.
    pub header_timeout_s: u32,
    /// How many requests one instance answers.
    pub max_instance_requests: u32,
    /// How long an instance that may answer more waits for the next one.
    pub instance_idle_s: u32,
    /// Most memory of one instance; 0 is the container's limit.
    pub request_memory_bytes: u64,
    /// Whether each request is logged.
    pub access_log: bool,
    /// Whether lines carry the ids of requests.
    pub request_ids: bool,
    /// How long after its last request a server's process ends, until somebody connects again; 0 is never.
    pub idle_s: u32,
    /// Whether the kubelet's probes count as requests there.
    pub probes_keep_awake: bool,
}

impl Default for HttpFile {
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
        }
    }
}

/// Judges one handler's; `key` is its table.
pub(super) fn check(key: &'static str, file: &HttpFile) -> Result<HttpFile, Invalid> {
    let within = [
        ("deadline_s", file.deadline_s, 1..=86_400),
        ("max_requests", file.max_requests, 1..=4_096),
        ("max_connections", file.max_connections, 1..=65_536),
        ("max_header_bytes", file.max_header_bytes, 8_192..=1 << 20),
        ("header_timeout_s", file.header_timeout_s, 1..=3_600),
        (
            "max_instance_requests",
            file.max_instance_requests,
            1..=1_000_000,
        ),
        ("instance_idle_s", file.instance_idle_s, 0..=3_600),
        ("idle_s", file.idle_s, 0..=86_400),
    ];
    for (name, value, range) in within {
        if !range.contains(&value) {
            let (least, most) = (range.start(), range.end());
            let why = format!("has {name} = {value}, must be from {least} to {most}");
            return invalid(key, why);
        }
    }
    Ok(file.clone())
}
