//! seccomp(2): loads a ready filter.
//!
//! Called by `sandbox`, whose library builds filters and cannot load ready ones. Invariant: all threads or none get it.
//! Not here: what a filter allows.

use std::io;

/// Installs the instructions in `bytes` on all threads of this process, with `flags` of seccomp(2) beside.
///
/// Errors: more instructions than a length of 16 bits counts, or the kernel refuses.
pub fn install(bytes: &[u8], flags: u32) -> io::Result<()> {
    const SET_MODE_FILTER: libc::c_long = 1;
    const TSYNC: libc::c_long = 1;
    let len = u16::try_from(bytes.len() / size_of::<libc::sock_filter>())
        .map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let mut program: Vec<libc::sock_filter> = Vec::with_capacity(usize::from(len));
    for step in bytes.chunks_exact(size_of::<libc::sock_filter>()) {
        program.push(libc::sock_filter {
            code: u16::from_ne_bytes([step[0], step[1]]),
            jt: step[2],
            jf: step[3],
            k: u32::from_ne_bytes([step[4], step[5], step[6], step[7]]),
        });
    }
    let wanted = libc::sock_fprog {
        len,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: `wanted` points at `len` instructions that live until the call returns; the kernel copies them.
    let result = unsafe {
        let flags = TSYNC | libc::c_long::from(flags);
        libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &raw const wanted)
    };
    match result {
        0 => Ok(()),
        // With TSYNC, a thread that cannot follow is the result.
        thread if thread > 0 => Err(io::Error::from_raw_os_error(libc::EBUSY)),
        _ => Err(io::Error::last_os_error()),
    }
}
