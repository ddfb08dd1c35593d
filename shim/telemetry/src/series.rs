//! The series of containers: name, labels, meaning. Source of the names: cAdvisor's, which dashboards select; what cAdvisor
//! does not know begins with `coracle_`.
//!
//! Called by: `containers` (samples), `snapshot` (text), the CRI services (descriptors). Invariants: the first five labels
//! are those of every series; a series that is described has a sample for every running container, but for those
//! that a kernel or a node may lack (pressure, huge pages, block devices), and those of functions.
//! Must not know: where numbers come from.

use coracle_metrics::{Family, Kind};

/// Series that are left out together where there is no room for all, in this order; [`Group::Core`] never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Limits of processes.
    Ulimits,
    /// What was requested.
    Spec,
    /// Traffic with block devices, by operation.
    Blkio,
    /// Open files of processes.
    OpenFiles,
    /// Processes and threads, and wakes of functions.
    Process,
    /// Traffic with block devices.
    DiskIo,
    /// Huge pages.
    Hugetlb,
    /// Pressure stalls.
    Pressure,
    /// CPU, memory, network, disk space, times.
    Core,
}

/// One series of containers or pods.
#[derive(Debug, PartialEq, Eq)]
pub struct Series {
    /// Name, help, kind, labels.
    pub family: Family,
    /// With what it may be left out.
    pub group: Group,
    /// Its index among all series.
    pub(crate) place: usize,
}

impl Series {
    /// Every series that this node describes; with `open_files` those that need a look at each descriptor, too.
    pub fn all(open_files: bool) -> impl Iterator<Item = &'static Series> {
        let costly = |series: &Series| matches!(series.group, Group::OpenFiles | Group::Ulimits);
        ALL.iter()
            .copied()
            .filter(move |series| open_files || !costly(series))
    }
}

macro_rules! series {
    ($($constant:ident = $kind:ident $group:ident $name:literal [$($label:literal)*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub(crate) static $constant: Series = Series {
                family: Family {
                    name: $name,
                    help: $help,
                    kind: Kind::$kind,
                    labels: &["container", "id", "image", "namespace", "pod" $(, $label)*],
                },
                group: Group::$group,
                place: Place::$constant as usize,
            };
        )*
        /// The index of each series in [`ALL`].
        #[allow(
            non_camel_case_types,
            clippy::upper_case_acronyms,
            reason = "a variant is called as its series"
        )]
        enum Place {
            $($constant),*
        }
        /// Every series, in the order of the text.
        static ALL: &[&Series] = &[$(&$constant),*];
    };
}

