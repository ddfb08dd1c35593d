//! Checks what connects pods, and the CNI network where plugins do; `host` checks the subnet of the built-in one.
//!
//! Called by: `check::examine`; the admin service for its warning. Invariant: files are read, no plugin is executed.
//! Must not know: whether the node forwards.

use coracle_config::{Config, NetworkMode};
use coracle_network::cni::{self, Error, Probe};
use coracle_network::{Choice, Provider};

use super::Finding;

/// The subject of findings about the mode.
const SUBJECT: &str = "network";
/// The subject of the finding about addresses that pods send under.
const SOURCES: &str = "pods' addresses";

/// The subject of the finding about the node's table of tracked connections.
const CONNECTIONS: &str = "pods' connections";

/// The findings about what connects pods.
pub(super) fn findings(config: &Config) -> Vec<Finding> {
    let network = &config.network;
    match mode(config) {
        Ok((Provider::Cni, decided)) => vec![
            decided,
            judge(cni::probe(&network.cni_conf_dir, &network.cni_bin_dirs)),
        ],
        Ok((Provider::Builtin, decided)) => {
            let decided = match unused(config) {
                Some((found, remedy)) => Finding::warning(SUBJECT, found, remedy),
                None => decided,
            };
            let limit = network.connections_per_pod;
            vec![
                decided,
                sources(coracle_network::can_check_sources()),
                connections(limit, coracle_network::can_count_connections()),
            ]
        }
        Err(error) => vec![Finding::missing(
            SUBJECT,
            coracle_spec::error::chain(&error),
            "set network.mode to \"builtin\" or \"cni\"",
        )],
    }
}

/// Whether the built-in network connects new pods, as far as is known.
pub(super) fn is_builtin(config: &Config) -> bool {
    matches!(mode(config), Ok((Provider::Builtin, _)))
}

/// What connects new pods, and the finding that says so. Errors: what was decided cannot be read.
fn mode(config: &Config) -> Result<(Provider, Finding), coracle_network::Error> {
    let ok = |provider: Provider, why: &str| {
        let found = format!("{}{why}", provider.name());
        (provider, Finding::ok(SUBJECT, found))
    };
    let found = cni::first_configuration(&config.network.cni_conf_dir);
    Ok(match (config.network.mode, found) {
        (NetworkMode::Builtin, _) => ok(Provider::Builtin, ""),
        (NetworkMode::Cni, _) => ok(Provider::Cni, ""),
        (NetworkMode::Auto, found) => match (Choice::peek(&config.root)?, found) {
            (Some(provider), _) => ok(provider, ", as decided (auto)"),
            (None, Some(_)) => ok(Provider::Cni, ", as a CNI configuration is there (auto)"),
            (None, None) => ok(
                Provider::Builtin,
                ", unless a CNI configuration is there before the first pod (auto)",
            ),
        },
    })
}

/// That the network which the cluster has put on this node connects no pods, and what to do.
pub fn unused(config: &Config) -> Option<(String, String)> {
    let network = &config.network;
    let file = cni::first_configuration(&network.cni_conf_dir)?;
    let remedy = match network.mode {
        NetworkMode::Cni => return None,
        NetworkMode::Builtin => "in a cluster set network.mode = \"cni\"".to_owned(),
        NetworkMode::Auto => match Choice::peek(&config.root) {
            Ok(Some(Provider::Builtin)) => format!(
                "that was decided with the first pod: drain the node, remove {}/network-mode and restart, or set \
                 network.mode = \"cni\"",
                config.root.display()
            ),
            _ => return None,
        },
    };
    let found = format!(
        "pods use the built-in network, which other nodes do not know, and {} is a CNI configuration",
        file.display()
    );
    Some((found, remedy))
}

/// Whether a pod is kept from sending under another's address.
fn sources(tried: Result<(), coracle_network::Error>) -> Finding {
    match tried {
        Ok(()) => Finding::ok(
            SOURCES,
            "nobody else sends under them: tried the rule (nftables, fib)",
        ),
        Err(error) => Finding::warning(
            SOURCES,
            format!(
                "by IPv6 any pod can send under them, by IPv4 only rp_filter prevents it: {}",
                coracle_spec::error::chain(&error)
            ),
            "modprobe nft_fib_inet, or boot a kernel with CONFIG_NFT_FIB_INET",
        ),
    }
}

/// Whether one pod is kept from filling the node's table of connections.
fn connections(limit: u32, tried: Result<bool, coracle_network::Error>) -> Finding {
    match tried {
        _ if limit == 0 => Finding::warning(
            CONNECTIONS,
            "one pod can fill the node's table of them: network.connections_per_pod is 0",
            "set network.connections_per_pod, unless something else bounds them",
        ),
        Ok(true) => Finding::ok(
            CONNECTIONS,
            format!("at most {limit} a pod: tried the rule (nftables, connlimit)"),
        ),
        Ok(false) => Finding::ok(CONNECTIONS, "this kernel tracks none, as yet"),
        Err(error) => Finding::warning(
            CONNECTIONS,
            format!(
                "one pod can fill the node's table of them, as this kernel cannot count them: {}",
                coracle_spec::error::chain(&error)
            ),
            "modprobe nft_connlimit, or boot a kernel with CONFIG_NFT_CONNLIMIT, and restart coracle",
        ),
    }
}

