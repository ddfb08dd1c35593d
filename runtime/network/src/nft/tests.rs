//! What the kernel makes of our batches, read back by nft, which decodes them independently.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::fd::{AsFd as _, OwnedFd};
use std::process::Command;

use super::*;
use crate::{NamespaceConfig, create_namespaces};
use coracle_spec::egress::Cidr;

fn netns() -> OwnedFd {
    let config = NamespaceConfig {
        net: true,
        ..NamespaceConfig::default()
    };
    create_namespaces(config, None).unwrap().net.unwrap()
}

/// The ruleset of `netns` as nft prints it, without its spaces; none where nft is not installed.
fn listed(netns: &OwnedFd) -> Option<String> {
    let list = || {
        let mut nft = Command::new("nft");
        nft.args(["list", "ruleset"])
            .output()
            .map_err(|error| Error::io("run", "nft", error))
    };
    let output = inside(netns.as_fd(), list).ok()?;
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().map(str::trim);
    let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    Some(lines.join("\n"))
}

const PORTS: Set = Set {
    name: "ports",
    key: &[Type::Ipv4, Type::Protocol, Type::Port],
    value: &[Type::Ipv4, Type::Port],
};
const COUNTS: Set = Set {
    name: "counts",
    key: &[Type::Mark, Type::Interface],
    value: &[],
};
const PAIRS: Set = Set {
    name: "pairs",
    key: &[Type::Ipv6, Type::Ipv6],
    value: &[],
};

fn port(host: u16) -> Element {
    Element {
        key: concat(&[&[192, 0, 2, 2], &[6], &host.to_be_bytes()]),
        value: concat(&[&[10, 88, 0, 1], &8080u16.to_be_bytes()]),
    }
}

fn cidr(text: &str, bits: u8) -> Cidr {
    Cidr::new(text.parse().unwrap(), bits).unwrap()
}

fn batch() -> Batch {
    let mut batch = Batch::new("coracle-test");
    batch.renew_table();
    batch.add_set(PORTS);
    batch.add_set(PAIRS);
    batch.add_chain("inner", None);
    let base = Base {
        kind: Kind::Nat,
        hook: Hook::Prerouting,
        priority: -100,
        accepts: true,
    };
    batch.add_chain("outer", Some(base));
    batch.add_rule("inner", &Rule::default().ipv4().dnat_by(PORTS));
    let local = Rule::default().destination_is_local();
    batch.add_rule("outer", &local.jump("inner"));
    batch
}

