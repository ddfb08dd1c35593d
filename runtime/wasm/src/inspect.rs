//! Facts about a program, found while it is compiled, so that CreateContainer can refuse it without an engine.
//!
//! The compiler process makes them, the cache keeps them beside the compiled code, the daemon reads them.
//! Invariant: names and texts that the program's author chose are cut to a bounded length.
//! It must not know what a container is allowed: it says only what the program needs and what is missing.

mod wasi_03;

use serde::{Deserialize, Serialize};
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, Type};
use wasmtime::{Engine, ExternType, Module};

use super::engine::linkers;
use super::host::ModuleState;
use super::p3;
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
    /// It is no command but handles HTTP requests: it exports `wasi:http/incoming-handler`.
    // Skipped when false: the MACs of older caches do not cover it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub serves_http: bool,
    /// It is a command that could handle requests as well.
    // Skipped when false, as above.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub can_serve_http: bool,
    /// It imports or exports interfaces of WASI 0.3, which its handler has to have on.
    // Skipped when false, as above.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wasi_p3: bool,
}

const PAGE: u64 = 65_536;
/// What a component exports that handles requests.
const HANDLER: &str = "wasi:http/incoming-handler@0.2.";

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
    let (linker, _) = linkers(engine, false)?;
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
        serves_http: false,
        can_serve_http: false,
        wasi_p3: false,
    })
}

/// Why a core module is not a program; `None` if it is one.
fn problem_of_module(module: &Module) -> Option<&'static str> {
    let is_shared = |ty: ExternType| matches!(ty, ExternType::Memory(memory) if memory.is_shared());
    if module.exports().any(|export| is_shared(export.ty())) {
        return Some(
            "it has a shared memory, of the threads proposal, which is off: build it without threads",
        );
    }
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
    let (_, linker) = linkers(engine, true)?;
    let exports = Exports::of(engine, component);
    let serves_http = exports.handler && !exports.run;
    let (mut missing, more_missing) = missing_of_component(engine, component);
    if missing.is_empty()
        && let Err(e) = linker.instantiate_pre(component)
    {
        missing.push(text(&format!("{e:#}")));
    }
    let takes_requests = match exports.is_handler_03 {
        true => linker
            .instantiate_pre(component)
            .is_ok_and(|pre| p3::handler(pre, true).is_ok()),
        false => exports.handler && takes_requests(engine, component),
    };
    let unfit = (serves_http && !takes_requests).then(|| exports.unfit_handler());
    let memory = component
        .resources_required()
        .and_then(|r| r.max_initial_memory_size)
        .unwrap_or(0);
    let ty = component.component_type();
    let imports = ty.imports(engine).map(|(import, _)| import);
    let exports_03 = ty.exports(engine).map(|(export, _)| export);
    let wasi_p3 = imports.chain(exports_03).any(wasi_03::is_of);
    Ok(ModuleInfo {
        kind: WasmKind::Component,
        memory_min_bytes: memory.saturating_mul(PAGE),
        missing_imports: missing,
        more_missing,
        offers: "wasi:cli, wasi:io, wasi:clocks, wasi:random, wasi:filesystem, wasi:sockets and wasi:http, all 0.2, and all but wasi:io 0.3.0 where the handler has it on".to_owned(),
        problem: unfit.or_else(|| problem_of_component(engine, component, exports)),
        serves_http,
        can_serve_http: takes_requests && exports.run,
        wasi_p3,
    })
}

/// How drafts of WASI 0.3 say so.
const DRAFT: &str = "@0.3.0-";
const NO_DRAFT: &str = "; drafts of WASI 0.3 are not read: build the component for WASI 0.2, or for 0.3.0 where the handler has it on";

/// What is to be said of a component that the engine does not take: an older draft of WASI 0.3 is one that nobody reads any
/// more.
pub(super) fn refusal(bytes: &[u8], reason: &str) -> String {
    let mut windows = bytes.windows(DRAFT.len());
    let is_draft = windows.any(|part| part == DRAFT.as_bytes());
    text(&format!("{reason}{}", if is_draft { NO_DRAFT } else { "" }))
}

/// The interfaces of WASI 0.2 that components are offered.
const OFFERED: [&str; 29] = [
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stderr",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stderr",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/wall-clock",
    "wasi:filesystem/preopens",
    "wasi:filesystem/types",
    "wasi:http/outgoing-handler",
    "wasi:http/types",
    "wasi:io/error",
    "wasi:io/poll",
    "wasi:io/streams",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:random/random",
    "wasi:sockets/instance-network",
    "wasi:sockets/ip-name-lookup",
    "wasi:sockets/network",
    "wasi:sockets/tcp",
    "wasi:sockets/tcp-create-socket",
    "wasi:sockets/udp",
    "wasi:sockets/udp-create-socket",
];

