//! The promises of egress lists in a pod's namespace, with a world outside to be kept from.

use std::net::UdpSocket;

use super::connections::{flood, tracked};
use super::node::{
    NODE, NODE_OTHER, NODE_V6, Server, World, connect, is_silent_by_udp, run, tcp, udp,
};
use super::sources::{SHORT, freely_bound, received};
use super::*;
use coracle_spec::egress::{Egress, List};

use crate::egress::{denied_of_this_node, install};
use crate::{HostPort, Protocol};

/// Most connections of the pod.
const CONNECTIONS: u32 = 1024;
/// Prefixes of the operator's own translators.
const NAT64: [&str; 2] = ["2001:db8:6400::/40", "2001:db8:65::/96"];
const METADATA: &str = "169.254.169.254";

struct Setup {
    world: World,
    pod: Server,
    attachment: Attachment,
    _outside: [Server; 2],
    _node: [Server; 2],
}

/// A pod that may reach what `rules` list, servers outside at 80 and 81, on the node at 10250 and 10251, and a
/// metadata service.
fn set_up(rules: &[&str]) -> Setup {
    let world = World::new();
    for line in ["ip addr add 169.254.169.254/32 dev lo", "ip link set lo up"] {
        run(&world.outside, line);
    }
    run(
        &world.node,
        "ip route add 169.254.169.254/32 via 198.51.100.2",
    );
    let pod = Server::new("pod", 80);
    let port = HostPort {
        protocol: Protocol::Tcp,
        host_port: 8080,
        container_port: 80,
        host_ip: None,
    };
    let attachment = world.attach(&pod.netns, "pod", &[port]);
    let copy = |netns: &OwnedFd| netns.try_clone().unwrap();
    let setup = Setup {
        _outside: [80, 81].map(|port| Server::within(copy(&world.outside), "outside", port)),
        _node: [10250, 10251].map(|port| Server::within(copy(&world.node), "node", port)),
        pod,
        attachment,
        world,
    };
    // All of it is in reach before there are rules.
    for target in [
        "198.51.100.2:81".to_owned(),
        "[2001:db8:1::2]:81".to_owned(),
        format!("{METADATA}:80"),
        format!("{NODE}:10250"),
        format!("[{NODE_V6}]:10250"),
    ] {
        assert!(setup.reaches(&target), "{target}");
    }
    setup.listed(rules, &[]);
    setup
}

impl Setup {
    fn listed(&self, rules: &[&str], resolvers: &[&str]) {
        let mut denied = inside(&self.world.node, || denied_of_this_node(&[])).unwrap();
        denied.nat64 = NAT64.map(|prefix| prefix.parse().unwrap()).into();
        let egress = Egress::Listed(List {
            rules: rules.iter().map(|rule| rule.parse().unwrap()).collect(),
            denied,
            ..List::default()
        });
        let resolvers: Vec<IpAddr> = resolvers.iter().map(|one| one.parse().unwrap()).collect();
        install(self.pod.netns.as_fd(), &egress, &resolvers, CONNECTIONS).unwrap();
    }

    fn reaches(&self, target: &str) -> bool {
        tcp(&self.pod.netns, target).is_some()
    }

    /// A connection to `target` fails, and not because nobody answers.
    fn is_rejected(&self, target: &str) -> bool {
        let connected = connect(&self.pod.netns, target, PATIENCE);
        connected.is_err_and(|error| error.kind() != std::io::ErrorKind::TimedOut)
    }

    /// A datagram to `target` leads nowhere.
    fn is_silent_by_udp(&self, target: &str) -> bool {
        is_silent_by_udp(&self.pod.netns, target)
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        self.world.detach(&self.attachment);
    }
}

#[test]
fn only_what_is_listed_is_reached() {
    let setup = set_up(&["198.51.100.2:80", "[2001:db8:1::/64]:80", "192.0.2.1"]);
    for target in ["198.51.100.2:80", "[2001:db8:1::2]:80", "192.0.2.1:10251"] {
        assert!(setup.reaches(target), "{target}");
    }
    for target in [
        "198.51.100.2:81",
        "[2001:db8:1::2]:81",
        "198.51.100.1:10251",
        "203.0.113.1:80",
    ] {
        assert!(setup.is_rejected(target), "{target}");
    }
    assert!(udp(&setup.pod.netns, "198.51.100.2:80").is_some());
    assert!(setup.is_silent_by_udp("198.51.100.2:81"));
    // The next list takes the place of this one.
    setup.listed(&["198.51.100.2:81"], &[]);
    assert!(setup.reaches("198.51.100.2:81") && setup.is_rejected("198.51.100.2:80"));
}

