//! The series that Prometheus expects of every process, of this one. Source: proc(5).
//!
//! Called by: `daemon`. Invariant: what cannot be read is left out.
//! Must not know: anything else of the daemon.

use coracle_metrics::{Family, Kind, Text, Value};

const fn family(name: &'static str, help: &'static str, kind: Kind) -> Family {
    Family {
        name,
        help,
        kind,
        labels: &[],
    }
}

const CPU: Family = family(
    "process_cpu_seconds_total",
    "CPU time consumed by the daemon.",
    Kind::Counter,
);
const RESIDENT: Family = family(
    "process_resident_memory_bytes",
    "Resident memory of the daemon.",
    Kind::Gauge,
);
const VIRTUAL: Family = family(
    "process_virtual_memory_bytes",
    "Virtual memory of the daemon.",
    Kind::Gauge,
);
const OPEN: Family = family(
    "process_open_fds",
    "Open file descriptors of the daemon.",
    Kind::Gauge,
);
const MAX_OPEN: Family = family(
    "process_max_fds",
    "Most file descriptors that the daemon may open.",
    Kind::Gauge,
);
const THREADS: Family = family("process_threads", "Threads of the daemon.", Kind::Gauge);
const START: Family = family(
    "process_start_time_seconds",
    "When the daemon started, in seconds since 1970 UTC.",
    Kind::Gauge,
);

/// Writes the series. Blocks for a few reads of /proc.
pub(crate) fn write(text: &mut Text) {
    let Some(facts) = Facts::read() else { return };
    for (family, value) in [
        (&CPU, Value::Real(facts.cpu_s)),
        (&RESIDENT, Value::Whole(facts.resident)),
        (&VIRTUAL, Value::Whole(facts.virtual_bytes)),
        (&THREADS, Value::Whole(facts.threads)),
        (&START, Value::Real(facts.start_s)),
    ] {
        text.family(family);
        text.sample(family, &[], value);
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        text.family(&OPEN);
        // One of them is this look.
        let count = u64::try_from(open.count().saturating_sub(1)).unwrap_or_default();
        text.sample(&OPEN, &[], Value::Whole(count));
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if let Some(most) = limit.current {
        text.family(&MAX_OPEN);
        text.sample(&MAX_OPEN, &[], Value::Whole(most));
    }
}

struct Facts {
    cpu_s: f64,
    resident: u64,
    virtual_bytes: u64,
    threads: u64,
    start_s: f64,
}

impl Facts {
    /// Source: proc(5), fields of `/proc/PID/stat`, counted after the command in parentheses.
    fn read() -> Option<Facts> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        let (_, fields) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split(' ').collect();
        let field = |number: usize| fields.get(number - 3)?.trim().parse::<u64>().ok();
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let page = u64::try_from(rustix::param::page_size()).ok()?;
        let node = std::fs::read_to_string("/proc/stat").ok()?;
        let boot = node.lines().find_map(|line| line.strip_prefix("btime "))?;
        Some(Facts {
            cpu_s: (field(14)? + field(15)?) as f64 / ticks,
            threads: field(20)?,
            start_s: boot.parse::<f64>().ok()? + field(22)? as f64 / ticks,
            virtual_bytes: field(23)?,
            resident: field(24)? * page,
        })
    }
}

#[cfg(test)]
mod tests {
    use coracle_metrics::Format;

    use super::*;

    #[test]
    fn this_process_is_described() {
        let mut text = Text::new(Format::Prometheus);
        write(&mut text);
        let text = text.take();
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|value| value.trim().parse::<f64>().ok())
        };
        assert!(value("process_resident_memory_bytes ").is_some_and(|bytes| bytes > 1e6));
        assert!(value("process_open_fds ").is_some_and(|count| count >= 3.0));
        assert!(value("process_threads ").is_some_and(|count| count >= 1.0));
        assert!(value("process_start_time_seconds ").is_some_and(|at| at > 1.6e9));
    }
}
