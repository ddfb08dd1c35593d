//! Checks what a guest may do on its pod's network, at every socket call, name lookup and HTTP request.
//!
//! Each guest has one [`Guard`], shared by its sockets, its name lookups and its HTTP client.
//! Invariants: an address is reachable only if it is listed, or if a listed name resolved to it for this guest; some
//! addresses stay refused whatever name resolves to them, and internal ones unless the operator says that the name may lead
//! there (`allows_resolved`); only listed names are looked up, and what counts is the name in full, since a pod chooses its
//! search list. The rules are in [`coracle_spec::egress`]; nftables enforces the same rules without the names.

mod message;
mod resolver;
mod settings;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use wasmtime_wasi::sockets::SocketAddrUse;

use coracle_spec::WasmNetwork;
use coracle_spec::egress::{Decision, Egress};

/// Most answers of name lookups that are remembered per guest.
const MAX_ANSWERS: usize = 1024;

/// Fuzz target: an answer gives a bounded number of addresses, all of the requested family. The first byte chooses the
/// family; the query takes its id from the answer, so that the parser goes past the id check.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn resolver_answer(input: &[u8]) {
    use message::{Family, Query, Reply};
    let Some((family, packet)) = input.split_first() else {
        return;
    };
    let family = match family % 2 {
        0 => Family::V4,
        _ => Family::V6,
    };
    let id = packet.first_chunk().map_or(0, |id| u16::from_be_bytes(*id));
    let name = "www.example.com";
    let query = Query { id, name, family };
    assert!(query.bytes().is_some());
    if let Reply::Addresses(addresses) = query.reply(packet) {
        assert!(addresses.len() <= 64);
        assert!(
            addresses
                .iter()
                .all(|address| address.is_ipv6() == (family == Family::V6))
        );
    }
}

/// The policy of one guest and what its lookups have answered.
#[derive(Debug)]
pub(super) struct Guard {
    policy: WasmNetwork,
    /// The ports of TCP connections, sorted; every port if `None`.
    tcp_ports: Option<Vec<u16>>,
    /// The text of resolv.conf for name lookups; the files in the guest's root if `None`.
    resolver: Option<String>,
    /// The addresses that listed names resolved to, oldest first.
    answers: Mutex<VecDeque<(IpAddr, String)>>,
    /// The first address or name that was refused.
    refused: OnceLock<String>,
}

/// Why a name has no addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It is not a valid name.
    Invalid,
    /// No rule lists it, or the guest has no network.
    Denied,
    /// The servers answered that the name does not exist or has no address.
    Absent,
    /// No server answered, or all failed.
    Unanswered,
}

impl Guard {
    /// The guard that enforces `policy`. `resolver`: see [`coracle_spec::WasmSpec::resolver`].
    pub(super) fn new(policy: &WasmNetwork, resolver: Option<String>) -> Self {
        Self {
            policy: policy.clone(),
            tcp_ports: match policy {
                WasmNetwork::On(egress) => egress.tcp_ports(),
                WasmNetwork::Off => None,
            },
            resolver,
            answers: Mutex::default(),
            refused: OnceLock::new(),
        }
    }

    /// Whether the guest has sockets at all.
    pub(super) fn is_on(&self) -> bool {
        self.policy != WasmNetwork::Off
    }

    /// Whether a socket may be used with this address for this purpose. Incoming traffic is not restricted here.
    pub(super) fn permits(&self, target: SocketAddr, purpose: SocketAddrUse) -> bool {
        match purpose {
            SocketAddrUse::TcpConnect => self.may_connect(target),
            SocketAddrUse::UdpSend => {
                let permitted = self.may_reach(target);
                self.record_refusal(permitted, || self.described(target));
                permitted
            }
            SocketAddrUse::TcpBind
            | SocketAddrUse::TcpListen
            | SocketAddrUse::TcpAccept
            | SocketAddrUse::UdpBind
            | SocketAddrUse::UdpReceive => self.is_on(),
        }
    }