#[test]
fn nothing_is_reached_with_an_empty_list_but_loopback_and_whoever_calls() {
    let setup = set_up(&[]);
    assert!(setup.is_rejected("198.51.100.2:80") && setup.is_rejected("[2001:db8:1::2]:80"));
    assert!(
        setup.is_rejected("198.51.100.1:8080"),
        "not even its own host port"
    );
    let pod = &setup.pod.netns;
    let (v4, v6) = (setup.attachment.addresses[0], setup.attachment.addresses[1]);
    for own in [
        "127.0.0.1:80",
        "[::1]:80",
        &format!("{v4}:80"),
        &format!("[{v6}]:80"),
    ] {
        assert!(tcp(pod, own).is_some(), "{own}");
    }
    // A probe, a host port, the node's own loopback: answers go out.
    for target in [
        format!("{v4}:80"),
        format!("[{v6}]:80"),
        "127.0.0.1:8080".to_owned(),
    ] {
        assert!(tcp(&setup.world.node, &target).is_some(), "{target}");
    }
    for target in [format!("{v4}:80"), format!("[{v6}]:80")] {
        assert!(udp(&setup.world.node, &target).is_some(), "{target}");
    }
    assert_eq!(
        tcp(&setup.world.outside, &format!("{NODE}:8080")).as_deref(),
        Some("pod 198.51.100.2")
    );
}

#[test]
fn what_a_pod_says_to_itself_is_not_tracked_and_the_rest_has_a_limit() {
    let setup = set_up(&["198.51.100.2"]);
    let pod = &setup.pod.netns;
    let own = setup.attachment.addresses[0];
    let before = tracked(pod);
    for target in ["127.0.0.9", "127.9.0.1", "::1"] {
        flood(pod, target.parse().unwrap(), 10_000);
    }
    let made = tracked(pod) - before;
    assert!(made < 100, "{made} entries by way of loopback");
    flood(pod, own, 10_000);
    flood(pod, "198.51.100.2".parse().unwrap(), 10_000);
    let made = tracked(pod) - before;
    assert!(
        (CONNECTIONS / 2..=CONNECTIONS + 64).contains(&made),
        "{made} entries"
    );
    // Loopback and callers go on.
    for target in ["127.0.0.1:80", "[::1]:80"] {
        assert!(tcp(pod, target).is_some(), "{target}");
    }
    assert!(tcp(&setup.world.outside, &format!("{NODE}:8080")).is_some());
}

/// As a mesh's proxy has them: it takes what the pod's programs send elsewhere, which is said to loopback by then.
#[test]
fn connections_that_the_pod_itself_leads_to_its_loopback_are_answered() {
    let setup = set_up(&["127.0.0.1"]);
    let pod = &setup.pod.netns;
    for line in [
        "nft add table ip mesh",
        "nft add chain ip mesh out { type nat hook output priority -100 ; }",
        "nft add rule ip mesh out ip daddr 203.0.113.9 tcp dport 443 redirect to :80",
    ] {
        run(pod, line);
    }
    assert!(tcp(pod, "203.0.113.9:443").is_some());
}

#[test]
fn who_calls_itself_under_anothers_address_cannot_answer_that_one() {
    let setup = set_up(&[]);
    let pod = &setup.pod.netns;
    let own = setup.attachment.addresses[1];
    let outside: IpAddr = "2001:db8:1::2".parse().unwrap();
    let bound = |address| inside(pod, || freely_bound(SocketAddr::new(address, 0)));
    let forged = bound(outside);
    let server = bound(own);
    let other = inside(&setup.world.outside, || {
        UdpSocket::bind((outside, 0)).unwrap()
    });
    // The same ports as in the conversation that there never was.
    let caller = SocketAddr::new(outside, forged.local_addr().unwrap().port());
    // The kernel says nothing of a packet that is dropped, and EPERM of one that is refused.
    let _ = forged.send_to(b"call", server.local_addr().unwrap());
    let listener = inside(&setup.world.outside, || UdpSocket::bind(caller).unwrap());
    let _ = server.send_to(b"answer", caller);
    assert_eq!(received(&listener, SHORT), None);
    // A caller from outside is answered, so that the way is there.
    let mut buffer = [0; 16];
    other
        .send_to(b"call", server.local_addr().unwrap())
        .unwrap();
    let (length, peer) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"call");
    server.send_to(b"answer", peer).unwrap();
    assert_eq!(received(&other, PATIENCE).as_deref(), Some("answer"));
}

