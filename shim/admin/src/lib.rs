//! The view of the running daemon: a service on a socket of root's, and the commands that print what it answers.
//!
//! ```text
//! coracle status | ps | why | events --> client --RUN/admin.sock--> server --> snapshots, history, drivers (lifecycle)
//! coracle reload | log-level | debug --> client --RUN/admin.sock--> server --Control--> the shim
//! a browser -----------------------------------------> page --> the same as server
//! coracle logs ------------------------> client --> the container's log file
//! ```
//! Called by: the shim: `serve` runs [`server::serve`], the command line [`client::main`]. Invariants: the service changes
//! nothing of pods; it is apart from CRI, so that the kubelet never sees its load; no environment, argument, annotation or
//! credential of a pod leaves it; a daemon that hangs is answered for within `PATIENCE`.
//! Must not know: how pods are run.

pub mod client;
mod connections;
pub mod control;
pub mod dump;
mod explain;
mod listing;
pub mod page;
mod print;
mod screen;
pub mod server;
mod status;
pub mod tasks;

/// How long a driver may take to say what it does.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);

/// The name of the socket in the run directory.
pub const SOCKET_NAME: &str = "admin.sock";
