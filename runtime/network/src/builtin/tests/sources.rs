//! What a pod's packets may say of where they come from. The senders here may do all that a container with NET_RAW may.

use std::net::{Ipv4Addr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd as _;

use rustix::net::{
    AddressFamily, SendFlags, SocketFlags, SocketType, bind, ipproto, send, sendto, socket_with,
    sockopt,
};

use super::node::{NODE, NODE_V6, World, run, set};
use super::*;
use crate::{HostPort, Protocol};

/// How long a packet that shall not arrive is waited for.
pub(super) const SHORT: Duration = Duration::from_millis(300);
const PORT: u16 = 4000;
const IP_MORE_FRAGMENTS: u16 = 0x2000;
const UDP: u8 = 17;
const UDP_HEADER_BYTES: u16 = 8;

/// A node, and three pods on it.
struct Street {
    world: World,
    pods: Vec<(OwnedFd, Attachment)>,
}

impl Street {
    fn new() -> Self {
        let world = World::new();
        // Host ports have the kernel join fragments on their way.
        let port = HostPort {
            protocol: Protocol::Tcp,
            host_port: 8080,
            container_port: 80,
            host_ip: None,
        };
        let pod = |(name, ports): (&str, &[HostPort])| {
            let netns = super::node::netns();
            let attachment = world.attach(&netns, name, ports);
            (netns, attachment)
        };
        let pods = [("a", &[][..]), ("b", &[port][..]), ("c", &[])].map(pod);
        Self {
            pods: pods.into(),
            world,
        }
    }

    fn pod(&self, number: usize) -> &OwnedFd {
        &self.pods[number].0
    }

    fn address(&self, number: usize, family: usize) -> IpAddr {
        self.pods[number].1.addresses[family]
    }

    fn live(&self) -> Vec<Attachment> {
        self.pods
            .iter()
            .map(|(_, attachment)| attachment.clone())
            .collect()
    }

    /// Whether the first pod's packet from `source` to `target` in `netns` arrives within `limit`.
    fn passes(&self, source: IpAddr, target: IpAddr, netns: &OwnedFd, limit: Duration) -> bool {
        let listener = inside(netns, || UdpSocket::bind((target, PORT)).unwrap());
        send_from(self.pod(0), source, SocketAddr::new(target, PORT));
        received(&listener, limit).is_some()
    }

    /// Whether one from `source` arrives at the third pod, as it must.
    fn reaches_third(&self, source: IpAddr, family: usize) -> bool {
        self.passes(source, self.address(2, family), self.pod(2), PATIENCE)
    }

    /// Whether any of the forged packets of the first pod arrives, each named.
    fn arriving(&self) -> Vec<String> {
        let outside = (["198.51.100.2", "2001:db8:1::2"], &self.world.outside);
        let node = ([NODE, NODE_V6], &self.world.node);
        let mut found = Vec::new();
        for family in 0..2 {
            let neighbour = self.address(2, family);
            let sources = [
                self.address(1, family).to_string(),
                [NODE, NODE_V6][family].to_owned(),
                outside.0[family].to_owned(),
                ["169.254.1.1", "fe80::1"][family].to_owned(),
                ["203.0.113.9", "2001:db8:9::9"][family].to_owned(),
                ["127.0.0.1", "::1"][family].to_owned(),
            ];
            for source in sources {
                for (target, netns) in [
                    (neighbour, self.pod(2)),
                    (node.0[family].parse().unwrap(), node.1),
                    (outside.0[family].parse().unwrap(), outside.1),
                ] {
                    if self.passes(source.parse().unwrap(), target, netns, SHORT) {
                        found.push(format!("{source} -> {target}"));
                    }
                }
            }
        }
        found
    }

    /// Makes the node what a build without any of this has left: its daemon is gone, its pods are there.
    fn age(&mut self) {
        self.world.restart();
        run(&self.world.node, "nft delete table inet coracle-caab-in");
        for (_, attachment) in &self.pods {
            let name = &attachment.host_interface;
            run(&self.world.node, &format!("ip link set {name} arp on"));
            set(
                &self.world.node,
                &format!("ipv4/conf/{name}/rp_filter"),
                "0",
            );
            set(
                &self.world.node,
                &format!("ipv6/conf/{name}/accept_ra"),
                "1",
            );
            for (address, mac) in attachment
                .addresses
                .iter()
                .zip([attachment.addresses[0]; 2])
            {
                let IpAddr::V4(mac) = mac else {
                    panic!("{mac}")
                };
                let [a, b, c, d] = mac.octets();
                run(
                    &self.world.node,
                    &format!(
                        "ip neigh replace {address} lladdr 0e:c0:{a:02x}:{b:02x}:{c:02x}:{d:02x} dev {name} nud permanent"
                    ),
                );
            }
        }
    }
}

impl Drop for Street {
    fn drop(&mut self) {
        for (_, attachment) in &self.pods {
            self.world.detach(attachment);
        }
    }
}

/// A socket that is bound to an address which nobody here need have. By IPv6 that takes no privilege.
pub(super) fn freely_bound(address: SocketAddr) -> UdpSocket {
    let socket = socket_with(
        AddressFamily::INET6,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    sockopt::set_ipv6_freebind(&socket, true).unwrap();
    bind(&socket, &address).unwrap();
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// What arrives at a socket within `limit`.
pub(super) fn received(socket: &UdpSocket, limit: Duration) -> Option<String> {
    let mut buffer = [0; 4096];
    socket.set_read_timeout(Some(limit)).unwrap();
    let (length, _) = socket.recv_from(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Sends a datagram from `source` out of `netns`.
fn send_from(netns: &OwnedFd, source: IpAddr, target: SocketAddr) {
    inside(netns, || match (source, target) {
        (IpAddr::V4(source), SocketAddr::V4(target)) => {
            send_part(source, target, (0, &datagram(target.port(), b"ahoy")));
        }
        (source, target) => {
            // An address of the loopback interface, and a link-local one without its link, the kernel itself refuses.
            let scope = if source.to_string().starts_with("fe80") {
                eth0()
            } else {
                0
            };
            let IpAddr::V6(source) = source else {
                panic!("{source}")
            };
            let socket = freely_bound(SocketAddrV6::new(source, 0, 0, scope).into());
            let _ = socket.send_to(b"ahoy", target);
        }
    });
}

/// The index of the calling thread's `eth0`.
fn eth0() -> u32 {
    Netlink::open().unwrap().index("eth0").unwrap().unwrap()
}

/// A UDP datagram without a checksum.
fn datagram(port: u16, data: &[u8]) -> Vec<u8> {
    let length = UDP_HEADER_BYTES + u16::try_from(data.len()).unwrap();
    let mut bytes: Vec<u8> = [PORT, port, length, 0]
        .iter()
        .flat_map(|word| word.to_be_bytes())
        .collect();
    bytes.extend(data);
    bytes
}

/// Sends one IPv4 packet: `part` is its word of flags and offset, and its content.
fn send_part(source: Ipv4Addr, target: SocketAddrV4, part: (u16, &[u8])) {
    let raw = socket_with(
        AddressFamily::INET,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(ipproto::RAW),
    )
    .unwrap();
    // Version and length of the header, its total length and its checksum, which the kernel fills in, identification.
    let mut packet = vec![0x45, 0, 0, 0, 0x12, 0x34];
    packet.extend(part.0.to_be_bytes());
    packet.extend([64, UDP, 0, 0]);
    packet.extend(source.octets());
    packet.extend(target.ip().octets());
    packet.extend(part.1);
    // Some sources the kernel itself refuses.
    let _ = sendto(&raw, &packet, SendFlags::empty(), &target);
}

#[test]
fn a_packet_arrives_from_its_pods_address_and_from_no_other() {
    let street = Street::new();
    for family in 0..2 {
        let own = street.address(0, family);
        assert!(street.reaches_third(own, family), "{own}");
    }
    assert_eq!(street.arriving(), Vec::<String>::new());
}

#[test]
fn nobody_else_speaks_as_a_pod() {
    let street = Street::new();
    let world = &street.world;
    // What an operator may have set, and what IPv6 does not have at all.
    for interface in ["all", "up0"] {
        set(
            &world.node,
            &format!("ipv4/conf/{interface}/rp_filter"),
            "0",
        );
    }
    for family in 0..2 {
        let target = street.address(2, family);
        let listener = inside(street.pod(2), || UdpSocket::bind((target, PORT)).unwrap());
        let heard = |source: IpAddr, limit| {
            send_from(&world.outside, source, SocketAddr::new(target, PORT));
            received(&listener, limit).is_some()
        };
        let own = ["198.51.100.2", "2001:db8:1::2"][family].parse().unwrap();
        assert!(heard(own, PATIENCE), "{own}");
        let neighbours = street.address(1, family);
        assert!(!heard(neighbours, SHORT), "{neighbours}");
        // One of the subnet that no pod has leads to nobody.
        let nobodys = ["10.0.31.200", "fd00:c0:ac:1::c8"][family].parse().unwrap();
        assert!(heard(nobodys, PATIENCE), "{nobodys}");
    }
    // The pods themselves go on.
    for family in 0..2 {
        let own = street.address(0, family);
        assert!(street.reaches_third(own, family), "{own}");
    }
}

#[test]
fn pods_of_an_older_build_are_held_from_the_daemons_start_on() {
    let mut street = Street::new();
    street.age();
    // A stranger's would, too, and by IPv6 even the node's own.
    for family in 0..2 {
        let neighbours = street.address(1, family);
        assert!(street.reaches_third(neighbours, family), "{neighbours}");
    }
    street.world.sweep(&street.live());
    assert_eq!(street.arriving(), Vec::<String>::new());
    let own = street.address(0, 1);
    assert!(street.reaches_third(own, 1), "{own}");
    // Strict again without the table, too.
    street.world.restart();
    run(&street.world.node, "nft delete table inet coracle-caab-in");
    let forged = street.address(1, 0);
    assert!(!street.passes(forged, street.address(2, 0), street.pod(2), SHORT));
}

#[test]
fn a_neighbours_datagram_is_not_completed_by_another_pod() {
    let street = Street::new();
    let IpAddr::V4(victim) = street.address(1, 0) else {
        panic!()
    };
    let IpAddr::V4(target) = street.address(2, 0) else {
        panic!()
    };
    let target = SocketAddrV4::new(target, PORT);
    let listener = inside(street.pod(2), || UdpSocket::bind(target).unwrap());
    let whole = datagram(PORT, b"say yes: no!");
    let (first, last) = whole.split_at(16);
    let offset = u16::try_from(first.len() / 8).unwrap();
    // The whole counts as coming from where its last fragment came from, once it is joined.
    for (last_from, expected) in [(street.pod(0), None), (street.pod(1), Some("say yes: no!"))] {
        inside(last_from, || send_part(victim, target, (offset, last)));
        inside(street.pod(1), || {
            send_part(victim, target, (IP_MORE_FRAGMENTS, first));
        });
        let limit = if expected.is_some() { PATIENCE } else { SHORT };
        assert_eq!(received(&listener, limit).as_deref(), expected);
    }
}

#[test]
fn the_node_takes_no_routes_from_a_pod() {
    let mut street = Street::new();
    let set_all = |street: &Street| {
        // A node that forwards for its pods alone, as from Linux 6.17 on.
        set(&street.world.node, "ipv6/conf/all/forwarding", "0");
        for (_, attachment) in &street.pods {
            let name = &attachment.host_interface;
            set(
                &street.world.node,
                &format!("ipv6/conf/{name}/forwarding"),
                "0",
            );
        }
    };
    let routes = |street: &Street| {
        inside(street.pod(0), advertise);
        thread::sleep(SHORT);
        run(&street.world.node, "ip -6 route show default")
    };
    set_all(&street);
    assert_eq!(routes(&street), "");
    street.age();
    set_all(&street);
    wait_for(
        || "an older build's node takes it".to_owned(),
        || routes(&street).contains("fe80::bad"),
    );
    run(&street.world.node, "ip -6 route flush default");
    street.world.sweep(&street.live());
    set_all(&street);
    assert_eq!(routes(&street), "");
}

/// Says from a made-up router to all on the link that it is their gateway.
fn advertise() {
    let raw = socket_with(
        AddressFamily::INET6,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(ipproto::ICMPV6),
    )
    .unwrap();
    sockopt::set_ipv6_freebind(&raw, true).unwrap();
    sockopt::set_ipv6_multicast_hops(&raw, 255).unwrap();
    let at = |address: &str| SocketAddrV6::new(address.parse().unwrap(), 0, 0, eth0());
    bind(&raw, &at("fe80::bad")).unwrap();
    rustix::net::connect(&raw, &at("ff02::1")).unwrap();
    // Type, code, checksum, which the kernel fills in, hop limit, flags, lifetime, times. Source: RFC 4861 section 4.2.
    let mut message = [0; 16];
    (message[0], message[6], message[7]) = (134, 0x07, 0x08);
    send(&raw, &message, SendFlags::empty()).unwrap();
}

#[test]
fn its_table_is_there_while_a_pod_has_an_address() {
    let mut world = World::new();
    world.sweep(&[]);
    assert_eq!(world.sources(), "", "a node of plugins has none");
    let netns = super::node::netns();
    let attachment = world.attach(&netns, "pod", &[]);
    let table = world.sources();
    assert!(
        table.contains("fib saddr . iif oif missing drop"),
        "{table}"
    );
    run(&world.node, "nft flush ruleset");
    wait_for(|| world.sources(), || world.sources() == table);
    // Another daemon finds it, and one that finds no pod takes it away.
    world.restart();
    world.sweep(std::slice::from_ref(&attachment));
    assert_eq!(world.sources(), table);
    inside(&world.node, || world.network.retire());
    assert_eq!(world.sources(), table, "a pod is there");
    world.detach(&attachment);
    world.restart();
    world.sweep(&[]);
    assert_eq!(world.sources(), "");
    let again = world.attach(&super::node::netns(), "other", &[]);
    world.detach(&again);
    assert_eq!(world.sources(), table, "the next pod need not wait for it");
    inside(&world.node, || world.network.retire());
    assert_eq!(world.sources(), "");
}

#[test]
fn an_interface_of_the_operator_with_the_same_letters_is_let_alone() {
    let world = World::new();
    let (netns, lan) = (super::node::netns(), super::node::netns());
    let attachment = world.attach(&netns, "pod", &[]);
    let peer = format!("/proc/{}/fd/{}", std::process::id(), lan.as_raw_fd());
    for line in [
        "ip link add caablan type bridge",
        &format!("ip link add port0 type veth peer name eth0 netns {peer}"),
        "ip link set port0 master caablan up",
        "ip addr add 198.18.0.1/24 dev caablan",
        "ip link set caablan up",
    ] {
        run(&world.node, line);
    }
    for line in ["ip addr add 198.18.0.2/24 dev eth0", "ip link set eth0 up"] {
        run(&lan, line);
    }
    // Its ways there and back differ, which is its operator's affair.
    let target = SocketAddrV4::new(Ipv4Addr::new(198, 18, 0, 1), PORT);
    let listener = inside(&world.node, || UdpSocket::bind(target).unwrap());
    // A new bridge takes a moment to pass packets on.
    let arrives = || {
        send_from(&lan, "203.0.113.9".parse().unwrap(), target.into());
        received(&listener, SHORT).as_deref() == Some("ahoy")
    };
    wait_for(|| "it was dropped".to_owned(), arrives);
    world.detach(&attachment);
}
