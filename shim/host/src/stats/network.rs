//! The traffic of pods' interfaces, read inside their network namespaces.
//!
//! Called by: `stats`, on a blocking thread. Calls: setns(2) on a thread that ends with the call, /proc.
//! Invariants: only that thread leaves the host's namespace; a namespace that is gone has no result and does not affect
//! others; the list of a pod, which can create many interfaces, is read up to a limit, and [`MAX_INTERFACES`] of it are kept.
//! Must not know: how a pod got its interfaces.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;

use coracle_lifecycle::{Interface, Traffic};
use coracle_network::open_pin;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Most bytes of a pod's list of interfaces: some 500 interfaces.
const MAX_BYTES: usize = 64 << 10;

/// What is read in one piece and shorter is the end of a list: the kernel renders a page of it at a time and leaves out the
/// line that does not fit. Source: the kernel's fs/seq_file.c, seq_read_iter.
const SHORT: usize = 2048;

/// The list of interfaces of the namespace that a thread is in.
const LIST: &str = "/proc/thread-self/net/dev";

/// Most interfaces of a pod: CNI plugins give it a few, and what it creates itself must not fill the replies about all pods.
const MAX_INTERFACES: usize = 16;

/// The interface that CNI gives each pod.
const OWN: &str = "eth0";

/// The interfaces except loopback of each namespace that is pinned at one of `pins`; `None` where it is gone.
pub(super) fn read(pins: &[Option<PathBuf>]) -> Vec<Option<Vec<Interface>>> {
    let none = || pins.iter().map(|_| None).collect();
    if pins.iter().all(Option::is_none) {
        return none();
    }
    let read_interfaces = || {
        pins.iter()
            .map(|pin| read_interfaces(pin.as_ref()?))
            .collect()
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".to_owned());
        match thread.spawn_scoped(scope, read_interfaces) {
            Ok(thread) => thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(error) => {
                tracing::warn!(%error, "no thread to look at the network of pods");
                none()
            }
        }
    })
}

/// Enters the namespace for good and lists its interfaces: only for a thread that does nothing else afterwards.
fn read_interfaces(pin: &Path) -> Option<Vec<Interface>> {
    let netns = open_pin(pin).ok()?;
    move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).ok()?;
    let listed = rustix::fs::open(LIST, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let text = String::from_utf8(whole(&listed).ok()?).ok()?;
    Some(parse(&text))
}

/// What a list says, up to [`MAX_BYTES`].
fn whole(list: &OwnedFd) -> Result<Vec<u8>, Errno> {
    let mut text = Vec::new();
    let mut part = [0; 2 * SHORT];
    while text.len() < MAX_BYTES {
        match rustix::io::read(list, &mut part) {
            Ok(count) => {
                text.extend_from_slice(&part[..count]);
                if count < SHORT {
                    break;
                }
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    text.truncate(MAX_BYTES);
    Ok(text)
}

fn parse(text: &str) -> Vec<Interface> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut found: Vec<Interface> = whole.lines().skip(2).filter_map(interface).collect();
    // The others stay in the kernel's order, which is mostly that of their creation.
    found.sort_by_key(|interface| interface.name != OWN);
    found.truncate(MAX_INTERFACES);
    found
}

/// `eth0: bytes packets errs drop fifo frame compressed multicast bytes packets errs drop fifo colls carrier ...`
fn interface(line: &str) -> Option<Interface> {
    let (name, numbers) = line.split_once(':')?;
    let numbers: Vec<u64> = numbers
        .split_ascii_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()
        .ok()?;
    let direction = |at: usize| {
        let part = numbers.get(at..at + 4)?;
        Some(Traffic {
            bytes: part[0],
            packets: part[1],
            errors: part[2],
            dropped: part[3],
        })
    };
    let name = name.trim().to_owned();
    (name != "lo").then_some(())?;
    Some(Interface {
        name,
        received: direction(0)?,
        sent: direction(8)?,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use coracle_network::{NamespaceConfig, create_namespaces, unpin};

    use super::*;
    use crate::scratch::Scratch;

    /// A pinned namespace in a directory of its own; unpinned when it is dropped.
    struct Pin(Scratch);

    impl Pin {
        fn path(&self) -> PathBuf {
            self.0.0.join("pin")
        }
    }

    impl Drop for Pin {
        fn drop(&mut self) {
            let _ = unpin(&self.path());
        }
    }

    #[test]
    fn the_kernels_table_is_read_without_loopback_and_up_to_its_last_whole_line() {
        let text = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0: 1234567     890    1    2    0     0          0         0   765432     198    3    4    0     0       0          0
  eth1:      5      1";
        let eth0 = Interface {
            name: "eth0".to_owned(),
            received: Traffic {
                bytes: 1_234_567,
                packets: 890,
                errors: 1,
                dropped: 2,
            },
            sent: Traffic {
                bytes: 765_432,
                packets: 198,
                errors: 3,
                dropped: 4,
            },
        };
        assert_eq!(parse(text), [eth0]);
        assert_eq!(parse(""), []);
    }

    #[test]
    fn a_list_is_read_whole_up_to_its_limit() {
        let scratch = Scratch::new("stats-list");
        let path = scratch.0.join("list");
        for (length, read) in [
            (0, 0),
            (SHORT - 1, SHORT - 1),
            (10_000, 10_000),
            (MAX_BYTES + 1, MAX_BYTES),
        ] {
            std::fs::write(&path, vec![b'x'; length]).unwrap();
            let opened = std::fs::File::open(&path).unwrap();
            assert_eq!(whole(&opened.into()).unwrap().len(), read, "{length}");
        }
    }

    #[test]
    fn of_many_interfaces_a_few_are_kept_and_the_pods_own_first() {
        let line = |name: &str| format!("{name}: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n");
        let mut text = "title\ntitle\n".to_owned();
        for number in 0..500 {
            text.push_str(&line(&format!("dummy{number}")));
        }
        text.push_str(&line(OWN));
        let names: Vec<String> = parse(&text).into_iter().map(|found| found.name).collect();
        assert_eq!(names.len(), MAX_INTERFACES);
        assert_eq!(names[..2], [OWN, "dummy0"]);
    }

    #[test]
    fn a_pod_is_read_in_its_own_namespace_and_the_daemon_stays_in_its_own() {
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let pin = Pin(Scratch::new("stats-pin"));
        let path = pin.path();
        let config = NamespaceConfig {
            net: true,
            ..NamespaceConfig::default()
        };
        let made = create_namespaces(config, Some(&path)).unwrap();
        let found = read(&[None, Some(path), Some("/nowhere".into())]);
        // A new namespace holds loopback, and tunnels where the kernel makes them by itself.
        let interfaces = found[1].as_ref().unwrap();
        assert!(
            interfaces
                .iter()
                .all(|interface| interface.received == Traffic::default())
        );
        assert!(found[0].is_none() && found[2].is_none());
        assert_eq!(std::fs::read_link("/proc/thread-self/ns/net").unwrap(), own);
        drop(made);
    }
}