series! {
    CPU_USAGE = Counter Core "container_cpu_usage_seconds_total" ["cpu"] "CPU time consumed.";
    CPU_USER = Counter Core "container_cpu_user_seconds_total" [] "CPU time consumed in user mode.";
    CPU_SYSTEM = Counter Core "container_cpu_system_seconds_total" [] "CPU time consumed in the kernel.";
    CFS_PERIODS = Counter Core "container_cpu_cfs_periods_total" [] "Periods of the CPU quota in which a task was runnable.";
    CFS_THROTTLED_PERIODS = Counter Core "container_cpu_cfs_throttled_periods_total" [] "Periods in which the CPU quota ran out.";
    CFS_THROTTLED = Counter Core "container_cpu_cfs_throttled_seconds_total" [] "Time for which tasks were throttled by the CPU quota.";
    MEMORY_USAGE = Gauge Core "container_memory_usage_bytes" [] "Memory in use, page cache included.";
    MEMORY_WORKING_SET = Gauge Core "container_memory_working_set_bytes" [] "Memory in use without the page cache that the kernel would reclaim first.";
    MEMORY_RSS = Gauge Core "container_memory_rss" [] "Anonymous memory, in bytes.";
    MEMORY_CACHE = Gauge Core "container_memory_cache" [] "Page cache, in bytes.";
    MEMORY_MAPPED_FILE = Gauge Core "container_memory_mapped_file" [] "Mapped files, in bytes.";
    MEMORY_SWAP = Gauge Core "container_memory_swap" [] "Swap in use, in bytes.";
    MEMORY_KERNEL = Gauge Core "container_memory_kernel_usage" [] "Memory of the kernel for the container, in bytes.";
    MEMORY_FAILCNT = Counter Core "container_memory_failcnt" [] "How often the memory limit was hit.";
    MEMORY_MAX_USAGE = Gauge Core "container_memory_max_usage_bytes" [] "Highest memory use so far.";
    MEMORY_ACTIVE_FILE = Gauge Core "container_memory_total_active_file_bytes" [] "Page cache in use recently.";
    MEMORY_INACTIVE_FILE = Gauge Core "container_memory_total_inactive_file_bytes" [] "Page cache not in use recently.";
    MEMORY_FAILURES = Counter Core "container_memory_failures_total" ["failure_type" "scope"] "Page faults.";
    OOM_EVENTS = Counter Core "container_oom_events_total" [] "Processes that the kernel killed for lack of memory.";
    FS_USAGE = Gauge Core "container_fs_usage_bytes" ["device"] "Disk space that the writable layer uses.";
    FS_LIMIT = Gauge Core "container_fs_limit_bytes" ["device"] "Size of the file system of the writable layer.";
    FS_INODES_FREE = Gauge Core "container_fs_inodes_free" ["device"] "Free inodes of the file system of the writable layer.";
    FS_INODES_TOTAL = Gauge Core "container_fs_inodes_total" ["device"] "Inodes of the file system of the writable layer.";
    FS_READS_BYTES = Counter DiskIo "container_fs_reads_bytes_total" ["device"] "Bytes read from the device.";
    FS_READS = Counter DiskIo "container_fs_reads_total" ["device"] "Reads from the device.";
    FS_WRITES_BYTES = Counter DiskIo "container_fs_writes_bytes_total" ["device"] "Bytes written to the device.";
    FS_WRITES = Counter DiskIo "container_fs_writes_total" ["device"] "Writes to the device.";
    BLKIO_USAGE = Counter Blkio "container_blkio_device_usage_total" ["device" "major" "minor" "operation"] "Bytes transferred with the device.";
    HUGETLB_USAGE = Gauge Hugetlb "container_hugetlb_usage_bytes" ["pagesize"] "Huge pages in use.";
    NETWORK_RECEIVE_BYTES = Counter Core "container_network_receive_bytes_total" ["interface"] "Bytes received.";
    NETWORK_RECEIVE_PACKETS = Counter Core "container_network_receive_packets_total" ["interface"] "Packets received.";
    NETWORK_RECEIVE_DROPPED = Counter Core "container_network_receive_packets_dropped_total" ["interface"] "Packets dropped while receiving.";
    NETWORK_RECEIVE_ERRORS = Counter Core "container_network_receive_errors_total" ["interface"] "Errors while receiving.";
    NETWORK_TRANSMIT_BYTES = Counter Core "container_network_transmit_bytes_total" ["interface"] "Bytes sent.";
    NETWORK_TRANSMIT_PACKETS = Counter Core "container_network_transmit_packets_total" ["interface"] "Packets sent.";
    NETWORK_TRANSMIT_DROPPED = Counter Core "container_network_transmit_packets_dropped_total" ["interface"] "Packets dropped while sending.";
    NETWORK_TRANSMIT_ERRORS = Counter Core "container_network_transmit_errors_total" ["interface"] "Errors while sending.";
    PROCESSES = Gauge Process "container_processes" [] "Processes, those of execs included.";
    THREADS = Gauge Process "container_threads" [] "Threads.";
    THREADS_MAX = Gauge Process "container_threads_max" [] "Most threads allowed, 0 for no limit.";
    FILE_DESCRIPTORS = Gauge OpenFiles "container_file_descriptors" [] "Open file descriptors of all processes, counted up to 4096.";
    SOCKETS = Gauge OpenFiles "container_sockets" [] "Open sockets of all processes, among the descriptors counted.";
    ULIMITS = Gauge Ulimits "container_ulimits_soft" ["ulimit"] "Soft limit of the first process, if it has one.";
    PRESSURE_CPU_WAITING = Counter Pressure "container_pressure_cpu_waiting_seconds_total" [] "Time for which some task waited for a CPU.";
    PRESSURE_CPU_STALLED = Counter Pressure "container_pressure_cpu_stalled_seconds_total" [] "Time for which all tasks waited for a CPU.";
    PRESSURE_IO_WAITING = Counter Pressure "container_pressure_io_waiting_seconds_total" [] "Time for which some task waited for I/O.";
    PRESSURE_IO_STALLED = Counter Pressure "container_pressure_io_stalled_seconds_total" [] "Time for which all tasks waited for I/O.";
    PRESSURE_MEMORY_WAITING = Counter Pressure "container_pressure_memory_waiting_seconds_total" [] "Time for which some task waited for memory.";
    PRESSURE_MEMORY_STALLED = Counter Pressure "container_pressure_memory_stalled_seconds_total" [] "Time for which all tasks waited for memory.";
    SPEC_CPU_PERIOD = Gauge Spec "container_spec_cpu_period" [] "Requested period of the CPU quota, in microseconds.";
    SPEC_CPU_QUOTA = Gauge Spec "container_spec_cpu_quota" [] "Requested CPU quota, in microseconds a period, if there is one.";
    SPEC_CPU_SHARES = Gauge Spec "container_spec_cpu_shares" [] "Requested CPU shares.";
    SPEC_MEMORY_LIMIT = Gauge Spec "container_spec_memory_limit_bytes" [] "Memory limit, 0 for none.";
    SPEC_MEMORY_SWAP_LIMIT = Gauge Spec "container_spec_memory_swap_limit_bytes" [] "Limit of memory and swap together, 0 for none.";
    SPEC_MEMORY_RESERVATION = Gauge Spec "container_spec_memory_reservation_limit_bytes" [] "Memory that is protected from reclaim, 0 for none.";
    FUNCTION_WAKES = Counter Process "coracle_function_wakes_total" [] "How often a function that slept was woken.";
    FUNCTION_WAKE_TIME = Counter Process "coracle_function_wake_seconds_total" [] "Time that wakes took, each from a connection to its being accepted.";
    START_TIME = Gauge Core "container_start_time_seconds" [] "When the container started, in seconds since 1970 UTC.";
    LAST_SEEN = Gauge Core "container_last_seen" [] "When the container was measured, in seconds since 1970 UTC.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_series_knows_its_place() {
        for (at, series) in ALL.iter().enumerate() {
            assert_eq!(series.place, at, "{}", series.family.name);
        }
    }

    #[test]
    fn names_are_unique_and_costly_series_can_be_left_out() {
        let names: BTreeSet<&str> = ALL.iter().map(|series| series.family.name).collect();
        assert_eq!(names.len(), ALL.len());
        let cheap: BTreeSet<&str> = Series::all(false)
            .map(|series| series.family.name)
            .collect();
        let costly: Vec<&&str> = names.difference(&cheap).collect();
        assert_eq!(
            costly,
            [
                &"container_file_descriptors",
                &"container_sockets",
                &"container_ulimits_soft"
            ]
        );
    }
}
