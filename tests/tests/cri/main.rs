//! End-to-end tests: each starts a daemon of its own (see [`site`]), drives it through the CRI socket or the command
//! line, and ends with `finish`, which fails on anything left on the machine. Run as root.
#![allow(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]

mod admin;
mod attach;
mod attacks;
mod authority;
mod bad_input;
mod bounds;
mod churn;
mod cli;
mod cni;
mod containers;
mod crictl;
mod daemon_log;
mod diagnosis;
mod differential;
mod exec;
mod faults;
mod functions;
mod handlers;
mod hostile;
mod image_cli;
mod image_transfer;
mod images;
mod isolation;
mod linux;
mod logs;
mod metrics;
mod mirrors;
mod neighbours;
mod network;
mod nri;
mod operate;
mod page;
mod pods;
mod policy;
mod power;
mod preload;
mod python;
mod quickstart;
mod recovery;
mod reload;
mod requests;
mod signatures;
mod site;
mod sockets;
mod stats;
mod streaming;
mod toolbox;
mod traces;
mod unusable_records;
mod update;
mod volumes;
mod wasm;
mod wasm_compile;
mod wasm_programs;
mod wasm_variants;
