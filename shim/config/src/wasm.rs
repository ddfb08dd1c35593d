//! Checks `[wasm]`.
//!
//! Called by: [`super::check`]. Pure. Must not know: how a module is compiled.

use std::time::Duration;

use super::file::WasmFile;
use super::values::{Invalid, KIB, MIB, TIB, seconds, within};

/// Limits of the module compiler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wasm {
    /// A compilation that takes more CPU time is killed.
    pub compile_timeout: Duration,
    /// A compilation that needs more memory is killed.
    pub compile_memory_bytes: u64,
    /// Largest module or component that is compiled.
    pub max_module_bytes: u64,
    /// Compiled code that is kept. Bytes.
    pub cache_bytes: u64,
}

/// Checks every value of the table.
pub(super) fn check(file: &WasmFile) -> Result<Wasm, Invalid> {
    Ok(Wasm {
        compile_timeout: seconds("wasm.compile_timeout_s", file.compile_timeout_s)?,
        compile_memory_bytes: within(
            "wasm.compile_memory_bytes",
            file.compile_memory_bytes,
            64 * MIB..=TIB,
        )?,
        max_module_bytes: within(
            "wasm.max_module_bytes",
            file.max_module_bytes,
            KIB..=4 * KIB * MIB,
        )?,
        cache_bytes: within("wasm.cache_bytes", file.cache_bytes, 64 * MIB..=TIB)?,
    })
}
