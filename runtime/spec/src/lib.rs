//! What all parts of the runtime speak: ids, the spec of a container, egress lists, errors.
//!
//! Written by the daemon, read by whoever builds or runs a container. A leaf: it makes no process, opens no socket and
//! keeps no state.
//!
//! | module | is |
//! |---|---|
//! | [`id`] | ids of pods and containers |
//! | [`ContainerSpec`] and its parts | what a container is to be, and how one ended |
//! | [`egress`] | what a pod may reach |
//! | [`error`] | the one error of the runtime crates |
//! | [`failpoint`] | named places where tests make things fail |
//!
//! Invariant: a value was checked when it was made; what older builds wrote is read.
//! Not here: CRI, images, how a jail is built, how a list is enforced.

pub mod egress;
pub mod error;
pub mod failpoint;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
pub mod id;

mod container;

pub use container::{
    Capabilities, Cause, CgroupMount, ContainerSpec, Device, DeviceKind, Exit, IdRange, Identity,
    LinuxJail, LinuxSpec, MAX_CAUSE_BYTES, Mount, MountKind, MountPropagation, PidSpace,
    ProcessRow, ResourceLimit, Root, SPEC_VERSION, Spawn, Tool, Toolbox, WasmKind, WasmNetwork,
    WasmSpec, Workload,
};
