//! What masquerading promises, on a node of its own.

use super::node::{NODE, NODE_V6, Server, World, run, tcp, udp};
use super::*;

fn world() -> World {
    let mut world = World::new();
    world.network.config.masquerade = true;
    world.restart();
    assert_eq!(world.sweep(&[]), Vec::<String>::new());
    world
}

#[test]
fn only_packets_that_leave_the_node_get_its_address() {
    let world = world();
    let (one, two) = (Server::new("one", 80), Server::new("two", 80));
    let a = world.attach(&one.netns, "one", &[]);
    let b = world.attach(&two.netns, "two", &[]);
    let other = Server::within(world.outside.try_clone().unwrap(), "other", 80);
    for (outside, node) in [("198.51.100.2", NODE), ("[2001:db8:1::2]", NODE_V6)] {
        let seen = Some(format!("other {node}"));
        let target = format!("{outside}:80");
        assert_eq!(tcp(&one.netns, &target), seen, "{target}");
        assert_eq!(udp(&one.netns, &target), seen, "{target}");
    }
    for (from, to) in a.addresses.iter().zip(&b.addresses) {
        let target = SocketAddr::new(*to, 80).to_string();
        let seen = Some(format!("two {from}"));
        assert_eq!(tcp(&one.netns, &target), seen, "pod to pod");
        assert_eq!(udp(&one.netns, &target), seen, "pod to pod");
    }
    // The node itself, and callers from outside, keep theirs.
    let target = SocketAddr::new(b.addresses[0], 80).to_string();
    let outside = tcp(&world.outside, &target);
    assert_eq!(outside.as_deref(), Some("two 198.51.100.2"));
    let node = tcp(&world.node, "198.51.100.2:80");
    assert_eq!(node.as_deref(), Some("other 198.51.100.1"));
    drop(other);
    world.detach(&a);
    world.detach(&b);
}

#[test]
fn without_it_pods_keep_their_addresses_and_its_table_goes() {
    let mut world = world();
    let one = Server::new("one", 80);
    let a = world.attach(&one.netns, "one", &[]);
    let other = Server::within(world.outside.try_clone().unwrap(), "other", 80);
    assert!(world.ruleset().contains("masquerade"));
    world.network.config.masquerade = false;
    world.restart();
    world.sweep(std::slice::from_ref(&a));
    assert_eq!(world.ruleset(), "");
    let seen = Some(format!("other {}", a.addresses[0]));
    assert_eq!(tcp(&one.netns, "198.51.100.2:80"), seen);
    drop(other);
    world.detach(&a);
}

#[test]
fn a_flushed_ruleset_is_written_again() {
    let world = world();
    let before = world.ruleset();
    run(&world.node, "nft flush ruleset");
    world.waits_for(&before);
    assert!(before.contains("masquerade"), "{before}");
}
