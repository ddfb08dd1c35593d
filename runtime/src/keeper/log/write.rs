//! Writes lines to a log file, and counts them where the daemon finds it.
//!
//! Called by: the log thread, which may only make system calls; the spawner and the keeper, once each, before there is one.
//! Invariants: a line is written whole or counted as lost; without the page nothing is counted and everything is written.
//! It must not know which container's log it is.

use std::io;
use std::os::fd::RawFd;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use coracle_control::log_counts::{LogCounts, Owner};
use coracle_spec::id::PodId;

use super::Shared;

/// Of all keepers; the spawner maps it once and they inherit it.
static PAGE: OnceLock<LogCounts> = OnceLock::new();
/// This keeper's pod.
static OWNER: OnceLock<Owner> = OnceLock::new();

/// Counts in `page` from now on.
pub(crate) fn count_in(page: LogCounts) {
    let _ = PAGE.set(page);
}

/// This process is the keeper of `pod`. Its containers do not get the page.
///
/// Errors: the kernel refuses.
pub(crate) fn count_for(pod: &PodId) -> io::Result<()> {
    match PAGE.get() {
        Some(page) => page.keep_from_forks().map(|()| {
            let _ = OWNER.set(Owner::of(pod.as_str()));
        }),
        None => Ok(()),
    }
}

/// Writes a line, or counts it as lost.
pub(super) fn write_line(file: RawFd, mut bytes: &[u8], shared: &Shared) {
    if file < 0 {
        return;
    }
    let counted = PAGE.get().zip(OWNER.get());
    let number = std::ptr::from_ref(shared) as usize >> 6;
    let begun = counted.and_then(|(page, owner)| page.begin(*owner, number));
    while !bytes.is_empty() {
        // SAFETY: `bytes` is readable memory of this thread.
        let put = unsafe { libc::write(file, bytes.as_ptr().cast(), bytes.len()) };
        if put > 0 {
            let put = put.unsigned_abs();
            bytes = bytes.get(put..).unwrap_or_default();
            if let Some((page, _)) = counted {
                page.add_written(put);
            }
        } else if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            shared.dropped.fetch_add(1, Ordering::Relaxed);
            if let Some((page, _)) = counted {
                page.add_lost();
            }
            break;
        }
    }
    if let Some((page, _)) = counted {
        page.end(begun);
    }
}
