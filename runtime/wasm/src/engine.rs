//! The engine configuration, and the engine and linkers that are made once, before any fork.
//!
//! The compiler process uses `compiling`; the spawner, keepers and container processes share [`Warm`]. Both are built
//! from `base`, so their compatibility hashes agree.
//! Invariant: an engine that runs guests has no compiler (`enable_compiler(false)`); making it draws no random bytes
//! and starts no thread.
//! It must not know about specs or guests.

use std::hash::{Hash, Hasher};
use std::os::fd::OwnedFd;

use sha2::{Digest as _, Sha256};
use wasmtime::{Config, Engine, Linker, ModuleVersionStrategy};

use super::diagnosis::core_dump;
use super::host::{ComponentState, ModuleState};
use super::stop;
use super::{random, surroundings};
use coracle_spec::WasmSpec;
use coracle_spec::error::{Error, Kind, Result};
use coracle_spec::id::hex;

/// Stack of wasm code, in bytes.
const WASM_STACK_BYTES: usize = 512 * 1024;
/// Stack of the fiber that wasm and host calls share, in bytes.
const FIBER_STACK_BYTES: usize = 1024 * 1024;

/// Part of every engine hash. Change it when old compiled code must not run with changed host functions.
/// `tag` reads it through `black_box`, so that two builds that differ only here have different hashes.
#[used]
static ENGINE_TAG: [u8; 32] = *b"coracle-engine-tag:0000000000003";

fn tag() -> String {
    // `black_box` keeps the bytes as data in the binary; otherwise they become a constant in the code.
    let bytes = std::hint::black_box(&ENGINE_TAG);
    String::from_utf8_lossy(bytes).into_owned()
}

/// WebAssembly proposals are on and off as wasmtime has them by default; docs/wasm/wasmtime.md lists them. Its default also forbids
/// shared memories, for which it promises no security fixes.
fn base() -> Result<Config> {
    let mut config = Config::new();
    config.epoch_interruption(true);
    config.max_wasm_stack(WASM_STACK_BYTES);
    config.async_stack_size(FIBER_STACK_BYTES);
    config.memory_init_cow(true);
    config.wasm_backtrace_max_frames(std::num::NonZeroUsize::new(32));
    config
        .module_version(ModuleVersionStrategy::Custom(tag()))
        .map_err(engine_error)?;
    Ok(config)
}

fn engine_error(cause: wasmtime::Error) -> Error {
    Error::new(Kind::Bug, format!("configure the wasm engine: {cause:#}"))
}

/// An engine that compiles; only the compiler process makes one.
pub(super) fn compiling() -> Result<Engine> {
    let mut config = base()?;
    config.cranelift_opt_level(wasmtime::OptLevel::Speed);
    Engine::new(&config).map_err(engine_error)
}

/// The engine compatibility hash of this build on this node: 64 hexadecimal digits.
///
/// Compiled code runs only on engines with the hash it was made for. Errors: the engine cannot be configured.
pub fn engine_hash() -> Result<String> {
    let mut hasher = Sha(Sha256::new());
    compiling()?
        .precompile_compatibility_hash()
        .hash(&mut hasher);
    Ok(hex(&hasher.0.finalize()))
}

struct Sha(Sha256);

impl Hasher for Sha {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let digest = self.0.clone().finalize();
        u64::from_le_bytes([
            digest[0], digest[1], digest[2], digest[3], digest[4], digest[5], digest[6], digest[7],
        ])
    }
}

/// What few containers want of engine and linkers, and those of the spawner do not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extras {
    /// Traps leave what core dumps hold.
    pub(super) core_dumps: bool,
    /// WASI 0.3 for components.
    pub(super) wasi_p3: bool,
}

impl Extras {
    /// What a container of `wasm` wants.
    pub(super) fn of(wasm: &WasmSpec) -> Self {
        Self {
            core_dumps: wasm.diagnosis.core_dump.is_some(),
            wasi_p3: wasm.wasi_p3,
        }
    }

    /// Whether it wants anything.
    pub(super) fn is_any(self) -> bool {
        self != Self::default()
    }
}

/// The engine and the linkers with all of WASI. A spawner makes them once; container processes inherit them by fork.
pub struct Warm {
    /// Runs compiled code; has no compiler.
    pub(super) engine: Engine,
    /// WASI preview 1, and the unstable one before it, for core modules.
    pub(super) modules: Linker<ModuleState>,
    /// WASI 0.2 and wasi:http for components.
    pub(super) components: wasmtime::component::Linker<ComponentState>,
}

impl Warm {
    /// Makes engine and linkers. Errors: the engine cannot be configured.
    pub fn new() -> Result<Self> {
        Self::with(Extras::default())
    }

    /// The same with `extras`. Errors: as of [`Warm::new`].
    pub(super) fn with(extras: Extras) -> Result<Self> {
        let engine = running(extras, |_| {})?;
        let (modules, components) = linkers(&engine, extras.wasi_p3)?;
        Ok(Self {
            engine,
            modules,
            components,
        })
    }

    /// Arranges for stop signals to end the guest: see [`stop::arm_stop`].
    pub fn arm_stop(&self) -> Result<OwnedFd> {
        stop::arm_stop(&self.engine)
    }
}

/// An engine that runs guests, with `settings` that compiled code does not know of. Errors: it cannot be configured.
pub(super) fn running(extras: Extras, settings: impl FnOnce(&mut Config)) -> Result<Engine> {
    let mut config = base()?;
    config.enable_compiler(false);
    if extras.core_dumps {
        core_dump::configure(&mut config);
    }
    settings(&mut config);
    Engine::new(&config).map_err(engine_error)
}

/// Linkers for `engine`, with WASI 0.3 if `wasi_p3`. The compiler process also uses them, to find imports that we do not
/// offer.
pub(super) fn linkers(
    engine: &Engine,
    wasi_p3: bool,
) -> Result<(
    Linker<ModuleState>,
    wasmtime::component::Linker<ComponentState>,
)> {
    let mut modules = Linker::new(engine);
    super::preview1::link(&mut modules).map_err(engine_error)?;
    Ok((modules, component_linker(engine, wasi_p3)?))
}

/// The linker for components alone.
pub(super) fn component_linker(
    engine: &Engine,
    wasi_p3: bool,
) -> Result<wasmtime::component::Linker<ComponentState>> {
    let mut components = wasmtime::component::Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut components).map_err(engine_error)?;
    super::lookup::link(&mut components).map_err(engine_error)?;
    random::link(&mut components, &random::P2).map_err(engine_error)?;
    surroundings::link(&mut components, &surroundings::P2).map_err(engine_error)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut components).map_err(engine_error)?;
    if wasi_p3 {
        super::p3::link(&mut components).map_err(engine_error)?;
    }
    Ok(components)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_stable_and_the_engine_loads_compiled_code() {
        assert_eq!(engine_hash().unwrap(), engine_hash().unwrap());
        let code = compiling()
            .unwrap()
            .precompile_module(b"\0asm\x01\0\0\0")
            .unwrap();
        let warm = Warm::new().unwrap();
        #[allow(unsafe_code, reason = "the bytes were made one line above")]
        // SAFETY: `code` is unchanged output of precompile_module of a compatible engine.
        let module = unsafe { wasmtime::Module::deserialize(&warm.engine, code) };
        assert!(module.is_ok(), "{:?}", module.err());
    }
}
