//! Streaming: interactive exec, attach and port-forward, from the URL that CRI returns to the last byte.
//!
//! ```text
//! offer --Session--> tokens <--URL-- client --HTTP upgrade--> spdy | websocket --Streams--> the session's future
//! ```
//! Invariants: a token opens one session, once, within a minute; the CRI request, never the URL, fixes what a client
//! may do; buffers are bounded, each and all together, and a slow reader slows its writer down; no tenant keeps the others
//! out.
//! Called by: the shim's `serve` (bind) and the CRI services (offer).
//! Must not know: containers, pods, authorization, the other end of the streams: a session comes with the future that
//! its streams are connected to.

mod base64;
mod budget;
mod connection;
mod counters;
mod forward;
#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, reason = "targets fail by panicking")]
pub mod fuzz;
mod http;
mod limits;
mod pending;
mod receive;
mod remote;
mod resize;
#[cfg(test)]
#[path = "../../src/scratch.rs"]
mod scratch;
mod send;
mod serve;
mod server;
mod session;
mod shares;
mod spdy;
mod status;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests;
mod tls;
mod tokens;
mod websocket;

pub use budget::{Budget, Share};
pub use counters::all as metrics;
pub use limits::Limits;
pub use server::{Server, Settings};
pub use session::{Forward, Program, Session, SessionFuture, Size, StreamOptions, Streams};
pub use shares::{Owner, Share as Turn, Shares as Turns};
pub use tls::Identity;
pub use tokens::Refused;

/// Why the streaming server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is in use, or does not belong to the node.
    #[error("listen for streaming clients on {address}")]
    Listen {
        /// The configured address.
        address: std::net::SocketAddr,
        /// The system's error.
        source: std::io::Error,
    },
    /// The certificate or its key cannot be used.
    #[error("use {} and {} for TLS of streaming", certificate.display(), key.display())]
    Tls {
        /// The file of the certificate.
        certificate: std::path::PathBuf,
        /// The file of the key.
        key: std::path::PathBuf,
        /// What is wrong with them.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// An error with its causes, as `a: b: c`.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
