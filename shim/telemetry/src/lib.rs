//! What metrics say of this node: the series of containers, and those of the daemon itself.
//!
//! ```text
//! lifecycle (usage, snapshots) --> containers --> Snapshot --+--> CRI messages (coracle-cri)
//!                                                            +--> text --> listener (coracle-metrics)
//! counters of each crate, /proc/self ---------------> daemon --+
//! ```
//! Called by: the CRI services and the shim's `serve`. Invariants: one measurement at a time, and whoever comes within a
//! second of it shares it, so that the cost does not grow with the number of scrapers; clients that read slowly hold a bounded
//! number of measurements together; nothing is measured and nothing is kept when nobody scrapes; no label of the daemon's own series names a pod, a container or an image.
//! Must not know: CRI messages, HTTP.

mod containers;
mod daemon;
mod device;
mod images;
mod process;
mod sending;
mod series;
mod shared;
mod snapshot;

pub use containers::Collector;
pub use daemon::{Build, Daemon};
pub use images::observe_unpacking;
pub use series::{Group, Series};
pub use snapshot::{Object, PodSamples, Sample, Snapshot};

use std::sync::Arc;

use coracle_metrics::Format;
use coracle_metrics::listener::{Chunks, Refusal};

use sending::Sending;

/// The path of the containers' series, as the kubelet calls it.
const CONTAINERS: &str = "/metrics/cadvisor";
/// The path of the daemon's own series.
const OWN: &str = "/metrics";

/// The paths of all series.
pub const PATHS: [&str; 2] = [OWN, CONTAINERS];

/// Everything that a scrape can get.
#[derive(Debug)]
pub struct Scrapes {
    containers: Arc<Collector>,
    daemon: Daemon,
    sending: Sending,
}

impl Scrapes {
    /// The series of containers, and the daemon's own.
    #[must_use]
    pub fn new(containers: Arc<Collector>, daemon: Daemon) -> Scrapes {
        Scrapes {
            containers,
            daemon,
            sending: Sending::default(),
        }
    }

    /// The text at one of [`PATHS`]. Errors: it cannot be measured; too many older ones are still being sent.
    pub async fn text(&self, path: &'static str, format: Format) -> Result<Chunks, Refusal> {
        if path == OWN {
            return Ok(self.daemon.text(format));
        }
        let snapshot = self.sending.admit(&self.containers).await?;
        Ok(snapshot::text(snapshot, format))
    }
}
