//! Pod networks by CNI plugins: Debian's own on a bridge, and scripts that fail in every way that plugins do.
//!
//! Everything stays on the machine: bridges and addresses are the scratch's own, nothing is masqueraded.

mod crashes;
mod failing_plugins;
mod network_ready;
mod plugins;

use coracle_tests::daemon::{Daemon, Options};

use crate::site::{self, Pod};

/// Lets pods choose their addresses.
const CHOOSE: &str = "[handlers.coracle]\nannotations = [\"cni.coracle.dev/*\"]\n";

/// A daemon whose pods plugins connect, each given `limit_s` seconds; by Debian's bridge unless the test says else.
async fn daemon(limit_s: u64) -> Daemon {
    let options = Options {
        cni: Some(limit_s),
        config: CHOOSE.to_owned(),
        ..Options::default()
    };
    site::daemon_with(options).await
}

/// One with the scripted plugins `one` and `two`.
async fn scripted(limit_s: u64, version: &str) -> Daemon {
    let daemon = daemon(limit_s).await;
    daemon.cni().script(version, &["one", "two"]).unwrap();
    daemon
}

/// Stops and removes a pod.
async fn end(pod: &Pod) {
    pod.cri.stop_pod(&pod.id).await.unwrap();
    pod.cri.remove_pod(&pod.id).await.unwrap();
}
