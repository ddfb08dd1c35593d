//! The destinations that a pod may reach: its list, less the node's own addresses, enforced in its network namespace.
//!
//! Called by: the effects on one pod, and the plans of its Wasm containers, which enforce the same list in process.
//! Invariants: the rules exist before the first process of the pod; a list that could not be enforced is refused.
//! Must not know: the syntax of a list, nftables.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use coracle_lifecycle::{Error, Kind, NamespaceMode, PodRecord, SandboxConfig};
use coracle_network::{Attachment, egress};
use coracle_spec::egress::Egress;
use coracle_spec::{WasmKind, WasmNetwork};

use super::errors::network_error;
use super::{Host, LiveConfig, linux};

/// The destinations that a pod may reach, with the node's current addresses, at which the built-in ports and those of the
/// configuration are never open, and with what is internal now. Blocks. Errors: the kernel does not list its addresses.
pub(super) fn reach(config: &SandboxConfig, live: &LiveConfig) -> Result<Egress, Error> {
    let mut reach = config.reach();
    if let Egress::Listed(list) = &mut reach {
        list.own_ports.clone_from(&config.container_ports);
        list.internal.clone_from(&live.internal);
        let mut ports = std::mem::take(&mut list.denied.ports);
        ports.extend(&live.denied_node_ports);
        list.denied = egress::denied_of_this_node(&ports).map_err(|error| {
            network_error(
                format!("list this node's addresses for {}", config.name),
                error,
            )
        })?;
        list.denied.nat64.clone_from(&live.nat64_prefixes);
    }
    Ok(reach)
}

/// Refuses a list that could not be enforced: rules of the node's own network are not ours to change.
pub(super) fn check(record: &PodRecord) -> Result<(), Error> {
    let config = &record.config;
    let has_no_sockets = config.is_offline() && config.handler.is_wasm_only();
    let is_in_nodes = config.namespaces.network == NamespaceMode::Node;
    if config.egress.is_none() || !is_in_nodes || has_no_sockets {
        return Ok(());
    }
    let text = format!(
        "sandbox {} may reach only what is listed for it, and it is to be in the node's network, where nothing holds it to that",
        config.name
    );
    Err(Error::new(Kind::Invalid, text))
}

/// Refuses a Linux container for which its pod's list could not be enforced: names are enforced only for WebAssembly,
/// and some capabilities circumvent the rules. `bounding` are the capabilities that it may ever have.
pub(super) fn check_linux(config: &SandboxConfig, bounding: u64) -> Result<(), Error> {
    /// These allow to send raw packets, change the rules, enter another network namespace or change the kernel. Source:
    /// linux/capability.h.
    const UNENFORCED: [(&str, u32); 6] = [
        ("NET_ADMIN", 12),
        ("NET_RAW", 13),
        ("SYS_MODULE", 16),
        ("SYS_RAWIO", 17),
        ("SYS_PTRACE", 19),
        ("SYS_ADMIN", 21),
    ];
    if config.egress.is_none() {
        return Ok(());
    }
    let refused = |why: String| {
        let text = format!(
            "sandbox {} may reach only what is listed for it, {why}",
            config.name
        );
        Err(Error::new(Kind::Invalid, text))
    };
    if config.reach().has_names() {
        let why = "some of it by name, and a Linux container is held to addresses only; list those";
        return refused(why.into());
    }
    match UNENFORCED
        .iter()
        .find(|(_, bit)| bounding & (1 << bit) != 0)
    {
        Some((name, _)) => refused(format!(
            "and a container with the capability {name} is not held to that; drop it"
        )),
        None => Ok(()),
    }
}

/// By what names are looked up in a guest's container: the pod's own settings where the pod lists names, for its
/// containers may be able to write the files that say so in their roots; and for the tools beside a core module, whose
/// root has no such files.
pub(super) fn resolver(config: &SandboxConfig, kind: WasmKind) -> Result<Option<String>, Error> {
    match config.reach() {
        _ if config.is_offline() => Ok(None),
        Egress::Open if kind == WasmKind::Component => Ok(None),
        _ => linux::files::resolver(&config.dns).map(Some),
    }
}

