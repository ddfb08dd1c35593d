//! What is learnt of a program while it is compiled, so that CreateContainer can refuse it without an engine.
//!
//! Made by the compiler process, kept beside the compiled code, read by the daemon.
//! Invariant: it says what the program needs and lacks; whether that is allowed is decided where limits are known.

use serde::{Deserialize, Serialize};
use wasmtime::component::Component;
use wasmtime::{Engine, ExternType, Module};

use super::engine::linkers;
use super::host::ModuleState;
use crate::error::Result;
use crate::spec::WasmKind;

/// Most names of missing imports kept.
const MAX_NAMES: usize = 8;

/// Facts about one program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleInfo {
    /// Core module or component.
    pub kind: WasmKind,
    /// Initial size of its largest linear memory, in bytes.
    pub memory_min_bytes: u64,
    /// Imports that no Coracle handler offers, at most eight, as `module.name` or as the engine names them.
    pub missing_imports: Vec<String>,
    /// What is offered to programs of this kind, for the error's text.
    pub offers: String,
    /// Why it could not run even with all imports, such as a missing entry point.
    pub problem: Option<String>,
}

const PAGE: u64 = 65_536;

/// Facts about a core module. Errors: the linkers cannot be made.
pub(super) fn module(engine: &Engine, module: &Module) -> Result<ModuleInfo> {
    let (linker, _) = linkers(engine)?;
    let mut store = wasmtime::Store::new(engine, ModuleState::unprivileged());
    let mut missing: Vec<String> = module
        .imports()
        .filter(|import| linker.get_by_import(&mut store, import).is_none())
        .map(|import| format!("{}.{}", import.module(), import.name()))
        .take(MAX_NAMES)
        .collect();
    if missing.is_empty()
        && let Err(e) = linker.instantiate_pre(module)
    {
        missing.push(format!("{e:#}"));
    }
    let problem = match module.get_export("_start") {
        Some(ExternType::Func(f)) if f.params().len() == 0 && f.results().len() == 0 => None,
        Some(_) => {
            Some("its export _start is no function without parameters and results".to_owned())
        }
        None => Some(
            "it exports no _start function: a program (WASI command) is needed, not a library"
                .to_owned(),
        ),
    };
    Ok(ModuleInfo {
        kind: WasmKind::Module,
        memory_min_bytes: module
            .resources_required()
            .max_initial_memory_size
            .unwrap_or(0)
            .saturating_mul(PAGE),
        missing_imports: missing,
        offers: "wasi_snapshot_preview1".to_owned(),
        problem,
    })
}

/// Facts about a component. Errors: the linkers cannot be made.
pub(super) fn component(engine: &Engine, component: &Component) -> Result<ModuleInfo> {
    let (_, linker) = linkers(engine)?;
    let missing = linker
        .instantiate_pre(component)
        .err()
        .map(|e| format!("{e:#}"));
    let ty = component.component_type();
    let runs = ty
        .exports(engine)
        .any(|(name, _)| name.starts_with("wasi:cli/run@0.2."));
    let problem = (!runs).then(|| {
        let exports: Vec<&str> = ty
            .exports(engine)
            .map(|(name, _)| name)
            .take(MAX_NAMES)
            .collect();
        format!(
            "it exports no wasi:cli/run@0.2 (it exports: {})",
            if exports.is_empty() {
                "nothing".into()
            } else {
                exports.join(", ")
            }
        )
    });
    let memory = component
        .resources_required()
        .and_then(|r| r.max_initial_memory_size)
        .unwrap_or(0);
    Ok(ModuleInfo {
        kind: WasmKind::Component,
        memory_min_bytes: memory.saturating_mul(PAGE),
        missing_imports: missing.into_iter().collect(),
        offers:
            "wasi:cli, wasi:io, wasi:clocks, wasi:random, wasi:filesystem, wasi:sockets and wasi:http (outgoing), all 0.2"
                .to_owned(),
        problem,
    })
}
