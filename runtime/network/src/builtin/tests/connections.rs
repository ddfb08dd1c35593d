//! How much one pod can fill of the kernel's tables that it shares with the node: connections, neighbours.

use std::cell::Cell;
use std::net::UdpSocket;

use super::node::{NODE, NODE_V6, Server, World, is_silent, netns, run, tcp};
use super::*;
use crate::nft::{forget_addresses, forget_flows};

const TABLE: &str = "coracle-caab-count";

/// Entries of the table in `netns`.
pub(super) fn tracked(netns: &OwnedFd) -> u32 {
    inside(netns, count)
}

fn count() -> u32 {
    let path = "/proc/sys/net/netfilter/nf_conntrack_count";
    std::fs::read_to_string(path)
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

/// The entries as the kernel shows them, if it does.
fn list(netns: &OwnedFd) -> String {
    inside(netns, || {
        std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap_or_default()
    })
}

/// Sends a datagram to each of `count` ports of `target`, which nobody answers.
pub(super) fn flood(netns: &OwnedFd, target: IpAddr, count: u16) {
    inside(netns, || {
        let any = if target.is_ipv4() { "0.0.0.0" } else { "::" };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        for port in 20_000..20_000 + count {
            // An earlier one may have been refused.
            let _ = socket.send_to(b"x", (target, port));
        }
    });
}

#[test]
fn one_pod_does_not_fill_the_nodes_table_of_connections() {
    let world = World::new();
    let (one, two) = (netns(), Server::new("two", 80));
    let a = world.attach(&one, "one", &[]);
    let b = world.attach(&two.netns, "two", &[]);
    let limit = world.network.config.connections_per_pod;
    let before = tracked(&world.node);
    for target in [NODE, "2001:db8:1::2", "198.51.100.2"] {
        flood(&one, target.parse().unwrap(), 10_000);
    }
    let made = tracked(&world.node) - before;
    assert!((limit / 2..=limit + 64).contains(&made), "{made} entries");
    // Who is beside it is not concerned, nor are those who call it.
    let node = Server::within(world.node.try_clone().unwrap(), "node", 8000);
    assert!(tcp(&two.netns, &format!("{NODE}:8000")).is_some());
    assert!(is_silent(&one, &format!("{NODE}:8000")));
    let called = Server::within(one, "one", 80);
    let address = a.addresses[0];
    assert!(tcp(&world.node, &format!("{address}:80")).is_some());
    drop((node, called));
    world.detach(&a);
    world.detach(&b);
}

/// Has the pods of `world` together take from a table of this many entries, as if the node's were so small.
fn with_node_limit(world: &mut World, limit: u32) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{limit}\n")).unwrap();
    world.network.sources = Sources::new(&world.network.config, file.path().to_owned());
    file
}

#[test]
fn all_pods_together_leave_the_node_a_quarter_of_its_table() {
    let mut world = World::new();
    let file = with_node_limit(&mut world, 8192);
    let target: IpAddr = NODE.parse().unwrap();
    let pods = ["one", "two", "three"].map(|name| (name, netns()));
    let attachments = pods
        .each_ref()
        .map(|(name, netns)| world.attach(netns, name, &[]));
    let before = tracked(&world.node);
    for (_, netns) in &pods {
        flood(netns, target, 10_000);
    }
    let made = tracked(&world.node) - before;
    assert!((3072..=6144 + 64).contains(&made), "{made} entries");
    // The next pod finds the limit that there is by then.
    std::fs::write(file.path(), "262144\n").unwrap();
    let four = netns();
    let fourth = world.attach(&four, "four", &[]);
    let before = tracked(&world.node);
    flood(&four, target, 10_000);
    let made = tracked(&world.node) - before;
    assert!((2048..=4096 + 64).contains(&made), "{made} entries");
    for attachment in attachments.iter().chain([&fourth]) {
        world.detach(attachment);
    }
}

#[test]
fn a_pods_connections_go_with_it_and_no_others() {
    let mut world = World::new();
    // An eighth of it is in use.
    let _file = with_node_limit(&mut world, 8192);
    let (one, two) = (Server::new("one", 80), Server::new("two", 80));
    let a = world.attach(&one.netns, "one", &[]);
    let b = world.attach(&two.netns, "two", &[]);
    let node = Server::within(world.node.try_clone().unwrap(), "node", 8000);
    let talk = |pod: &Server, attachment: &Attachment| {
        assert!(tcp(&pod.netns, &format!("{NODE}:8000")).is_some());
        assert!(tcp(&pod.netns, &format!("[{NODE_V6}]:8000")).is_some());
        for address in &attachment.addresses {
            let target = SocketAddr::new(*address, 80).to_string();
            assert!(tcp(&world.node, &target).is_some(), "{target}");
        }
    };
    talk(&two, &b);
    flood(&two.netns, NODE.parse().unwrap(), 100);
    let others = tracked(&world.node);
    let listed = list(&world.node);
    assert!(others >= 104, "{others} entries");
    talk(&one, &a);
    flood(&one.netns, NODE.parse().unwrap(), 1100);
    assert!(tracked(&world.node) >= others + 1100);
    world.detach(&a);
    let left = tracked(&world.node);
    // The datagrams' entries last; those of connections that are closed the kernel may drop.
    assert!(
        (100..=others).contains(&left),
        "{left} of {others}: before\n{listed}after\n{}",
        list(&world.node)
    );
    // Said twice, it concerns nobody who has the address by then.
    world.detach(&a);
    drop(node);
    world.detach(&b);
}

