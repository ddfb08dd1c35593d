//! Reads the files of a cgroup into [`Stats`], each file once.
//! Called by this crate only. Invariant: an absent file is `None`, and so is a value that a file does not have.
//! Not here: the use of the numbers.

mod dir;

use std::path::PathBuf;

use dir::{NO_LIMIT, StatDir, lone_number};

use super::error::Error;
use super::files::keyed;
use super::inner;
use super::stats::{Activity, DeviceIo, HugepageStats, IoStats, Stats, SwapStats, Throttling};
use super::v1::V1;
use super::v2::V2;

/// The usage of the cgroup `path` on a v1 node. Errors: it does not exist.
pub(super) fn v1(v1: &V1, path: &str) -> Result<Stats, Error> {
    let mut stats = Stats::default();
    v1_cpu(v1, path, &mut stats)?;
    v1_memory(&StatDir::of(v1, "memory", path)?, &mut stats)?;
    // The limit that is hit is the inner one, which is as high and is asked first; on v2 the outer counts that, too.
    let inner = StatDir::of(v1, "memory", &inner::of(path))?.number("memory.failcnt")?;
    stats.memory_limit_hits = stats
        .memory_limit_hits
        .map(|hits| hits + inner.unwrap_or(0));
    pids(&StatDir::of(v1, "pids", path)?, &mut stats)?;
    stats.io = v1_io(&StatDir::of(v1, "blkio", path)?)?;
    if let Some(unified) = &v1.unified {
        pressure(&StatDir::open(unified.dir(path))?, &mut stats)?;
    }
    Ok(stats)
}

/// What tells whether anything ran in the cgroup `path` on a v1 node. Errors: it does not exist.
pub(super) fn v1_activity(v1: &V1, path: &str) -> Result<Activity, Error> {
    Ok(Activity {
        cpu_usage_ns: lone_number(v1, "cpuacct", path, "cpuacct.usage")?,
        memory_bytes: lone_number(v1, "memory", path, "memory.usage_in_bytes")?,
    })
}

/// The huge pages that the cgroup `path` uses on a v1 node.
pub(super) fn v1_hugepages(v1: &V1, path: &str) -> Result<Vec<HugepageStats>, Error> {
    let dir = StatDir::of(v1, "hugetlb", path)?;
    match (dir.exists(), &v1.unified) {
        (false, Some(unified)) => {
            StatDir::open(unified.dir(path))?.hugepages(&v1.page_sizes, "current")
        }
        _ => dir.hugepages(&v1.page_sizes, "usage_in_bytes"),
    }
}

fn v1_cpu(v1: &V1, path: &str, stats: &mut Stats) -> Result<(), Error> {
    let dir = StatDir::of(v1, "cpuacct", path)?;
    stats.cpu_usage_ns = dir.required_number("cpuacct.usage")?;
    stats.cpu_user_ns = dir.number("cpuacct.usage_user")?;
    stats.cpu_system_ns = dir.number("cpuacct.usage_sys")?;
    for path in [path, &inner::of(path)] {
        let quota = StatDir::of(v1, "cpu", path)?.text("cpu.stat")?;
        let own = quota.and_then(|text| throttling_of(&text, "throttled_time", 1));
        stats.throttling = throttled_by_either(stats.throttling, own);
    }
    Ok(())
}

/// Of two cgroups, one in the other, with the same quota: it is one of the two that stops what runs in the inner.
fn throttled_by_either(outer: Option<Throttling>, inner: Option<Throttling>) -> Option<Throttling> {
    let (Some(outer), Some(inner)) = (outer, inner) else {
        return outer.or(inner);
    };
    let periods = outer.periods.max(inner.periods);
    let throttled = outer.throttled_periods + inner.throttled_periods;
    Some(Throttling {
        periods,
        throttled_periods: throttled.min(periods),
        throttled_ns: outer.throttled_ns + inner.throttled_ns,
    })
}

fn throttling_of(text: &str, time: &str, unit_ns: u64) -> Option<Throttling> {
    Some(Throttling {
        periods: keyed(text, "nr_periods")?,
        throttled_periods: keyed(text, "nr_throttled")?,
        throttled_ns: keyed(text, time)?.saturating_mul(unit_ns),
    })
}

