//! Random bytes, read from getrandom(2) at every call.
//!
//! Called by WASI on behalf of a guest, and by the resolver for the ids of its queries.
//! Invariant: nothing is kept between two calls, so a fork copies nothing.
//! The bound on how many bytes a guest may request is in [`super::host`].

use std::convert::Infallible;

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
