//! The promises of host ports, on a node of its own.

use super::node::{
    NODE, NODE_OTHER, NODE_V6, Server, World, connect, is_silent, is_silent_by_udp, is_silent_from,
    run, set, tcp, udp, udp_from, udp_socket,
};
use super::*;
use crate::{HostPort, Protocol};

/// The address of the node that a pod sees when the node's own would lead nowhere.
const GATEWAY: &str = "169.254.1.1";

fn port(protocol: Protocol, host_port: u16, container_port: u16) -> HostPort {
    HostPort {
        protocol,
        host_port,
        container_port,
        host_ip: None,
    }
}

fn at(port: HostPort, host_ip: &str) -> HostPort {
    HostPort {
        host_ip: Some(host_ip.parse().unwrap()),
        ..port
    }
}

fn some(text: impl Into<String>) -> Option<String> {
    Some(text.into())
}

#[test]
fn host_ports_lead_to_the_pod_from_everywhere() {
    let world = World::new();
    let (one, two) = (Server::new("one", 80), Server::new("two", 80));
    let ports = [
        port(Protocol::Tcp, 8080, 80),
        port(Protocol::Udp, 5353, 80),
        port(Protocol::Sctp, 8080, 80),
    ];
    let a = world.attach(&one.netns, "one", &ports);
    let b = world.attach(&two.netns, "two", &[]);
    let own = |attachment: &Attachment, index: usize| attachment.addresses[index].to_string();
    for (node, gateway, family) in [(NODE, GATEWAY, 0), (NODE_OTHER, GATEWAY, 0)] {
        let (web, dns) = (format!("{node}:8080"), format!("{node}:5353"));
        assert_eq!(tcp(&world.outside, &web), some("one 198.51.100.2"), "{web}");
        assert_eq!(udp(&world.outside, &dns), some("one 198.51.100.2"), "{dns}");
        assert_eq!(tcp(&world.node, &web), some(format!("one {node}")));
        assert_eq!(udp(&world.node, &dns), some(format!("one {node}")));
        let other = some(format!("one {}", own(&b, family)));
        assert_eq!(tcp(&two.netns, &web), other, "pod to pod");
        assert_eq!(udp(&two.netns, &dns), other);
        let itself = some(format!("one {gateway}"));
        assert_eq!(tcp(&one.netns, &web), itself, "a pod to its own port");
        assert_eq!(udp(&one.netns, &dns), itself);
    }
    for loopback in ["127.0.0.1", "127.0.0.53"] {
        let seen = some(format!("one {GATEWAY}"));
        assert_eq!(tcp(&world.node, &format!("{loopback}:8080")), seen);
        assert_eq!(udp(&world.node, &format!("{loopback}:5353")), seen);
    }
    // Nothing else is led astray: a port that nobody has, and pods' own loopback.
    assert!(is_silent(&world.outside, &format!("{NODE}:8081")));
    assert!(is_silent_by_udp(&world.node, "127.0.0.1:8080"));
    assert!(is_silent(&two.netns, "127.0.0.1:8080"));
    world.detach(&a);
    assert!(is_silent(&world.outside, &format!("{NODE}:8080")));
    assert_eq!(world.ruleset(), "", "the table goes with the last port");
    world.detach(&b);
}

#[test]
fn host_ports_lead_there_by_ipv6() {
    let world = World::new();
    let (one, two) = (Server::new("one", 80), Server::new("two", 80));
    let ports = [port(Protocol::Tcp, 8080, 80), port(Protocol::Udp, 5353, 80)];
    let a = world.attach(&one.netns, "one", &ports);
    let b = world.attach(&two.netns, "two", &[]);
    let (web, dns) = (format!("[{NODE_V6}]:8080"), format!("[{NODE_V6}]:5353"));
    let outside = some("one 2001:db8:1::2");
    assert_eq!(tcp(&world.outside, &web), outside);
    assert_eq!(udp(&world.outside, &dns), outside);
    assert_eq!(tcp(&world.node, &web), some(format!("one {NODE_V6}")));
    assert_eq!(udp(&world.node, &dns), some(format!("one {NODE_V6}")));
    assert_eq!(
        tcp(&two.netns, &web),
        some(format!("one {}", b.addresses[1]))
    );
    // A pod that reaches itself sees the first address of the subnet, which no pod has.
    let base = world.network.config.subnet_v6.unwrap().address(0);
    assert_eq!(tcp(&one.netns, &web), some(format!("one {base}")));
    assert_eq!(udp(&one.netns, &dns), some(format!("one {base}")));
    assert!(
        is_silent(&world.node, "[::1]:8080"),
        "the kernel has no such way"
    );
    world.detach(&a);
    world.detach(&b);
}

