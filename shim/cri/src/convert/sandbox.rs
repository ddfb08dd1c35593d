//! RunPodSandbox: converts the request into a [`SandboxConfig`].
//!
//! Called by `pods`. Invariant: no value of a config can break a line of a hosts or resolver file, leave a directory,
//! or be silently ignored.
//! Must not know: rendering, containers.

use std::net::IpAddr;

use coracle_lifecycle::{
    Annotations, Dns, Grants, Handler, HttpConfig, NamespaceMode, Namespaces, PodName,
    SandboxConfig, SelinuxOptions, WasmVariant,
};
use coracle_network::{Bandwidth, HostPort, Protocol};
use coracle_proto::runtime::v1 as cri;

use super::annotations::Reader;
use super::{BadRequest, check, diagnosis, egress, http, namespaces, network, security, sysctl};
use crate::policy::{Allowance, HandlerPolicy, Policies};
use coracle_spec::Diagnosis;

/// Linux's HOST_NAME_MAX, in bytes.
const MAX_HOSTNAME_BYTES: usize = 64;

/// The longest resolver entry, in bytes: the longest DNS name.
const MAX_DNS_BYTES: usize = 253;

/// The most entries of each resolver list.
const MAX_DNS_ENTRIES: usize = 32;

const NAMESPACE_OPTIONS: &str = "config.linux.security_context.namespace_options";

/// Reads RunPodSandbox; `handlers` decide what annotations may grant. Errors: [`BadRequest`] that names the first field
/// at fault.
pub(crate) fn sandbox_config(
    request: cri::RunPodSandboxRequest,
    handlers: &Policies,
) -> Result<SandboxConfig, BadRequest> {
    let mut config = check::present("config", request.config)?;
    texts(&config)?;
    let name = name(config.metadata.as_ref())?;
    let requested = request.runtime_handler;
    let handler = known_handler("runtime_handler", handlers, &requested)?;
    let annotated = annotated(&mut config, handler.allowance(&name.namespace))?;
    let mut linux = linux(config.linux)?;
    let context = linux.security_context.take().unwrap_or_default();
    let options = context.namespace_options.as_ref();
    let (namespaces, userns) = namespaces::of_pod(NAMESPACE_OPTIONS, options)?;
    let (handler, handler_name) = handler_of(handler, requested);
    Ok(SandboxConfig {
        ports: ports(&config.port_mappings, &namespaces)?,
        container_ports: container_ports(&config.port_mappings),
        bandwidth: annotated.bandwidth,
        ips: annotated.ips,
        mac: annotated.mac,
        egress: annotated.reach.list,
        is_offline: annotated.reach.is_off,
        is_egress_imposed: annotated.reach.is_imposed,
        wasm_variant: annotated.wasm_variant,
        http: annotated.http,
        diagnosis: annotated.diagnosis,
        annotations: annotated.echoed,
        grants: annotated.grants,
        name,
        hostname: config.hostname,
        log_directory: config.log_directory,
        dns: dns(config.dns_config)?,
        labels: config.labels,
        handler,
        handler_name,
        userns,
        selinux: security_context(&context)?,
        sysctls: sysctl::sysctls(linux.sysctls, &namespaces)?,
        privileged: context.privileged,
        cgroup_parent: linux.cgroup_parent,
        namespaces,
    })
}

fn linux(
    linux: Option<cri::LinuxPodSandboxConfig>,
) -> Result<cri::LinuxPodSandboxConfig, BadRequest> {
    let linux = linux.unwrap_or_default();
    check::path("config.linux.cgroup_parent", &linux.cgroup_parent)?;
    Ok(linux)
}

fn texts(config: &cri::PodSandboxConfig) -> Result<(), BadRequest> {
    if config.windows.is_some() {
        return Err(BadRequest::invalid(
            "config.windows",
            "is set, and this is a Linux node",
        ));
    }
    hostname(&config.hostname)?;
    check::entries("config.labels", &config.labels)?;
    check::absolute_or_empty("config.log_directory", &config.log_directory)
}

/// The results of reading a pod's annotations.
struct Annotated {
    bandwidth: Bandwidth,
    ips: Vec<String>,
    mac: Option<String>,
    reach: egress::Decided,
    wasm_variant: WasmVariant,
    http: HttpConfig,
    diagnosis: Diagnosis,
    echoed: Annotations,
    grants: Grants,
}

