//! What a runtime takes while it works: processor time, memory at its peak, bytes written.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::bench::memory;
use crate::scratch::Scratch;
use crate::{Outcome, procs};

/// How often memory is read.
const INTERVAL: Duration = Duration::from_millis(20);

/// What something took.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Seconds on the clock.
    pub seconds: f64,
    /// Processor time of all its processes, s.
    pub cpu_s: f64,
    /// The most proportional memory that all its processes together had, MiB.
    pub peak_mib: f64,
    /// What reached the disks, MiB.
    pub written_mib: f64,
}

/// A runtime that is being watched.
#[derive(Debug)]
pub struct Watch {
    cpu_files: Vec<PathBuf>,
    cpu_s: f64,
    disk: Disk,
    peak_kib: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    reader: JoinHandle<()>,
}

impl Watch {
    /// Watches all processes of a scratch from now on; what is dirty is written first. Errors: /proc cannot be read.
    pub fn begin(scratch: &Scratch) -> Outcome<Self> {
        let disk = Disk::now()?;
        let cpu_files = cpu_files(scratch);
        let peak_kib = Arc::new(AtomicU64::new(0));
        let is_over = Arc::new(AtomicBool::new(false));
        let reader = read_memory(scratch, Arc::clone(&peak_kib), Arc::clone(&is_over))?;
        Ok(Self {
            cpu_s: cpu_s(&cpu_files)?,
            cpu_files,
            disk,
            peak_kib,
            is_over,
            reader,
        })
    }

    /// Stops watching something that took this long. Errors: as of [`Watch::begin`].
    pub fn end(self, took: Duration) -> Outcome<Cost> {
        let cpu = cpu_s(&self.cpu_files)? - self.cpu_s;
        self.is_over.store(true, Ordering::Relaxed);
        self.reader.join().map_err(|_| "the reader panicked")?;
        Ok(Cost {
            seconds: took.as_secs_f64(),
            cpu_s: cpu,
            peak_mib: self.peak_kib.load(Ordering::Relaxed) as f64 / 1024.0,
            written_mib: Disk::now()?.mib_since(&self.disk),
        })
    }
}

/// Reads the memory of all processes of a scratch until it is over, in a thread of its own.
fn read_memory(
    scratch: &Scratch,
    peak_kib: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
) -> Outcome<JoinHandle<()>> {
    let cgroup = scratch.cgroup();
    let read = move || {
        while !is_over.load(Ordering::Relaxed) {
            let kib = memory::pss_kib_of(&procs::below(&cgroup));
            peak_kib.fetch_max(kib, Ordering::Relaxed);
            std::thread::sleep(INTERVAL);
        }
    };
    Ok(std::thread::Builder::new().spawn(read)?)
}

/// The file of the scratch's cgroup that has the processor time of all that ever ran in it: `cpu.stat` on cgroup v2,
/// `cpuacct.usage` on v1.
fn cpu_files(scratch: &Scratch) -> Vec<PathBuf> {
    let dirs = scratch.cgroup_dirs("");
    let files = dirs
        .iter()
        .flat_map(|dir| [dir.join("cpuacct.usage"), dir.join("cpu.stat")]);
    files
        .filter(|file| total_s(file).is_some())
        .take(1)
        .collect()
}

fn cpu_s(files: &[PathBuf]) -> Outcome<f64> {
    let first = files.first().and_then(|file| total_s(file));
    first.ok_or_else(|| "no cgroup of the scratch counts processor time".into())
}

/// Seconds in a file of either kind.
fn total_s(file: &Path) -> Option<f64> {
    let text = fs::read_to_string(file).ok()?;
    if file.ends_with("cpuacct.usage") {
        return Some(text.trim().parse::<f64>().ok()? / 1e9);
    }
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec "));
    Some(line?.parse::<f64>().ok()? / 1e6)
}

/// Processor time of this process, s.
pub fn own_cpu_s() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// What was written to all disks up to one moment.
#[derive(Clone, Copy, Debug)]
pub struct Disk {
    sectors: u64,
}

impl Disk {
    /// Writes what is dirty and reads the count. Errors: /proc cannot be read. Source: the kernel's
    /// Documentation/admin-guide/iostats.rst, field 7 after the name: sectors of 512 bytes.
    pub fn now() -> Outcome<Self> {
        rustix::fs::sync();
        let text = fs::read_to_string("/proc/diskstats")?;
        let sectors = text.lines().filter_map(|line| {
            let mut fields = line.split_whitespace();
            let name = fields.nth(2)?;
            let is_disk = Path::new("/sys/block").join(name).exists();
            let is_memory = name.starts_with("loop") || name.starts_with("ram");
            (is_disk && !is_memory).then(|| fields.nth(6)?.parse::<u64>().ok())?
        });
        Ok(Self {
            sectors: sectors.sum(),
        })
    }

    /// MiB since an earlier moment.
    pub fn mib_since(&self, earlier: &Self) -> f64 {
        self.sectors.saturating_sub(earlier.sectors) as f64 / 2048.0
    }
}