#[test]
fn a_port_at_one_address_is_at_that_alone() {
    let world = World::new();
    let (one, two) = (Server::new("one", 80), Server::new("two", 80));
    let web = |host_ip| at(port(Protocol::Tcp, 8080, 80), host_ip);
    let a = world.attach(
        &one.netns,
        "one",
        &[web(NODE), web("127.0.0.1"), web(NODE_V6)],
    );
    let b = world.attach(&two.netns, "two", &[web(NODE_OTHER)]);
    let who = |target: String| tcp(&world.node, &target).map(|answer| answer[..3].to_owned());
    assert_eq!(who(format!("{NODE}:8080")), some("one"));
    assert_eq!(who("127.0.0.1:8080".to_owned()), some("one"));
    assert_eq!(who(format!("[{NODE_V6}]:8080")), some("one"));
    assert_eq!(who(format!("{NODE_OTHER}:8080")), some("two"));
    assert!(is_silent(&world.node, "127.0.0.2:8080"));
    world.detach(&a);
    assert!(is_silent(&world.node, &format!("{NODE}:8080")));
    assert_eq!(who(format!("{NODE_OTHER}:8080")), some("two"));
    world.detach(&b);
    // Every address of one family.
    let six = Server::new("six", 80);
    let c = world.attach(&six.netns, "six", &[web("0.0.0.0")]);
    assert_eq!(who(format!("{NODE_OTHER}:8080")), some("six"));
    assert!(is_silent(&world.node, &format!("[{NODE_V6}]:8080")));
    world.detach(&c);
}

#[test]
fn a_port_at_the_nodes_loopback_is_closed_to_whoever_is_on_its_link() {
    let world = World::new();
    let one = Server::new("one", 80);
    let debug = at(port(Protocol::Tcp, 8080, 80), "127.0.0.1");
    let a = world.attach(&one.netns, "one", &[debug, port(Protocol::Tcp, 8081, 80)]);
    // A neighbour to whom the node's loopback is an address like any other.
    set(&world.outside, "ipv4/conf/all/route_localnet", "1");
    for line in [
        "ip addr del 127.0.0.1/8 dev lo",
        "ip route add 127.0.0.1/32 via 198.51.100.1 dev eth0 src 198.51.100.2",
    ] {
        run(&world.outside, line);
    }
    assert!(is_silent(&world.outside, "127.0.0.1:8080"));
    assert!(is_silent(&world.outside, "127.0.0.1:8081"));
    assert!(tcp(&world.outside, &format!("{NODE}:8081")).is_some());
    for own in ["127.0.0.1:8080", "127.0.0.1:8081"] {
        assert_eq!(tcp(&world.node, own), some("one 169.254.1.1"), "{own}");
    }
    world.detach(&a);
}

#[test]
fn a_port_has_one_holder_and_errors_name_it() {
    let mut world = World::new();
    let (one, two) = (Server::new("one", 80), Server::new("two", 80));
    let web = port(Protocol::Tcp, 8080, 80);
    let a = world.attach(&one.netns, "one", std::slice::from_ref(&web));
    let before = world.ruleset();
    for (taken, expected) in [
        (web.clone(), "tcp port 8080 of every address"),
        (at(web.clone(), NODE), "tcp port 8080 of 198.51.100.1"),
        (at(web.clone(), "::"), "tcp port 8080 of every IPv6 address"),
    ] {
        let free = port(Protocol::Udp, 9, 9);
        let refused = world.try_attach(&two.netns, "two", &[free, taken]);
        assert_eq!(
            refused.unwrap_err().to_string(),
            format!("offer {expected} for pod two: pod one has it until it is stopped")
        );
    }
    let twice = [web.clone(), port(Protocol::Tcp, 8080, 81)];
    let error = world.try_attach(&two.netns, "two", &twice).unwrap_err();
    assert!(matches!(error, Error::PortTaken { .. }), "{error}");
    assert_eq!(world.ruleset(), before, "a refused pod leaves nothing");
    assert_eq!(world.network.leases(), 1);
    // The same port of another protocol is another port; a port listed twice is one.
    let dns = port(Protocol::Udp, 8080, 80);
    let b = world.attach(&two.netns, "two", &[dns.clone(), dns]);
    assert_eq!(
        world.attach(&one.netns, "one", std::slice::from_ref(&web)),
        a,
        "repeated"
    );
    world.detach(&a);
    // Said twice, it is one after a restart, too.
    world.restart();
    world.sweep(std::slice::from_ref(&b));
    assert!(world.ruleset().contains("udp . 8080"));
    let with_web = world.attach(&two.netns, "two", &[web]);
    assert_eq!(with_web.addresses, b.addresses);
    let (target, seen) = ("127.0.0.1:8080", some("two 169.254.1.1"));
    assert_eq!(tcp(&world.node, target), seen);
    assert!(
        is_silent_by_udp(&world.node, target),
        "it has the ports of its last request"
    );
    world.detach(&with_web);
    assert_eq!(world.ruleset(), "");
}

