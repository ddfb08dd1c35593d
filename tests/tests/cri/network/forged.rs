//! What a container with NET_RAW, which is a default capability, can make others believe: nothing. Its frames are sent as
//! they are; that they arrive where they are honest shows that they are well made.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use coracle_tests::client::{self, TIMEOUT};
use coracle_tests::daemon::{Daemon, Options};
use coracle_tests::guests;
use coracle_tests::push::{Image, Pushed, file};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::addresses;
use super::outside::Outside;
use crate::linux::shell::{daemon_with, fresh, on_peer, push, run};
use crate::site::Pod;

/// How long a packet that shall not arrive is waited for, behind those that shall.
const PATIENCE: Duration = Duration::from_millis(300);
const PORT: u16 = 4000;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ARP: u16 = 0x0806;
const EVERYBODY: [u8; 6] = [0xff; 6];

/// One daemon with pods: an attacker, who has the program that sends frames, and others.
struct Street {
    daemon: Daemon,
    image: Pushed,
    pods: Vec<(Pod, Vec<IpAddr>)>,
}

impl Street {
    async fn new() -> Self {
        // Two daemons of one machine have different ones.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (process, count) = (
            std::process::id() & 0xffff,
            COUNT.fetch_add(1, Ordering::Relaxed),
        );
        let options = Options {
            network: format!("subnet_v6 = \"fd00:c0:{process:x}:{count:x}::/64\""),
            ..Options::default()
        };
        let mut daemon = daemon_with(options).await;
        let program = guests::frames().unwrap();
        let files = [file("frames", 0o755, &program)];
        let image = push("frames", &Image::linux(&files, &["/frames"]).unwrap());
        daemon.cri().pull(&image.reference).await.unwrap();
        daemon.rebase();
        let mut pods = Vec::new();
        for name in ["attacker", "neighbour", "victim"] {
            let pod = Pod::run(&daemon, name).await;
            let ips = addresses(&pod).await;
            pods.push((pod, ips.iter().map(|ip| ip.parse().unwrap()).collect()));
        }
        Self {
            daemon,
            image,
            pods,
        }
    }

    /// The address of a pod: of family 0, IPv4, or 1, IPv6.
    fn address(&self, pod: usize, family: usize) -> IpAddr {
        self.pods[pod].1[family]
    }

    /// The MAC of a pod's end of its veth, or with 0x0a of the node's.
    fn mac(&self, pod: usize, first: u8) -> [u8; 6] {
        let IpAddr::V4(address) = self.address(pod, 0) else {
            panic!()
        };
        let [a, b, c, d] = address.octets();
        [first, 0xc0, a, b, c, d]
    }

    /// What `work` gives in the network of a pod.
    fn inside<T: Send>(&self, pod: usize, work: impl FnOnce() -> T + Send) -> T {
        let pins = self.daemon.scratch().dir().join("run/netns");
        let netns = File::open(pins.join(&self.pods[pod].0.id)).unwrap();
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                work()
            });
            worker.join().unwrap()
        })
    }

    /// Sockets of a pod that take what is sent to it.
    fn listeners(&self, pod: usize) -> Vec<UdpSocket> {
        let ips = &self.pods[pod].1;
        self.inside(pod, || {
            ips.iter()
                .map(|ip| UdpSocket::bind((*ip, PORT)).unwrap())
                .collect()
        })
    }

    /// Has the attacker's container send these frames.
    async fn send(&self, frames: &[Vec<u8>]) {
        let hex = |frame: &Vec<u8>| frame.iter().map(|byte| format!("{byte:02x}")).collect();
        let words: Vec<String> = frames.iter().map(hex).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let config = client::container(&fresh("frames"), &self.image.reference, &words);
        run(&self.daemon, &self.pods[0].0, &config)
            .await
            .says(&["sent"]);
    }

    /// A frame of the attacker to the node, or to whom else.
    fn frame(&self, to: Option<[u8; 6]>, from: [u8; 6], (kind, content): (u16, &[u8])) -> Vec<u8> {
        let mut frame = to.unwrap_or(self.mac(0, 0x0a)).to_vec();
        frame.extend(from);
        frame.extend(kind.to_be_bytes());
        frame.extend(content);
        frame
    }

    /// A datagram from `source` to the port of `target`, which says where it is from.
    fn datagram(&self, source: IpAddr, target: IpAddr) -> Vec<u8> {
        let says = source.to_string();
        let length = 8 + says.len() as u16;
        let words = [PORT, PORT, length, 0].map(u16::to_be_bytes);
        let mut content = words.concat();
        content.extend(says.as_bytes());
        let from = self.mac(0, 0x0e);
        match (source, target) {
            (IpAddr::V4(source), IpAddr::V4(target)) => {
                self.frame(None, from, (IPV4, &packet_v4(source, target, content)))
            }
            (IpAddr::V6(source), IpAddr::V6(target)) => self.frame(
                None,
                from,
                (IPV6, &packet_v6(source, target, (UDP, content))),
            ),
            (source, target) => panic!("{source} and {target}"),
        }
    }

    /// From whom the attacker's datagrams from `sources` to a pod arrive.
    async fn arriving(&self, sources: &[IpAddr], pod: usize) -> Vec<String> {
        let listeners = self.listeners(pod);
        let to = |source: &IpAddr| self.address(pod, usize::from(source.is_ipv6()));
        let frames: Vec<_> = sources
            .iter()
            .map(|source| self.datagram(*source, to(source)))
            .collect();
        self.send(&frames).await;
        listeners.iter().flat_map(|own| received(own, 1)).collect()
    }

    fn nft(&self, verb: &str) -> bool {
        let table = format!("coracle-{}-in", self.daemon.scratch().interface_prefix());
        let output = Command::new("nft")
            .args([verb, "table", "inet", &table])
            .output()
            .unwrap();
        output.status.success()
    }
}

