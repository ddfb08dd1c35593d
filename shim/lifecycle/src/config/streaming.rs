//! Checked requests for streaming sessions. Not kept in records.

use coracle_spec::id::{ContainerId, PodId};

/// Source: cri-api v0.37 api.proto: ExecRequest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecConfig {
    /// Where.
    pub container: ContainerId,
    /// Program and arguments; not empty.
    pub argv: Vec<String>,
    /// A terminal is its input, output and error.
    pub tty: bool,
    /// Its standard input is streamed.
    pub stdin: bool,
    /// Its standard output is.
    pub stdout: bool,
    /// Its standard error is; never with `tty`.
    pub stderr: bool,
}

/// Source: cri-api v0.37 api.proto: AttachRequest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachConfig {
    /// To which.
    pub container: ContainerId,
    /// The client takes the container for one with a terminal.
    pub tty: bool,
    /// Its standard input is streamed.
    pub stdin: bool,
    /// Its standard output is.
    pub stdout: bool,
    /// Its standard error is; never with `tty`.
    pub stderr: bool,
}

/// Source: cri-api v0.37 api.proto: PortForwardRequest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortForwardConfig {
    /// Of which.
    pub pod: PodId,
    /// The ports that a client of the oldest WebSocket kind names by position; others name theirs themselves.
    pub ports: Vec<u16>,
}