impl Host {
    /// How a Wasm instance may use the network: as its pod may, and not at all in a pod that is offline.
    pub(super) fn wasm_network(&self, pod: &SandboxConfig) -> Result<WasmNetwork, Error> {
        Ok(match pod.is_offline() {
            true => WasmNetwork::Off,
            false => WasmNetwork::On(reach(pod, &self.config.live.get())?),
        })
    }

    /// The name servers of the operator: those of the configuration, else those of the node. Blocks.
    fn name_servers(&self) -> Result<Vec<IpAddr>, Error> {
        let live = self.config.live.get();
        match live.name_servers.is_empty() {
            true => linux::files::node_resolvers(),
            false => Ok(live.name_servers.clone()),
        }
    }

    /// Refuses a pod that would itself choose what the names in the operator's list mean. Blocks.
    pub(super) fn check_name_servers(&self, config: &SandboxConfig) -> Result<(), Error> {
        if !config.is_egress_imposed || config.is_offline() || !config.reach().has_names() {
            return Ok(());
        }
        let known = self.name_servers()?;
        let is_other = |server: &&String| {
            let address = server.parse::<IpAddr>();
            !address.is_ok_and(|address| known.contains(&address))
        };
        let Some(other) = config.dns.servers.iter().find(is_other) else {
            return Ok(());
        };
        let text = format!(
            "sandbox {} has the name server {other} (dns_config), and its operator's egress list has names, which only name \
             servers of the operator may resolve; the operator can add it to network.name_servers, or list addresses",
            config.name
        );
        Err(Error::new(Kind::Invalid, text))
    }

    /// Closes this node's control ports to an attached pod under a list, at whatever address. Blocks.
    pub(super) fn close_control_ports(
        &self,
        record: &PodRecord,
        attachment: &mut Attachment,
    ) -> Result<(), Error> {
        let live = self.config.live.get();
        let is_listed = record.config.reach() != Egress::Open;
        let ports = is_listed.then_some(live.denied_node_ports.as_slice());
        let closed = self.parts.network.close_control_ports(attachment, ports);
        closed.map_err(|error| {
            let what = format!(
                "close this node's control ports to sandbox {}, which is under an egress list",
                record.id
            );
            network_error(what, error)
        })
    }

    /// Installs the rules in the pod's network namespace. Blocks.
    pub(super) fn apply_egress(
        &self,
        record: &PodRecord,
        netns: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        let reach = reach(&record.config, &self.config.live.get())?;
        if reach == Egress::Open {
            return Ok(());
        }
        let config = &record.config;
        let servers = &config.dns.servers;
        let mut resolvers: Vec<IpAddr> = match servers.is_empty() {
            // The caller gets a copy of the node's settings.
            true => linux::files::node_resolvers()?,
            false => servers
                .iter()
                .filter_map(|server| server.parse().ok())
                .collect(),
        };
        if config.is_egress_imposed && !servers.is_empty() {
            let known = self.name_servers()?;
            let (ours, others) = resolvers.into_iter().partition(|one| known.contains(one));
            resolvers = ours;
            let others: Vec<IpAddr> = others;
            if !others.is_empty() {
                tracing::warn!(
                    pod = %config.name, servers = ?others,
                    "the pod's egress list does not open port 53 to name servers of its own; those of a cluster belong in \
                     network.name_servers"
                );
            }
        }
        let connections = self.parts.network.connections_per_pod();
        let installed = egress::install(netns, &reach, &resolvers, connections);
        installed.map_err(|error| {
            network_error(
                format!("hold sandbox {} to its egress list", record.id),
                error,
            )
        })?;
        self.begin_refusals(&record.id);
        Ok(())
    }
}