/// Everything that arrives at a socket, at least so many, until nothing does for a while.
fn received(socket: &UdpSocket, least: usize) -> Vec<String> {
    let mut found = Vec::new();
    let mut buffer = [0; 1500];
    loop {
        let patience = if found.len() < least {
            TIMEOUT
        } else {
            PATIENCE
        };
        socket.set_read_timeout(Some(patience)).unwrap();
        let Ok((length, _)) = socket.recv_from(&mut buffer) else {
            return found;
        };
        found.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
    }
}

/// The checksum of the Internet. Source: RFC 1071.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

fn packet_v4(source: Ipv4Addr, target: Ipv4Addr, content: Vec<u8>) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend((20 + content.len() as u16).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, UDP, 0, 0]);
    packet.extend(source.octets());
    packet.extend(target.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum);
    packet.extend(content);
    packet
}

/// UDP has its checksum at 6, ICMP at 2.
fn packet_v6(source: Ipv6Addr, target: Ipv6Addr, (kind, mut content): (u8, Vec<u8>)) -> Vec<u8> {
    let length = content.len() as u16;
    let mut pseudo = [source.octets(), target.octets()].concat();
    pseudo.extend([0, 0]);
    pseudo.extend(length.to_be_bytes());
    pseudo.extend([0, 0, 0, kind]);
    pseudo.extend(&content);
    let at = if kind == UDP { 6 } else { 2 };
    content[at..at + 2].copy_from_slice(&checksum(&pseudo));
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([kind, 255]);
    packet.extend(source.octets());
    packet.extend(target.octets());
    packet.extend(content);
    packet
}

/// "`owner` is at `mac`", as a question or as an answer. Source: RFC 826.
fn arp(operation: u8, (mac, owner): ([u8; 6], Ipv4Addr), target: Ipv4Addr) -> Vec<u8> {
    let mut content = vec![0, 1, 8, 0, 6, 4, 0, operation];
    content.extend(mac);
    content.extend(owner.octets());
    content.extend([0; 6]);
    content.extend(target.octets());
    content
}

/// "`owner` is at `mac`", unasked and in place of what was known. Source: RFC 4861 section 4.4.
fn advertisement(owner: Ipv6Addr, mac: [u8; 6]) -> Vec<u8> {
    let mut content = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    content.extend(owner.octets());
    content.extend([2, 1]);
    content.extend(mac);
    content
}

/// "Everything goes by me." Source: RFC 4861 section 4.2.
fn router() -> Vec<u8> {
    let mut content = vec![134, 0, 0, 0, 64, 0, 7, 8];
    content.extend([0; 8]);
    content
}

