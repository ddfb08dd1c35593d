//! The two clocks of the lifecycle: wall time for people, boot time for deadlines.
//!
//! Invariant: deadlines are times of the boot clock, which is the same for every daemon of one boot and cannot be set.
//! Must not know: timers.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use super::state::BootTime;

/// Nanoseconds since 1970 UTC; at least 1, because 0 means "not yet".
pub fn wall() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX).max(1)
}

/// Nanoseconds of the boot clock.
pub fn boot() -> BootTime {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// How long until `at`; zero when it has passed.
pub fn until(at: BootTime) -> Duration {
    Duration::from_nanos(at.saturating_sub(boot()))
}

/// The id of this boot. Errors: /proc cannot be read.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}
