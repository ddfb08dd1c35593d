//! What conformance specs ask of a container that WebAssembly has not, hence cannot pass with the look-alike component.
//!
//! Every other spec has to pass with handler `coracle-wasm`. docs/conformance.md publishes the list.
//! Not here: running them.

/// Why a spec cannot pass, and the specs: regular expressions over their full names.
pub const CANNOT: [(&str, &[&str]); 0] = [];
