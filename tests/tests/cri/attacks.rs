//! What a hostile image, a hostile pod or a careless caller may try on the host, each with its expected safe result.
//!
//! Every test ends with three things: the host is as it was ([`canary`]), the daemon answers as the same process, and
//! nothing leaks (`finish`). All run on the peer as well; where the peer's version is known to be weaker, the test
//! says so.

pub mod canary;
mod cgroups;
mod compiled;
mod confinement;
mod engine;
mod escapes;
mod floods;
mod images;
mod keyrings;
mod layers;
mod mount_races;
mod mounts;
mod requests;
mod runtime_processes;
mod stuck;
mod tree_removal;
mod wasm;
