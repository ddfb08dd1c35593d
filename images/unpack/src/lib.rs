//! Turns a layer blob into a directory that overlayfs can stack.
//!
//! ```text
//! daemon                                                unpacker, one a layer, jailed
//! Job, blob, directory ------- socket, descriptors ---> wire -> layer -> archive (tar) -> tree (files)
//! supervise  <------- marks of directories, Verdict ---
//! ```
//! [`serve`] runs in the jailed process, [`supervise`] in the daemon; the bytes of a registry are decompressed and
//! parsed by the former alone.
//! Invariants: nothing outside the directory is touched (see `tree`); amounts are bounded by [`Bounds`] while they
//! grow; whiteouts become character devices 0/0 and opaque attributes; device nodes are skipped.
//! Not here: the jail, where layers are kept, who mounts them.
#![forbid(unsafe_code)]

mod archive;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod layer;
mod meter;
mod pax;
mod sparse;
mod time;
mod tree;
mod wire;

use serde::{Deserialize, Serialize};

pub use meter::RATIO_FLOOR_BYTES;
pub use tree::OPAQUE;
pub use wire::{begin, serve, supervise};

/// How the archive of a layer is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compression {
    /// A tar archive as it is.
    None,
    /// gzip, of one or more members.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// The limits of one layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// Uncompressed bytes.
    pub bytes: u64,
    /// Archive entries.
    pub entries: u64,
    /// Unpacked bytes for each packed byte, checked once a layer has unpacked 64 MiB.
    pub ratio: u64,
    /// A path, in bytes.
    pub path_bytes: u64,
    /// Names in a path.
    pub path_depth: u64,
    /// The window of a zstd layer, a power of two of bytes.
    pub zstd_window_log: u32,
}

/// One layer to unpack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// How it is packed.
    pub compression: Compression,
    /// Size of the blob. Bytes.
    pub packed_bytes: u64,
    /// Its limits.
    pub bounds: Bounds,
}

/// The result of an unpacker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// The layer is in the directory.
    Unpacked(Unpacked),
    /// It exceeds one of its bounds.
    Limit(Limit),
    /// It is not a layer that can be unpacked: the image's fault. At most [`MAX_PROBLEM_BYTES`].
    Invalid(String),
    /// The disk's fault: what was being done, and the error number.
    Io(IoOperation, i32),
}

/// Bytes counted for an inode, besides its data.
pub const INODE_BYTES: u64 = 512;

/// The longest text that a verdict holds. Bytes.
pub const MAX_PROBLEM_BYTES: usize = 1024;

/// What was unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpacked {
    /// SHA-256 of the uncompressed archive, 64 digits.
    pub digest: String,
    /// Bytes on disk: data, and something for each inode.
    pub bytes: u64,
    /// Inodes on disk.
    pub inodes: u64,
    /// Uncompressed bytes of the archive, and the holes of its files.
    pub archive_bytes: u64,
    /// Entries of the archive.
    pub entries: u64,
}

/// The bound that was exceeded, as a field of [`Bounds`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Limit {
    /// [`Bounds::bytes`]
    Bytes,
    /// [`Bounds::entries`]
    Entries,
    /// [`Bounds::ratio`]
    Ratio,
    /// [`Bounds::path_bytes`]
    PathBytes,
    /// [`Bounds::path_depth`]
    PathDepth,
}

/// A disk operation of an unpacker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum IoOperation {
    /// Reads the blob.
    Read,
    /// Writes the directory.
    Write,
}
