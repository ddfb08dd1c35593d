//! What metrics say of this node: the series of containers, and those of the daemon itself.
//!
//! ```text
//! lifecycle (usage, snapshots) --> containers --> Snapshot --+--> CRI messages (coracle-cri)
//!                                                            +--> text --> listener (coracle-metrics)
//! counters of each crate, /proc/self ---------------> daemon --+
//! ```
//! Called by: the CRI services and the shim's `serve`. Invariants: one measurement at a time, and whoever comes within a
//! second of it shares it, so that the cost does not grow with the number of scrapers; nothing is measured and nothing is
//! kept when nobody scrapes; no label of the daemon's own series names a pod, a container or an image.
//! Must not know: CRI messages, HTTP.

mod containers;
mod daemon;
mod device;
mod process;
mod series;
mod shared;
mod snapshot;

pub use containers::Collector;
pub use daemon::{Build, Daemon};
pub use series::{Group, Series};
pub use snapshot::{Object, PodSamples, Sample, Snapshot};

use std::sync::Arc;

use coracle_metrics::Format;
use coracle_metrics::listener::Chunks;

/// The path of the containers' series, as the kubelet calls it.
const CONTAINERS: &str = "/metrics/cadvisor";
/// The path of the daemon's own series.
const OWN: &str = "/metrics";

/// The paths of all series.
pub const PATHS: [&str; 2] = [OWN, CONTAINERS];

/// Everything that a scrape can get.
#[derive(Debug)]
pub struct Scrapes {
    /// The series of containers.
    pub containers: Arc<Collector>,
    /// The daemon's own.
    pub daemon: Daemon,
}

impl Scrapes {
    /// The text at one of [`PATHS`]. Errors: a reason, for the client.
    pub async fn text(&self, path: &'static str, format: Format) -> Result<Chunks, String> {
        if path == OWN {
            return Ok(self.daemon.text(format));
        }
        let snapshot = self.containers.snapshot().await;
        let snapshot = snapshot.map_err(|error| error.chain())?;
        Ok(snapshot::text(snapshot, format))
    }
}
