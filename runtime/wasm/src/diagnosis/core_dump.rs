//! Core dumps of guests that trapped: memories, globals and stack in the format of the WebAssembly tool conventions.
//!
//! The engine collects what is to be dumped when the guest traps, if it was configured for it ([`configure`]); the store
//! must still be there when it is written. Invariants: the end of a program by itself or by a stop leaves no dump; a guest
//! whose dump does not fit into the container's memory beside it gets a sentence instead of an out-of-memory kill.
//! Not here: which directory.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use wasmtime::{Config, Error, Store, Trap, WasmCoreDump};

use super::Directory;
use crate::stop;
use coracle_spec::error::Result;
use coracle_spec::{ContainerSpec, WasmSpec};

/// The annotation that turns them on.
const ANNOTATION: &str = "coracle.dev/core-dump";
/// Name and suffix of the files.
const FILE: (&str, &str) = ("core", "wasm");
/// Most linear memory that is dumped, all memories of a guest together. Bytes.
const MAX_MEMORY: u64 = 256 << 20;
/// What a container process needs besides its guests' memory. Bytes.
const OWN_MEMORY: u64 = 16 << 20;
/// Memory is dumped in pieces, without those that are zero. Bytes.
const PIECE: usize = 4096;

/// Has the engine collect what is dumped.
pub(crate) fn configure(config: &mut Config) {
    config.coredump_on_trap(true);
}

/// Where the dumps of one container go.
pub(crate) struct CoreDumps {
    directory: Directory,
    /// Of the container, in bytes.
    memory_limit: Option<u64>,
    /// Held while a dump is encoded.
    turn: Mutex<()>,
}

impl CoreDumps {
    /// Those of `wasm` in a container of `spec`, if it is to have any. Errors: there is no such directory.
    pub(crate) fn of(spec: &ContainerSpec, wasm: &WasmSpec) -> Result<Option<Self>> {
        let path = wasm.diagnosis.core_dump.as_deref();
        let directory = path.map(|path| Directory::open(path, ANNOTATION));
        Ok(directory.transpose()?.map(|directory| Self {
            directory,
            memory_limit: spec.memory_limit_bytes,
            turn: Mutex::default(),
        }))
    }

    /// Writes the dump of `store`, whose guest ended by `error`, and gives a sentence on where it is, or why it is not;
    /// `None` for an end that is no trap of the guest's own.
    pub(crate) fn write<T: 'static>(&self, store: &mut Store<T>, error: &Error) -> Option<String> {
        let trap = error.downcast_ref::<Trap>()?;
        if matches!(trap, Trap::Interrupt) && stop::stopping() {
            return None;
        }
        let dump = error.downcast_ref::<WasmCoreDump>()?;
        let memories = dump.memories().iter();
        let sizes = memories.map(|memory| memory.data_size(&*store) as u64);
        if let Err(why) = self.fits(sizes.sum(), || held(dump, store)) {
            return Some(format!("no core dump: {why}"));
        }
        let written = self.directory.create(FILE).and_then(|file| {
            // Encoded only once there is a file for it, and one at a time.
            let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            // The encoder panics at what the format does not know, such as a global of an exception's type.
            let encode = AssertUnwindSafe(|| dump.serialize(&mut *store, "guest"));
            match catch_unwind(encode) {
                Ok(bytes) => file.fill(&bytes),
                Err(_) => Err(io::Error::other("the engine cannot encode it")),
            }
        });
        Some(match written {
            Ok(path) => format!("core dump: {path}"),
            Err(e) => format!("no core dump in {}: {e}", self.directory.path),
        })
    }

    /// Whether a guest with `size` bytes of memory can be dumped, of which so many as `held` says are not zero.
    fn fits(&self, size: u64, held: impl FnOnce() -> u64) -> std::result::Result<(), String> {
        if size > MAX_MEMORY {
            return Err(format!(
                "the guest has {size} bytes of memory, and at most {MAX_MEMORY} are dumped"
            ));
        }
        let Some(limit) = self.memory_limit else {
            return Ok(());
        };
        // The encoder holds each byte twice.
        let need = size + 2 * held() + OWN_MEMORY;
        if need > limit {
            return Err(format!(
                "it would take {need} bytes together with the guest, and the container may have {limit}: raise resources.limits.memory"
            ));
        }
        Ok(())
    }
}

/// How many bytes of memory are in pieces that are not zero.
fn held<T: 'static>(dump: &WasmCoreDump, store: &Store<T>) -> u64 {
    let is_held = |piece: &&[u8]| piece.iter().any(|byte| *byte != 0);
    let of = |bytes: &[u8]| bytes.chunks(PIECE).filter(is_held).count() * PIECE;
    let memories = dump.memories().iter();
    memories.map(|memory| of(memory.data(store)) as u64).sum()
}

/// Whether a part of an error's text is what the engine collected for a dump, which says nothing to a reader.
pub(crate) fn is_collected(part: &str) -> bool {
    part.starts_with("wasm coredump generated while executing")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_dump_needs_room_beside_the_guest() {
        let place = tempfile::tempdir().unwrap();
        let directory = Directory::open(place.path().to_str().unwrap(), ANNOTATION).unwrap();
        let mut dumps = CoreDumps {
            directory,
            memory_limit: None,
            turn: Mutex::default(),
        };
        assert!(dumps.fits(MAX_MEMORY, || MAX_MEMORY).is_ok());
        assert!(dumps.fits(MAX_MEMORY + 1, || 0).is_err());
        dumps.memory_limit = Some(64 << 20);
        assert!(dumps.fits(16 << 20, || 16 << 20).is_ok());
        let refused = dumps.fits(32 << 20, || 32 << 20).unwrap_err();
        assert!(refused.contains("resources.limits.memory"), "{refused}");
    }
}
