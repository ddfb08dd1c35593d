//! Processor time of the machine, by who had it.
//!
//! The time of a process that has ended is nobody's but the machine's: it is in [`Cpu::rest`], with interrupts.

use std::collections::BTreeMap;
use std::fs;

use crate::daemon::Daemon;
use crate::procs::{self, Role};

/// Nanoseconds of a tick of `/proc/stat`: 100 a second on every machine that Linux runs on here.
const TICK_NS: u64 = 10_000_000;

/// Processor time for each pod, ms.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    /// The whole machine but for the benchmark itself.
    pub all: f64,
    /// The daemon.
    pub daemon: f64,
    /// The spawner.
    pub spawner: f64,
    /// The keepers.
    pub keepers: f64,
    /// The containers' processes.
    pub containers: f64,
    /// The kernel's own threads.
    pub kernel: f64,
    /// Processes that have ended, others of the machine, interrupts.
    pub rest: f64,
}

/// Processor time up to one moment, ns.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    busy: u64,
    own: u64,
    daemon: u64,
    spawner: u64,
    keepers: u64,
    containers: u64,
    kernel: u64,
}

impl Reading {
    /// Reads everything now. It takes about a millisecond for each hundred processes, which is not counted.
    pub fn now(daemon: &Daemon) -> Self {
        let busy = busy();
        let own = of_group("self");
        let mut reading = Self {
            busy,
            own,
            daemon: of_group(&daemon.pid().to_string()),
            kernel: of_kernel(),
            ..Self::default()
        };
        for process in procs::of_scratch(daemon.scratch()) {
            let sum = match process.role {
                Role::Spawner => &mut reading.spawner,
                Role::Keeper | Role::Helper => &mut reading.keepers,
                Role::Guest => &mut reading.containers,
                Role::Daemon | Role::Compiler => continue,
            };
            *sum += of_threads(process.pid);
        }
        reading
    }

    /// What each of `pods` took since `earlier`.
    pub fn since(&self, earlier: &Self, pods: usize) -> Cpu {
        let a_pod = |now: u64, then: u64| now.saturating_sub(then) as f64 / 1e6 / pods as f64;
        let mut cpu = Cpu {
            all: a_pod(self.busy, earlier.busy) - a_pod(self.own, earlier.own),
            daemon: a_pod(self.daemon, earlier.daemon),
            spawner: a_pod(self.spawner, earlier.spawner),
            keepers: a_pod(self.keepers, earlier.keepers),
            containers: a_pod(self.containers, earlier.containers),
            kernel: a_pod(self.kernel, earlier.kernel),
            rest: 0.0,
        };
        let known = cpu.daemon + cpu.spawner + cpu.keepers + cpu.containers + cpu.kernel;
        cpu.rest = cpu.all - known;
        cpu
    }
}

/// Time that the machine was not idle. Source: proc(5), `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal.
fn busy() -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    let ticks = line.split_whitespace().skip(1).take(8).enumerate();
    let counted = ticks.filter(|(at, _)| *at != 3 && *at != 4);
    counted
        .filter_map(|(_, ticks)| ticks.parse::<u64>().ok())
        .sum::<u64>()
        * TICK_NS
}

/// Time of a process with all threads that it ever had. Source: proc(5), `/proc/PID/stat`: utime and stime.
fn of_group(pid: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = text.rsplit(") ").next().unwrap_or_default().split(' ');
    let ticks: BTreeMap<usize, u64> = fields
        .enumerate()
        .filter_map(|(at, field)| Some((at, field.parse().ok()?)))
        .collect();
    let at = |field: usize| ticks.get(&field).copied().unwrap_or(0);
    (at(11) + at(12)) * TICK_NS
}

/// Time of the threads that a process has now, to the nanosecond.
fn of_threads(pid: i32) -> u64 {
    crate::bench::memory::cpu_ns_of(&[pid])
}

/// Time of the kernel's threads, which are the children of the second process.
fn of_kernel() -> u64 {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_kernels = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        *pid == 2 || fields.nth(1) == Some("2")
    };
    pids.filter(is_kernels).map(of_threads).sum()
}
