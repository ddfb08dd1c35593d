//! The arguments that plugins get for a pod: `CNI_ARGS`, and those of the capabilities that they declare.
//!
//! Called by: [`super::Cni::plan`], before anything is executed. Pure.
//! Source: CNI conventions, "Dynamic Plugin specific fields" and "CNI_ARGS"; the Kubernetes names are kubelet's own.
//! Invariant: no text of a user can end a field and begin another.
//! Not here: which plugin declares which capability.

use serde_json::{Map, Value, json};

use super::super::config::{Bandwidth, HostPort, NetworkConfig, Protocol};
use super::error::Error;

/// Longest name that is passed on, bytes: the longest DNS name.
const MAX_NAME: usize = 253;
/// The least burst, bits: one GSO segment (64 KiB); with less, no packet would pass.
const LEAST_BURST: u64 = 8 << 16;

/// `CNI_ARGS` of a pod. Errors: [`Error::InvalidName`].
pub fn args(config: &NetworkConfig) -> Result<String, Error> {
    let named = [
        ("K8S_POD_NAMESPACE", "its namespace", &config.namespace),
        ("K8S_POD_NAME", "its name", &config.name),
        ("K8S_POD_INFRA_CONTAINER_ID", "its id", &config.pod),
        ("K8S_POD_UID", "its uid", &config.uid),
    ];
    let mut text = "IgnoreUnknown=1".to_owned();
    for (key, what, value) in named {
        let is_usual =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':');
        if value.len() > MAX_NAME || !value.bytes().all(is_usual) {
            return Err(Error::InvalidName {
                pod: config.pod.clone(),
                what,
                value: value.chars().take(80).collect(),
            });
        }
        text.push_str(&format!(";{key}={value}"));
    }
    Ok(text)
}

/// Arguments by capability; a capability that the pod does not need is absent.
pub fn capabilities(config: &NetworkConfig) -> Map<String, Value> {
    let mut known = Map::new();
    if !config.ports.is_empty() {
        let ports: Vec<Value> = config.ports.iter().map(port).collect();
        known.insert("portMappings".to_owned(), json!(ports));
    }
    if let Some(limits) = bandwidth(config.bandwidth) {
        known.insert("bandwidth".to_owned(), limits);
    }
    let resolver = &config.resolver;
    if !(resolver.servers.is_empty() && resolver.searches.is_empty() && resolver.options.is_empty())
    {
        known.insert(
            "dns".to_owned(),
            json!({
                "servers": resolver.servers,
                "searches": resolver.searches,
                "options": resolver.options,
            }),
        );
    }
    if !config.ips.is_empty() {
        known.insert("ips".to_owned(), json!(config.ips));
    }
    if let Some(mac) = &config.mac {
        known.insert("mac".to_owned(), json!(mac));
    }
    known
}

fn port(port: &HostPort) -> Value {
    let protocol = match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    json!({
        "hostPort": port.host_port,
        "containerPort": port.container_port,
        "protocol": protocol,
        "hostIP": port.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
    })
}

/// Rates in bits a second, bursts in bits: one second's worth, at most what the plugin's 32 bits hold.
fn bandwidth(limits: Bandwidth) -> Option<Value> {
    let mut arguments = Map::new();
    for (way, rate) in [("ingress", limits.ingress), ("egress", limits.egress)] {
        if let Some(rate) = rate {
            let burst = rate.clamp(LEAST_BURST, u64::from(u32::MAX));
            arguments.insert(format!("{way}Rate"), json!(rate));
            arguments.insert(format!("{way}Burst"), json!(burst));
        }
    }
    (!arguments.is_empty()).then_some(Value::Object(arguments))
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]
mod tests {
    use super::super::super::config::Resolver;
    use super::*;

    fn config() -> NetworkConfig {
        NetworkConfig {
            pod: "ab".repeat(32),
            namespace: "kube-system".into(),
            name: "web-0.a_b".into(),
            uid: "0f:1".into(),
            ..NetworkConfig::default()
        }
    }

    #[test]
    fn a_pod_is_named_as_kubernetes_plugins_expect() {
        let expected = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=web-0.a_b;K8S_POD_INFRA_CONTAINER_ID={};\
             K8S_POD_UID=0f:1",
            "ab".repeat(32)
        );
        assert_eq!(args(&config()).unwrap(), expected);
    }

    #[test]
    fn refuses_names_that_would_add_fields_to_cni_args() {
        let long = "a".repeat(254);
        for bad in [
            "a;K8S_POD_NAME=b;IgnoreUnknown=1",
            "a\nb",
            "a b",
            "a=b",
            "\u{e9}",
            "a\0",
            "$(x)",
            &long,
        ] {
            for field in 0..3 {
                let mut config = config();
                *[&mut config.name, &mut config.namespace, &mut config.uid][field] = bad.to_owned();
                assert!(
                    matches!(args(&config), Err(Error::InvalidName { .. })),
                    "{bad:?}"
                );
            }
        }
    }

    #[test]
    fn capability_arguments_follow_the_pods_configuration() {
        assert!(capabilities(&config()).is_empty());
        let config = NetworkConfig {
            ports: vec![
                HostPort {
                    protocol: Protocol::Udp,
                    host_port: 53,
                    container_port: 5353,
                    host_ip: Some("::1".parse().unwrap()),
                },
                HostPort {
                    protocol: Protocol::Tcp,
                    host_port: 80,
                    container_port: 8080,
                    host_ip: None,
                },
            ],
            bandwidth: Bandwidth {
                ingress: Some(1_000),
                egress: Some(1 << 40),
            },
            resolver: Resolver {
                servers: vec!["10.0.0.10".into()],
                ..Resolver::default()
            },
            ips: vec!["10.1.2.3/24".into()],
            mac: Some("02:00:00:00:00:01".into()),
            ..config()
        };
        let expected = json!({
            "portMappings": [
                {"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "::1"},
                {"hostPort": 80, "containerPort": 8080, "protocol": "tcp", "hostIP": ""},
            ],
            "bandwidth": {
                "ingressRate": 1_000, "ingressBurst": 524_288, "egressRate": 1_u64 << 40, "egressBurst": u32::MAX,
            },
            "dns": {"servers": ["10.0.0.10"], "searches": [], "options": []},
            "ips": ["10.1.2.3/24"],
            "mac": "02:00:00:00:00:01",
        });
        assert_eq!(Value::Object(capabilities(&config)), expected);
    }
}
