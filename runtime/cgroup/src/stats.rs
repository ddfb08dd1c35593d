//! The usage statistics of a cgroup, the same for both cgroup versions.
//! Filled by [`super::usage`]. Pure.
//! Invariant: a value that the kernel does not report is `None`, never 0; "no limit" is `None`, too.
//! Not here: CRI's stats messages, rates over time.

use std::time::Duration;

/// The usage of a cgroup, with everything below it. Times and events count from its creation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// CPU time, in nanoseconds.
    pub cpu_usage_ns: u64,
    /// Of it in user mode, in nanoseconds.
    pub cpu_user_ns: Option<u64>,
    /// Of it in the kernel, in nanoseconds.
    pub cpu_system_ns: Option<u64>,
    /// Throttling by the CPU quota.
    pub throttling: Option<Throttling>,
    /// Memory charged to the cgroup, page cache included, in bytes.
    pub memory_usage_bytes: u64,
    /// The memory limit of this cgroup itself, in bytes.
    pub memory_limit_bytes: Option<u64>,
    /// The peak of charged memory, in bytes.
    pub memory_max_usage_bytes: Option<u64>,
    /// How often the memory limit was hit (v1 `failcnt`, v2 `max` events).
    pub memory_limit_hits: Option<u64>,
    /// Memory of the kernel for the cgroup, in bytes.
    pub kernel_bytes: Option<u64>,
    /// Page cache that the kernel would reclaim last, in bytes.
    pub active_file_bytes: u64,
    /// Page cache that the kernel would reclaim first, in bytes.
    pub inactive_file_bytes: u64,
    /// Page cache, in bytes.
    pub cache_bytes: u64,
    /// Anonymous memory, in bytes.
    pub rss_bytes: u64,
    /// Files that are mapped, shared memory included, in bytes.
    pub mapped_file_bytes: u64,
    /// Page faults.
    pub page_faults: u64,
    /// Page faults that had to read from disk.
    pub major_page_faults: u64,
    /// Swap, where the node accounts it.
    pub swap: Option<SwapStats>,
    /// Number of processes and threads.
    pub pids: u64,
    /// How many there may be.
    pub pids_limit: Option<u64>,
    /// Block devices, where the node accounts them.
    pub io: Option<IoStats>,
    /// CPU pressure, where the kernel measures it. On a v1 node it comes from the unified tree.
    pub cpu_pressure: Option<Pressure>,
    /// Memory pressure.
    pub memory_pressure: Option<Pressure>,
    /// I/O pressure.
    pub io_pressure: Option<Pressure>,
}

/// What changes whenever a process of a cgroup, or below it, runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// CPU time, in nanoseconds.
    pub cpu_usage_ns: u64,
    /// Memory charged to the cgroup, page cache included, in bytes.
    pub memory_bytes: u64,
}

impl Stats {
    /// Usage without the inactive page cache, in bytes. Source: CRI `MemoryUsage.working_set_bytes`, cAdvisor.
    #[must_use]
    pub fn working_set_bytes(&self) -> u64 {
        self.memory_usage_bytes
            .saturating_sub(self.inactive_file_bytes)
    }

    /// What is left of the memory limit, in bytes. Source: CRI `MemoryUsage.available_bytes`.
    #[must_use]
    pub fn available_bytes(&self) -> Option<u64> {
        let limit = self.memory_limit_bytes?;
        Some(limit.saturating_sub(self.working_set_bytes()))
    }

    /// Whether nothing waited between this and `later`, a reading of the same cgroup.
    #[must_use]
    pub fn has_waited_as_long_as(&self, later: &Self) -> bool {
        let totals = |stats: &Self| {
            stats
                .pressures()
                .map(|pressure| pressure.map(Pressure::totals))
        };
        totals(self) == totals(later)
    }

    /// The same numbers after `time` in which nothing ran and nothing waited: what has been waited is further in the past.
    #[must_use]
    pub fn after_calm(self, time: Duration) -> Self {
        let [cpu, memory, io] = self
            .pressures()
            .map(|pressure| pressure.map(|pressure| pressure.after_calm(time)));
        Self {
            cpu_pressure: cpu,
            memory_pressure: memory,
            io_pressure: io,
            ..self
        }
    }

    fn pressures(&self) -> [Option<Pressure>; 3] {
        [self.cpu_pressure, self.memory_pressure, self.io_pressure]
    }
}

/// Throttling by the CPU quota since the cgroup was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttling {
    /// Periods in which a task was runnable.
    pub periods: u64,
    /// Periods in which the quota ran out.
    pub throttled_periods: u64,
    /// How long tasks were throttled, in nanoseconds.
    pub throttled_ns: u64,
}

/// Swap, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwapStats {
    /// In use.
    pub usage_bytes: u64,
    /// The limit, of swap alone.
    pub limit_bytes: Option<u64>,
}

impl SwapStats {
    /// What is left of the limit, in bytes. Source: CRI `SwapUsage.swap_available_bytes`.
    #[must_use]
    pub fn available_bytes(&self) -> Option<u64> {
        Some(self.limit_bytes?.saturating_sub(self.usage_bytes))
    }
}

/// Traffic with block devices since the cgroup was made, all devices together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoStats {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Read operations.
    pub reads: u64,
    /// Write operations.
    pub writes: u64,
}

/// Traffic with one block device since the cgroup was made, from [`super::Cgroup::devices`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceIo {
    /// Its major number.
    pub major: u32,
    /// Its minor number.
    pub minor: u32,
    /// The traffic.
    pub io: IoStats,
}

