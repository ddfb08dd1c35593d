//! What the tests of this crate share: a real `docker-registry`, a scripted one, a client that pushes, and builders for
//! images. Invariant: everything started or mounted here ends with the value that owns it.
#![allow(
    dead_code,
    unused_imports,
    reason = "each file of tests uses its part of this"
)]

pub mod archive;
pub mod http_proxy;
mod image;
mod registry;
mod scripted;
pub mod signer;
pub mod tls;
mod unpacker;

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

pub use image::{Parts, tar};
pub use registry::Registry;
pub use scripted::{Reply, ScriptedRegistry};
pub use unpacker::Unpackers;

pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
pub const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// The smallest module there is: magic and version.
pub const MODULE: &[u8] = b"\0asm\x01\0\0\0";

/// A directory of this test alone, removed at the end.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!(
            "images-test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A port that nobody listens on for as long as this process lives.
pub fn closed_port() -> u16 {
    use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket};
    let taken = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    bind(&taken, &any).unwrap();
    let address: std::net::SocketAddr = getsockname(&taken).unwrap().try_into().unwrap();
    // It is bound and never listens.
    std::mem::forget(taken);
    address.port()
}

/// A port that nobody has now, below those that the kernel gives to whoever asks for any.
pub fn free_port() -> u16 {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    loop {
        let number = std::process::id() as usize * 64 + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + u16::try_from(number % 10_000).unwrap();
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Bytes that do not compress and differ by seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}