    /// Whether the guest may connect to `target` by TCP: it is reachable, and its port is one of those that Landlock
    /// allows. Checked here as well, for kernels without Landlock.
    pub(super) fn may_connect(&self, target: SocketAddr) -> bool {
        let has_port = match &self.tcp_ports {
            Some(ports) => ports.binary_search(&target.port()).is_ok(),
            None => true,
        };
        let permitted = has_port && self.may_reach(target);
        self.record_refusal(permitted, || self.described(target));
        permitted
    }

    /// The first address or name that the guest was refused.
    pub(super) fn refused(&self) -> Option<String> {
        self.refused.get().cloned()
    }

    fn record_refusal(&self, permitted: bool, target: impl FnOnce() -> String) {
        if !permitted {
            self.refused.get_or_init(target);
        }
    }

    /// Whether `target` is listed, by its address or by a name that resolved to it for this guest.
    fn may_reach(&self, target: SocketAddr) -> bool {
        let WasmNetwork::On(egress) = &self.policy else {
            return false;
        };
        egress.allows_addr(target).is_allowed() || self.name_of(target, Decision::Allowed).is_some()
    }

    /// A name that resolved to `target` for this guest and that is judged like this.
    fn name_of(&self, target: SocketAddr, decision: Decision) -> Option<String> {
        let WasmNetwork::On(egress) = &self.policy else {
            return None;
        };
        let address = target.ip().to_canonical();
        let answers = self.answers();
        let mut named = answers.iter().filter(|(known, _)| *known == address);
        let (_, name) = named.find(|(_, name)| egress.allows_resolved(name, target) == decision)?;
        Some(name.clone())
    }

    /// A refused `target` as text, with the name that does not open it.
    fn described(&self, target: SocketAddr) -> String {
        match self.name_of(target, Decision::Internal) {
            Some(name) => format!(
                "{target}, an internal address to which {name} resolved (only names below network.internal_domains lead there)"
            ),
            None => target.to_string(),
        }
    }

    /// Whether `name` may be looked up, for any port. `localhost` is always allowed: it never leaves the pod.
    fn may_resolve(&self, name: &str) -> bool {
        match &self.policy {
            WasmNetwork::Off => false,
            WasmNetwork::On(egress) => {
                settings::is_localhost(name) || egress.allows_name(name, None).is_allowed()
            }
        }
    }

    /// The addresses of `name`, the best first; remembers them as its answer. Errors: see [`Failure`].
    pub(super) async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, Failure> {
        let sources = resolver::Sources::of(self.resolver.as_deref());
        let found = match self.is_on() {
            true => {
                resolver::resolve(name, &sources, |candidate| self.may_resolve(candidate)).await
            }
            false => Err(Failure::Denied),
        };
        self.record_refusal(!matches!(found, Err(Failure::Denied)), || {
            name.escape_debug().to_string()
        });
        let found = found?;
        self.record_answer(&found.name, &found.addresses);
        Ok(found.addresses)
    }

    fn record_answer(&self, name: &str, addresses: &[IpAddr]) {
        let WasmNetwork::On(Egress::Listed(_)) = &self.policy else {
            return;
        };
        if !self.may_resolve(name) {
            return;
        }
        let mut answers = self.answers();
        for address in addresses {
            let fact = (address.to_canonical(), name.to_owned());
            answers.retain(|known| *known != fact);
            answers.push_back(fact);
        }
        let excess = answers.len().saturating_sub(MAX_ANSWERS);
        answers.drain(..excess);
    }

    fn answers(&self) -> MutexGuard<'_, VecDeque<(IpAddr, String)>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use coracle_spec::egress::List;