#[test]
fn denied_addresses_cannot_be_listed() {
    let setup = set_up(&[
        "0.0.0.0/0",
        "::/0",
        "169.254.169.254:80",
        "198.51.100.1:10250",
    ]);
    assert!(setup.reaches("198.51.100.2:81") && setup.reaches("[2001:db8:1::2]:81"));
    for target in [
        format!("{METADATA}:80"),
        format!("[::ffff:{METADATA}]:80"),
        format!("{NODE}:10250"),
        format!("{NODE_OTHER}:10250"),
        format!("[{NODE_V6}]:10250"),
    ] {
        assert!(setup.is_rejected(&target), "{target}");
    }
    assert!(setup.is_silent_by_udp(&format!("{METADATA}:80")));
    for target in [format!("{NODE}:10251"), format!("[{NODE_V6}]:10251")] {
        assert!(setup.reaches(&target), "another port of the node: {target}");
    }
}

#[test]
fn a_translator_on_the_way_opens_nothing() {
    let setup = set_up(&["::/0"]);
    let (node, outside) = (&setup.world.node, &setup.world.outside);
    let _kubelet = Server::within(outside.try_clone().unwrap(), "behind", 10250);
    let _other = Server::within(outside.try_clone().unwrap(), "behind", 443);
    // Whoever is out there has the addresses that a translator would serve.
    let hiding = [
        "64:ff9b::c633:6401",
        "64:ff9b:1::c633:6401",
        "64:ff9b:1:c633:64:100::",
        "64:ff9b:1:c6:33:6401::",
        "64:ff9b:1:7:c6:3364:100:0",
        "::ffff:0:c633:6401",
        "2002:c633:6401::1",
        "2001:db8:64c6:3364:1::",
        "2001:db8:65::c633:6401",
    ];
    let metadata = [
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1:a9fe:a9:fe00::",
        "2001:db8:64a9:fea9:fe::",
        "2001:db8:65::a9fe:a9fe",
    ];
    let harmless = [
        "64:ff9b::c633:6402",
        "64:ff9b:1::c633:6402",
        "2001:db8:65::c633:6402",
    ];
    for address in hiding.into_iter().chain(metadata).chain(harmless) {
        run(outside, &format!("ip addr add {address}/128 dev lo nodad"));
        run(
            node,
            &format!("ip route add {address}/128 via 2001:db8:1::2"),
        );
    }
    for address in hiding {
        assert!(
            setup.is_rejected(&format!("[{address}]:10250")),
            "{address}"
        );
        assert!(setup.reaches(&format!("[{address}]:443")), "{address}");
    }
    for address in metadata {
        assert!(setup.is_rejected(&format!("[{address}]:443")), "{address}");
    }
    for address in harmless {
        assert!(setup.reaches(&format!("[{address}]:10250")), "{address}");
    }
}

#[test]
fn a_listed_name_opens_its_port_and_the_way_to_dns() {
    let setup = set_up(&["api.example.com:80"]);
    let dns = Server::within(setup.world.outside.try_clone().unwrap(), "dns", 53);
    let queries = |server: &str| udp(&setup.pod.netns, &format!("{server}:53")).is_some();
    let has_no_dns = |server: &str| setup.is_silent_by_udp(&format!("{server}:53"));
    assert!(setup.reaches("198.51.100.2:80") && setup.is_rejected("198.51.100.2:81"));
    assert!(setup.is_rejected(&format!("{METADATA}:80")) && has_no_dns("198.51.100.2"));
    setup.listed(&["api.example.com:80"], &["198.51.100.2"]);
    assert!(queries("198.51.100.2") && setup.reaches("198.51.100.2:53") && has_no_dns(METADATA));
    // A node's DNS cache with a link-local address is a resolver, and nothing else.
    setup.listed(&[".example.com:80"], &[METADATA]);
    assert!(
        queries(METADATA)
            && has_no_dns("198.51.100.2")
            && setup.is_rejected(&format!("{METADATA}:80"))
    );
    setup.listed(&["198.51.100.2:80"], &["198.51.100.2"]);
    assert!(
        has_no_dns("198.51.100.2"),
        "no name is listed, so no DNS is needed"
    );
    drop(dns);
}

