//! Images: references, registries, verification, content store, unpacking, WebAssembly artifacts.
//!
//! ```text
//! PullRequest -> reference -> registry -> manifest -> blobs (verify) -> unpack -> wasm -> metadata -> Image
//!                (names)      (network)   (JSON)      (files)           (layers)  (module) (redb)
//! ```
//! The daemon holds one [`Images`]; [`Image`] values are shared and never change.
//!
//! Invariants: received bytes are bounded while they arrive, verified before they are kept, and never executed;
//! an image is either complete and recorded or invisible; lists and lookups read no disk.
//! Not here: pods, containers, gRPC, mounts, compiling modules. This crate depends on no other of the project but
//! `images/tree` and `images/unpack`.
#![forbid(unsafe_code)]

mod archive;
mod auth_file;
mod blobs;
mod blocking;
mod collect;
mod config;
mod draft;
mod endpoint;
pub mod error;
mod export;
mod failpoint;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
mod holders;
mod identity;
mod image;
mod image_config;
mod import;
mod leases;
mod loopback;
mod magic;
mod manifest;
mod metadata;
mod mirrors;
mod preload;
mod proxy;
mod pull;
mod record;
mod reference;
mod registry;
mod regular_file;
mod room;
mod run_config;
mod self_check;
mod shares;
mod signature;
mod singleflight;
mod snapshot;
mod sources;
mod space;
mod store;
mod tenants;
mod transfers;
mod unpack;
mod verify;
mod wasm;

pub use auth_file::credentials_in;
pub use collect::Collected;
pub use config::{ImagesConfig, Limits};
pub use endpoint::Credentials;
pub use error::{Cause, Error, Kind as ErrorKind};
pub use export::{Export, Exported};
#[cfg(feature = "failpoints")]
pub use failpoint::set_failpoints;
pub use image::{Artifact, FsInfo, Image, Kind, LinuxImage, WasmImage};
pub use import::{ImportRequest, ReceivedArchive};
pub use manifest::PlatformPreference;
pub use proxy::Proxies;
pub use reference::{BadName, Digest, ImageId, ImageRef, Target};
pub use run_config::RunConfig;
pub use signature::check_signature_policy;
pub use singleflight::PullRequest;
pub use snapshot::{lower_dirs, open_file};
pub use store::Images;
pub use transfers::{Transfer, TransferCounts, UnpackObserver};
pub use unpack::{RunningUnpacker, Unpacker, UnpackerLauncher};