    fn listed(rules: &[&str]) -> Guard {
        let list = List {
            rules: rules.iter().map(|rule| rule.parse().unwrap()).collect(),
            own_ports: vec![5432],
            ..List::default()
        };
        Guard::new(&WasmNetwork::On(Egress::Listed(list)), None)
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn without_a_network_nothing_is_permitted() {
        let guard = Guard::new(&WasmNetwork::Off, None);
        for purpose in [
            SocketAddrUse::TcpBind,
            SocketAddrUse::TcpConnect,
            SocketAddrUse::UdpSend,
        ] {
            assert!(!guard.permits(at("127.0.0.1:80"), purpose), "{purpose:?}");
        }
        assert!(!guard.may_resolve("localhost"));
    }

    #[test]
    fn an_address_is_open_once_a_listed_name_resolved_to_it() {
        let guard = listed(&["api.example.com:443", "203.0.113.0/24"]);
        let connect = |target| guard.permits(at(target), SocketAddrUse::TcpConnect);
        assert!(connect("203.0.113.9:80") && !connect("198.51.100.7:443"));
        guard.record_answer("api.example.com", &["198.51.100.7".parse().unwrap()]);
        assert!(connect("198.51.100.7:443") && !connect("198.51.100.7:80"));
        guard.record_answer("other.example.com", &["198.51.100.8".parse().unwrap()]);
        assert!(!connect("198.51.100.8:443"));
        // A name that resolves to a metadata service allows nothing.
        guard.record_answer("api.example.com", &["169.254.169.254".parse().unwrap()]);
        assert!(!connect("169.254.169.254:443"));
        assert!(guard.permits(at("0.0.0.0:80"), SocketAddrUse::TcpListen));
        assert!(guard.permits(at("198.51.100.99:9"), SocketAddrUse::TcpAccept));
        assert!(!guard.permits(at("198.51.100.99:9"), SocketAddrUse::UdpSend));
    }

    #[test]
    fn a_name_that_is_pointed_inside_opens_nothing_there() {
        let guard = listed(&[
            ".example.com:443",
            "192.168.1.7:443",
            "db.team.svc.cluster.local",
        ]);
        let connect = |target| guard.permits(at(target), SocketAddrUse::TcpConnect);
        let inside: [IpAddr; 4] = ["10.96.0.1", "192.168.1.7", "192.168.1.8", "fd00::7"]
            .map(|address| address.parse().unwrap());
        guard.record_answer("x.example.com", &inside);
        assert!(!connect("10.96.0.1:443"));
        let refused = guard.refused().unwrap();
        for part in ["10.96.0.1:443", "x.example.com", "network.internal_domains"] {
            assert!(refused.contains(part), "{refused}");
        }
        for shut in ["192.168.1.8:443", "[fd00::7]:443", "[::ffff:10.96.0.1]:443"] {
            assert!(!connect(shut), "{shut}");
            assert!(!guard.permits(at(shut), SocketAddrUse::UdpSend), "{shut}");
        }
        assert!(connect("192.168.1.7:443"), "listed by its address");
        guard.record_answer("db.team.svc.cluster.local", &inside);
        assert!(connect("10.96.0.1:5432") && connect("[fd00::7]:5432"));
    }

    #[test]
    fn tcp_is_held_to_the_listed_ports_where_every_entry_has_one() {
        let guard = listed(&["api.example.com:443", "203.0.113.7:8080"]);
        let connect = |target| guard.permits(at(target), SocketAddrUse::TcpConnect);
        // The containers of its own pod listen on the ports that the pod declares.
        for open in ["203.0.113.7:8080", "127.0.0.1:5432", "[::1]:443"] {
            assert!(connect(open), "{open}");
        }
        for shut in ["203.0.113.7:5432", "127.0.0.1:9000", "[::1]:1"] {
            assert!(!connect(shut), "{shut}");
        }
        assert!(guard.permits(at("127.0.0.1:9000"), SocketAddrUse::UdpSend));
        for rules in [
            &[][..],
            &["203.0.113.7"],
            &["a.example.com:443", "10.0.0.0/8"],
        ] {
            let connect = |target| listed(rules).permits(at(target), SocketAddrUse::TcpConnect);
            assert!(connect("127.0.0.1:9000"), "{rules:?}");
        }
    }

    #[test]
    fn remembered_answers_are_bounded() {
        let guard = listed(&[".example.com"]);
        for number in 0..2 * MAX_ANSWERS {
            let address = IpAddr::from([203, 0, (number >> 8) as u8, number as u8]);
            guard.record_answer("a.example.com", &[address]);
        }
        assert_eq!(guard.answers().len(), MAX_ANSWERS);
        assert!(guard.may_reach(at("203.0.7.255:1")) && !guard.may_reach(at("203.0.0.0:1")));
    }
}
