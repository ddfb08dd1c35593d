//! Linux containers through CRI: every promise of a Linux pod, one test each.
//!
//! All run on containerd + runc as well (`CORACLE_TEST_PEER=containerd`), which proves the tests; what Debian's containerd
//! is too old for is marked by [`shell::on_peer`].

pub mod cdi;
mod devices;
mod files;
mod floor;
mod mixed_pods;
mod mounts;
mod namespaces;
mod privilege;
mod processes;
mod resources;
mod seccomp;
pub mod shell;
mod start_failures;
mod start_recovery;
mod stop;
pub mod users;
