//! Kernel parameters of a pod: which names and values may be written in its namespaces.
//!
//! Called by `sandbox`. Source: the safe and unsafe namespaced sysctls of Kubernetes; names have the syntax of
//! sysctl(8).
//! Invariants: a name becomes a relative path below `/proc/sys` without `.` or `..`, of a parameter in a namespace that
//! the pod owns; a value is one line.
//! Must not know: how values are written.

use std::collections::BTreeMap;

use coracle_lifecycle::{NamespaceMode, Namespaces};

use super::BadRequest;

const FIELD: &str = "config.linux.sysctls";

/// The most parameters of a pod.
const MOST: usize = 64;

/// The longest name, and the longest value, in bytes.
const MAX_BYTES: usize = 256;

/// Parameters of an ipc namespace, in addition to all below `fs/mqueue`.
const OF_IPC: [&str; 8] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
];

/// Checks all of a pod's parameters; the names become paths below `/proc/sys`.
/// Errors: [`BadRequest::Invalid`] with the name.
pub(super) fn sysctls(
    requested: BTreeMap<String, String>,
    namespaces: &Namespaces,
) -> Result<BTreeMap<String, String>, BadRequest> {
    if requested.len() > MOST {
        let problem = format!("has {} entries, the limit is {MOST}", requested.len());
        return Err(BadRequest::invalid(FIELD, problem));
    }
    let mut taken = BTreeMap::new();
    for (name, value) in requested {
        let path = one(&name, &value, namespaces).map_err(|why| {
            let shown: String = name.chars().take(64).collect();
            BadRequest::invalid(FIELD, format!("sets {shown:?}: {why}"))
        })?;
        if taken.insert(path, value).is_some() {
            let problem = "sets one parameter by two names";
            return Err(BadRequest::invalid(FIELD, problem));
        }
    }
    Ok(taken)
}

fn one(name: &str, value: &str, namespaces: &Namespaces) -> Result<String, String> {
    let path = path(name)?;
    // Numbers, lists and ranges of numbers, names of algorithms.
    let good = |b: u8| {
        b.is_ascii_alphanumeric() || matches!(b, b' ' | b'\t' | b',' | b':' | b'.' | b'_' | b'-')
    };
    if value.is_empty() || value.len() > MAX_BYTES || !value.bytes().all(good) {
        return Err("its value is not a number, a word or a list of these".to_owned());
    }
    owned(&path, namespaces)?;
    Ok(path)
}

/// The path of a name. If a `/` comes before the first `.`, slashes separate; otherwise dots do, and a slash stands for
/// a dot, as in `net.ipv4.conf.eth0/100.forwarding`.
fn path(name: &str) -> Result<String, String> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'/' | b'_' | b'-');
    if name.is_empty() || name.len() > MAX_BYTES || !name.bytes().all(good) {
        return Err("that is not the name of a kernel parameter".to_owned());
    }
    let separator = name.chars().find(|c| matches!(c, '.' | '/'));
    let path: String = match separator {
        Some('.') => name.chars().map(swapped).collect(),
        _ => name.to_owned(),
    };
    let odd = |part: &str| part.is_empty() || part.starts_with('.') || part.contains("..");
    if path.split('/').any(odd) {
        return Err("that is not the name of a kernel parameter".to_owned());
    }
    Ok(path)
}

fn swapped(c: char) -> char {
    match c {
        '.' => '/',
        '/' => '.',
        other => other,
    }
}

