//! What a pod's annotations say about the HTTP servers of its components.
//!
//! Part of [`super::SandboxConfig`]. Invariant: `None` leaves it to the handler; what is there was a number of the right
//! kind. Not here: whether the handler allows it, which a server's plan decides.

use serde::{Deserialize, Serialize};

/// The annotations `http.coracle.dev/*`, and `coracle.dev/idle-seconds`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HttpConfig {
    /// `serve`: whether a component handles requests or runs as a program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serve: Option<bool>,
    /// `port`: where its servers listen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// `deadline-seconds`: how long a guest may work on a request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline_s: Option<u32>,
    /// `max-requests`: how many there may be at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_requests: Option<u32>,
    /// `max-instance-requests`: how many an instance answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_instance_requests: Option<u32>,
    /// `request-memory-bytes`: how much memory an instance may have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_memory_bytes: Option<u64>,
    /// `access-log`: whether each request is logged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_log: Option<bool>,
    /// `request-ids`: whether lines carry the ids of requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_ids: Option<bool>,
    /// `idle-seconds`: how long after its last request a server sleeps; 0 is never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_s: Option<u32>,
    /// Whether that may be later than the handler says, or never.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub idle_is_granted: bool,
}

impl HttpConfig {
    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
