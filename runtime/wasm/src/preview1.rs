//! WASI for core modules: preview 1 and the unstable one before it, with our own answers where the published
//! implementation's do not fit.
//!
//! Called by [`super::engine`] once, before any fork. Ours are `random_get`, which fills the guest's memory from
//! getrandom(2) at once, and `proc_exit`, which names a code that preview 1 does not allow.
//! Invariant: whatever a guest passes, only its own memory is touched.
//! Must not know: what a guest is allowed to do; its [`ModuleState`] does.

use std::fmt;

use wasmtime::{Caller, Extern, Linker};
use wasmtime_wasi::I32Exit;

use super::host::ModuleState;
use super::random;

/// Names of the interface.
const INTERFACES: [&str; 2] = ["wasi_snapshot_preview1", "wasi_unstable"];
/// Errno of a pointer that is outside of memory. Source: `errno` of preview 1 and of the unstable one.
const FAULT: i32 = 21;
/// Exit codes from here on are refused. Source: `proc_exit` of wasmtime, whose command line then ends with 1.
const FIRST_REFUSED: u32 = 126;

/// A program exited with a code that preview 1 does not allow.
#[derive(Debug)]
pub(super) struct RefusedCode(pub(super) u32);

impl fmt::Display for RefusedCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the program ended with exit code {}; WASI preview 1 allows 0 to {}, so it is reported as 1",
            self.0,
            FIRST_REFUSED - 1
        )
    }
}

impl std::error::Error for RefusedCode {}

/// Puts both interfaces into `linker`. Errors: the engine refuses a definition.
pub(super) fn link(linker: &mut Linker<ModuleState>) -> wasmtime::Result<()> {
    wasmtime_wasi::p1::add_to_linker_async(linker, |state: &mut ModuleState| &mut state.wasi)?;
    wasmtime_wasi::p0::add_to_linker_async(linker, |state: &mut ModuleState| &mut state.wasi)?;
    linker.allow_shadowing(true);
    for interface in INTERFACES {
        linker.func_wrap(interface, "random_get", random_get)?;
        linker.func_wrap(interface, "proc_exit", exit)?;
    }
    linker.allow_shadowing(false);
    Ok(())
}

fn random_get(
    mut caller: Caller<'_, ModuleState>,
    buffer: i32,
    length: i32,
) -> wasmtime::Result<i32> {
    // Both are unsigned in the interface.
    let (start, length) = (buffer as u32 as usize, length as u32 as usize);
    random::check_length(length as u64)?;
    let Some(Extern::Memory(memory)) = caller.get_export("memory") else {
        return Err(wasmtime::Error::msg(
            "random_get: the module exports no memory",
        ));
    };
    let bytes = memory.data_mut(&mut caller);
    let Some(target) = bytes
        .get_mut(start..)
        .and_then(|rest| rest.get_mut(..length))
    else {
        return Ok(FAULT);
    };
    random::fill(target);
    Ok(0)
}

fn exit(code: i32) -> wasmtime::Result<()> {
    match code as u32 {
        FIRST_REFUSED.. => Err(wasmtime::Error::new(RefusedCode(code as u32))),
        _ => Err(wasmtime::Error::new(I32Exit(code))),
    }
}