fn judge(seen: Result<Probe, Error>) -> Finding {
    let subject = "CNI network";
    match seen {
        Ok(seen) => Finding::ok(
            subject,
            format!(
                "{}, version {}, by {}",
                seen.name,
                seen.version,
                seen.plugins.join(" ")
            ),
        ),
        Err(error @ Error::NoPlugin { .. }) => Finding::missing(
            subject,
            error.to_string(),
            "install the plugin (Debian: containernetworking-plugins), or name its directory in network.cni_bin_dirs",
        ),
        Err(error) => Finding::missing(
            subject,
            error.to_string(),
            "install the cluster's network, or set network.mode to \"builtin\"",
        ),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::check::Level;

    #[test]
    fn a_kernel_that_cannot_check_sources_is_warned_of() {
        let nowhere = std::io::Error::from_raw_os_error(libc::ENOENT);
        let error = coracle_network::Error::Io {
            operation: "add a rule to chain",
            object: "from_pods".to_owned(),
            source: nowhere,
        };
        let found = sources(Err(error));
        assert_eq!(found.level, Level::Warning);
        assert!(
            found.found.contains("IPv6") && found.found.contains("from_pods"),
            "{found:?}"
        );
        assert!(
            found
                .remedy
                .is_some_and(|remedy| remedy.contains("nft_fib_inet"))
        );
        assert_eq!(sources(Ok(())).level, Level::Ok);
    }

    #[test]
    fn a_kernel_that_cannot_count_connections_is_warned_of() {
        let error = coracle_network::Error::Io {
            operation: "add a rule to chain",
            object: "arriving".to_owned(),
            source: std::io::Error::from_raw_os_error(libc::ENOENT),
        };
        let found = connections(16_384, Err(error));
        assert_eq!(found.level, Level::Warning);
        assert!(found.found.contains("arriving"), "{found:?}");
        let remedy = found.remedy.unwrap_or_default();
        assert!(remedy.contains("nft_connlimit"), "{remedy}");
        let found = connections(16_384, Ok(true));
        assert!(
            found.level == Level::Ok && found.found.contains("16384"),
            "{found:?}"
        );
        assert_eq!(connections(0, Ok(true)).level, Level::Warning);
        assert_eq!(connections(1, Ok(false)).level, Level::Ok);
    }

    #[test]
    fn a_missing_cni_network_is_found_with_a_remedy() {
        let mut config = Config::default();
        config.network.cni_conf_dir = PathBuf::from("/nonexistent/net.d");
        let found = findings(&config);
        assert_eq!(found[0], Finding::ok(SUBJECT, "builtin"));
        let subjects: Vec<_> = found[1..].iter().map(|finding| finding.subject).collect();
        assert_eq!(subjects, [SOURCES, CONNECTIONS]);
        config.network.mode = NetworkMode::Cni;
        let found = findings(&config).remove(1);
        assert_eq!(found.level, Level::Missing);
        assert!(
            found.found.contains("/nonexistent/net.d"),
            "{}",
            found.found
        );
        assert!(found.remedy.unwrap().contains("builtin"));

        let refused = cni::probe(Path::new("/proc/self/fdinfo"), &[]).unwrap_err();
        assert_eq!(judge(Err(refused)).level, Level::Missing);
        let seen = Probe {
            name: "cbr0".into(),
            version: "1.0.0",
            plugins: vec!["bridge".into(), "portmap".into()],
        };
        let found = judge(Ok(seen));
        assert_eq!(
            (found.level, found.found.as_str()),
            (Level::Ok, "cbr0, version 1.0.0, by bridge portmap")
        );
    }

    #[test]
    fn a_network_of_the_cluster_that_pods_do_not_use_is_warned_of() {
        let root = std::env::temp_dir().join(format!("coracle-check-{}", std::process::id()));
        std::fs::create_dir_all(root.join("net.d")).unwrap();
        std::fs::write(root.join("net.d/10-cluster.conflist"), "{}").unwrap();
        let mut config = Config {
            root: root.clone(),
            ..Config::default()
        };
        config.network.cni_conf_dir = root.join("net.d");
        let found = findings(&config).remove(0);
        assert_eq!(found.level, Level::Warning);
        assert!(found.found.contains("10-cluster.conflist"), "{found:?}");
        assert!(found.remedy.unwrap().contains("\"cni\""));
        config.network.mode = NetworkMode::Auto;
        assert_eq!(unused(&config), None);
        assert!(findings(&config).remove(0).found.starts_with("cni"));
        // It came too late.
        std::fs::write(root.join("network-mode"), "builtin\n").unwrap();
        let found = findings(&config).remove(0);
        assert_eq!(found.level, Level::Warning);
        assert!(found.remedy.unwrap().contains("network-mode"));
        std::fs::write(root.join("network-mode"), "?").unwrap();
        assert_eq!(findings(&config).remove(0).level, Level::Missing);
        std::fs::remove_dir_all(root).unwrap();
    }
}
