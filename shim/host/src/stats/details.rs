//! What metrics show of a running container beyond its usage: devices, huge pages, processes and what they have open.
//!
//! Called by: `lifecycle::usage`, for metrics alone, on the blocking pool. Calls: cgroups, /proc.
//! Invariants: what cannot be read is 0, as the container may end meanwhile; at most [`MAX_DESCRIPTORS`] descriptors of a
//! container are looked at, whatever its processes do; a title is read of processes of our own alone.
//! Must not know: names of metrics.

use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use coracle_lifecycle::{ContainerKind, ContainerView, Details, OpenFiles, Wakes};

use super::Host;

/// Descriptors of a container that are looked at; one that has more is shown with this many.
const MAX_DESCRIPTORS: u64 = 4096;
/// Processes of a container whose title is looked at; the one that counts wakes is its first.
const MAX_TITLES: usize = 16;
/// Longest title.
const TITLE_BYTES: u64 = 512;

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
            // A program of an image says in its title what it likes.
            wakes: match kind {
                Some(ContainerKind::Wasm) => wakes(container.id.as_str(), &pids),
                Some(ContainerKind::Linux) | None => None,
            },
        }
    }
}

/// What the title of one of `pids` says of the wakes of function `id`.
fn wakes(id: &str, pids: &[i32]) -> Option<Wakes> {
    pids.iter().take(MAX_TITLES).find_map(|pid| {
        let mut title = String::new();
        let file = std::fs::File::open(format!("/proc/{pid}/cmdline")).ok()?;
        file.take(TITLE_BYTES).read_to_string(&mut title).ok()?;
        wakes_in(id, title.trim_end_matches('\0'))
    })
}

/// The counts in the title of the process that holds the socket of function `id`.
fn wakes_in(id: &str, title: &str) -> Option<Wakes> {
    let rest = title.strip_prefix("coracle guest ")?.strip_prefix(id)?;
    let number = |key: &str| {
        let mut words = rest.split(' ');
        words.find_map(|word| word.strip_prefix(key)?.parse().ok())
    };
    Some(Wakes {
        count: number("wakes=")?,
        took: Duration::from_micros(number("wakes_us=")?),
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
    fn wakes_are_those_in_the_title_of_the_function() {
        let title = "coracle guest abc asleep wakes=3 last_wake_us=5000 wakes_us=12000";
        let wakes = Wakes {
            count: 3,
            took: Duration::from_millis(12),
        };
        assert_eq!(wakes_in("abc", title), Some(wakes));
        assert_eq!(wakes_in("abd", title), None);
        for other in [
            "coracle guest abc",
            "coracle guest abc server",
            "abc wakes=3",
        ] {
            assert_eq!(wakes_in("abc", other), None);
        }
        assert_eq!(super::wakes("abc", &[i32::MAX]), None);
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
