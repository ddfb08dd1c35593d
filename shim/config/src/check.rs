//! Checks every value of the configuration.
//!
//! Called by: [`super::load`], with the merged file; returns a [`Config`] or the first [`Invalid`] value. Invariant:
//! pure; nothing of the node is looked at (`coracle check` does that), so a valid configuration is valid on every node.
//! Must not know: lines and file names; the caller adds them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use super::file::{CgroupFile, ConfigFile, Ipv6, LogFile, NetworkFile, SandboxFile};
use super::subnet::Subnet;
use super::values::{Invalid, MIB, TIB, directory, invalid, plain_absolute, seconds, within};
use super::{
    Cgroup, Config, Log, Network, Sandbox, cdi, egress, exec, handlers, helpers, images, metrics,
    nri, streaming, tracing, wasm,
};

/// Host ids: all of 32 bits but the last one, which the kernel takes for "none".
const HOST_IDS: u64 = u32::MAX as u64;
/// Longest path of a unix socket. Bytes; the kernel's 108 less the final zero.
const SOCKET_PATH_BYTES: usize = 107;

/// Checks every value; the first wrong one is the error.
pub(super) fn check(file: &ConfigFile) -> Result<Config, Invalid> {
    let root = directory("root", &file.root)?;
    let run = directory("run", &file.run)?;
    if root.starts_with(&run) || run.starts_with(&root) {
        return invalid(
            "run",
            format!(
                "is {} and root is {}; neither may lie inside the other",
                run.display(),
                root.display()
            ),
        );
    }
    let network = network(&file.network, &run)?;
    Ok(Config {
        root,
        run,
        socket: socket(&file.socket)?,
        log: log(&file.log)?,
        cgroup: cgroup(&file.cgroup)?,
        network,
        images: images::check(&file.images)?,
        sandbox: sandbox(&file.sandbox)?,
        wasm: wasm::check(&file.wasm)?,
        helpers: helpers::check(&file.helpers)?,
        exec: exec::check(&file.exec)?,
        streaming: streaming::check(&file.streaming)?,
        metrics: metrics::check(&file.metrics)?,
        cdi: cdi::check(&file.cdi)?,
        tracing: tracing::check(&file.tracing)?,
        nri: nri::check(&file.nri, &file.run)?,
        handlers: handlers::check(&file.handlers)?,
    })
}

fn log(file: &LogFile) -> Result<Log, Invalid> {
    let is_part = |c: u8| c.is_ascii_alphanumeric() || b"_:".contains(&c);
    for target in file.targets.keys() {
        if target.is_empty() || !target.bytes().all(is_part) {
            let why = format!(
                "has {target:?}, must be paths of modules such as coracle_network::cni, or names of libraries"
            );
            return invalid("log.targets", why);
        }
    }
    Ok(Log {
        format: file.format,
        level: file.level,
        targets: file.targets.clone(),
    })
}

fn socket(path: &Path) -> Result<PathBuf, Invalid> {
    let key = "socket";
    let Some(plain) = plain_absolute(path) else {
        return invalid(
            key,
            format!("is {path:?}, must be the absolute path of a unix socket without `..`"),
        );
    };
    let length = plain.as_os_str().len();
    if length > SOCKET_PATH_BYTES {
        return invalid(
            key,
            format!("is {length} bytes long, a socket's path has at most {SOCKET_PATH_BYTES}"),
        );
    }
    if plain.ends_with("run/crio/crio.sock") {
        return invalid(
            key,
            format!(
                "is {}, a name by which the kubelet recognises another runtime and takes its stats elsewhere; choose another",
                plain.display()
            ),
        );
    }
    Ok(plain)
}

fn cgroup(file: &CgroupFile) -> Result<Cgroup, Invalid> {
    let parent = &file.pod_parent;
    let slice =
        parent.ends_with(".slice") && parent.len() > ".slice".len() && !parent.contains('/');
    if !slice && plain_absolute(Path::new(parent)).is_none() {
        return invalid(
            "cgroup.pod_parent",
            format!(
                "is {parent:?}, must be a cgroup below / such as /coracle, or a slice such as coracle.slice"
            ),
        );
    }
    let adj = file.keeper_oom_score_adj;
    if !(-1000..=1000).contains(&adj) {
        return invalid(
            "cgroup.keeper_oom_score_adj",
            format!("is {adj}, must be -1000 to 1000"),
        );
    }
    Ok(Cgroup {
        driver: file.driver,
        pod_parent: parent.clone(),
        keeper_oom_score_adj: adj,
    })
}