/// Pressure stall information. Source: Documentation/accounting/psi.rst.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// Some task waited.
    pub some: Stall,
    /// All tasks waited at once.
    pub full: Stall,
}

/// One line of pressure stall information.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stall {
    /// Share of the last 10 s, in percent.
    pub avg10: f64,
    /// Share of the last minute, in percent.
    pub avg60: f64,
    /// Share of the last five minutes, in percent.
    pub avg300: f64,
    /// All of it since the cgroup was made, in nanoseconds (the kernel counts microseconds).
    pub total_ns: u64,
}

impl Pressure {
    /// Reads the text of a `*.pressure` file. `None` if there is no `some` line in it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let line = |kind: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(' '));
            lines.find(|(word, _)| *word == kind).map(|(_, rest)| rest)
        };
        Some(Self {
            some: Stall::parse(line("some")?),
            full: line("full").map(Stall::parse).unwrap_or_default(),
        })
    }

    fn totals(self) -> [u64; 2] {
        [self.some.total_ns, self.full.total_ns]
    }

    fn after_calm(self, time: Duration) -> Self {
        Self {
            some: self.some.after_calm(time),
            full: self.full.after_calm(time),
        }
    }
}

impl Stall {
    fn parse(fields: &str) -> Self {
        let value = |key: &str| {
            let mut pairs = fields.split(' ').filter_map(|pair| pair.split_once('='));
            pairs
                .find(|(name, _)| *name == key)
                .map_or("0", |(_, value)| value)
        };
        let share = |key| value(key).parse().unwrap_or_default();
        let total_us: u64 = value("total").parse().unwrap_or_default();
        Self {
            avg10: share("avg10"),
            avg60: share("avg60"),
            avg300: share("avg300"),
            total_ns: total_us.saturating_mul(1000),
        }
    }

    /// Shares decay as the kernel has them decay, in hundredths as it shows them. Source: the kernel's
    /// kernel/sched/psi.c, calc_avgs.
    fn after_calm(self, time: Duration) -> Self {
        let left = |share: f64, seconds: f64| {
            let decayed = share * (-time.as_secs_f64() / seconds).exp();
            (decayed * 100.0).floor() / 100.0
        };
        Self {
            avg10: left(self.avg10, 10.0),
            avg60: left(self.avg60, 60.0),
            avg300: left(self.avg300, 300.0),
            total_ns: self.total_ns,
        }
    }
}

/// Huge pages of one size, from [`super::Cgroup::hugepages`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HugepageStats {
    /// The size, as the kernel and CRI write it: `2MB`.
    pub page_size: String,
    /// In use, in bytes.
    pub usage_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_read() {
        let text = "some avg10=1.50 avg60=0.25 avg300=0.00 total=1234\n\
            full avg10=0.00 avg60=0.00 avg300=100.00 total=7\n";
        let some = Stall {
            avg10: 1.5,
            avg60: 0.25,
            avg300: 0.0,
            total_ns: 1_234_000,
        };
        let full = Stall {
            avg300: 100.0,
            total_ns: 7000,
            ..Stall::default()
        };
        assert_eq!(Pressure::parse(text), Some(Pressure { some, full }));
        let without_full = text.lines().next().unwrap_or_default();
        let full = Stall::default();
        assert_eq!(Pressure::parse(without_full), Some(Pressure { some, full }));
        assert_eq!(Pressure::parse(""), None);
    }

    #[test]
    fn pressure_decays_while_nothing_waits_and_its_totals_stand_still() {
        let stall = |avg10, avg60, avg300| Stall {
            avg10,
            avg60,
            avg300,
            total_ns: 1_000,
        };
        let stats = |some, full| Stats {
            cpu_usage_ns: 5,
            io_pressure: Some(Pressure { some, full }),
            ..Stats::default()
        };
        let (none, all) = (Stall::default(), stall(100.0, 100.0, 100.0));
        let read = stats(all, none);
        // What the kernel shows after ten seconds: 2048 * (1677/2048)^5 and so on, of 2048.
        let later = stats(stall(36.78, 84.64, 96.72), none);
        assert_eq!(read.after_calm(Duration::from_secs(10)), later);
        let long_after = stats(stall(0.0, 0.0, 0.0), none);
        assert_eq!(read.after_calm(Duration::from_secs(3_600)), long_after);
        assert!(read.has_waited_as_long_as(&later));
        let longer = Stall {
            total_ns: 2_000,
            ..all
        };
        assert!(!read.has_waited_as_long_as(&stats(longer, none)));
        assert!(!read.has_waited_as_long_as(&stats(all, longer)));
        assert!(!read.has_waited_as_long_as(&Stats::default()));
    }

    #[test]
    fn what_is_left_is_never_negative() {
        let memory = Stats {
            memory_usage_bytes: 100,
            inactive_file_bytes: 30,
            memory_limit_bytes: Some(150),
            ..Stats::default()
        };
        assert_eq!(memory.working_set_bytes(), 70);
        assert_eq!(memory.available_bytes(), Some(80));
        let over = Stats {
            memory_limit_bytes: Some(20),
            ..memory
        };
        assert_eq!(over.available_bytes(), Some(0));
        let unlimited = Stats {
            memory_limit_bytes: None,
            inactive_file_bytes: 200,
            ..memory
        };
        assert_eq!(unlimited.available_bytes(), None);
        assert_eq!(unlimited.working_set_bytes(), 0);
    }
}
