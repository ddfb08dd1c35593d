//! Streaming: interactive exec, attach and port-forward, from the URL that CRI hands out to the last byte.
//!
//! ```text
//! cri/streaming --Wish--> tokens <--URL-- client --HTTP upgrade--> spdy | websocket --Streams--> Backend
//! ```
//! Invariants: a token opens one session, once, for a minute; what a client may do was fixed when CRI was asked, never
//! by its URL; buffers are bounded and a slow side slows the other by way of its own connection.
//! Not here: what runs in a container, and who may ask.

#![allow(
    dead_code,
    unused_imports,
    reason = "server and backend are on their way"
)]

mod session;

pub use session::{AttachWish, Backend, ExecWish, ForwardWish, Job, Size, Streams, Wish};
