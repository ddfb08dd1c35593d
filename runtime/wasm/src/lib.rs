//! WebAssembly payloads: one engine configuration, compilation in a jailed process, and running one guest to its end.
//!
//! The daemon uses [`CompileCache`]; the spawner warms an `Engine`; a guest runs through [`run`].
//! Invariant: compiled code comes only from our own compiler and is verified before it is handed out; engines that
//! run guests have no compiler.
//! Not here: namespaces, mounts, logs.

#![allow(
    unsafe_code,
    reason = "compiled code is mapped and the stop handler touches a static"
)]

pub mod cache;
pub mod compiler;
pub mod engine;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
mod host;
mod http;
pub mod inspect;
mod lookup;
mod network;
mod random;
pub mod run;
pub mod stop;
mod streams;
mod toolbox;

pub use cache::{CompileCache, CompileLimits, Compiled, EngineRef};
pub use engine::{Warm, engine_hash};
pub use inspect::ModuleInfo;