fn annotated(
    config: &mut cri::PodSandboxConfig,
    allowance: Allowance<'_>,
) -> Result<Annotated, BadRequest> {
    let reader = Reader::of_pod(config, &allowance)?;
    let (bandwidth, ips) = (network::bandwidth(&reader)?, network::ips(&reader)?);
    let (mac, reach) = (network::mac(&reader)?, egress::egress(&reader, &allowance)?);
    let wasm_variant = reader.wasm_variant();
    let (http, diagnosis) = (http::http(&reader)?, diagnosis::diagnosis(&reader)?);
    let (echoed, grants) = reader.into_parts();
    Ok(Annotated {
        bandwidth,
        ips,
        mac,
        reach,
        wasm_variant,
        http,
        diagnosis,
        echoed,
        grants,
    })
}

fn name(metadata: Option<&cri::PodSandboxMetadata>) -> Result<PodName, BadRequest> {
    let metadata = check::present("config.metadata", metadata)?;
    Ok(PodName {
        name: check::name("config.metadata.name", &metadata.name)?,
        namespace: check::name("config.metadata.namespace", &metadata.namespace)?,
        uid: check::name("config.metadata.uid", &metadata.uid)?,
        attempt: metadata.attempt,
    })
}

/// The handler that `field` names.
pub(super) fn known_handler<'a>(
    field: &str,
    handlers: &'a Policies,
    name: &str,
) -> Result<&'a HandlerPolicy, BadRequest> {
    handlers.find(name).ok_or_else(|| {
        let known: Vec<_> = handlers
            .names()
            .map(|(known, _)| format!("{known:?}"))
            .collect();
        let shown: String = name.chars().take(64).collect();
        BadRequest::invalid(
            field,
            format!("is {shown:?}, known handlers are {}", known.join(", ")),
        )
    })
}

/// The handler of a pod, and the requested name if it is not that of a built-in one.
fn handler_of(handler: &HandlerPolicy, requested: String) -> (Handler, String) {
    match Handler::parse(&requested) {
        Some(built_in) => (built_in, String::new()),
        None => (handler.base, requested),
    }
}

fn hostname(name: &str) -> Result<(), BadRequest> {
    let field = "config.hostname";
    if name.len() > MAX_HOSTNAME_BYTES {
        let problem = format!(
            "is {} bytes long, a host name has at most {MAX_HOSTNAME_BYTES}",
            name.len()
        );
        return Err(BadRequest::invalid(field, problem));
    }
    if !name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
    {
        return Err(BadRequest::invalid(
            field,
            "holds something else than letters, digits, `-`, `.` and `_`",
        ));
    }
    Ok(())
}

fn dns(config: Option<cri::DnsConfig>) -> Result<Dns, BadRequest> {
    let config = config.unwrap_or_default();
    for (list, entries) in [
        ("servers", &config.servers),
        ("searches", &config.searches),
        ("options", &config.options),
    ] {
        let field = format!("config.dns_config.{list}");
        if entries.len() > MAX_DNS_ENTRIES {
            let problem = format!(
                "has {} entries, the limit is {MAX_DNS_ENTRIES}",
                entries.len()
            );
            return Err(BadRequest::invalid(field, problem));
        }
        for (index, entry) in entries.iter().enumerate() {
            check::token(&format!("{field}[{index}]"), entry, MAX_DNS_BYTES)?;
        }
    }
    Ok(Dns {
        servers: config.servers,
        searches: config.searches,
        options: config.options,
    })
}

/// Host ports. A mapping without one only declares a container port. In the node's network there is nothing to map.
fn ports(
    mappings: &[cri::PortMapping],
    namespaces: &Namespaces,
) -> Result<Vec<HostPort>, BadRequest> {
    let mut ports = Vec::new();
    for (index, mapping) in mappings.iter().enumerate() {
        let port = port(&format!("config.port_mappings[{index}]"), mapping)?;
        if namespaces.network != NamespaceMode::Node {
            ports.extend(port);
        }
    }
    Ok(ports)
}

/// The TCP ports that containers declare, with or without a host port.
fn container_ports(mappings: &[cri::PortMapping]) -> Vec<u16> {
    let tcp = mappings
        .iter()
        .filter(|mapping| mapping.protocol == cri::Protocol::Tcp as i32);
    let ports = tcp.filter_map(|mapping| u16::try_from(mapping.container_port).ok());
    ports.filter(|port| *port != 0).collect()
}

