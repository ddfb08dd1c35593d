//! The types that all parts of the runtime share: ids, the spec of a container, egress lists, errors.
//!
//! The daemon writes them; the keeper and the container process read them. A leaf crate: it creates no process, opens
//! no socket and keeps no state.
//!
//! | module | is |
//! |---|---|
//! | [`id`] | ids of pods and containers |
//! | [`live`] | a value that a reload replaces |
//! | [`ContainerSpec`] and its parts | how to create a container, and how one ended |
//! | [`egress`] | what a pod may reach |
//! | [`error`] | the one error of the runtime crates |
//! | [`failpoint`] | named sites at which tests inject failures |
//!
//! Invariants: values are checked when they are created; records of older builds stay readable.
//! Not here: CRI, images, building a jail, enforcing a list.

pub mod egress;
pub mod error;
pub mod failpoint;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
pub mod id;
pub mod live;

mod container;

pub use container::{
    Capabilities, Cause, CgroupMount, ContainerSpec, CpuPolicy, Device, DeviceKind, Diagnosis,
    Exit, Floor, Hook, Hooks, HttpLimits, HttpServer, IdRange, Identity, IoPriority, LinuxJail,
    LinuxSpec, MAX_CAUSE_BYTES, MAX_MESSAGE_BYTES, MemoryPolicy, Mount, MountKind,
    MountPropagation, NodeHooks, PIDS_LIMIT, PidNamespaceMode, ProcessRow, ResourceLimit, Root,
    SPEC_VERSION, Scheduling, Spawn, Tool, Toolbox, Wakes, WasmKind, WasmNetwork, WasmSpec,
    Workload,
};
