//! Random bytes, read from getrandom(2) at every call.
//!
//! Called by WASI on behalf of a guest, and by the resolver for the ids of its queries. wasmtime-wasi draws lists byte by
//! byte, a system call each, and a seed for each instance that is made, whether or not it is wanted; [`link`] replaces both.
//! Invariant: nothing is kept between two calls, so a fork copies nothing.
//! Preview 1's own function is in [`super::preview1`].

use std::convert::Infallible;

use wasmtime::StoreContextMut;
use wasmtime::component::Linker;

use super::host::ComponentState;

/// Most bytes of one call. Source: wasmtime's default.
const MAX_BYTES: u64 = 64 << 20;

/// The functions of one version of WASI that are replaced.
pub(super) struct Names {
    /// Interfaces, and the function of each that answers a list.
    lists: [(&'static str, &'static str); 2],
    /// The interface that seeds a generator, and its function.
    seed: (&'static str, &'static str),
}

/// Those of 0.2; the linker gives them to importers of every 0.2 version.
pub(super) const P2: Names = Names {
    lists: [
        ("wasi:random/random@0.2.12", "get-random-bytes"),
        ("wasi:random/insecure@0.2.12", "get-insecure-random-bytes"),
    ],
    seed: ("wasi:random/insecure-seed@0.2.12", "insecure-seed"),
};

/// Those of 0.3.
pub(super) const P3: Names = Names {
    lists: [
        ("wasi:random/random@0.3.0", "get-random-bytes"),
        ("wasi:random/insecure@0.3.0", "get-insecure-random-bytes"),
    ],
    seed: ("wasi:random/insecure-seed@0.3.0", "get-insecure-seed"),
};

/// Refuses what is too long for one call. Errors: it is, which ends the guest as under wasmtime.
pub(super) fn check_length(bytes: u64) -> wasmtime::Result<()> {
    match bytes > MAX_BYTES {
        true => Err(wasmtime::Error::msg(format!(
            "{bytes} random bytes at once; at most {MAX_BYTES} can be had"
        ))),
        false => Ok(()),
    }
}

/// Puts our functions in place of those that `linker` has. Errors: the engine refuses a definition.
pub(super) fn link(linker: &mut Linker<ComponentState>, names: &Names) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    for (interface, function) in names.lists {
        linker.instance(interface)?.func_wrap(
            function,
            |_: StoreContextMut<'_, ComponentState>, (length,): (u64,)| {
                check_length(length)?;
                let mut bytes = vec![0; usize::try_from(length)?];
                fill(&mut bytes);
                Ok((bytes,))
            },
        )?;
    }
    let (interface, function) = names.seed;
    linker.instance(interface)?.func_wrap(
        function,
        |_: StoreContextMut<'_, ComponentState>, (): ()| {
            let seed = seed();
            Ok(((seed as u64, (seed >> 64) as u64),))
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

/// A seed for WASI's insecure generator.
pub(super) fn seed() -> u128 {
    let mut bytes = [0; 16];
    fill(&mut bytes);
    u128::from_le_bytes(bytes)
}

/// Random bytes from the kernel.
pub(super) fn fill(bytes: &mut [u8]) {
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(got) => filled += got,
            Err(rustix::io::Errno::INTR) => {}
            // Without randomness, end the guest rather than hand out predictable bytes.
            Err(_) => std::process::abort(),
        }
    }
}

/// A generator that calls getrandom(2) every time.
pub(super) struct KernelRandom;

impl rand_core::TryRng for KernelRandom {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        fill(&mut bytes);
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        fill(&mut bytes);
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        fill(bytes);
        Ok(())
    }
}
