//! What a Prometheus costs that scrapes all of many pods.
//!
//! Called by: [`super::measure`]. Issue: a scrape takes less than 2 s, and one every 15 s less than a twentieth of a processor.

use std::time::{Duration, Instant};

use crate::Outcome;
use crate::daemon::Daemon;
use crate::http;
use crate::vitals::Vitals;

/// Scrapes of each path.
const SCRAPES: usize = 3;

/// What they cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scrape {
    /// The slowest one of containers, ms.
    pub ms: f64,
    /// The size of its text, bytes.
    pub bytes: usize,
    /// Processor time of the daemon for one of each path, ms.
    pub cpu_ms: f64,
    /// What the daemon's resident memory has grown to at most, beyond what it had before, KiB.
    pub rss_kib: u64,
}

/// Scrapes `daemon` as Prometheus does, each time later than what is shared. Errors: an answer was none.
pub async fn measure(daemon: &Daemon) -> Outcome<Scrape> {
    let log = daemon.log();
    let address = log.lines().rev().find_map(|line| {
        let (_, address) = line.split_once("serving metrics address=")?;
        Some(address.trim().to_owned())
    });
    let address = address.ok_or("the daemon does not say where it serves metrics")?;
    let (before, used) = (Vitals::of(daemon.pid())?.rss_kib, cpu_ms(daemon.pid())?);
    let mut found = Scrape::default();
    for _ in 0..SCRAPES {
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        let begun = Instant::now();
        let text = http::request(&address, "GET", "/metrics/cadvisor", None)?;
        found.ms = found.ms.max(begun.elapsed().as_secs_f64() * 1e3);
        found.bytes = text.body.len();
        http::request(&address, "GET", "/metrics", None)?;
        let now = Vitals::of(daemon.pid())?.rss_kib;
        found.rss_kib = found.rss_kib.max(now.saturating_sub(before));
    }
    found.cpu_ms = (cpu_ms(daemon.pid())? - used) / SCRAPES as f64;
    Ok(found)
}

/// Processor time of a process and its ended threads. Source: proc_pid_stat(5), fields 14 and 15, in ticks of 10 ms.
fn cpu_ms(pid: i32) -> Outcome<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').ok_or("stat has no name")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks * 10.0)
}