fn port(field: &str, mapping: &cri::PortMapping) -> Result<Option<HostPort>, BadRequest> {
    let number = |name: &str, value: i32| {
        let field = format!("{field}.{name}");
        check::within(&field, i64::from(value), 0, 65_535)?;
        u16::try_from(value).map_err(|_| BadRequest::invalid(field, "is not a port"))
    };
    let container_port = number("container_port", mapping.container_port)?;
    let host_port = number("host_port", mapping.host_port)?;
    let protocol = protocol(field, mapping.protocol)?;
    let host_ip = host_ip(field, &mapping.host_ip)?;
    if host_port == 0 {
        return Ok(None);
    }
    if container_port == 0 {
        let problem = format!("is 0, and host port {host_port} is to lead there");
        return Err(BadRequest::invalid(
            format!("{field}.container_port"),
            problem,
        ));
    }
    Ok(Some(HostPort {
        protocol,
        host_port,
        container_port,
        host_ip,
    }))
}

fn protocol(field: &str, value: i32) -> Result<Protocol, BadRequest> {
    match cri::Protocol::try_from(value) {
        Ok(cri::Protocol::Tcp) => Ok(Protocol::Tcp),
        Ok(cri::Protocol::Udp) => Ok(Protocol::Udp),
        Ok(cri::Protocol::Sctp) => Ok(Protocol::Sctp),
        Err(_) => {
            let problem = format!("is {value}, which is not a protocol");
            Err(BadRequest::invalid(format!("{field}.protocol"), problem))
        }
    }
}

/// The address of a host port; `None` for every address of the node, as an empty text or `0.0.0.0` says.
fn host_ip(field: &str, text: &str) -> Result<Option<IpAddr>, BadRequest> {
    if text.is_empty() {
        return Ok(None);
    }
    let ip = text.parse::<IpAddr>().map_err(|_| {
        let shown: String = text.chars().take(64).collect();
        let problem = format!("is {shown:?}, which is not an address");
        BadRequest::invalid(format!("{field}.host_ip"), problem)
    })?;
    Ok(Some(ip).filter(|ip| !ip.is_unspecified()))
}

