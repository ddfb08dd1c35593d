//! What this crate's parts count, for metrics.
//!
//! Called by: the lifecycle, for scrapes. Invariant: no file is looked at.
//! Must not know: names of series.

use coracle_lifecycle::HostCounts;

use super::Host;

impl Host {
    /// The numbers as they are now.
    pub fn counts(&self) -> HostCounts {
        let (compiled_bytes, compiled_files) = self.parts.compiler.used();
        let compiler = self.parts.compiler.counts();
        HostCounts {
            log_counts: self.parts.log_counts,
            writable_bytes: self.meter.written_bytes(),
            compiled_bytes,
            compiled_files,
            cache_requests: [
                ("hit", compiler.hits),
                ("miss", compiler.misses.saturating_sub(compiler.refused)),
                ("refused", compiler.refused),
            ],
            compilations: [
                ("ok", compiler.compiled),
                ("invalid", compiler.invalid),
                ("limit", compiler.limited),
                ("failed", compiler.failed),
            ],
            spawner_restarts: self.parts.spawner.restarts(),
            network: self.parts.network.counts(),
            owed_releases: u64::try_from(self.parts.network.cni().owed()).unwrap_or(u64::MAX),
            quarantines: self.layout.quarantines(),
        }
    }
}
