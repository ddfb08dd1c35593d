//! The resources of the node that a configuration names and two daemons must not share.
//!
//! Called by: [`super::Claims::take`]. Invariant: each resource has one file name, whichever daemon computes it.
//! Must not know: files and locks.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use coracle_config::{Config, Family, Network, NetworkMode, Sandbox, Subnet};

use super::Error;
use super::file::Claimer;

const IDS: &str = "ids";
const SUBNET: &str = "subnet";

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
        of_host_ids(&config.sandbox),
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

/// The host ids that pods may get. Live pods have them with or without a daemon.
fn of_host_ids(sandbox: &Sandbox) -> Resource {
    let (first, count) = (
        u64::from(sandbox.id_base),
        u64::from(sandbox.id_count) * u64::from(sandbox.max_pods),
    );
    Resource {
        kind: IDS,
        value: format!("{first}-{count}"),
        what: format!(
            "a part of the host ids {first} to {} (sandbox.id_base, id_count, max_pods)",
            first + count - 1
        ),
        hint: "give this one ids that overlap no others: another sandbox.id_base, or fewer by sandbox.max_pods",
        outlives_daemon: true,
    }
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
        kind: SUBNET,
        what: format!("the subnet {subnet} (network.subnet, network.subnet_v6)"),
        value: subnet,
        hint: "give this one a subnet that overlaps no other",
        outlives_daemon: true,
    }));
    all
}

/// Whether two values of resources of this kind have something in common though they differ; false for a text that is none.
pub(super) fn overlap(kind: &str, one: &str, other: &str) -> bool {
    fn subnets<A: Family>(one: &str, other: &str) -> bool {
        match (Subnet::<A>::parse(one), Subnet::<A>::parse(other)) {
            (Ok(one), Ok(other)) => one.contains(other.base) || other.contains(one.base),
            _ => false,
        }
    }
    match kind {
        SUBNET => subnets::<Ipv4Addr>(one, other) || subnets::<Ipv6Addr>(one, other),
        IDS => match (ids(one), ids(other)) {
            (Some(one), Some(other)) => one.start < other.end && other.start < one.end,
            _ => false,
        },
        _ => false,
    }
}

/// The host ids of a claim: the first, and how many.
fn ids(value: &str) -> Option<Range<u64>> {
    let (first, count) = value.split_once('-')?;
    let first: u64 = first.parse().ok()?;
    Some(first..first.checked_add(count.parse().ok()?)?)
}