/// The imports that nothing offers, and how many there are besides.
fn missing_of_component(engine: &Engine, component: &Component) -> (Vec<String>, u64) {
    let ty = component.component_type();
    let mut missing = Vec::new();
    let mut more = 0;
    for (import, _) in ty.imports(engine).filter(|(import, _)| !is_offered(import)) {
        match missing.len() < MAX_NAMES {
            true => missing.push(name(import)),
            false => more += 1,
        }
    }
    (missing, more)
}

fn is_offered(import: &str) -> bool {
    let (interface, version) = import.split_once('@').unwrap_or((import, ""));
    version.starts_with("0.2.") && OFFERED.contains(&interface)
        || wasi_03::is_version(version) && wasi_03::OFFERED.contains(&interface)
}

/// Whether the function of the handler that a component exports has a handler's type.
fn takes_requests(engine: &Engine, component: &Component) -> bool {
    let ty = component.component_type();
    let handler = ty.exports(engine).find_map(|(name, export)| {
        match (name.starts_with(HANDLER), export.ty) {
            (true, ComponentItem::ComponentInstance(instance)) => Some(instance),
            _ => None,
        }
    });
    let handle = handler.and_then(|handler| match handler.get_export(engine, "handle")?.ty {
        ComponentItem::ComponentFunc(function) => Some(function),
        _ => None,
    });
    handle.is_some_and(|function| {
        let owns = |(_, parameter)| matches!(parameter, Type::Own(_));
        function.params().len() == 2 && function.params().all(owns) && function.results().len() == 0
    })
}

/// Which entry points a component exports.
#[derive(Clone, Copy)]
struct Exports {
    run: bool,
    handler: bool,
    /// That is the one of WASI 0.3 alone.
    is_handler_03: bool,
}

impl Exports {
    fn of(engine: &Engine, component: &Component) -> Self {
        let ty = component.component_type();
        let has = |start: &str| ty.exports(engine).any(|(name, _)| name.starts_with(start));
        let (handler, handler_03) = (has(HANDLER), has("wasi:http/handler@0.3."));
        Self {
            run: has("wasi:cli/run@0.2.") || has("wasi:cli/run@0.3."),
            handler: handler || handler_03,
            is_handler_03: handler_03 && !handler,
        }
    }

    /// Why its handler is none: its function has other parameters.
    fn unfit_handler(self) -> String {
        let (of, takes) = match self.is_handler_03 {
            true => ("wasi:http/handler", "no request"),
            false => ("wasi:http/incoming-handler", "no request and response"),
        };
        format!("it cannot handle requests: the function handle of its {of} takes {takes}")
    }
}

/// Why a component is not a program; `None` if it is one.
fn problem_of_component(
    engine: &Engine,
    component: &Component,
    exports: Exports,
) -> Option<String> {
    if exports.run || exports.handler {
        return None;
    }
    let ty = component.component_type();
    let all = ty.exports(engine);
    let exports: Vec<String> = all
        .take(MAX_NAMES)
        .map(|(export, _)| name(export))
        .collect();
    let more = ty.exports(engine).count() - exports.len();
    Some(format!(
        "it exports neither wasi:cli/run@0.2 nor wasi:http/incoming-handler@0.2 (it exports: {}{})",
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
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    /// What is listed is there, and what is not is named, all of it.
    #[test]
    fn missing_imports_of_a_component_are_all_named() {
        let engine = crate::engine::compiling().unwrap();
        let inspect = |imports: &[String]| {
            let imports: String = imports
                .iter()
                .map(|import| format!("(import \"{import}\" (instance))"))
                .collect();
            // An instance without a name compiles as the text of a component.
            let text = format!("(component {imports})");
            let component = Component::new(&engine, wat::parse_str(text).unwrap()).unwrap();
            super::component(&engine, &component).unwrap()
        };
        let versions = OFFERED.map(|interface| format!("{interface}@0.2.0"));
        assert_eq!(inspect(&versions).missing_imports, [""; 0]);
        let foreign: Vec<String> = (0..12)
            .map(|number| format!("acme:shop/part{number}@1.0.0"))
            .collect();
        let info = inspect(&foreign);
        assert_eq!(info.missing_imports, foreign[..MAX_NAMES]);
        assert_eq!(info.more_missing, 2);
        assert!(!info.wasi_p3);
        let newer = wasi_03::OFFERED.map(|interface| format!("{interface}@0.3.0"));
        let info = inspect(&newer);
        assert_eq!(info.missing_imports, [""; 0]);
        assert!(info.wasi_p3);
        let drafts = ["wasi:cli/stdout@0.3.0-rc-1", "wasi:io/poll@0.3.0"].map(str::to_owned);
        assert_eq!(inspect(&drafts).missing_imports, drafts);
        assert!(refusal(b"\0asm wasi:cli/run@0.3.0-rc", "odd").contains("WASI 0.3"));
        assert_eq!(refusal(b"\0asm", "odd"), "odd");
    }

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
            serves_http: false,
            can_serve_http: false,
            wasi_p3: false,
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