/// Checks that the parameter belongs to a namespace that the pod owns.
fn owned(path: &str, namespaces: &Namespaces) -> Result<(), String> {
    let (what, mode) = if path.starts_with("net/") {
        ("network", namespaces.network)
    } else if OF_IPC.contains(&path) || path.starts_with("fs/mqueue/") {
        ("ipc", namespaces.ipc)
    } else {
        return Err("it belongs to the node, not to a pod".to_owned());
    };
    if mode == NamespaceMode::Node {
        return Err(format!(
            "it belongs to the {what} namespace, and the pod uses the node's"
        ));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    const OWN: Namespaces = Namespaces {
        network: NamespaceMode::Pod,
        pid: NamespaceMode::Pod,
        ipc: NamespaceMode::Pod,
    };

    fn set(name: &str, value: &str, namespaces: &Namespaces) -> Result<String, BadRequest> {
        let requested = BTreeMap::from([(name.to_owned(), value.to_owned())]);
        let taken = sysctls(requested, namespaces)?;
        let (path, kept) = taken.into_iter().next().unwrap();
        assert_eq!(kept, value);
        Ok(path)
    }

    #[test]
    fn names_become_paths() {
        for (name, value, path) in [
            ("net.ipv4.ip_forward", "1", "net/ipv4/ip_forward"),
            ("net/ipv4/ip_forward", "1", "net/ipv4/ip_forward"),
            (
                "net.ipv4.ip_local_port_range",
                "1024\t65535",
                "net/ipv4/ip_local_port_range",
            ),
            (
                "net.ipv4.conf.eth0/100.forwarding",
                "0",
                "net/ipv4/conf/eth0.100/forwarding",
            ),
            (
                "net/ipv4/conf/eth0.100/forwarding",
                "0",
                "net/ipv4/conf/eth0.100/forwarding",
            ),
            ("kernel.shm_rmid_forced", "1", "kernel/shm_rmid_forced"),
            ("kernel.sem", "250 32000 100 128", "kernel/sem"),
            ("fs.mqueue.msg_max", "-1", "fs/mqueue/msg_max"),
            (
                "net.ipv4.tcp_congestion_control",
                "bbr",
                "net/ipv4/tcp_congestion_control",
            ),
            (
                "net.ipv4.ip_local_reserved_ports",
                "8080,9148-9150",
                "net/ipv4/ip_local_reserved_ports",
            ),
        ] {
            assert_eq!(set(name, value, &OWN).unwrap(), path);
        }
    }

    #[test]
    fn parameters_and_values_of_the_node_are_refused() {
        let good = "kernel.shm_rmid_forced";
        for (name, value) in [
            ("kernel.core_pattern", "|/x"),
            ("kernel/core_pattern", "1"),
            ("kernel.core_pattern", "1"),
            ("kernel.hostname", "x"),
            ("vm.overcommit_memory", "1"),
            ("fs.file-max", "1"),
            ("fs.mqueue", "1"),
            ("net", "1"),
            ("netx.y", "1"),
            ("net.ipv4/../../kernel.core_pattern", "1"),
            ("net/ipv4/../../kernel/core_pattern", "1"),
            ("net/../kernel/core_pattern", "1"),
            ("net/./ipv4/ip_forward", "1"),
            ("net..ipv4", "1"),
            ("/net/ipv4/ip_forward", "1"),
            ("net/ipv4/", "1"),
            ("kernel.shm_rmid_forced+kernel.core_pattern", "1"),
            ("kernel.shm_rmid_forced+..", "1"),
            ("net.ipv4.ip_forward\n", "1"),
            ("net.ipv4.ip_forward\0", "1"),
            ("", "1"),
            (good, "1+kernel.core_pattern=|/x"),
            (good, "1\nkernel.core_pattern=|/x"),
            (good, "1\0"),
            (good, ""),
        ] {
            let refused = set(name, value, &OWN).unwrap_err();
            assert!(matches!(refused, BadRequest::Invalid { .. }), "{refused}");
        }
        assert!(set(good, &"1".repeat(MAX_BYTES + 1), &OWN).is_err());
    }

    #[test]
    fn parameters_of_the_nodes_namespaces_are_refused() {
        let node_net = Namespaces {
            network: NamespaceMode::Node,
            ..OWN
        };
        let node_ipc = Namespaces {
            ipc: NamespaceMode::Node,
            ..OWN
        };
        assert!(set("net.ipv4.ip_forward", "1", &node_net).is_err());
        assert!(set("kernel.msgmax", "1", &node_net).is_ok());
        assert!(set("kernel.msgmax", "1", &node_ipc).is_err());
        assert!(set("fs.mqueue.msg_max", "1", &node_ipc).is_err());
        assert!(set("net.ipv4.ip_forward", "1", &node_ipc).is_ok());
    }

    #[test]
    fn a_parameter_with_two_names_is_refused() {
        let twice = ["net.ipv4.ip_forward", "net/ipv4/ip_forward"];
        let twice = twice.map(|name| (name.to_owned(), "1".to_owned()));
        assert!(sysctls(twice.into(), &OWN).is_err());
    }
}
