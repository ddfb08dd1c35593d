//! The promises of [`ControlPorts`]: what a pod under an egress list does not reach on its node, whatever the list has.

use std::net::TcpStream;

use super::node::{NODE, NODE_V6, Server, World, connect, run, tcp};
use super::*;
use coracle_spec::egress::{Egress, List};

use crate::egress::{ControlPorts, denied_of_this_node, denied_ports, install};

/// An address that the node gets later, that of a Service, and their IPv6 likes.
const LATER: &str = "203.0.113.250";
const LATER_V6: &str = "2001:db8:9::250";
const SERVICE: &str = "10.96.0.12";
const TABLE: &str = "coracle-caab-control";

struct Setup {
    world: World,
    control: ControlPorts,
    /// Under a list.
    pod: Server,
    attachment: Attachment,
    _node: [Server; 2],
}

impl Setup {
    fn new() -> Self {
        let world = World::new();
        let copy = |netns: &OwnedFd| netns.try_clone().unwrap();
        let node = [10250, 443].map(|port| Server::within(copy(&world.node), "node", port));
        let pod = Server::new("pod", 80);
        let attachment = world.attach(&pod.netns, "pod", &[]);
        let rules = [LATER, &format!("{SERVICE}:443"), "2001:db8:9::/64"];
        let egress = Egress::Listed(List {
            rules: rules.iter().map(|rule| rule.parse().unwrap()).collect(),
            denied: inside(&world.node, || denied_of_this_node(&[])).unwrap(),
            ..List::default()
        });
        install(pod.netns.as_fd(), &egress, &[], 1024).unwrap();
        let setup = Self {
            control: ControlPorts::new("caab"),
            world,
            pod,
            attachment,
            _node: node,
        };
        setup.close();
        for line in [
            format!("ip addr add {LATER}/32 dev lo"),
            format!("ip addr add {LATER_V6}/128 dev lo nodad"),
            "nft add table ip services".to_owned(),
            "nft add chain ip services arriving { type nat hook prerouting priority -100 ; }"
                .to_owned(),
            format!(
                "nft add rule ip services arriving ip daddr {SERVICE} tcp dport 443 dnat to {NODE}:10250"
            ),
        ] {
            run(&setup.world.node, &line);
        }
        setup
    }

    fn close(&self) {
        let (pod, addresses) = (&self.attachment.pod, &self.attachment.addresses);
        let ports = denied_ports(&[]);
        inside(&self.world.node, || {
            self.control.close_to(pod, addresses, &ports)
        })
        .unwrap();
    }

    fn release(&self, pod: &str, addresses: &[IpAddr]) {
        inside(&self.world.node, || self.control.release(pod, addresses)).unwrap();
    }

    /// A connection of the pod fails at once.
    fn is_rejected(&self, target: &str) -> bool {
        let connected = connect(&self.pod.netns, target, PATIENCE);
        connected.is_err_and(|error| error.kind() != std::io::ErrorKind::TimedOut)
    }

    fn has_table(&self) -> bool {
        run(&self.world.node, "nft list ruleset").contains(TABLE)
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        self.world.detach(&self.attachment);
    }
}

/// All ways to the kubelet's port that the list opens.
fn open_by_list() -> [String; 3] {
    [
        format!("{LATER}:10250"),
        format!("[{LATER_V6}]:10250"),
        format!("{SERVICE}:443"),
    ]
}

#[test]
fn a_list_opens_no_control_port_at_an_address_that_the_node_has_got_since_nor_by_translation() {
    let setup = Setup::new();
    for target in open_by_list() {
        assert!(setup.is_rejected(&target), "{target}");
    }
    for target in [format!("{LATER}:443"), format!("[{LATER_V6}]:443")] {
        assert!(tcp(&setup.pod.netns, &target).is_some(), "{target}");
    }
    // Pods without a list are not concerned.
    let other = super::node::netns();
    let attachment = setup.world.attach(&other, "other", &[]);
    for target in [format!("{NODE}:10250"), format!("[{NODE_V6}]:10250")] {
        assert!(tcp(&other, &target).is_some(), "{target}");
    }
    setup.world.detach(&attachment);
    setup.release("pod", &[]);
    assert!(!setup.has_table());
    for target in open_by_list() {
        assert!(tcp(&setup.pod.netns, &target).is_some(), "{target}");
    }
}

#[test]
fn the_node_itself_calls_such_a_pod_from_any_port() {
    let setup = Setup::new();
    let address = SocketAddr::new(setup.attachment.addresses[0], 80);
    let answer = inside(&setup.world.node, || {
        let socket = rustix::net::socket(
            rustix::net::AddressFamily::INET,
            rustix::net::SocketType::STREAM,
            None,
        )
        .unwrap();
        let own: SocketAddr = format!("{NODE}:10256").parse().unwrap();
        rustix::net::bind(&socket, &own).unwrap();
        rustix::net::connect(&socket, &address).unwrap();
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    assert_eq!(answer, format!("pod {NODE}"));
}

#[test]
fn the_table_outlives_the_daemon_and_other_programs_and_not_its_pods() {
    let mut setup = Setup::new();
    run(
        &setup.world.node,
        "nft flush table inet coracle-caab-control",
    );
    let target = format!("{LATER}:10250");
    wait_for(
        || "not written again".to_owned(),
        || setup.is_rejected(&target),
    );
    let (id, addresses) = (
        setup.attachment.pod.clone(),
        setup.attachment.addresses.clone(),
    );
    // The next daemon knows the pod, or knows that it does not know all.
    for (known, all) in [(true, true), (false, false)] {
        setup.control = ControlPorts::new("caab");
        assert!(setup.has_table());
        let pods = known.then_some((id.as_str(), addresses.as_slice()));
        let restored = inside(&setup.world.node, || {
            setup
                .control
                .restore(pods.into_iter(), &denied_ports(&[]), all)
        });
        restored.unwrap();
        assert!(setup.is_rejected(&target), "known: {known}");
    }
    // A pod without a list that gets the address of one that nobody knows.
    setup.release("next", &addresses);
    assert!(!setup.is_rejected(&target));
    // Plugins gave an address to the next pod before the one before it was forgotten.
    setup.close();
    let ports = denied_ports(&[]);
    inside(&setup.world.node, || {
        setup.control.close_to("next", &addresses, &ports)
    })
    .unwrap();
    setup.release("pod", &addresses);
    assert!(setup.is_rejected(&target));
    setup.release("next", &addresses);
    assert!(!setup.is_rejected(&target));
    setup.control = ControlPorts::new("caab");
    setup.close();
    let none = std::iter::empty();
    inside(&setup.world.node, || {
        setup.control.restore(none, &ports, true)
    })
    .unwrap();
    assert!(!setup.has_table(), "no pod is left");
}
