//! The fuzz target of egress lists. See [`crate::fuzz`].

use std::net::SocketAddr;

use super::{Cidr, Denied, Egress, List, Rule, Target};

/// An accepted entry survives a round trip; no list opens a denied address, and no name an internal one.
pub(crate) fn rules(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let rules: Vec<Rule> = text
        .split(',')
        .filter_map(|entry| entry.parse().ok())
        .collect();
    rules.iter().for_each(survives_a_round_trip);
    refuses_denied_addresses(rules, text);
}

fn survives_a_round_trip(rule: &Rule) {
    let printed = rule.to_string();
    assert_eq!(printed.parse(), Ok(rule.clone()), "{printed}");
    assert_ne!(rule.port, Some(0), "{printed}");
    if let Target::Cidr(cidr) = &rule.target {
        assert_eq!(
            Cidr::new(cidr.base(), cidr.bits()),
            Some(*cidr),
            "{printed}"
        );
    }
}

fn refuses_denied_addresses(rules: Vec<Rule>, text: &str) {
    let node: SocketAddr = "198.51.100.1:10250".parse().expect("an address");
    let egress = Egress::Listed(List {
        rules,
        denied: Denied {
            node: vec![node.ip()],
            ports: Denied::USUAL_PORTS.into(),
            nat64: Vec::new(),
        },
        ..List::default()
    });
    for denied in [
        "169.254.169.254:80",
        "[fe80::1]:80",
        "[fd00:ec2::254]:80",
        "198.51.100.1:10250",
        "[::ffff:169.254.169.254]:80",
        "[64:ff9b::a9fe:a9fe]:80",
    ] {
        let denied: SocketAddr = denied.parse().expect("an address");
        assert!(
            !egress.allows_addr(denied).is_allowed(),
            "{text} opens {denied}"
        );
        assert!(
            !egress.allows_resolved("x.example", denied).is_allowed(),
            "{text} opens {denied}"
        );
    }
    for inside in ["10.96.0.1:443", "[fd00::1]:443", "198.51.100.1:443"] {
        let inside: SocketAddr = inside.parse().expect("an address");
        assert!(
            !egress.allows_resolved("x.example", inside).is_allowed(),
            "{text} leads to {inside}"
        );
    }
}
