//! What a container is to be: the document that the daemon writes into a memfd and only the guest reads.
//!
//! Written by the daemon at StartContainer, carried unread through the keeper, read by the guest after its
//! fork, so that no sibling's environment lies in another guest's memory.
//! Invariant: every value was checked when the container was created; a guest obeys and never re-decides.
//! Not here: CRI messages, images, how a jail is built.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::id::{ContainerId, PodId};

/// The version of [`ContainerSpec`] that this build writes; a keeper of an older build reads older ones.
pub const SPEC_VERSION: u32 = 1;

/// Everything one guest process needs to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// [`SPEC_VERSION`] of the writer.
    pub version: u32,
    /// The pod it belongs to.
    pub pod: PodId,
    /// Its own id.
    pub id: ContainerId,
    /// What runs at the end of the jail.
    pub workload: Workload,
    /// The root filesystem.
    pub root: Root,
    /// CRI mounts, in the order they are to be made (parents first).
    pub mounts: Vec<Mount>,
    /// Who the payload is, inside and on the host.
    pub identity: Identity,
    /// Files to which the guest writes `0` to enter those cgroups that it is not born into.
    pub cgroup_procs: Vec<PathBuf>,
    /// The container's memory limit in bytes; bounds linear memory, too.
    pub memory_limit_bytes: Option<u64>,
    /// OOM killer adjustment, -1000 to 1000; negative values are clamped to what the node allows.
    pub oom_score_adj: i32,
    /// How the guest process comes to be.
    pub spawn: Spawn,
    /// A directory in the host's mount namespace over which the guest builds its new root.
    pub staging: PathBuf,
}

/// The last step of a container: what its jail ends in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Workload {
    /// Instantiate and run compiled WebAssembly.
    Wasm(WasmSpec),
}

/// A WebAssembly payload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WasmSpec {
    /// Core module or component.
    pub kind: WasmKind,
    /// Arguments, the program's own name first.
    pub args: Vec<String>,
    /// Environment in the order given; a later name wins.
    pub env: Vec<(String, String)>,
    /// Absolute path inside the root.
    pub working_dir: String,
    /// Whether standard input is piped; closed (reads as end of file) when not.
    pub stdin: bool,
}

/// The two shapes of a WebAssembly program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WasmKind {
    /// A core module that speaks WASI preview 1.
    Module,
    /// A component that exports `wasi:cli/run` (WASI 0.2).
    Component,
}

/// A container's root filesystem.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Root {
    /// Unpacked image layers on the host, lowest first; empty for an artifact.
    pub layers: Vec<PathBuf>,
    /// The container's own writable directory (overlay `upperdir`).
    pub upper: PathBuf,
    /// Overlay `workdir`, on the same filesystem as `upper`.
    pub work: PathBuf,
    /// Nothing under `/` may be written but mounts.
    pub readonly: bool,
}

/// One CRI mount of a host path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute host path of a directory or a file; must exist.
    pub source: PathBuf,
    /// Absolute path inside the container.
    pub target: String,
    /// Read-only, in the kernel and in WASI.
    pub readonly: bool,
}

/// Who the payload runs as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The user asked for, as the container sees it.
    pub uid: u32,
    /// The primary group asked for.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// The pod's own host ids.
    pub range: IdRange,
}

/// A block of host ids that belongs to one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// First host id; never 0.
    pub base: u32,
    /// How many ids follow it, [`IdRange::SIZE`] always.
    pub size: u32,
}

impl IdRange {
    /// Ids of one pod: container ids 0 to 65,535.
    pub const SIZE: u32 = 65_536;
}

/// How a guest process is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Spawn {
    /// A plain fork of the keeper: fastest, shares the spawner's address-space layout.
    Fork,
    /// The guest executes our own binary again inside the half-built jail: own layout, about 3 ms more.
    Exec,
}

/// How a container ended, as its keeper saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code as CRI reports it; 128 + signal for a signal.
    pub code: i32,
    /// The signal that ended the process, if one did.
    pub signal: Option<i32>,
    /// Nanoseconds since 1970 UTC.
    pub finished_at: i64,
    /// What the guest said of its own end.
    pub cause: Cause,
}

/// Why a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// By itself, or by a signal.
    Ended,
    /// A WebAssembly trap; the text holds the trap and its backtrace, bounded.
    Trap(String),
    /// The jail could not be built or the program not be loaded; the text says which step.
    StartFailed(String),
    /// Its keeper died under it.
    KeeperLost,
    /// Nobody saw it end (the node rebooted).
    Unknown,
}
