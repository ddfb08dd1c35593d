//! The network configuration of one pod: its names, host ports, bandwidth limits and resolver.
//!
//! The daemon writes it from a checked request; the built-in network and CNI read it.
//! Invariant: only an attach needs it; a detach needs no more than the attachment.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A transport protocol of a host port. Source: cri-api v0.37 api.proto: Protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A port of the node that is forwarded to a port of the pod. Source: cri-api v0.37 api.proto: PortMapping.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HostPort {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port of the node, 1 to 65535.
    pub host_port: u16,
    /// Port of the pod, 1 to 65535.
    pub container_port: u16,
    /// The one address of the node at which it is offered; all of them if none.
    pub host_ip: Option<IpAddr>,
}

/// Limits of a pod's traffic, bits a second; none is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Into the pod.
    pub ingress: Option<u64>,
    /// Out of the pod.
    pub egress: Option<u64>,
}

/// A pod's DNS settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolver {
    /// Addresses of servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

/// The network configuration of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The sandbox id, 64 lowercase hex digits.
    pub pod: String,
    /// Kubernetes' namespace of the pod.
    pub namespace: String,
    /// Kubernetes' name of the pod.
    pub name: String,
    /// Kubernetes' uid of the pod.
    pub uid: String,
    /// Its host ports.
    pub ports: Vec<HostPort>,
    /// Its limits.
    pub bandwidth: Bandwidth,
    /// Its resolver.
    pub resolver: Resolver,
    /// Addresses with prefix lengths that plugins shall assign; they choose unless it is set.
    pub ips: Vec<String>,
    /// The MAC that plugins shall assign; they choose unless it is set.
    pub mac: Option<String>,
}