fn v1_memory(dir: &StatDir, stats: &mut Stats) -> Result<(), Error> {
    stats.memory_usage_bytes = dir.required_number("memory.usage_in_bytes")?;
    let text = dir.required_text("memory.stat")?;
    memory(&text, &V1_MEMORY, stats);
    let limit = dir.limit("memory.limit_in_bytes")?;
    stats.memory_limit_bytes = limit;
    stats.memory_max_usage_bytes = dir.number("memory.max_usage_in_bytes")?;
    stats.kernel_bytes = dir.number("memory.kmem.usage_in_bytes")?;
    stats.memory_limit_hits = dir.number("memory.failcnt")?;
    // Without swap accounting there is no such file.
    let total = dir.number("memory.memsw.limit_in_bytes")?;
    stats.swap = total.map(|total| SwapStats {
        usage_bytes: keyed(&text, "total_swap").unwrap_or_default(),
        limit_bytes: Some(total)
            .filter(|total| *total < NO_LIMIT)
            .map(|total| total.saturating_sub(limit.unwrap_or_default())),
    });
    Ok(())
}

/// The keys of `memory.stat` for: inactive file, cache, anonymous, mapped, faults, major faults, active file, kernel.
type MemoryKeys = [&'static str; 8];
const V1_MEMORY: MemoryKeys = [
    "total_inactive_file",
    "total_cache",
    "total_rss",
    "total_mapped_file",
    "total_pgfault",
    "total_pgmajfault",
    "total_active_file",
    // A file of its own has it.
    "",
];
const V2_MEMORY: MemoryKeys = [
    "inactive_file",
    "file",
    "anon",
    "file_mapped",
    "pgfault",
    "pgmajfault",
    "active_file",
    "kernel",
];

fn memory(text: &str, keys: &MemoryKeys, stats: &mut Stats) {
    let mut values = [None; 8];
    for (key, number) in text.lines().filter_map(|line| line.split_once(' ')) {
        if let Some(at) = keys.iter().position(|known| *known == key) {
            values[at] = number.trim().parse().ok();
        }
    }
    let kernel = values[7];
    let [
        inactive_file,
        cache,
        rss,
        mapped_file,
        faults,
        major_faults,
        active_file,
        _,
    ] = values.map(Option::unwrap_or_default);
    stats.kernel_bytes = kernel;
    stats.active_file_bytes = active_file;
    stats.inactive_file_bytes = inactive_file;
    stats.cache_bytes = cache;
    stats.rss_bytes = rss;
    stats.mapped_file_bytes = mapped_file;
    stats.page_faults = faults;
    stats.major_page_faults = major_faults;
}

fn pids(dir: &StatDir, stats: &mut Stats) -> Result<(), Error> {
    stats.pids = dir.required_number("pids.current")?;
    stats.pids_limit = dir.number("pids.max")?;
    Ok(())
}

/// Reads the pressure files of the cgroup in `dir`, which is in a v2 tree.
pub(super) fn pressure_of(dir: PathBuf, stats: &mut Stats) -> Result<(), Error> {
    pressure(&StatDir::open(dir)?, stats)
}

/// Reads the pressure files of `dir`, which is in a v2 tree.
fn pressure(dir: &StatDir, stats: &mut Stats) -> Result<(), Error> {
    stats.cpu_pressure = dir.pressure("cpu.pressure")?;
    stats.memory_pressure = dir.pressure("memory.pressure")?;
    stats.io_pressure = dir.pressure("io.pressure")?;
    Ok(())
}

/// The traffic of the cgroup `path` with each block device on a v1 node.
pub(super) fn v1_devices(v1: &V1, path: &str) -> Result<Vec<DeviceIo>, Error> {
    let dir = StatDir::of(v1, "blkio", path)?;
    let text = |file| Ok(dir.text(file)?.unwrap_or_default());
    let bytes = text("blkio.throttle.io_service_bytes_recursive")?;
    let operations = text("blkio.throttle.io_serviced_recursive")?;
    let mut devices = Vec::new();
    for line in bytes.lines().chain(operations.lines()) {
        let Some((major, minor)) = line.split(' ').next().and_then(device_number) else {
            continue;
        };
        let known = |device: &DeviceIo| (device.major, device.minor) == (major, minor);
        if !devices.iter().any(known) {
            let only = |text: &str| {
                let mine = |line: &&str| {
                    line.split(' ').next().and_then(device_number) == Some((major, minor))
                };
                text.lines().filter(mine).collect::<Vec<_>>().join("\n")
            };
            let io = v1_traffic(&only(&bytes), &only(&operations));
            devices.push(DeviceIo { major, minor, io });
        }
    }
    Ok(devices)
}

/// Reads `8:0`.
fn device_number(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn v1_traffic(bytes: &str, operations: &str) -> IoStats {
    IoStats {
        read_bytes: sum_of_operation(bytes, "Read"),
        write_bytes: sum_of_operation(bytes, "Write"),
        reads: sum_of_operation(operations, "Read"),
        writes: sum_of_operation(operations, "Write"),
    }
}

fn v1_io(dir: &StatDir) -> Result<Option<IoStats>, Error> {
    let Some(bytes) = dir.text("blkio.throttle.io_service_bytes_recursive")? else {
        return Ok(None);
    };
    let operations = dir
        .text("blkio.throttle.io_serviced_recursive")?
        .unwrap_or_default();
    Ok(Some(v1_traffic(&bytes, &operations)))
}

/// Adds up the lines `8:0 Read 4096` of one operation.
fn sum_of_operation(text: &str, operation: &str) -> u64 {
    let line = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        let number = fields
            .next()
            .filter(|field| *field == operation)
            .and(fields.next());
        number.and_then(|number| number.parse::<u64>().ok())
    };
    text.lines().filter_map(line).sum()
}

/// The usage of the cgroup `path` on a v2 node. Errors: it does not exist.
pub(super) fn v2(v2: &V2, path: &str) -> Result<Stats, Error> {
    let dir = StatDir::open(v2.dir(path))?;
    let mut stats = Stats::default();
    v2_cpu(&dir.required_text("cpu.stat")?, &mut stats);
    let inner = StatDir::open(v2.dir(&inner::of(path)))?.text("cpu.stat")?;
    let inner = inner.and_then(|text| throttling_of(&text, "throttled_usec", 1000));
    stats.throttling = throttled_by_either(stats.throttling, inner);
    v2_memory(&dir, &mut stats)?;
    pids(&dir, &mut stats)?;
    stats.io = dir.text("io.stat")?.map(|text| v2_io(&text));
    pressure(&dir, &mut stats)?;
    Ok(stats)
}

/// What tells whether anything ran in the cgroup `path` on a v2 node. Errors: it does not exist.
pub(super) fn v2_activity(v2: &V2, path: &str) -> Result<Activity, Error> {
    let dir = StatDir::open(v2.dir(path))?;
    let mut stats = Stats::default();
    v2_cpu(&dir.required_text("cpu.stat")?, &mut stats);
    Ok(Activity {
        cpu_usage_ns: stats.cpu_usage_ns,
        memory_bytes: dir.required_number("memory.current")?,
    })
}

/// The huge pages that the cgroup `path` uses on a v2 node.
pub(super) fn v2_hugepages(v2: &V2, path: &str) -> Result<Vec<HugepageStats>, Error> {
    StatDir::open(v2.dir(path))?.hugepages(&v2.page_sizes, "current")
}

/// The traffic of the cgroup `path` with each block device on a v2 node.
pub(super) fn v2_devices(v2: &V2, path: &str) -> Result<Vec<DeviceIo>, Error> {
    let text = StatDir::open(v2.dir(path))?.text("io.stat")?;
    let device = |line: &str| {
        let (device, traffic) = line.split_once(' ')?;
        let (major, minor) = device_number(device)?;
        let io = v2_io(traffic);
        Some(DeviceIo { major, minor, io })
    };
    Ok(text
        .unwrap_or_default()
        .lines()
        .filter_map(device)
        .collect())
}

fn v2_cpu(text: &str, stats: &mut Stats) {
    let time = |key| keyed(text, key).map(|us| us.saturating_mul(1000));
    stats.cpu_usage_ns = time("usage_usec").unwrap_or_default();
    stats.cpu_user_ns = time("user_usec");
    stats.cpu_system_ns = time("system_usec");
    stats.throttling = throttling_of(text, "throttled_usec", 1000);
}

fn v2_memory(dir: &StatDir, stats: &mut Stats) -> Result<(), Error> {
    stats.memory_usage_bytes = dir.required_number("memory.current")?;
    memory(&dir.required_text("memory.stat")?, &V2_MEMORY, stats);
    stats.memory_limit_bytes = dir.limit("memory.max")?;
    stats.memory_max_usage_bytes = dir.number("memory.peak")?;
    let events = dir.text("memory.events")?;
    stats.memory_limit_hits = events.and_then(|text| keyed(&text, "max"));
    stats.swap = match dir.number("memory.swap.current")? {
        None => None,
        Some(usage_bytes) => Some(SwapStats {
            usage_bytes,
            limit_bytes: dir.number("memory.swap.max")?,
        }),
    };
    Ok(())
}

/// Adds up the lines `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`.
fn v2_io(text: &str) -> IoStats {
    let mut io = IoStats::default();
    for (key, number) in text
        .split_ascii_whitespace()
        .filter_map(|word| word.split_once('='))
    {
        let sum = match key {
            "rbytes" => &mut io.read_bytes,
            "wbytes" => &mut io.write_bytes,
            "rios" => &mut io.reads,
            "wios" => &mut io.writes,
            _ => continue,
        };
        *sum = sum.saturating_add(number.parse().unwrap_or_default());
    }
    io
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn v2_files_are_understood() {
        let mut stats = Stats::default();
        let text = "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 4\nnr_throttled 3\n\
             throttled_usec 2\nnr_bursts 0\n";
        v2_cpu(text, &mut stats);
        assert_eq!(stats.cpu_usage_ns, 30_000);
        assert_eq!(
            (stats.cpu_user_ns, stats.cpu_system_ns),
            (Some(20_000), Some(10_000))
        );
        let throttling = Throttling {
            periods: 4,
            throttled_periods: 3,
            throttled_ns: 2000,
        };
        assert_eq!(stats.throttling, Some(throttling));
        v2_cpu("usage_usec 30\nuser_usec 20\nsystem_usec 10\n", &mut stats);
        assert_eq!(stats.throttling, None, "no quota, no throttling");
        assert_eq!(
            v2_io(
                "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=9 dios=9\n254:0 rbytes=10 wbytes=0 rios=1 wios=0\n7:0\n"
            ),
            IoStats {
                read_bytes: 11,
                write_bytes: 2,
                reads: 4,
                writes: 4
            }
        );
        let text = "anon 1\nfile 2\nkernel 3\nfile_mapped 4\ninactive_anon 5\ninactive_file 6\npgfault 7\npgmajfault 8\n";
        let expected = Stats {
            kernel_bytes: Some(3),
            inactive_file_bytes: 6,
            cache_bytes: 2,
            rss_bytes: 1,
            mapped_file_bytes: 4,
            page_faults: 7,
            major_page_faults: 8,
            ..stats
        };
        memory(text, &V2_MEMORY, &mut stats);
        assert_eq!(stats, expected);
    }

    #[test]
    fn v2_directory_is_read_with_and_without_optional_files() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        std::fs::create_dir_all(dir.join("pod")).unwrap();
        let tree = V2 {
            mount: dir.to_owned(),
            wanted: vec![],
            page_sizes: vec!["2MB".into()],
            programs: Default::default(),
            nsdelegate: false,
        };
        assert!(v2(&tree, "/absent").is_err());
        let put = |file: &str, text: &str| std::fs::write(dir.join("pod").join(file), text);
        put("cpu.stat", "usage_usec 5\n").unwrap();
        let error = v2(&tree, "/pod").unwrap_err();
        assert!(error.to_string().ends_with("pod/memory.current"), "{error}");
        put("memory.current", "4096\n").unwrap();
        put("memory.stat", "anon 4096\n").unwrap();
        put("pids.current", "3\n").unwrap();
        let stats = v2(&tree, "/pod").unwrap();
        assert_eq!(
            (stats.cpu_usage_ns, stats.memory_usage_bytes, stats.pids),
            (5000, 4096, 3)
        );
        assert_eq!(
            (stats.swap, stats.io, stats.cpu_pressure),
            (None, None, None)
        );
        put("memory.max", "max\n").unwrap();
        put("memory.swap.current", "7\n").unwrap();
        put("memory.swap.max", "10\n").unwrap();
        put("memory.peak", "8192\n").unwrap();
        put(
            "memory.events",
            "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\noom_group_kill 0\n",
        )
        .unwrap();
        put("hugetlb.2MB.current", "2097152\n").unwrap();
        put(
            "io.pressure",
            "some avg10=2.00 avg60=0.00 avg300=0.00 total=9\n",
        )
        .unwrap();
        let stats = v2(&tree, "/pod").unwrap();
        assert_eq!(
            (stats.memory_limit_bytes, stats.memory_limit_hits),
            (None, Some(3))
        );
        assert_eq!(stats.memory_max_usage_bytes, Some(8192));
        assert_eq!(stats.swap.unwrap().available_bytes(), Some(3));
        assert_eq!(v2_hugepages(&tree, "/pod").unwrap()[0].usage_bytes, 2 << 20);
        assert_eq!(stats.io_pressure.unwrap().some.total_ns, 9000);
        put("memory.max", "12x\n").unwrap();
        assert!(
            v2(&tree, "/pod")
                .unwrap_err()
                .to_string()
                .contains("memory.max")
        );
    }
}
