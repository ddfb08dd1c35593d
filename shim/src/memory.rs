//! Keeps the daemon's memory what it needs: returns what a large request needed to the kernel, and keeps threads from
//! hoarding.
//!
//! Called by [`crate::serve`] at the start, and by `cri` with every call. When a million small texts are freed, the
//! allocator keeps their pages: 17 MiB of labels would cost 100 MiB until the daemon ends. And each thread keeps a few
//! freed pieces of each size for itself, which hold on to nearly every page that the heap ever had: 4 MiB after
//! thousands of pods. The pages of the program's own file that were needed once, at the start or for a rare call, stay mapped
//! for ever, 20 MiB of them; when nothing goes on they are unmapped.
//! Invariants: at most one check every five seconds, and one after the last call; none without calls. Memory is
//! returned when the process has grown by [`BUSY_WORTH`] since the last time; when there was no call meanwhile, or the
//! last time was [`LONG`] ago, already when it has grown by [`QUIET_WORTH`] since such a check: what was returned under
//! load says nothing of what the threads of that load still held. Must not know: how much a request may hold.

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use coracle_runtime::memory::{give_memory_back, unmap_program};

/// The setting of glibc's allocator for the pieces a thread keeps; it is read when a program begins, and never again.
const THREAD_CACHES: &str = "glibc.malloc.tcache_count";

/// Executes this program anew without the allocator's caches of threads, unless it has none or was told how many. Other
/// settings of the environment stay. Returns only where nothing is to be done, or with the error of execve(2).
pub fn execute_without_thread_caches() -> std::io::Result<()> {
    let variable = "GLIBC_TUNABLES";
    let given = std::env::var_os(variable).unwrap_or_default();
    let given = given.to_string_lossy();
    if cfg!(not(target_env = "gnu")) || given.contains(THREAD_CACHES) {
        return Ok(());
    }
    let separator = if given.is_empty() { "" } else { ":" };
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    Err(Command::new(std::env::current_exe()?)
        .arg0(name)
        .args(arguments)
        .env(variable, format!("{given}{separator}{THREAD_CACHES}=0"))
        .exec())
}

/// Returns what the start of the daemon needed and its work does not. Takes about a millisecond.
pub fn release_startup_memory() {
    give_memory_back();
    unmap_program();
}

/// How long after a call the process is checked.
const SETTLE: Duration = Duration::from_secs(5);
/// Growth since the last time that is always worth the work. Bytes.
const BUSY_WORTH: u64 = 4 << 20;
/// Growth that is worth the work when the daemon is idle. Bytes.
const QUIET_WORTH: u64 = 512 << 10;
/// How long the smaller growth may stay while the kubelet keeps calling.
const LONG: Duration = Duration::from_secs(60);

/// A check is scheduled.
static DUE: AtomicBool = AtomicBool::new(false);
/// There was a call since the check was scheduled.
static CALLED: AtomicBool = AtomicBool::new(false);
/// Resident bytes after memory was returned under load, and otherwise.
static KEPT: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

/// Schedules a check of the process, unless one is scheduled.
pub fn settle_soon() {
    CALLED.store(true, Ordering::Release);
    if DUE.swap(true, Ordering::AcqRel) {
        return;
    }
    tokio::spawn(async {
        let mut last = Instant::now();
        loop {
            CALLED.store(false, Ordering::Release);
            tokio::time::sleep(SETTLE).await;
            let is_quiet = !CALLED.load(Ordering::Acquire);
            let check = Check::when(is_quiet, last.elapsed());
            // Trimming waits for the allocator's locks.
            let trimmed = tokio::task::spawn_blocking(move || trim(check)).await;
            if trimmed.unwrap_or_default() {
                last = Instant::now();
            }
            if is_quiet {
                break;
            }
        }
        DUE.store(false, Ordering::Release);
        if CALLED.load(Ordering::Acquire) {
            // A call came between the last check and now.
            settle_soon();
        }
    });
}

/// When a check is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    UnderLoad,
    Quiet,
}

impl Check {
    fn when(is_quiet: bool, since: Duration) -> Self {
        match is_quiet || since >= LONG {
            true => Self::Quiet,
            false => Self::UnderLoad,
        }
    }

    /// The growth that is worth the work.
    fn worth(self) -> u64 {
        match self {
            Self::UnderLoad => BUSY_WORTH,
            Self::Quiet => QUIET_WORTH,
        }
    }
}

/// Returns free memory if the process has grown by as much as is worth it; false if it has not.
fn trim(check: Check) -> bool {
    let Some(resident) = resident() else {
        return false;
    };
    let [under_load, quiet] = &KEPT;
    let kept = match check {
        Check::UnderLoad => under_load,
        Check::Quiet => quiet,
    };
    if resident < kept.load(Ordering::Acquire) + check.worth() {
        kept.fetch_min(resident, Ordering::AcqRel);
        return false;
    }
    give_memory_back();
    if check == Check::Quiet {
        unmap_program();
    }
    if let Some(resident) = self::resident() {
        under_load.store(resident, Ordering::Release);
        if check == Check::Quiet {
            quiet.store(resident, Ordering::Release);
        }
    }
    true
}

/// Resident bytes of this process; `None` where /proc does not tell.
fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    /// Each in a process of its own: the memory that other tests take would count.
    #[test]
    fn freed_memory_is_returned_whatever_was_returned_before() {
        let _forking = crate::forking::held();
        for name in [
            "freed_memory_is_returned",
            "what_was_returned_under_load_does_not_hide_what_is_free_afterwards",
        ] {
            let alone = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--ignored", "--exact"])
                .arg(format!("memory::tests::{name}"))
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&alone.stdout);
            assert!(
                alone.status.success() && said.contains("1 passed"),
                "{said}"
            );
        }
    }

    #[test]
    #[ignore = "it measures its process; the test above runs it"]
    fn freed_memory_is_returned() {
        let held: Vec<String> = (0..1_000_000_u32).map(|n| n.to_string()).collect();
        // The allocations after them keep the heap from shrinking by itself.
        let last = std::hint::black_box(Box::new([1_u8; 64]));
        let full = resident().unwrap();
        drop(held);
        let [under_load, _] = &KEPT;
        under_load.store(0, Ordering::Release);
        assert!(trim(Check::UnderLoad));
        let after = resident().unwrap();
        assert!(
            after + (16 << 20) < full,
            "{full} bytes before, {after} after"
        );
        assert_eq!(last[0], 1);
    }

    #[test]
    fn a_daemon_that_is_idle_or_was_not_checked_for_long_is_checked_for_small_growth() {
        let at = |is_quiet, since| Check::when(is_quiet, since);
        assert_eq!(at(false, LONG - Duration::from_secs(1)), Check::UnderLoad);
        assert_eq!(at(false, LONG), Check::Quiet);
        assert_eq!(at(true, Duration::ZERO), Check::Quiet);
        assert!(Check::Quiet.worth() < Check::UnderLoad.worth());
    }

    #[test]
    #[ignore = "it measures its process; the first test runs it"]
    fn what_was_returned_under_load_does_not_hide_what_is_free_afterwards() {
        let held: Vec<String> = (0..200_000_u32).map(|n| n.to_string()).collect();
        let last = std::hint::black_box(Box::new([1_u8; 64]));
        drop(held);
        let [under_load, quiet] = &KEPT;
        let full = resident().unwrap();
        under_load.store(full, Ordering::Release);
        quiet.store(full - 2 * QUIET_WORTH, Ordering::Release);
        assert!(trim(Check::Quiet));
        assert!(resident().unwrap() < full);
        assert_eq!(last[0], 1);
    }
}