#[test]
fn a_pod_goes_without_a_walk_over_the_nodes_table_where_that_has_room() {
    let mut world = World::new();
    let file = with_node_limit(&mut world, 8192);
    let one = netns();
    let a = world.attach(&one, "one", &[]);
    let before = tracked(&world.node);
    flood(&one, NODE.parse().unwrap(), 900);
    world.detach(&a);
    assert!(tracked(&world.node) >= before + 900);
    // The next one that goes finds it full.
    std::fs::write(file.path(), "4096\n").unwrap();
    let two = netns();
    let b = world.attach(&two, "two", &[]);
    flood(&two, NODE.parse().unwrap(), 100);
    let all = tracked(&world.node);
    world.detach(&b);
    let left = tracked(&world.node);
    assert!(left + 100 <= all, "{left} of {all}");
}

/// Has the node track what it sends.
fn track(world: &World) {
    for line in [
        "nft add table inet track",
        "nft add chain inet track out { type filter hook output priority 0 ; }",
        "nft add rule inet track out ct state new accept",
    ] {
        run(&world.node, line);
    }
}

#[test]
fn the_connections_of_an_address_are_deleted_and_of_no_other_one_in_either_family() {
    let world = World::new();
    track(&world);
    let families = [
        ("192.0.2.77", "192.0.2.78", "198.51.100.2"),
        ("2001:db8:1::77", "2001:db8:1::78", "2001:db8:1::2"),
    ];
    for (going, other, target) in families {
        let addresses: [IpAddr; 2] = [going, other].map(|address| address.parse().unwrap());
        let prefix = if addresses[0].is_ipv4() { 32 } else { 128 };
        for address in addresses {
            run(
                &world.node,
                &format!("ip address add {address}/{prefix} dev lo nodad"),
            );
        }
        let send = |from: IpAddr, to: IpAddr, count: u16| {
            inside(&world.node, || {
                let socket = UdpSocket::bind((from, 0)).unwrap();
                for port in 20_000..20_000 + count {
                    let _ = socket.send_to(b"x", (to, port));
                }
            });
        };
        let target = target.parse().unwrap();
        send(addresses[1], target, 40);
        let others = tracked(&world.node);
        send(addresses[0], target, 30);
        assert!(tracked(&world.node) >= others + 30);
        inside(&world.node, || forget_addresses(&addresses[..1])).unwrap();
        assert_eq!(tracked(&world.node), others, "{going}");
    }
}

#[test]
fn stale_entries_are_deleted_while_others_are_still_being_listed() {
    const COUNT: u16 = 5000;
    let world = World::new();
    track(&world);
    let target: IpAddr = "198.51.100.2".parse().unwrap();
    flood(&world.node, target, COUNT);
    let all = tracked(&world.node);
    assert!(all >= COUNT.into(), "{all} entries");
    // How many there are when the last of them is looked at.
    let (deleted, last) = inside(&world.node, || {
        let (seen, last) = (Cell::new(0), Cell::new(all));
        let deleted = forget_flows(|flow| {
            seen.set(seen.get() + 1);
            if seen.get() % 100 == 0 {
                last.set(count());
            }
            flow.target == target
        });
        (deleted.unwrap(), last.get())
    });
    assert!(deleted >= COUNT.into(), "{deleted} of {all}");
    assert!(last < all / 2, "{last} of {all}");
    assert!(tracked(&world.node) <= all - u32::from(COUNT));
}

/// The table of neighbours is one for all network namespaces.
#[test]
fn nothing_that_a_pod_sends_to_makes_an_entry_that_waits_for_an_answer() {
    let world = World::new();
    let one = Server::new("one", 80);
    let a = world.attach(&one.netns, "one", &[]);
    // What SO_BINDTODEVICE and SO_DONTROUTE need no privilege for.
    run(
        &one.netns,
        "ip route add 203.0.113.0/24 dev eth0 scope link",
    );
    inside(&one.netns, || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for host in 1..=100 {
            socket
                .send_to(b"x", (format!("203.0.113.{host}"), 9))
                .unwrap();
        }
    });
    let entries = run(&one.netns, "ip neigh show nud all dev eth0");
    let waiting = |line: &&str| line.contains("INCOMPLETE") || line.contains("PROBE");
    assert_eq!(entries.lines().filter(waiting).count(), 0, "{entries}");
    let permanent = entries.lines().filter(|line| line.contains("PERMANENT"));
    assert_eq!(permanent.count(), 2, "{entries}");
    for target in [format!("{NODE}:8000"), "[2001:db8:1::1]:8000".to_owned()] {
        let node = Server::within(world.node.try_clone().unwrap(), "node", 8000);
        assert!(tcp(&one.netns, &target).is_some(), "{target}");
        drop(node);
    }
    for address in &a.addresses {
        let target = SocketAddr::new(*address, 80).to_string();
        assert!(tcp(&world.node, &target).is_some(), "{target}");
    }
    world.detach(&a);
}

#[test]
fn the_table_of_counts_is_there_with_the_first_pod_and_goes_with_the_limit() {
    let mut world = World::new();
    let has = |world: &World| run(&world.node, "nft list ruleset").contains(TABLE);
    let one = netns();
    assert!(!has(&world));
    let a = world.attach(&one, "one", &[]);
    assert!(has(&world));
    run(&world.node, "nft flush ruleset");
    wait_for(|| "not written again".to_owned(), || has(&world));
    world.network.config.connections_per_pod = 0;
    world.restart();
    world.sweep(std::slice::from_ref(&a));
    assert!(!has(&world));
    world.network.config.connections_per_pod = 4096;
    world.restart();
    world.sweep(std::slice::from_ref(&a));
    assert!(has(&world));
    world.detach(&a);
    world.sweep(&[]);
    assert!(!has(&world));
}