#[test]
fn a_pod_cannot_send_to_the_loopback_of_its_node() {
    let mut world = World::new();
    let pod = Server::new("pod", 80);
    let attachment = world.attach(&pod.netns, "pod", &[port(Protocol::Tcp, 8080, 80)]);
    let secret = inside(&world.node, || TcpListener::bind("127.0.0.1:6000").unwrap());
    let attack = || !is_silent(&pod.netns, "127.0.0.1:6000");
    set(&pod.netns, "ipv4/conf/all/route_localnet", "1");
    for line in [
        "ip addr del 127.0.0.1/8 dev lo",
        "ip route add 127.0.0.1/32 via 169.254.1.1 dev eth0 onlink src 10.0.16.1",
    ] {
        run(&pod.netns, line);
    }
    assert!(!attack());
    // Without the guard, which nobody watches now, the same attack succeeds: it is a real one.
    let whole = world.ruleset();
    world.restart();
    run(&world.node, "nft flush ruleset");
    connect(&pod.netns, "127.0.0.1:6000", PATIENCE).unwrap();
    world.sweep(std::slice::from_ref(&attachment));
    assert!(!attack());
    run(&world.node, "nft flush ruleset");
    world.waits_for(&whole);
    assert!(!attack());
    let other = Server::new("other", 80);
    let plain = world.attach(&other.netns, "plain", &[]);
    let switch = |name: &str| {
        let file = format!("/proc/sys/net/ipv4/conf/{name}/route_localnet");
        inside(&world.node, || std::fs::read_to_string(file).unwrap())
    };
    assert_eq!(switch(&attachment.host_interface), "1\n");
    assert_eq!(
        switch(&plain.host_interface),
        "0\n",
        "only where it is needed"
    );
    assert_eq!(switch("all"), "0\n");
    // The pod still runs when its ports and the guard go: the switch has gone before.
    world.detach(&attachment);
    assert_eq!(world.ruleset(), "");
    assert_eq!(switch(&attachment.host_interface), "0\n");
    assert!(!attack());
    drop(secret);
    world.detach(&attachment);
    world.detach(&plain);
}

#[test]
fn a_restart_and_the_next_change_mend_the_table() {
    let mut world = World::new();
    let (one, two) = (Server::new("one", 80), Server::new("two", 80));
    let web = |host_port| port(Protocol::Tcp, host_port, 80);
    let a = world.attach(&one.netns, "one", &[web(8080)]);
    let b = world.attach(&two.netns, "two", &[web(8081)]);
    let whole = world.ruleset();
    let gone = Attachment {
        pod: "gone".to_owned(),
        ports: vec![web(8082)],
        addresses: vec!["10.0.16.99".parse().unwrap()],
        ..a.clone()
    };
    for damage in ["flush ruleset", "delete table inet coracle-caab"] {
        world.restart();
        run(&world.node, &format!("nft {damage}"));
        assert_eq!(world.sweep(&[a.clone(), b.clone()]), Vec::<String>::new());
        assert_eq!(world.ruleset(), whole);
    }
    // The record knows the ports: another pod cannot have them after a restart either.
    world.restart();
    world.sweep(&[a.clone(), b.clone(), gone]);
    let third = Server::new("third", 80);
    let refused = world.try_attach(&third.netns, "third", &[web(8082)]);
    assert!(refused.unwrap_err().to_string().contains("pod gone has it"));
    world.sweep(&[a.clone(), b.clone()]);
    // Somebody flushes while the daemon runs: the next pod brings everything back.
    run(&world.node, "nft flush ruleset");
    let c = world.attach(&third.netns, "third", &[web(8082)]);
    for (target, name) in [("127.0.0.1:8080", "one"), ("127.0.0.1:8082", "third")] {
        assert_eq!(tcp(&world.node, target), some(format!("{name} {GATEWAY}")));
    }
    run(&world.node, "nft flush ruleset");
    world.detach(&c);
    assert_eq!(world.ruleset(), whole);
    // The last daemon died and its pods with it.
    world.restart();
    let removed = world.sweep(&[]);
    assert!(
        removed.contains(&"table coracle-caab of nftables".to_owned()),
        "{removed:?}"
    );
    assert_eq!(world.ruleset(), "");
}

