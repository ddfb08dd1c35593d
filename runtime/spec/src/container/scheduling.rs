//! How the kernel schedules a Linux payload, where that differs from the usual.
//!
//! Part of [`super::LinuxJail`]: execs have it, too. Invariant: an unset part changes nothing. Not here: setting it.

use serde::{Deserialize, Serialize};

/// CPU time, I/O and memory nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Scheduling {
    /// By which policy it gets CPU time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuPolicy>,
    /// Its I/O priority.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io: Option<IoPriority>,
    /// From which nodes it gets memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryPolicy>,
}

impl Scheduling {
    /// Whether all of it is the usual.
    pub fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// Source: sched_setattr(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuPolicy {
    /// `SCHED_*`, the kernel's number.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For policies without priorities.
    pub nice: i32,
    /// For real-time policies.
    pub priority: u32,
    /// For `SCHED_DEADLINE`. Nanoseconds.
    pub runtime: u64,
    /// For `SCHED_DEADLINE`. Nanoseconds.
    pub deadline: u64,
    /// For `SCHED_DEADLINE`. Nanoseconds.
    pub period: u64,
}

/// Source: ioprio_set(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoPriority {
    /// `IOPRIO_CLASS_*`, the kernel's number.
    pub class: u16,
    /// 0 to 7; lower comes first.
    pub level: u16,
}

/// Source: set_mempolicy(2).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPolicy {
    /// `MPOL_*` with its flags, the kernel's number.
    pub mode: u32,
    /// Memory nodes.
    pub nodes: Vec<u32>,
}
