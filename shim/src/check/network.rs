//! Checks the CNI network, where plugins connect pods; `host` checks the subnet of the built-in one.
//!
//! Called by: `check::examine`. Invariant: files are read, no plugin is executed.
//! Must not know: whether the node forwards.

use coracle_config::{Config, NetworkMode};
use coracle_network::cni::{self, Error, Probe};

use super::Finding;

/// The finding about CNI, where plugins connect pods.
pub(super) fn findings(config: &Config) -> Vec<Finding> {
    let network = &config.network;
    match network.mode {
        NetworkMode::Builtin => Vec::new(),
        NetworkMode::Cni => vec![judge(cni::probe(
            &network.cni_conf_dir,
            &network.cni_bin_dirs,
        ))],
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
    fn a_missing_cni_network_is_found_with_a_remedy() {
        let mut config = Config::default();
        assert_eq!(findings(&config), []);
        config.network.mode = NetworkMode::Cni;
        config.network.cni_conf_dir = PathBuf::from("/nonexistent/net.d");
        let found = findings(&config).remove(0);
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
}
