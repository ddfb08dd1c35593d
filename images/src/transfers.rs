//! Pulls and imports that are running: how far each is, for whoever watches, and how many bytes all of them have received.
//!
//! A pull begins its [`Progress`] here and updates it; it ends when the pull is dropped. The daemon lists them.
//! Invariants: nothing here decides anything; looking costs no pull anything; numbers only say what was, and a blob that
//! was transferred twice counts twice.
//! Not here: bars, protocols.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::reference::ImageRef;

/// How often a transfer that takes long is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// A pull or an import that is running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// The first name that the image gets, completed.
    pub reference: String,
    /// The archive that it comes from; `None` for a registry.
    pub archive: Option<String>,
    /// Bytes that have come of its config and layers. More than `total_bytes` if some came twice.
    pub received_bytes: u64,
    /// Bytes of config and layers that are known to be needed; 0 as long as none are.
    pub total_bytes: u64,
    /// Layers that have to be unpacked; 0 as long as that is not known.
    pub layers: u32,
    /// How many of them are.
    pub unpacked_layers: u32,
    /// How long it has run.
    pub elapsed: Duration,
}

/// The running transfers of a store.
#[derive(Debug, Default)]
pub(crate) struct Transfers {
    running: Mutex<Vec<Weak<Progress>>>,
    from_registries: AtomicU64,
    from_mirrors: AtomicU64,
    from_archives: AtomicU64,
    unpacked_layers: AtomicU64,
    reused_layers: AtomicU64,
    observer: OnceLock<UnpackObserver>,
}

/// Learns how long a layer took to unpack. It must not block.
pub type UnpackObserver = fn(Duration);

/// What all transfers of a store have done since the daemon started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TransferCounts {
    /// Bytes of configs and layers that have come from registries.
    pub from_registries: u64,
    /// The same, from mirrors of them.
    pub from_mirrors: u64,
    /// The same, from archives.
    pub from_archives: u64,
    /// Layers of images that were unpacked.
    pub unpacked_layers: u64,
    /// Layers of images that were here already.
    pub reused_layers: u64,
}

/// Where bytes of a transfer come from, if it is no archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Host {
    /// The registry, or an archive.
    Own,
    /// A mirror of the registry.
    Mirror,
}

impl Transfers {
    /// Begins one, from a registry if there is no `archive`; it ends when the last handle to it is dropped.
    pub(crate) fn begin(&self, reference: String, archive: Option<String>) -> Arc<Progress> {
        let progress = Arc::new(Progress {
            reference,
            archive,
            began: Instant::now(),
            received: AtomicU64::new(0),
            total: AtomicU64::new(0),
            layers: AtomicU32::new(0),
            unpacked: AtomicU32::new(0),
        });
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|transfer| transfer.strong_count() > 0);
        running.push(Arc::downgrade(&progress));
        progress
    }

    /// Counts bytes that have come.
    pub(crate) fn count(&self, progress: &Progress, host: Host, bytes: u64) {
        progress.received.fetch_add(bytes, Ordering::Relaxed);
        let all = match (&progress.archive, host) {
            (Some(_), _) => &self.from_archives,
            (None, Host::Own) => &self.from_registries,
            (None, Host::Mirror) => &self.from_mirrors,
        };
        all.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Of the layers of an image, so many were here already.
    pub(crate) fn reuse_layers(&self, count: usize) {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.reused_layers.fetch_add(count, Ordering::Relaxed);
    }

    /// A layer was unpacked.
    pub(crate) fn unpacked(&self, took: Duration) {
        self.unpacked_layers.fetch_add(1, Ordering::Relaxed);
        if let Some(observer) = self.observer.get() {
            observer(took);
        }
    }

    /// The running ones, oldest first, of one image or archive; empty for all.
    pub(crate) fn list(&self, name: &str) -> Vec<Transfer> {
        let completed = name.parse::<ImageRef>().map(|name| name.to_string());
        let completed = completed.unwrap_or_default();
        let fits = |transfer: &Transfer| {
            name.is_empty()
                || transfer.reference == completed
                || transfer.archive.as_deref() == Some(name)
        };
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let running = running.iter().filter_map(Weak::upgrade);
        running
            .map(|transfer| transfer.now())
            .filter(fits)
            .collect()
    }

    /// What all of them have done.
    pub(crate) fn counts(&self) -> TransferCounts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TransferCounts {
            from_registries: of(&self.from_registries),
            from_mirrors: of(&self.from_mirrors),
            from_archives: of(&self.from_archives),
            unpacked_layers: of(&self.unpacked_layers),
            reused_layers: of(&self.reused_layers),
        }
    }

    /// Tells `observer` of each layer that is unpacked from now on, once.
    pub(crate) fn observe(&self, observer: UnpackObserver) {
        let _ = self.observer.set(observer);
    }
}

/// How far one transfer is.
#[derive(Debug)]
pub(crate) struct Progress {
    reference: String,
    archive: Option<String>,
    began: Instant,
    received: AtomicU64,
    total: AtomicU64,
    layers: AtomicU32,
    unpacked: AtomicU32,
}

impl Progress {
    /// Bytes of blobs that have come.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// A blob of this size is needed.
    pub(crate) fn expect_bytes(&self, bytes: u64) {
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A blob of this size was expected, and need not come.
    pub(crate) fn need_not(&self, bytes: u64) {
        self.total.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// As many layers have to be unpacked.
    pub(crate) fn expect_layers(&self, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.layers.store(count, Ordering::Relaxed);
    }

    /// One of them is.
    pub(crate) fn layer_is_unpacked(&self) {
        self.unpacked.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits for the transfer, and logs now and then how far it is.
    pub(crate) async fn logged<T>(&self, transfer: impl Future<Output = T>) -> T {
        let mut transfer = std::pin::pin!(transfer);
        loop {
            if let Ok(done) = tokio::time::timeout(LOG_INTERVAL, &mut transfer).await {
                return done;
            }
            let now = self.now();
            tracing::info!(
                reference = now.reference,
                bytes = now.received_bytes,
                total_bytes = now.total_bytes,
                layers = now.layers,
                unpacked_layers = now.unpacked_layers,
                seconds = now.elapsed.as_secs(),
                "still fetching an image"
            );
        }
    }

    fn now(&self) -> Transfer {
        Transfer {
            reference: self.reference.clone(),
            archive: self.archive.clone(),
            received_bytes: self.received(),
            total_bytes: self.total.load(Ordering::Relaxed),
            layers: self.layers.load(Ordering::Relaxed),
            unpacked_layers: self.unpacked.load(Ordering::Relaxed),
            elapsed: self.began.elapsed(),
        }
    }
}
