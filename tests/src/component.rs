//! Components written in C: compiled by clang for WASI preview 1, then wrapped as a component of WASI 0.2.
//!
//! Called by: `guests`, for C files in `tests/guests/`. The published adapter translates a program's calls of preview 1
//! (stdio, files, arguments, clocks, exit codes). What preview 1 does not have (sockets, HTTP) the program imports as core
//! functions named after the interfaces in `tests/guests/wit/`, as the canonical ABI lowers them:
//!
//! ```c
//! __attribute__((import_module("wasi:sockets/instance-network@0.2.0"), import_name("instance-network")))
//! int instance_network(void);
//! ```
//! A program that receives lists or strings exports `cabi_realloc`. Only clang is needed.
//! Not here: what the programs do.

use std::path::Path;

use wasi_preview1_component_adapter_provider as adapter;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use crate::{Outcome, guests};

/// The component made of the C file `file` of `tests/guests/`, a program with `main`.
/// Errors: clang refuses it, or it imports what the world of `guests/wit/` has not.
pub fn from_c(file: &str) -> Outcome<Vec<u8>> {
    let module = guests::compile(file, &guests::WASI_CLANG)?;
    wrap(file, module, &PROGRAM)
}

/// The component made of the C file `file` of `tests/guests/`, which has no `main` but handles HTTP requests: it exports
/// `wasi:http/incoming-handler@0.2.0#handle`. Errors: as of [`from_c`].
pub fn function_from_c(file: &str) -> Outcome<Vec<u8>> {
    wrap(file, reactor(file)?, &FUNCTION)
}

/// The component made of the C file `file` of `tests/guests/` for WASI 0.3: it exports `wasi:cli/run@0.3.0#run` and
/// `wasi:http/handler@0.3.0#handle`, and has stdio and arguments by preview 1. Errors: as of [`from_c`].
pub fn p3_from_c(file: &str) -> Outcome<Vec<u8>> {
    wrap(file, reactor(file)?, &P3)
}

/// The module made of a C file without `main`.
fn reactor(file: &str) -> Outcome<Vec<u8>> {
    let reactor = ["-mexec-model=reactor"];
    let compiler: Vec<&str> = guests::WASI_CLANG.iter().chain(&reactor).copied().collect();
    guests::compile(file, &compiler)
}

/// As [`from_c`], with further arguments to clang, such as `-DNAME=value`.
pub fn from_c_with(file: &str, arguments: &[&str]) -> Outcome<Vec<u8>> {
    let compiler: Vec<&str> = guests::WASI_CLANG
        .iter()
        .chain(arguments)
        .copied()
        .collect();
    wrap(file, guests::compile(file, &compiler)?, &PROGRAM)
}

/// What a component is to be: its world in `guests/wit/`, and what translates preview 1 for it.
struct Shape {
    /// Directory of its interfaces.
    interfaces: &'static str,
    world: &'static str,
    adapter: &'static [u8],
}

const PROGRAM: Shape = Shape {
    interfaces: "guests/wit",
    world: "guest",
    adapter: adapter::WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
};
const FUNCTION: Shape = Shape {
    interfaces: "guests/wit",
    world: "function",
    adapter: adapter::WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
};
const P3: Shape = Shape {
    interfaces: "guests/wit-p3",
    world: "guest",
    adapter: adapter::WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
};

fn wrap(file: &str, mut module: Vec<u8>, shape: &Shape) -> Outcome<Vec<u8>> {
    let what = |step: &str, cause: &dyn std::fmt::Debug| format!("{step} {file}: {cause:?}");
    let mut wit = Resolve::default();
    let (package, _) = wit
        .push_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(shape.interfaces))
        .map_err(|e| what("read the interfaces for", &e))?;
    let world = wit
        .select_world(&[package], Some(shape.world))
        .map_err(|e| what("find the world of", &e))?;
    embed_component_metadata(&mut module, &wit, world, StringEncoding::UTF8)
        .map_err(|e| what("say what is imported by", &e))?;
    let made = ComponentEncoder::default()
        .module(&module)
        .and_then(|encoder| {
            encoder
                .adapter(adapter::WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, shape.adapter)?
                .validate(true)
                .encode()
        });
    made.map_err(|e| what("make a component of", &e).into())
}
