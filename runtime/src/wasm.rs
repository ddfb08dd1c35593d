//! WebAssembly payloads: one engine configuration, compilation in a jailed process, and running one guest to its end.
//!
//! The daemon uses [`CompileCache`]; the spawner warms an [`Engine`]; a guest runs through [`run`].
//! Invariant: compiled code comes only from our own compiler and is verified before it is handed out; engines that
//! run guests have no compiler.
//! Not here: namespaces, mounts, logs.

pub mod cache;
pub mod compiler;
pub mod engine;
mod host;
mod http;
pub mod inspect;
mod network;
pub mod run;
mod streams;
mod toolbox;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use network::resolver_answer;

pub use cache::{CompileCache, CompileLimits, Compiled, EngineRef};
pub use engine::{Warm, engine_hash};
pub use inspect::ModuleInfo;