#[test]
fn what_others_do_to_the_table_is_mended_while_pods_live() {
    let world = World::new();
    let one = Server::new("one", 80);
    let ports = [port(Protocol::Tcp, 8080, 80), port(Protocol::Udp, 5353, 80)];
    let pod = world.attach(&one.netns, "one", &ports);
    let whole = world.ruleset();
    let (web, dns) = (format!("{NODE}:8080"), format!("{NODE}:5353"));
    let client = udp_socket(&world.outside, &dns);
    let seen = some("one 198.51.100.2");
    for damage in [
        "flush ruleset",
        "delete table inet coracle-caab",
        "flush chain inet coracle-caab guard",
        "insert rule inet coracle-caab guard accept",
    ] {
        run(&world.node, &format!("nft {damage}"));
        world.waits_for(&whole);
        assert_eq!(tcp(&world.outside, &web), seen, "after {damage}");
        assert_eq!(
            tcp(&world.node, "127.0.0.1:8080"),
            some(format!("one {GATEWAY}"))
        );
    }
    // It has just been mended and is left alone for a moment: a client that sends meanwhile is led right later.
    run(&world.node, "nft flush ruleset");
    // On a machine so slow that the moment is over, it is led right at once.
    let short = Duration::from_millis(500);
    let _ = udp_from(&client, &dns, short);
    world.waits_for(&whole);
    wait_for(
        || "the flow goes past the pod".to_owned(),
        || udp_from(&client, &dns, short) == seen,
    );
    // Nobody watches what is not there: another table is left alone.
    world.detach(&pod);
    run(&world.node, "nft add table inet coracle-caab");
    thread::sleep(Duration::from_millis(100));
    assert_eq!(world.ruleset().trim(), "table inet coracle-caab {\n}");
}

#[test]
fn udp_flows_follow_the_port() {
    let world = World::new();
    let (one, two) = (Server::new("one", 80), Server::new("two", 80));
    let dns = port(Protocol::Udp, 5353, 80);
    let target = format!("{NODE}:5353");
    // Clients that never change their port, as a DNS cache or a log sender.
    let client = udp_socket(&world.outside, &target);
    let local = udp_socket(&world.node, "127.0.0.1:5353");
    // Connection tracking is on in the node because of another pod.
    let other = world.attach(&two.netns, "other", &[port(Protocol::Tcp, 1, 1)]);
    assert!(is_silent_from(&client, &target) && is_silent_from(&local, "127.0.0.1:5353"));
    let a = world.attach(&one.netns, "one", std::slice::from_ref(&dns));
    assert_eq!(
        udp_from(&client, &target, PATIENCE),
        some("one 198.51.100.2"),
        "from before the port"
    );
    assert_eq!(
        udp_from(&local, "127.0.0.1:5353", PATIENCE),
        some(format!("one {GATEWAY}"))
    );
    world.detach(&a);
    assert!(
        is_silent_from(&client, &target),
        "the pod still runs, its port is gone"
    );
    let third = Server::new("third", 80);
    let b = world.attach(&third.netns, "third", &[dns]);
    let answer = udp_from(&client, &target, PATIENCE);
    assert_eq!(answer, some("third 198.51.100.2"));
    world.detach(&other);
    world.detach(&b);
}
