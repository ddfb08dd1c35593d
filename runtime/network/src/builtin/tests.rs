//! Tests of the built-in network, with real namespaces and interfaces on this machine.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod connections;
mod control_ports;
mod detached;
mod egress;
mod failures;
mod many;
mod masquerade;
mod node;
mod ports;
mod sources;

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::*;
use crate::{NamespaceConfig, create_namespaces, open_pin, unpin};

/// A network with a prefix, a subnet and directories of its own; checks at its end that no
/// interface, lease or pin is left.
struct Node {
    network: Builtin,
    dir: PathBuf,
    _temp: tempfile::TempDir,
}

fn pod_config(pod: &str) -> NetworkConfig {
    NetworkConfig {
        pod: pod.to_owned(),
        ..NetworkConfig::default()
    }
}

struct Pod {
    id: String,
    pin: PathBuf,
    netns: OwnedFd,
}

/// `slot` is a number below 4096.
fn config(slot: u32, dir: &Path) -> BuiltinConfig {
    let letter = |number: u32| char::from(b'a' + u8::try_from(number % 26).unwrap());
    BuiltinConfig {
        subnet_v4: format!("10.{}.{}.0/20", slot / 16, slot % 16 * 16)
            .parse()
            .unwrap(),
        subnet_v6: Some(format!("fd00:c0:ac:{slot:x}::/64").parse().unwrap()),
        lease_dir: dir.join("leases"),
        interface_prefix: ['c', letter(slot / 676), letter(slot / 26), letter(slot)]
            .iter()
            .collect(),
        masquerade: false,
        connections_per_pod: 4096,
    }
}

impl Node {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // Other test processes may run beside this one.
        let slot = (std::process::id() * 16 + count) % 4096;
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().to_owned();
        std::fs::create_dir_all(dir.join("pins")).unwrap();
        let network = Builtin::open(config(slot, &dir)).unwrap();
        Self {
            network,
            dir,
            _temp: temp,
        }
    }

    fn reopened(&self) -> Builtin {
        Builtin::open(self.network.config.clone()).unwrap()
    }

    fn pod(&self, name: &str) -> Pod {
        let pin = self.dir.join("pins").join(name);
        let config = NamespaceConfig {
            net: true,
            ipc: true,
            uts: Some(name.to_owned()),
            ..NamespaceConfig::default()
        };
        let netns = create_namespaces(config, Some(&pin)).unwrap().net.unwrap();
        Pod {
            id: name.to_owned(),
            pin,
            netns,
        }
    }

    fn attach(&self, pod: &Pod) -> Attachment {
        self.network
            .attach(&pod_config(&pod.id), pod.netns.as_fd())
            .unwrap()
    }

    fn end(&self, pod: Pod, attachment: &Attachment) {
        self.network.detach(attachment).unwrap();
        unpin(&pod.pin).unwrap();
    }

    fn interfaces(&self) -> Vec<String> {
        let links = Netlink::open().unwrap().links().unwrap();
        let ours = links
            .into_iter()
            .filter(|link| self.network.config.index_of(link).is_some());
        ours.map(|link| link.name).collect()
    }

    /// Waits until the kernel has taken all interfaces away, then checks for leftovers.
    fn assert_clean(&self) {
        wait_for(
            || format!("left: {:?}", self.interfaces()),
            || self.interfaces().is_empty(),
        );
        assert_eq!(self.network.leases(), 0);
        let left: Vec<_> = std::fs::read_dir(self.dir.join("leases"))
            .unwrap()
            .map(|file| file.unwrap().file_name())
            .collect();
        assert_eq!(left, [".cursor"]);
        assert_eq!(
            crate::list_pins(&self.dir.join("pins")).unwrap(),
            Vec::<PathBuf>::new()
        );
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.dir.to_str().unwrap()));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if thread::panicking() {
            for pin in crate::list_pins(&self.dir.join("pins")).unwrap() {
                unpin(&pin).unwrap();
            }
        } else {
            self.assert_clean();
        }
        // The table of sources is in this machine's own namespace.
        self.network.retire();
    }
}

/// How long is waited for what must happen, on however slow a machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `is_so`; says at the end of all patience what is there instead.
fn wait_for(instead: impl Fn() -> String, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{}", instead());
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs `work` on a thread inside `netns`.
fn inside<T: Send>(netns: &OwnedFd, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        });
        worker.join().unwrap()
    })
}

/// Sends a line from `client` to a listener on `address` in `server`; returns who the server saw.
fn talk(server: Option<&OwnedFd>, client: Option<&OwnedFd>, address: IpAddr) -> IpAddr {
    let within = |netns: Option<&OwnedFd>, work: &mut (dyn FnMut() + Send)| match netns {
        Some(netns) => inside(netns, work),
        None => work(),
    };
    let mut listener = None;
    within(server, &mut || {
        listener = Some(TcpListener::bind((address, 0)).unwrap())
    });
    let listener = listener.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut stream = None;
    within(client, &mut || {
        let target = SocketAddr::new(address, port);
        // The kernel may put a new IPv6 address to use a moment late; a SYN is sent again after a second.
        stream = Some(TcpStream::connect_timeout(&target, PATIENCE).unwrap());
    });
    let mut stream = stream.unwrap();
    let (mut accepted, peer) = listener.accept().unwrap();
    stream.write_all(b"ahoy").unwrap();
    let mut line = [0; 4];
    accepted.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"ahoy");
    peer.ip()
}

