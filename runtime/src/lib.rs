//! The processes that run sandboxes.
//!
//! The daemon talks, through coracle-control, to a [`spawner`], which forks one [`keeper`] per pod, which forks one
//! container process per container. That process builds its jail with coracle-sandbox, then runs a Wasm guest with coracle-wasm or executes a
//! Linux program.
//!
//! | module | is |
//! |---|---|
//! | [`spawner`], [`keeper`] | these processes |
//! | [`unpacker`] | the jailed process that unpacks layers |
//!
//! Invariant: `tests/tests/architecture.rs` checks which crates depend on which, and where unsafe code is.
//! It must not know about CRI, images or the daemon's records; jails, networks and limits are in the crates below it.

#[allow(unsafe_code, reason = "log threads, descriptors by number")]
pub mod keeper;
mod native;
mod own_log;
pub mod spawner;
pub mod unpacker;
pub mod memory {
    //! What this process's allocator holds.
    pub use coracle_sys::memory::{give_memory_back, limit_arenas, unmap_program};
}

use coracle_spec::error::{Context as _, Error, Kind, Result};
use coracle_sys as sys;
use coracle_wasm::compiler;

/// Makes this process undumpable, so that other processes of the node, and of containers that see its pids, cannot
/// reach into it. Every process of ours calls this first, because execve(2) resets it.
///
/// Errors: the kernel refuses.
pub fn forbid_access() -> Result<()> {
    sys::dump::forbid().during(|| "keep other processes out of this one (PR_SET_DUMPABLE)".into())
}

/// Has execve(2) close what this process was started with besides its standard streams: whoever starts it may have left
/// descriptors open, which hooks, plugins and our own processes would inherit. Every process of ours calls this, those too
/// that are given descriptors: they use them, and hand them on by numbers of their own.
///
/// Errors: the kernel refuses.
pub fn keep_descriptors() -> Result<()> {
    sys::fork::close_on_exec_from(3)
        .during(|| "keep descriptors from what this process executes (close_range)".into())
}

/// Gives the daemon an empty session keyring of its own, so that containers inherit none. Called while it has one
/// thread.
///
/// Errors: the kernel has no keyrings, or a sysctl of the node would make our processes dumpable by containers.
pub fn isolate_daemon() -> Result<()> {
    let file = "/proc/sys/fs/suid_dumpable";
    if sys::dump::id_change_reopens().during(|| format!("read {file}"))? {
        return Err(Error::new(
            Kind::Unsupported,
            format!(
                "{file} is 1, which opens each process that changes its user to every other one of that user; \
                 0 or 2 is needed: sysctl -w fs.suid_dumpable=2"
            ),
        ));
    }
    coracle_sandbox::own_session_keyring()
}

/// Runs the compiler process: `coracle compiler CPU_S MEMORY_BYTES MODULE_BYTES`.
///
/// Errors: bad arguments, or the jail could not be built.
pub fn compiler_main(arguments: &[String]) -> Result<()> {
    let number = |at: usize| arguments.get(at).and_then(|a| a.parse::<u64>().ok());
    let (Some(cpu_s), Some(memory_bytes), Some(module)) = (number(0), number(1), number(2)) else {
        return Err(Error::new(
            Kind::Invalid,
            format!("compiler arguments {arguments:?} are not three numbers"),
        ));
    };
    let module_bytes = usize::try_from(module).unwrap_or(usize::MAX);
    compiler::main(compiler::Bounds {
        cpu_s,
        memory_bytes,
        module_bytes,
    })
}
