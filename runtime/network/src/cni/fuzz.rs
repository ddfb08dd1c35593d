//! The targets that read results of plugins and network configuration lists.

use super::list::{Extra, NetworkList};
use super::result;

/// Most addresses that a result may have; more must be refused.
const MAX_ADDRESSES: usize = 64;

/// Accepted addresses are host addresses, each once, IPv4 first.
pub(crate) fn result(input: &[u8]) {
    let Ok(result) = result::result(input) else {
        return;
    };
    assert!(result.is_object());
    let Ok(addresses) = result::addresses(&result, "eth0") else {
        return;
    };
    assert!((1..=MAX_ADDRESSES).contains(&addresses.len()));
    assert!(addresses.is_sorted_by_key(|address| address.is_ipv6()));
    for (at, address) in addresses.iter().enumerate() {
        assert!(!address.is_unspecified() && !address.is_multicast());
        assert!(!addresses[..at].contains(address), "{address} twice");
    }
}

/// An accepted list survives a round trip; no plugin's name is a path.
pub(crate) fn list(input: &[u8]) {
    for parse in [NetworkList::parse, NetworkList::parse_single] {
        let Ok(list) = parse(input).and_then(NetworkList::complete) else {
            continue;
        };
        for plugin in &list.plugins {
            assert!(
                !plugin.kind.contains(['/', '\0'])
                    && !matches!(plugin.kind.as_str(), "" | "." | "..")
            );
            let input = list.input(plugin, Extra::default());
            let input: serde_json::Value =
                serde_json::from_slice(&input).expect("plugins get JSON");
            assert_eq!(input["cniVersion"], list.version.as_str());
        }
        let written = list.to_json();
        let again = NetworkList::parse(written.to_string().as_bytes());
        let again = again.and_then(NetworkList::complete);
        assert_eq!(again.map(|again| again.to_json()), Ok(written));
    }
}