#[test]
fn nft_reads_what_was_meant() {
    let netns = netns();
    let mut batch = batch();
    batch.add_elements(PORTS, &[port(80)]);
    let base = Base {
        kind: Kind::Filter,
        hook: Hook::Output,
        priority: 0,
        accepts: false,
    };
    let rule = Rule::default;
    batch.add_chain("out", Some(base));
    for rule in [
        rule().out_interface(1).accept(),
        rule().established().accept(),
        rule().ipv6().icmpv6_types(133, 136).accept(),
        rule().ipv4().destination(cidr("169.254.0.0", 16)).reject(),
        rule().ipv6().destination(cidr("fe80::", 10)).reject(),
        rule().protocol(6).reset(),
        rule().ipv4().source(cidr("127.0.0.0", 8)).drop(),
        rule().ipv4().destination(cidr("0.0.0.0", 0)).drop(),
        rule().ipv6().source_and_destination_in(PAIRS).drop(),
        rule().protocol(17).ports(53, 53).accept(),
        rule().protocol(6).ports(2379, 2380).reject(),
        rule().interfaces(Hook::Output, "cor").drop(),
    ] {
        batch.add_rule("out", &rule);
    }
    let base = Base {
        kind: Kind::Nat,
        hook: Hook::Postrouting,
        priority: 100,
        accepts: true,
    };
    batch.add_chain("leaving", Some(base));
    let base = Base {
        kind: Kind::Filter,
        hook: Hook::Prerouting,
        priority: -450,
        accepts: true,
    };
    batch.add_chain("arriving", Some(base));
    let from = rule()
        .interfaces(Hook::Prerouting, "cor")
        .interface_kind("veth");
    batch.add_rule("arriving", &from.source_is_elsewhere().drop());
    batch.add_rule("out", &rule().source_is_not_local().drop());
    let base = Base {
        priority: -150,
        ..base
    };
    batch.add_chain("tracked", Some(base));
    batch.add_counting_set(COUNTS, 1024);
    let beyond = rule().new_connection().beyond(COUNTS, 256, 64);
    batch.add_rule("tracked", &beyond.drop());
    let sender = rule().ipv4().snat_to("169.254.1.1".parse().unwrap());
    batch.add_rule("leaving", &sender);
    Nft::open_in(netns.as_fd()).unwrap().commit(batch).unwrap();
    let Some(listed) = listed(&netns) else { return };
    for line in [
        "type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service",
        "elements = { 192.0.2.2 . tcp . 80 : 10.88.0.1 . 8080 }",
        "type ipv6_addr . ipv6_addr",
        "type nat hook prerouting priority dstnat; policy accept;",
        "fib daddr type local jump inner",
        "dnat ip to ip daddr . meta l4proto . th dport map @ports",
        "type filter hook output priority filter; policy drop;",
        "oif \"lo\" accept",
        "ct state established,related accept",
        "icmpv6 type ",
        "tcp dport 2379-2380 reject with icmpx admin-prohibited",
        "ip daddr 169.254.0.0/16 reject with icmpx admin-prohibited",
        "ip6 daddr fe80::/10 reject with icmpx admin-prohibited",
        "ip saddr 127.0.0.0/8 drop",
        "ip6 saddr . ip6 daddr @pairs drop",
        "reject with tcp reset",
        "udp dport 53 accept",
        "oifname \"cor*\" drop",
        "type nat hook postrouting priority srcnat; policy accept;",
        "snat ip to 169.254.1.1",
        "type filter hook prerouting priority -450; policy accept;",
        "iifname \"cor*\" meta iifkind \"veth\" fib saddr . iif oif missing drop",
        "fib saddr type != local drop",
        "type filter hook prerouting priority mangle; policy accept;",
        "type mark . iface_index",
        "size 1024",
        "ct count over 64",
    ] {
        assert!(listed.contains(line), "no {line:?} in:\n{listed}");
    }
}

#[test]
fn a_refused_batch_changes_nothing_and_is_named() {
    let netns = netns();
    let nft = Nft::open_in(netns.as_fd()).unwrap();
    let mut bad = batch();
    bad.add_rule("absent", &Rule::default().accept());
    let error = nft.commit(bad).unwrap_err();
    assert_eq!(
        error.to_string(),
        "add a rule to chain absent of table coracle-test"
    );
    assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    if let Some(listed) = listed(&netns) {
        assert_eq!(listed, "");
    }
    let mut gone = Batch::new("coracle-test");
    gone.delete_table();
    let error = nft.commit(gone).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
}

#[test]
fn thousands_of_elements_go_in_one_batch_and_out_again() {
    let netns = netns();
    let nft = Nft::open_in(netns.as_fd()).unwrap();
    let elements: Vec<Element> = (1..=20_000).map(port).collect();
    let mut all = batch();
    all.add_elements(PORTS, &elements);
    nft.commit(all.clone()).unwrap();
    nft.commit(all).unwrap();
    if let Some(listed) = listed(&netns) {
        assert_eq!(listed.matches(" . tcp . ").count(), elements.len());
    }
    let mut less = Batch::new("coracle-test");
    less.delete_elements(PORTS, &elements[1..]);
    nft.commit(less.clone()).unwrap();
    assert_eq!(
        nft.commit(less).unwrap_err().raw_os_error(),
        Some(libc::ENOENT)
    );
    if let Some(listed) = listed(&netns) {
        assert_eq!(listed.matches(" . tcp . ").count(), 1);
    }
}
