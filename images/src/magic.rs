//! Detects a file's type by its first bytes.
//!
//! Called by: pulls and the search for an image's module. Pure. Invariant: machine code, whatever it is called, is told
//! from a module. Not here: parsing modules.

use crate::error::Error;

/// The type of a file, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Magic {
    /// `\0asm`: a core module or a component.
    Module,
    /// `\x7fELF`: machine code; precompiled modules look like this too.
    Elf,
    Other,
}

impl Magic {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        match bytes.first_chunk::<4>() {
            Some(b"\0asm") => Self::Module,
            Some(b"\x7fELF") => Self::Elf,
            _ => Self::Other,
        }
    }

    /// Errors: [`Error::Invalid`] for everything but a module, naming `what`.
    pub(crate) fn require_module(self, what: &str) -> Result<(), Error> {
        match self {
            Self::Module => Ok(()),
            Self::Elf => Err(Error::invalid(
                what,
                "it is machine code (it begins with \\x7fELF); precompiled modules are refused, publish the .wasm file",
            )),
            Self::Other => Err(Error::invalid(
                what,
                "not a WebAssembly module: it does not begin with \\0asm",
            )),
        }
    }
}