fn ip(line: &str) -> String {
    let output = Command::new("ip").args(line.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {line}");
    let mut lines: Vec<&str> = std::str::from_utf8(&output.stdout)
        .unwrap()
        .lines()
        .collect();
    lines.sort_unstable();
    lines.join("\n")
}

#[tokio::test]
async fn a_pod_sends_under_its_own_address_and_no_other() {
    if on_peer() {
        return; // Its plugins' matter.
    }
    let street = Street::new().await;
    let world = Outside::new(&street.daemon);
    let own = [street.address(0, 0), street.address(0, 1)];
    let mut sources = own.to_vec();
    for other in [
        street.address(1, 0),
        street.address(1, 1),
        world.node().parse().unwrap(),
        world.own().parse().unwrap(),
        "169.254.1.1".parse().unwrap(),
        "fe80::1".parse().unwrap(),
        "127.0.0.1".parse().unwrap(),
        "0.0.0.0".parse().unwrap(),
        "2001:db8::1".parse().unwrap(),
    ] {
        sources.push(other);
    }
    assert_eq!(
        street.arriving(&sources, 2).await,
        own.map(|ip| ip.to_string())
    );
    street.daemon.finish().await.unwrap();
}

#[tokio::test]
async fn pods_of_a_build_without_the_check_are_held_once_the_daemon_is_replaced() {
    if on_peer() {
        return; // Its plugins' matter.
    }
    let mut street = Street::new().await;
    let sources: Vec<IpAddr> = [(0, 0), (0, 1), (1, 0), (1, 1)]
        .map(|(pod, family)| street.address(pod, family))
        .into();
    let names: Vec<String> = sources.iter().map(ToString::to_string).collect();
    let own = [names[0].clone(), names[1].clone()];
    assert_eq!(street.arriving(&sources, 2).await, own);
    // As such a build leaves the node; this daemon's pods have one more wall, for IPv4.
    street.daemon.kill();
    assert!(street.nft("delete"));
    for pod in 0..3 {
        let mac = street
            .mac(pod, 0x0a)
            .map(|byte| format!("{byte:02x}"))
            .join(":");
        let link = ip("-o link")
            .lines()
            .find(|line| line.contains(&mac))
            .unwrap()
            .to_owned();
        let name = link
            .split(' ')
            .nth(1)
            .unwrap()
            .split('@')
            .next()
            .unwrap()
            .to_owned();
        std::fs::write(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "0").unwrap();
    }
    street.daemon.restart().await.unwrap();
    assert!(street.nft("list"));
    assert_eq!(street.arriving(&sources, 2).await, own);
    street.daemon.finish().await.unwrap();
}

#[tokio::test]
async fn no_frame_of_a_pod_leads_a_neighbours_packets_to_it() {
    if on_peer() {
        return; // Its plugins' matter.
    }
    let street = Street::new().await;
    let attacker = street.mac(0, 0x0e);
    let world = Outside::new(&street.daemon);
    let node: Ipv4Addr = world.node().parse().unwrap();
    let learnt = || {
        let prefix = format!(" dev {}", street.daemon.scratch().interface_prefix());
        let of_pods = |text: String| -> Vec<String> {
            let lines = text.lines().filter(|line| line.contains(&prefix));
            lines.map(str::to_owned).collect()
        };
        (
            of_pods(ip("neigh show")),
            of_pods(ip("-6 route show default")),
        )
    };
    let before = learnt();
    assert_eq!((before.0.len(), before.1.len()), (6, 0), "{before:?}");
    let (IpAddr::V4(neighbour), IpAddr::V4(victim)) = (street.address(1, 0), street.address(2, 0))
    else {
        panic!()
    };
    let IpAddr::V6(neighbour_v6) = street.address(1, 1) else {
        panic!()
    };
    let mut frames = Vec::new();
    for to in [None, Some(EVERYBODY), Some(street.mac(2, 0x0e))] {
        for owner in [
            neighbour,
            Ipv4Addr::new(169, 254, 1, 1),
            Ipv4Addr::new(198, 51, 100, 9),
        ] {
            for (operation, target) in [(1, victim), (2, victim), (1, node), (2, node)] {
                let claim = arp(operation, (attacker, owner), target);
                frames.push(street.frame(to, attacker, (ARP, &claim)));
            }
        }
        for (source, content) in [
            (neighbour_v6, advertisement(neighbour_v6, attacker)),
            (
                "fe80::1".parse().unwrap(),
                advertisement("fe80::1".parse().unwrap(), attacker),
            ),
            ("fe80::bad".parse().unwrap(), router()),
        ] {
            let packet = packet_v6(source, "ff02::1".parse().unwrap(), (ICMPV6, content));
            frames.push(street.frame(to, attacker, (IPV6, &packet)));
        }
    }
    street.send(&frames).await;
    let listeners = street.listeners(1);
    let stolen = street.listeners(0);
    for (number, listener) in listeners.iter().enumerate() {
        let target = listener.local_addr().unwrap();
        let from = |address: IpAddr| {
            let socket = UdpSocket::bind((address, 0)).unwrap();
            socket.send_to(b"to the neighbour", target).unwrap();
        };
        street.inside(2, || from(street.address(2, number)));
        from(match target.ip() {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        });
        let found = received(listener, 2 - number);
        // The node has an IPv6 address of its own on some machines only.
        assert!(
            found.len() == 2 || number == 1 && found.len() == 1,
            "{target}: {found:?}"
        );
    }
    assert!(stolen.iter().all(|socket| received(socket, 0).is_empty()));
    assert_eq!(learnt(), before);
    // They would keep the networks of their pods.
    drop((listeners, stolen));
    street.daemon.finish().await.unwrap();
}
