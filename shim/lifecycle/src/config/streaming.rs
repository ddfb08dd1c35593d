//! Checked requests for streaming sessions. Not written to records.

use coracle_spec::id::{ContainerId, PodId};

/// An exec. Source: cri-api v0.37 api.proto: ExecRequest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecConfig {
    /// The container.
    pub container: ContainerId,
    /// Program and arguments; not empty.
    pub argv: Vec<String>,
    /// The program gets a terminal as input, output and error.
    pub tty: bool,
    /// Its standard input is streamed.
    pub stdin: bool,
    /// Its standard output is streamed.
    pub stdout: bool,
    /// Its standard error is streamed; never with `tty`.
    pub stderr: bool,
}

/// An attach. Source: cri-api v0.37 api.proto: AttachRequest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachConfig {
    /// The container.
    pub container: ContainerId,
    /// The client expects the container to have a terminal.
    pub tty: bool,
    /// Its standard input is streamed.
    pub stdin: bool,
    /// Its standard output is streamed.
    pub stdout: bool,
    /// Its standard error is streamed; never with `tty`.
    pub stderr: bool,
}

/// A port-forward. Source: cri-api v0.37 api.proto: PortForwardRequest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortForwardConfig {
    /// The sandbox.
    pub pod: PodId,
    /// The ports for clients of the oldest WebSocket protocol, which name them by position; other clients send port
    /// numbers.
    pub ports: Vec<u16>,
}