/// Checks users and profiles of a sandbox. A sandbox runs no program of a user, and each container has a context of its
/// own, so only the SELinux label is used: for the parts that a container leaves out.
fn security_context(
    context: &cri::LinuxSandboxSecurityContext,
) -> Result<Option<SelinuxOptions>, BadRequest> {
    let field = "config.linux.security_context";
    let user = security::user(
        field,
        context.run_as_user.as_ref(),
        context.run_as_group.as_ref(),
        &context.supplemental_groups,
    )?;
    security::group_needs_user(field, &user)?;
    security::groups_policy(field, context.supplemental_groups_policy)?;
    #[allow(deprecated, reason = "older kubelets and crictl still set the path")]
    let old_seccomp = &context.seccomp_profile_path;
    security::seccomp(field, context.seccomp.as_ref(), old_seccomp)?;
    security::apparmor(field, context.apparmor.as_ref(), "")?;
    security::selinux(field, context.selinux_options.as_ref())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use crate::policy::tests::usual;

    fn request() -> cri::RunPodSandboxRequest {
        let metadata = cri::PodSandboxMetadata {
            name: "web".into(),
            uid: "5b1c".into(),
            namespace: "default".into(),
            attempt: 2,
        };
        let config = cri::PodSandboxConfig {
            metadata: Some(metadata),
            hostname: "web".into(),
            log_directory: "/var/log/pods/default_web_5b1c".into(),
            linux: Some(cri::LinuxPodSandboxConfig::default()),
            ..Default::default()
        };
        cri::RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: "coracle-wasm".into(),
        }
    }

    fn changed(
        change: impl FnOnce(&mut cri::PodSandboxConfig),
    ) -> Result<SandboxConfig, BadRequest> {
        let mut request = request();
        change(request.config.as_mut().unwrap());
        made(request)
    }

    fn made(request: cri::RunPodSandboxRequest) -> Result<SandboxConfig, BadRequest> {
        sandbox_config(request, &usual())
    }

    #[test]
    fn a_request_becomes_its_config() {
        let odd = ("io.example/Ключ", "line one\nline two\t\u{0}");
        let config = changed(|c| {
            c.labels.insert("app".into(), " spaced ".into());
            c.annotations.insert(odd.0.into(), odd.1.into());
        })
        .unwrap();
        assert_eq!(config.name.to_string(), "default/web (uid 5b1c, attempt 2)");
        assert_eq!(config.labels["app"], " spaced ");
        assert_eq!(config.annotations.echo()[odd.0], odd.1);
        assert_eq!(config.handler, Handler::Wasm);
        assert_eq!(config.namespaces.network, NamespaceMode::Pod);
    }

    #[test]
    fn missing_fields_are_named() {
        let none = made(cri::RunPodSandboxRequest::default()).unwrap_err();
        assert_eq!(none.to_string(), "config is missing");
        type Change = fn(&mut cri::PodSandboxConfig);
        let cases: [(&str, Change); 4] = [
            ("config.metadata is missing", |c| c.metadata = None),
            ("config.metadata.name is empty", |c| {
                c.metadata.as_mut().unwrap().name.clear()
            }),
            ("config.metadata.namespace is empty", |c| {
                c.metadata.as_mut().unwrap().namespace.clear()
            }),
            ("config.metadata.uid is empty", |c| {
                c.metadata.as_mut().unwrap().uid.clear()
            }),
        ];
        for (want, change) in cases {
            assert_eq!(changed(change).unwrap_err().to_string(), want);
        }
    }

    #[test]
    fn odd_values_are_refused_by_field() {
        type Change = fn(&mut cri::PodSandboxConfig);
        let cases: [(&str, Change); 9] = [
            ("config.hostname", |c| {
                c.hostname = "a\n127.0.0.1 evil".into()
            }),
            ("config.hostname", |c| c.hostname = "x".repeat(65)),
            ("config.log_directory", |c| c.log_directory = "logs".into()),
            ("config.log_directory", |c| {
                c.log_directory = "/var/../etc".into()
            }),
            ("config.windows", |c| c.windows = Some(Default::default())),
            ("config.linux.cgroup_parent", |c| {
                c.linux.as_mut().unwrap().cgroup_parent = "/a/../..".into()
            }),
            ("config.metadata.name", |c| {
                c.metadata.as_mut().unwrap().name = "../x".into()
            }),
            ("config.dns_config.searches[1]", |c| {
                let searches = vec!["good.example".into(), "bad\nnameserver 6.6.6.6".into()];
                c.dns_config = Some(cri::DnsConfig {
                    searches,
                    ..Default::default()
                });
            }),
            ("config.port_mappings[0].host_port", |c| {
                c.port_mappings.push(cri::PortMapping {
                    host_port: 70_000,
                    ..Default::default()
                });
            }),
        ];
        for (field, change) in cases {
            let refused = changed(change).unwrap_err();
            assert_eq!(refused.invalid_field(), Some(field), "{refused}");
        }
    }

    #[test]
    fn host_ports_are_dropped_in_the_nodes_network() {
        let port = cri::PortMapping {
            container_port: 80,
            host_port: 8080,
            ..Default::default()
        };
        let on_pod = changed(|c| c.port_mappings.push(port.clone())).unwrap();
        assert_eq!(on_pod.ports[0].host_port, 8080);
        assert_eq!(on_pod.container_ports, [on_pod.ports[0].container_port]);
        let on_host = changed(|c| {
            c.port_mappings.push(port);
            let options = cri::NamespaceOption {
                network: 2,
                ..Default::default()
            };
            let context = cri::LinuxSandboxSecurityContext {
                namespace_options: Some(options),
                ..Default::default()
            };
            c.linux.as_mut().unwrap().security_context = Some(context);
        });
        let on_host = on_host.unwrap();
        assert_eq!(on_host.namespaces.network, NamespaceMode::Node);
        assert!(on_host.ports.is_empty());
    }

    #[test]
    fn privileges_users_and_parameters_are_converted() {
        let mapping = cri::IdMapping {
            host_id: 1 << 16,
            container_id: 0,
            length: 1 << 16,
        };
        let options = cri::NamespaceOption {
            userns_options: Some(cri::UserNamespace {
                mode: 0,
                uids: vec![mapping],
                gids: vec![mapping],
            }),
            ..Default::default()
        };
        let config = changed(|c| {
            let linux = c.linux.as_mut().unwrap();
            linux
                .sysctls
                .insert("net.ipv4.ip_forward".into(), "1".into());
            linux.security_context = Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(options),
                privileged: true,
                ..Default::default()
            });
        });
        let config = config.unwrap();
        assert!(config.privileged);
        assert_eq!(config.sysctls["net/ipv4/ip_forward"], "1");
        assert_eq!(config.userns.unwrap().gid.outside, 1 << 16);
        let refused = changed(|c| {
            let sysctls = &mut c.linux.as_mut().unwrap().sysctls;
            sysctls.insert("kernel.core_pattern".into(), "|/x".into());
        });
        assert!(matches!(refused, Err(BadRequest::Invalid { .. })));
    }

    #[test]
    fn an_unknown_handler_is_answered_with_the_known_ones() {
        let unknown = cri::RunPodSandboxRequest {
            runtime_handler: "runc".into(),
            ..request()
        };
        let refused = made(unknown).unwrap_err().to_string();
        assert_eq!(
            refused,
            r#"runtime_handler is "runc", known handlers are "", "coracle", "coracle-wasm", "coracle-strict""#
        );
    }
}
