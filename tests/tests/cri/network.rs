//! The built-in network through CRI: host ports, two families or one, egress lists, and that all of it goes again.
//!
//! Rules and ways of packets have their tests beside the code, on nodes of their own; here the node is this machine.

mod egress;
mod families;
mod forged;
pub mod outside;
mod ports;
mod sctp;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::daemon::Daemon;

use crate::linux::shell::{self, sh};
use crate::site::Pod;

/// Runs a web server in a new pod of this configuration; it answers with the pod's name.
async fn web(daemon: &Daemon, config: cri::PodSandboxConfig) -> Pod {
    let name = config.metadata.as_ref().unwrap().name.clone();
    let pod = Pod::run_config(daemon, config).await;
    let script =
        format!("echo {name} > /tmp/index.html; httpd -p 80 -h /tmp; echo ready; exec sleep 1000");
    pod.start(&held("web", &script)).await;
    pod.wait_log(daemon, "web", "ready").await;
    pod
}

/// A container that runs a script without raw sockets: the only kind in a pod that lists what it may reach.
fn held(name: &str, script: &str) -> cri::ContainerConfig {
    let mut config = sh(name, script);
    shell::security(&mut config).capabilities = Some(cri::Capability {
        drop_capabilities: vec!["NET_RAW".into()],
        ..Default::default()
    });
    config
}

/// A mapping of a port of the node to the pod's port 80.
pub fn mapping(host_port: i32, host_ip: &str) -> cri::PortMapping {
    cri::PortMapping {
        protocol: cri::Protocol::Tcp as i32,
        container_port: 80,
        host_port,
        host_ip: host_ip.to_owned(),
    }
}

/// A pod's configuration with these port mappings.
pub fn with_ports(
    daemon: &Daemon,
    name: &str,
    ports: Vec<cri::PortMapping>,
) -> cri::PodSandboxConfig {
    cri::PodSandboxConfig {
        port_mappings: ports,
        ..daemon.pod(name)
    }
}

/// The first of twenty ports of the node that no other test of this machine uses now.
pub fn free_ports(daemon: &Daemon) -> i32 {
    20_000 + i32::from(outside::number(daemon)) * 20
}

/// The addresses of a pod, first and additional ones.
pub async fn addresses(pod: &Pod) -> Vec<String> {
    let network = pod.cri.pod_status(&pod.id).await.unwrap().network.unwrap();
    let others = network.additional_ips.into_iter().map(|ip| ip.ip);
    std::iter::once(network.ip).chain(others).collect()
}