fn network(file: &NetworkFile, run: &Path) -> Result<Network, Invalid> {
    Ok(Network {
        mode: file.mode,
        subnet: subnet_v4(&file.subnet)?,
        subnet_v6: match (file.subnet_v6.as_str(), file.ipv6) {
            ("", _) => None,
            (text, Ipv6::Auto) => Some(subnet_v6(text)?),
            (text, Ipv6::Off) => {
                let why =
                    format!("is {text:?}, and network.ipv6 is \"off\"; leave one of them out");
                return invalid("network.subnet_v6", why);
            }
        },
        ipv6: file.ipv6,
        masquerade: file.masquerade,
        connections_per_pod: connections(file.connections_per_pod)?,
        denied_node_ports: file
            .denied_node_ports
            .iter()
            .map(|port| (*port, *port))
            .collect(),
        name_servers: name_servers(&file.name_servers)?,
        internal: egress::internal(&file.internal_domains, &file.internal_networks)?,
        nat64_prefixes: egress::nat64_prefixes(&file.nat64_prefixes)?,
        interface_prefix: interface_prefix(&file.interface_prefix)?,
        netns_dir: match file.netns_dir.as_os_str().is_empty() {
            true => run.join("netns"),
            false => directory("network.netns_dir", &file.netns_dir)?,
        },
        cni_conf_dir: directory("network.cni_conf_dir", &file.cni_conf_dir)?,
        cni_bin_dirs: plugin_directories(&file.cni_bin_dirs)?,
        cni_plugin_timeout: seconds("network.cni_plugin_timeout_s", file.cni_plugin_timeout_s)?,
    })
}

fn connections(limit: u64) -> Result<u32, Invalid> {
    let range = 1024..=1 << 24;
    match u32::try_from(limit) {
        Ok(number) if number == 0 || range.contains(&number) => Ok(number),
        _ => invalid(
            "network.connections_per_pod",
            format!(
                "is {limit}, must be 0, or {} to {}",
                range.start(),
                range.end()
            ),
        ),
    }
}

/// Directories that a search path can contain.
fn plugin_directories(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Invalid> {
    let key = "network.cni_bin_dirs";
    if paths.is_empty() {
        return invalid(key, "is empty, must name at least one directory");
    }
    let mut plain = Vec::new();
    for path in paths {
        let path = directory(key, path)?;
        match path.to_str() {
            Some(text) if !text.contains(':') => plain.push(path),
            _ => return invalid(key, format!("holds {path:?}, must be text without `:`")),
        }
    }
    Ok(plain)
}

fn subnet_v4(text: &str) -> Result<Subnet<Ipv4Addr>, Invalid> {
    let key = "network.subnet";
    let subnet: Subnet<Ipv4Addr> = Subnet::parse(text).map_err(|why| Invalid {
        key: key.into(),
        why,
    })?;
    if !(8..=20).contains(&subnet.prefix) {
        return invalid(
            key,
            format!("is {subnet}, must be a /8 to a /20: a full node has 2,500 pods"),
        );
    }
    let first = subnet.base;
    if first.is_loopback()
        || first.is_multicast()
        || first.is_link_local()
        || first.octets()[0] == 0
    {
        return invalid(
            key,
            format!("is {subnet}, whose addresses no pod can have; try 10.88.0.0/16"),
        );
    }
    Ok(subnet)
}

fn subnet_v6(text: &str) -> Result<Subnet<Ipv6Addr>, Invalid> {
    let key = "network.subnet_v6";
    let subnet: Subnet<Ipv6Addr> = Subnet::parse(text).map_err(|why| Invalid {
        key: key.into(),
        why,
    })?;
    if !(16..=116).contains(&subnet.prefix) {
        return invalid(
            key,
            format!("is {subnet}, must be a /16 to a /116: a full node has 2,500 pods"),
        );
    }
    let first = subnet.base;
    if first.is_multicast() || first.is_unicast_link_local() || first.segments()[0] == 0 {
        return invalid(
            key,
            format!("is {subnet}, whose addresses no pod can have; try fd00:10:88::/64"),
        );
    }
    Ok(subnet)
}

fn name_servers(texts: &[String]) -> Result<Vec<IpAddr>, Invalid> {
    let address = |text: &String| {
        let problem = || format!("has {text:?}, which is no address");
        text.parse()
            .or_else(|_| invalid("network.name_servers", problem()))
    };
    texts.iter().map(address).collect()
}

fn interface_prefix(text: &str) -> Result<String, Invalid> {
    let letters = text.bytes().all(|byte| byte.is_ascii_lowercase());
    if letters && (3..=4).contains(&text.len()) {
        return Ok(text.to_owned());
    }
    invalid(
        "network.interface_prefix",
        format!(
            "is {text:?}, must be 3 or 4 letters of a-z: the number of an address follows, and a name has 15 bytes in all"
        ),
    )
}

fn sandbox(file: &SandboxFile) -> Result<Sandbox, Invalid> {
    let count = within("sandbox.id_count", file.id_count, 65_536..=1 << 24)?;
    let pods = within("sandbox.max_pods", file.max_pods, 1..=65_535)?;
    // Where a pod has that many ids, half of all host ids is enough for a node.
    let last = HOST_IDS - count * pods.min(HOST_IDS / count / 2);
    let base = within("sandbox.id_base", file.id_base, 65_536..=last)?;
    // All are below u32::MAX, as `within` has checked.
    Ok(Sandbox {
        id_base: base as u32,
        id_count: count as u32,
        max_pods: pods.min((HOST_IDS - base) / count) as u32,
        pod_logs_dir: directory("sandbox.pod_logs_dir", &file.pod_logs_dir)?,
        create_host_paths: file.create_host_paths,
        device_ownership_from_security_context: file.device_ownership_from_security_context,
        all_requests_bytes: within(
            "sandbox.all_requests_bytes",
            file.all_requests_bytes,
            MIB..=TIB,
        )?,
    })
}
