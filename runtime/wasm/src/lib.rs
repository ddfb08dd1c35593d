//! WebAssembly payloads: the engine configuration, compilation in a jailed process, and running one guest, or one for each
//! HTTP request.
//!
//! The daemon uses [`CompileCache`]; the spawner makes [`Warm`]; a container process calls [`run`]. "Guest" means the
//! Wasm instance inside that process.
//! Invariants: compiled code comes only from our own compiler and is verified before it is handed out; engines that
//! run guests have no compiler.
//! It must not know about namespaces, mounts or logs.

#![allow(
    unsafe_code,
    reason = "compiled code is mapped and the stop handler touches a static"
)]

pub mod cache;
pub mod compiler;
mod diagnosis;
mod end;
pub mod engine;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
mod host;
mod http;
pub mod inspect;
mod limits;
mod lookup;
mod network;
mod p3;
mod preopens;
mod preview1;
mod random;
pub mod run;
pub mod server;
pub mod stop;
mod streams;
mod surroundings;
mod toolbox;

pub use cache::{
    CompileCache, CompileCounts, CompileLimits, CompileObserver, Compiled, EngineRef, ModuleRequest,
};
pub use engine::{Warm, engine_hash};
pub use inspect::ModuleInfo;
