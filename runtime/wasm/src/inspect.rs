//! Facts about a program, found while it is compiled, so that CreateContainer can refuse it without an engine.
//!
//! The compiler process makes them, the cache keeps them beside the compiled code, the daemon reads them.
//! Invariant: names and texts that the program's author chose are cut to a bounded length.
//! It must not know what a container is allowed: it says only what the program needs and what is missing.

use serde::{Deserialize, Serialize};
use wasmtime::component::Component;
use wasmtime::{Engine, ExternType, Module};

use super::engine::linkers;
use super::host::ModuleState;
use coracle_spec::WasmKind;
use coracle_spec::error::Result;

/// Most names of missing imports, or of exports, that are kept.
const MAX_NAMES: usize = 10;
/// Longest name that is kept, in bytes.
const MAX_NAME_BYTES: usize = 120;
/// Longest text that is kept, in bytes.
const MAX_TEXT_BYTES: usize = 2_000;

/// Facts about one program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleInfo {
    /// Core module or component.
    pub kind: WasmKind,
    /// Initial size of its largest linear memory, in bytes.
    pub memory_min_bytes: u64,
    /// Imports that no Coracle handler offers, at most ten, as `module.name` or as the engine names them.
    pub missing_imports: Vec<String>,
    /// How many more imports are missing.
    // Skipped when 0: the MACs of older caches do not cover it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_missing: u64,
    /// The interfaces offered to programs of this kind, for the error text.
    pub offers: String,
    /// Why it could not run even if it had all imports, such as a missing entry point.
    pub problem: Option<String>,
}

const PAGE: u64 = 65_536;

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl ModuleInfo {
    /// The same facts, with every text that the program's author chose cut to a size that can be logged.
    pub(super) fn bounded(mut self) -> Self {
        let dropped = self.missing_imports.len().saturating_sub(MAX_NAMES);
        self.missing_imports.truncate(MAX_NAMES);
        self.more_missing = self.more_missing.saturating_add(dropped as u64);
        for name in &mut self.missing_imports {
            *name = clip(name, MAX_TEXT_BYTES);
        }
        self.offers = clip(&self.offers, MAX_TEXT_BYTES);
        self.problem = self.problem.map(|text| clip(&text, MAX_TEXT_BYTES));
        self
    }
}

/// A text that the program's author chose, cut to length, on one line, without control characters.
pub(super) fn text(author: &str) -> String {
    clip(author, MAX_TEXT_BYTES)
}

/// A name that the program's author chose, cut to length.
fn name(author: &str) -> String {
    clip(author, MAX_NAME_BYTES)
}

fn clip(text: &str, bytes: usize) -> String {
    let end = text.floor_char_boundary(bytes);
    let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut clipped: String = text[..end].chars().map(plain).collect();
    if end < text.len() {
        clipped.push('\u{2026}');
    }
    clipped
}

/// Facts about a core module. Errors: the linkers cannot be made.
pub(super) fn module(engine: &Engine, module: &Module) -> Result<ModuleInfo> {
    let (linker, _) = linkers(engine)?;
    let mut store = wasmtime::Store::new(engine, ModuleState::unprivileged());
    let mut missing = Vec::new();
    let mut more_missing = 0;
    for import in module.imports() {
        if linker.get_by_import(&mut store, &import).is_some() {
            continue;
        }
        if missing.len() < MAX_NAMES {
            missing.push(format!("{}.{}", name(import.module()), name(import.name())));
        } else {
            more_missing += 1;
        }
    }
    if missing.is_empty()
        && let Err(e) = linker.instantiate_pre(module)
    {
        missing.push(text(&format!("{e:#}")));
    }
    Ok(ModuleInfo {
        kind: WasmKind::Module,
        memory_min_bytes: module
            .resources_required()
            .max_initial_memory_size
            .unwrap_or(0)
            .saturating_mul(PAGE),
        missing_imports: missing,
        more_missing,
        offers: "wasi_snapshot_preview1".to_owned(),
        problem: problem_of_module(module).map(str::to_owned),
    })
}

/// Why a core module is not a program; `None` if it is one.
fn problem_of_module(module: &Module) -> Option<&'static str> {
    match module.get_export("_start") {
        Some(ExternType::Func(f)) if f.params().len() == 0 && f.results().len() == 0 => None,
        Some(_) => Some("its export _start is no function without parameters and results"),
        None => {
            Some("it exports no _start function: a program (WASI command) is needed, not a library")
        }
    }
}

/// Facts about a component. Errors: the linkers cannot be made.
pub(super) fn component(engine: &Engine, component: &Component) -> Result<ModuleInfo> {
    let (_, linker) = linkers(engine)?;
    let missing = linker
        .instantiate_pre(component)
        .err()
        .map(|e| text(&format!("{e:#}")));
    let memory = component
        .resources_required()
        .and_then(|r| r.max_initial_memory_size)
        .unwrap_or(0);
    Ok(ModuleInfo {
        kind: WasmKind::Component,
        memory_min_bytes: memory.saturating_mul(PAGE),
        missing_imports: missing.into_iter().collect(),
        more_missing: 0,
        offers:
            "wasi:cli, wasi:io, wasi:clocks, wasi:random, wasi:filesystem, wasi:sockets and wasi:http (outgoing), all 0.2"
                .to_owned(),
        problem: problem_of_component(engine, component),
    })
}

/// Why a component is not a program; `None` if it is one.
fn problem_of_component(engine: &Engine, component: &Component) -> Option<String> {
    let ty = component.component_type();
    let runs = ty
        .exports(engine)
        .any(|(name, _)| name.starts_with("wasi:cli/run@0.2."));
    if runs {
        return None;
    }
    let all = ty.exports(engine);
    let exports: Vec<String> = all
        .take(MAX_NAMES)
        .map(|(export, _)| name(export))
        .collect();
    let more = ty.exports(engine).count() - exports.len();
    Some(format!(
        "it exports no wasi:cli/run@0.2 (it exports: {}{})",
        if exports.is_empty() {
            "nothing".into()
        } else {
            exports.join(", ")
        },
        match more {
            0 => String::new(),
            more => format!(" and {more} more"),
        }
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_module_is_truncated_and_counted() {
        let long = "n".repeat(200_000);
        let info = ModuleInfo {
            kind: WasmKind::Module,
            memory_min_bytes: 0,
            missing_imports: vec![long.clone(); 5_000],
            more_missing: 7,
            offers: long.clone(),
            problem: Some(format!("a\nline\x1b[2J{long}")),
        };
        let info = info.bounded();
        assert_eq!((info.missing_imports.len(), info.more_missing), (10, 4_997));
        let bytes = serde_json::to_vec(&info).map_or(0, |bytes| bytes.len());
        assert!(bytes < 32 << 10, "{bytes}");
        let problem = info.problem.unwrap_or_default();
        assert!(!problem.contains(['\n', '\x1b']), "{problem}");
        assert_eq!(clip("\u{e9}\u{e9}", 3), "\u{e9}\u{2026}");
    }
}