#[test]
fn a_listed_name_opens_nothing_inside_unless_it_may_lead_there() {
    let setup = set_up(&[".example.com:80"]);
    let (node, outside) = (&setup.world.node, &setup.world.outside);
    let _node = Server::within(node.try_clone().unwrap(), "node", 80);
    let embedding = [
        "fd00::7",
        "64:ff9b::a60:1",
        "64:ff9b:1:a60:0:100::",
        "64:ff9b:1:7:a:6000:100:0",
        "64:ff9b::c633:6401",
        "64:ff9b:1:c6:33:6401::",
        "2002:a60:1::1",
        "2001:db8:640a:6000:1::",
        "2001:db8:65::a60:1",
    ];
    let public = [
        "203.0.113.7/32",
        "2001:db8:2::7/128",
        "64:ff9b::c633:6402/128",
    ];
    let all = embedding.map(|address| format!("{address}/128"));
    let all = all.iter().map(String::as_str).chain(public);
    for address in all.chain(["10.96.0.1/32", "100.64.0.1/32"]) {
        let is_v6 = address.contains(':');
        let via = if is_v6 {
            "2001:db8:1::2"
        } else {
            "198.51.100.2"
        };
        run(
            outside,
            &format!(
                "ip addr add {address} dev lo{}",
                if is_v6 { " nodad" } else { "" }
            ),
        );
        run(node, &format!("ip route add {address} via {via}"));
    }
    let mut inside = vec![
        "10.96.0.1:80".to_owned(),
        "100.64.0.1:80".to_owned(),
        format!("{NODE}:80"),
        format!("[{NODE_V6}]:80"),
    ];
    inside.extend(embedding.map(|address| format!("[{address}]:80")));
    for target in &inside {
        assert!(setup.is_rejected(target), "{target}");
    }
    for target in [
        "203.0.113.7:80",
        "[2001:db8:2::7]:80",
        "[64:ff9b::c633:6402]:80",
    ] {
        assert!(setup.reaches(target), "{target}");
    }
    // What is listed by its address is open, and so is all that a name of the operator may mean.
    setup.listed(&["api.example.com", "10.96.0.0/16:80", "fd00::/8"], &[]);
    assert!(setup.reaches("10.96.0.1:80") && setup.reaches("[fd00::7]:80"));
    assert!(setup.is_rejected("100.64.0.1:80") && setup.reaches("203.0.113.7:80"));
    setup.listed(&["api.example.com", "db.team.svc.cluster.local:80"], &[]);
    for target in &inside {
        assert!(setup.reaches(target), "{target}");
    }
}

#[test]
fn neighbours_are_found_by_arp_and_ndp() {
    // The outside has an ordinary link to the node, as plugins make it, which uses ARP and NDP.
    let world = World::new();
    let node = Server::within(world.node.try_clone().unwrap(), "node", 8000);
    let listed = Egress::Listed(List {
        rules: vec![
            "198.51.100.1".parse().unwrap(),
            "2001:db8:1::1".parse().unwrap(),
        ],
        ..List::default()
    });
    install(world.outside.as_fd(), &listed, &[], 0).unwrap();
    run(&world.outside, "ip neigh flush all");
    assert!(tcp(&world.outside, &format!("{NODE}:8000")).is_some());
    assert!(tcp(&world.outside, &format!("[{NODE_V6}]:8000")).is_some());
    drop(node);
}

#[test]
fn an_open_pod_has_no_rules_and_a_refused_table_is_an_error() {
    let world = World::new();
    install(world.outside.as_fd(), &Egress::Open, &[], 0).unwrap();
    assert_eq!(run(&world.outside, "nft list ruleset"), "");
    let file = std::fs::File::open("/proc/self/cmdline").unwrap();
    let shut = Egress::Listed(List::default());
    let error = install(file.as_fd(), &shut, &[], 0)
        .unwrap_err()
        .to_string();
    assert_eq!(error, "enter the pod's network namespace");
}
