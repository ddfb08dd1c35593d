//! The resources of the node that a configuration names and two daemons must not share.
//!
//! Called by: [`super::Claims::take`]. Invariant: each resource has one file name, whichever daemon computes it.
//! Must not know: files and locks.

use std::net::{Ipv4Addr, Ipv6Addr};

use coracle_config::{Config, Family, Network, NetworkMode, Subnet};

use super::Error;
use super::file::Claimer;

/// One resource of the node.
pub(super) struct Resource {
    /// `KIND` of the claim's file.
    pub kind: &'static str,
    /// `VALUE` of the claim's file, not yet escaped.
    pub value: String,
    /// How an error names it, with its configuration key.
    pub what: String,
    /// What the operator can change.
    pub hint: &'static str,
    /// It stays in use while the claimer has pods, even without a daemon.
    pub outlives_daemon: bool,
}

impl Resource {
    /// The name of its claim's file.
    pub fn file(&self) -> String {
        let value = self.value.replace('%', "%25").replace('/', "%2F");
        format!("{}-{value}", self.kind)
    }

    /// The error for a resource that a live daemon has.
    pub fn held(&self, by: &Claimer) -> Error {
        Error::Held {
            what: self.what.clone(),
            pid: by.pid,
            root: by.root.clone(),
            hint: self.hint,
        }
    }
}

/// Everything that two daemons must not share. The built-in network counts only where it may be used.
pub(super) fn resources(config: &Config) -> Vec<Resource> {
    let mut all = of_any_daemon(config);
    if config.network.mode != NetworkMode::Cni {
        all.extend(of_builtin_network(&config.network));
    }
    all
}

fn of_any_daemon(config: &Config) -> Vec<Resource> {
    let parent = format!("/{}", config.cgroup.pod_parent.trim_matches('/'));
    vec![
        Resource {
            kind: "run",
            value: config.run.display().to_string(),
            what: format!("the run directory {} (run)", config.run.display()),
            hint: "give this one another run",
            outlives_daemon: false,
        },
        Resource {
            kind: "netns",
            value: config.network.netns_dir.display().to_string(),
            what: format!(
                "the directory of network namespaces {} (network.netns_dir)",
                config.network.netns_dir.display()
            ),
            hint: "give this one another network.netns_dir",
            outlives_daemon: false,
        },
        Resource {
            kind: "cgroup",
            what: format!("the parent of cgroups {parent} (cgroup.pod_parent)"),
            value: parent,
            hint: "give this one another cgroup.pod_parent",
            outlives_daemon: false,
        },
    ]
}

fn of_builtin_network(network: &Network) -> Vec<Resource> {
    let prefix = &network.interface_prefix;
    let mut all = vec![Resource {
        kind: "interfaces",
        value: prefix.clone(),
        what: format!("the interface prefix {prefix} (network.interface_prefix)"),
        hint: "give this one another network.interface_prefix",
        outlives_daemon: true,
    }];
    let mut subnets = vec![network.subnet.to_string()];
    subnets.extend(network.subnet_v6.map(|subnet| subnet.to_string()));
    all.extend(subnets.into_iter().map(|subnet| Resource {
        kind: "subnet",
        what: format!("the subnet {subnet} (network.subnet, network.subnet_v6)"),
        value: subnet,
        hint: "give this one a subnet that overlaps no other",
        outlives_daemon: true,
    }));
    all
}

/// Whether two subnets of one family share an address; false for a text that is no subnet.
pub(super) fn overlap(one: &str, other: &str) -> bool {
    fn both<A: Family>(one: &str, other: &str) -> bool {
        match (Subnet::<A>::parse(one), Subnet::<A>::parse(other)) {
            (Ok(one), Ok(other)) => one.contains(other.base) || other.contains(one.base),
            _ => false,
        }
    }
    both::<Ipv4Addr>(one, other) || both::<Ipv6Addr>(one, other)
}