#[test]
fn pods_reach_each_other_and_the_host() {
    let node = Node::new();
    let (one, two) = (node.pod("one"), node.pod("two"));
    let (a, b) = (node.attach(&one), node.attach(&two));
    assert_eq!((a.addresses.len(), a.pod.as_str()), (2, "one"));
    assert_eq!(a.host_interface, node.network.endpoint(1).host_interface);
    for (ours, theirs) in a.addresses.iter().zip(&b.addresses) {
        let v6_needs_the_node =
            ours.is_ipv6() && !Path::new("/proc/sys/net/ipv6/conf/all/force_forwarding").exists();
        if !v6_needs_the_node {
            assert_eq!(
                talk(Some(&two.netns), Some(&one.netns), *theirs),
                *ours,
                "pod to pod"
            );
        }
        talk(Some(&one.netns), None, *ours);
        assert_eq!(
            talk(Some(&one.netns), Some(&one.netns), *ours),
            *ours,
            "pod to itself"
        );
    }
    assert_eq!(
        talk(
            Some(&one.netns),
            Some(&one.netns),
            "127.0.0.1".parse().unwrap()
        )
        .to_string(),
        "127.0.0.1"
    );
    node.end(one, &a);
    node.end(two, &b);
}

#[test]
fn attach_is_repeatable_and_mends() {
    let node = Node::new();
    let pod = node.pod("pod");
    let first = node.attach(&pod);
    assert_eq!(node.attach(&pod), first);
    assert_eq!(
        node.reopened()
            .attach(&pod_config("pod"), pod.netns.as_fd())
            .unwrap(),
        first,
        "after a restart"
    );
    talk(Some(&pod.netns), None, first.addresses[0]);
    // The namespace was made again after a crash: the old veth is in the way.
    let again = node.pod("pod");
    assert_eq!(node.attach(&again), first);
    talk(Some(&again.netns), None, first.addresses[0]);
    drop(pod);
    node.end(again, &first);
    node.network.detach(&first).unwrap();
}

#[test]
fn settings_stay_on_our_interface() {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/sys/net/{file}")).unwrap();
    let all = |read: &dyn Fn(&str) -> String| {
        [
            "ipv4/ip_forward",
            "ipv4/conf/all/rp_filter",
            "ipv4/conf/default/forwarding",
            "ipv6/conf/all/forwarding",
        ]
        .map(read)
    };
    let before = all(&read);
    let node = Node::new();
    let pod = node.pod("pod");
    let attachment = node.attach(&pod);
    let name = &attachment.host_interface;
    assert_eq!(read(&format!("ipv4/conf/{name}/forwarding")), "1\n");
    assert_eq!(read(&format!("ipv6/conf/{name}/addr_gen_mode")), "1\n");
    assert_eq!(all(&read), before);
    node.end(pod, &attachment);
}

#[test]
fn address_waits_for_its_interface() {
    let node = Node::new();
    let (one, two) = (node.pod("one"), node.pod("two"));
    let first = node.attach(&one);
    node.network.detach(&first).unwrap();
    // A daemon that starts over at the first address, which is given back but still answers.
    std::fs::remove_file(node.dir.join("leases/.cursor")).unwrap();
    let restarted = node.reopened();
    let second = restarted
        .attach(&pod_config("two"), two.netns.as_fd())
        .unwrap();
    assert_ne!(second.addresses, first.addresses);
    assert_eq!(
        second.host_interface,
        node.network.endpoint(2).host_interface
    );
    restarted.detach(&second).unwrap();
    unpin(&one.pin).unwrap();
    unpin(&two.pin).unwrap();
    drop((one, two));
}

#[test]
fn pin_is_enough_to_attach() {
    let node = Node::new();
    let pod = node.pod("pod");
    drop(pod.netns);
    let netns = open_pin(&pod.pin).unwrap();
    let attachment = node
        .network
        .attach(&pod_config("pod"), netns.as_fd())
        .unwrap();
    talk(Some(&netns), None, attachment.addresses[0]);
    node.end(Pod { netns, ..pod }, &attachment);
}

#[test]
fn bad_settings_are_refused() {
    let dir = Path::new("/tmp/coracle-test-net-never-made");
    for prefix in ["", "co", "coral", "Cor", "c0r"] {
        let bad = BuiltinConfig {
            interface_prefix: prefix.to_owned(),
            ..config(1, dir)
        };
        assert!(
            matches!(
                Builtin::open(bad),
                Err(Error::BadSetting {
                    key: "interface_prefix",
                    ..
                })
            ),
            "{prefix}"
        );
    }
    let small = BuiltinConfig {
        subnet_v4: "10.0.0.0/8".parse().unwrap(),
        subnet_v6: Some("fd00::/112".parse().unwrap()),
        ..config(1, dir)
    };
    let error = Builtin::open(small).unwrap_err().to_string();
    assert_eq!(
        error,
        "network setting subnet_v6: \"fd00::/112\" has fewer addresses than 10.0.0.0/8"
    );
    assert!(!dir.exists());
}
