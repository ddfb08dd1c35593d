//! The compiler process: reads one hostile module from a descriptor, writes compiled code to another, and exits.
//!
//! The daemon's cache execs it for each module. It jails itself before it reads the first byte; its limits or the
//! daemon end it. Descriptors: 0 lifeline pipe (end of file means the daemon is gone), 1 verdict, 3 module, 4 output.
//! Invariants: it has no network, no files, no privileges, and bounded memory and CPU time. Its output is trusted
//! only because its own code is ours, so only the engine runs here.
//! It must not know the cache or its key.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::os::fd::AsFd as _;

use serde::{Deserialize, Serialize};
use wasmtime::component::Component;
use wasmtime::{Engine, Module};

use super::inspect::{self, ModuleInfo};
use coracle_sandbox::{self as sandbox, helper};
use coracle_spec::error::{Context as _, Error, Kind, Result};
use coracle_sys as sys;
use coracle_sys::memfd::read_all;

/// What the compiler process writes to its standard output.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Verdict {
    /// The code is in the output descriptor.
    Compiled(ModuleInfo),
    /// The input is not a program, or this engine does not accept it.
    Refused(String),
}

/// Largest compiled code, in bytes. Real code is about four times as large as its module.
const MAX_CODE_BYTES: u64 = 1 << 30;
/// Exit code of a compiler whose output did not fit on the disk.
pub(super) const DISK_FULL: i32 = 28;

/// Bounds of one compilation, passed as arguments.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// CPU time, in seconds.
    pub cpu_s: u64,
    /// Address space, in bytes.
    pub memory_bytes: u64,
    /// Largest module, in bytes.
    pub module_bytes: usize,
}

/// Runs the compiler process: reads descriptor 3, writes 4 and 1.
///
/// Errors: the jail could not be built or the output not be written. A bad module is a verdict, not an error.
pub fn main(bounds: Bounds) -> Result<()> {
    let fds =
        sys::fork::keep_only(&[0, 1, 2, 3, 4]).map(|()| (sys::fork::adopt(3), sys::fork::adopt(4)));
    let (input, output) = fds.during(|| "take over the compiler's descriptors".into())?;
    limit(bounds)?;
    sandbox::jail_compiler()?;
    helper::watch_lifeline();
    let verdict = match read_all(input.as_fd(), bounds.module_bytes) {
        Ok(bytes) => compile(&bytes, File::from(output))?,
        Err(e) => Verdict::Refused(format!("{e}")),
    };
    let text = serde_json::to_vec(&verdict)
        .map_err(|e| Error::with(Kind::Bug, "render the compiler's verdict", e))?;
    std::io::stdout()
        .write_all(&text)
        .during(|| "write the compiler's verdict".into())
}

fn limit(bounds: Bounds) -> Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let set = |resource, value| {
        let both = Rlimit {
            current: Some(value),
            maximum: Some(value),
        };
        setrlimit(resource, both).during(|| format!("limit {resource:?} to {value}"))
    };
    // The soft limit sends SIGXCPU, which nobody else sends; the hard limit kills.
    let cpu = Rlimit {
        current: Some(bounds.cpu_s),
        maximum: Some(bounds.cpu_s.saturating_add(1)),
    };
    setrlimit(Resource::Cpu, cpu).during(|| format!("limit CPU time to {} s", bounds.cpu_s))?;
    set(Resource::As, bounds.memory_bytes)?;
    set(Resource::Fsize, MAX_CODE_BYTES)?;
    set(Resource::Core, 0)?;
    set(Resource::Nofile, 64)
}

fn compile(bytes: &[u8], mut output: File) -> Result<Verdict> {
    let engine = super::engine::compiling()?;
    let (info, code) = match translate(&engine, bytes) {
        Ok(done) => done?,
        Err(e) => return Ok(Verdict::Refused(inspect::refusal(bytes, &format!("{e:#}")))),
    };
    match output.write_all(&code) {
        Ok(()) => Ok(Verdict::Compiled(info)),
        Err(e) if e.kind() == ErrorKind::StorageFull => sys::fork::leave(DISK_FULL),
        Err(e) => Err(e).during(|| format!("write {} bytes of compiled code", code.len())),
    }
}

/// Outer error: the module is at fault. Inner error: we are.
fn translate(engine: &Engine, bytes: &[u8]) -> wasmtime::Result<Result<(ModuleInfo, Vec<u8>)>> {
    // Bytes 4 to 7 are version and layer: 1, 0 for a core module; 0d, 0, 1, 0 for a component.
    if bytes.get(6) == Some(&1) {
        let component = Component::from_binary(engine, bytes)?;
        let code = component.serialize()?;
        return Ok(inspect::component(engine, &component).map(|info| (info, code)));
    }
    let module = Module::from_binary(engine, bytes)?;
    let code = module.serialize()?;
    Ok(inspect::module(engine, &module).map(|info| (info, code)))
}
