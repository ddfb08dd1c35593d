//! What metrics show of a running container beyond its usage: devices, huge pages, processes and what they have open.
//!
//! Called by: `lifecycle::usage`, for metrics alone, on the blocking pool. Calls: cgroups, /proc.
//! Invariants: what cannot be read is 0, as the container may end meanwhile; at most [`MAX_DESCRIPTORS`] descriptors of a
//! container are looked at, whatever its processes do; nothing of a process is read that lies in its own memory, as its
//! command line does, because a tenant can have the kernel wait there; counts are read of processes of our own alone.
//! Must not know: names of metrics.

use std::path::Path;

use coracle_lifecycle::{ContainerKind, ContainerView, Details, OpenFiles};
use coracle_spec::Wakes;

use super::Host;

/// Descriptors of a container that are looked at; one that has more is shown with this many.
const MAX_DESCRIPTORS: u64 = 4096;
/// Processes of a container whose name is looked at; the one that counts wakes is its first.
const MAX_NAMES: usize = 16;

impl Host {
    /// Details of a running container of this kind; with `open_files` also what its processes have open. Blocks.
    pub fn details(
        &self,
        container: &ContainerView,
        kind: Option<ContainerKind>,
        open_files: bool,
    ) -> Details {
        let Some(cgroup) = self.cgroup(&container.cgroup) else {
            return Details::default();
        };
        let pids = cgroup.pids().unwrap_or_default();
        Details {
            oom_kills: cgroup.oom_kills().unwrap_or_default(),
            devices: cgroup.devices().unwrap_or_default(),
            hugepages: cgroup.hugepages().unwrap_or_default(),
            processes: u64::try_from(pids.len()).unwrap_or(u64::MAX),
            open_files: open_files.then(|| opened(&pids)),
            // A program of an image has any name that it likes.
            wakes: match kind {
                Some(ContainerKind::Wasm) => wakes(&pids),
                Some(ContainerKind::Linux) | None => None,
            },
        }
    }
}

/// What the name of one of `pids` says of the wakes of a function.
fn wakes(pids: &[i32]) -> Option<Wakes> {
    pids.iter().take(MAX_NAMES).find_map(|pid| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        Wakes::read(name.trim_end())
    })
}

/// What the processes `pids` have open.
fn opened(pids: &[i32]) -> OpenFiles {
    let mut files = OpenFiles::default();
    for pid in pids {
        let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
            continue;
        };
        for entry in entries.flatten() {
            if files.descriptors == MAX_DESCRIPTORS {
                break;
            }
            files.descriptors += 1;
            files.sockets += u64::from(is_socket(&entry.path()));
        }
    }
    let limits = pids.first().map(|pid| format!("/proc/{pid}/limits"));
    let limits = limits.and_then(|path| std::fs::read_to_string(path).ok());
    files.limit = limits.as_deref().and_then(soft_limit);
    files
}

fn is_socket(descriptor: &Path) -> bool {
    let target = std::fs::read_link(descriptor).unwrap_or_default();
    target.to_string_lossy().starts_with("socket:")
}

/// The soft limit for open files. Source: proc(5), `/proc/PID/limits`.
fn soft_limit(limits: &str) -> Option<u64> {
    let mut lines = limits.lines();
    let rest = lines.find_map(|line| line.strip_prefix("Max open files"))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn descriptors_and_sockets_of_a_process_are_counted() {
        let own = i32::try_from(std::process::id()).unwrap();
        let before = opened(&[own]);
        let sockets: Vec<_> = (0..50)
            .map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap())
            .collect();
        let after = opened(&[own]);
        // Other tests open and close files meanwhile.
        assert!(after.sockets >= 50, "{after:?}");
        assert!(
            after.descriptors >= after.sockets + 3,
            "{before:?} {after:?}"
        );
        assert!(after.limit.is_some_and(|limit| limit >= 64), "{after:?}");
        drop(sockets);
        let gone = opened(&[i32::MAX]);
        assert_eq!(gone, OpenFiles::default());
    }

    #[test]
    fn wakes_are_those_in_the_name_of_a_process() {
        let expected = Wakes {
            count: 3,
            took: std::time::Duration::from_millis(12),
        };
        let thread = std::thread::Builder::new().name(expected.name());
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let named = thread.spawn(move || {
            ready.send(rustix::thread::gettid()).unwrap();
            let _ = ended.recv();
        });
        let tid = is_ready.recv().unwrap().as_raw_nonzero().get();
        // The kernel has /proc/TID for each thread, too.
        assert_eq!(wakes(&[i32::MAX, tid]), Some(expected));
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(wakes(&[own, i32::MAX]), None);
        drop(end);
        named.unwrap().join().unwrap();
    }

    #[test]
    fn no_limit_is_none() {
        let line = |soft: &str| {
            format!(
                "Limit  Soft Limit  Hard Limit  Units\nMax open files            {soft}  4096   files\n"
            )
        };
        assert_eq!(soft_limit(&line("1024")), Some(1024));
        assert_eq!(soft_limit(&line("unlimited")), None);
        assert_eq!(soft_limit(""), None);
    }
}
