//! Bytes that are passed to another process as a descriptor.
//!
//! Written by the daemon, read by a container process, a compiler or a keeper. Invariant: a sealed memfd never changes.
//! Not here: what the bytes mean.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Puts `bytes` into a sealed memfd: its reader can neither change it nor see it change.
///
/// Errors: memfd_create(2), write(2) or sealing failed.
pub fn sealed(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = std::fs::File::from(fd);
    io::Write::write_all(&mut file, bytes)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

/// The whole content behind `fd`, from its beginning, at most `limit` bytes.
///
/// Errors: pread(2) failed, or there is more than `limit`.
pub fn read_all(fd: BorrowedFd<'_>, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let got = rustix::io::pread(fd, &mut chunk, bytes.len() as u64)?;
        if got == 0 {
            return Ok(bytes);
        }
        bytes.extend_from_slice(&chunk[..got]);
        if bytes.len() > limit {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("descriptor holds more than {limit} bytes"),
            ));
        }
    }
}
