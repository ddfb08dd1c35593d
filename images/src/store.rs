//! The store: the images, their leases and pins.
//!
//! The daemon holds one [`Images`]; pulls publish here.
//! Invariants: lists and lookups read memory and wait only for a writer that updates a map; a change is
//! durable before it is visible; content is deleted only when no record names it, no lease holds its image
//! and no pull has pinned it.
//! Not here: network, archives.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::blobs::{Blobs, Part, Temporary, blocking};
use crate::config::ImagesConfig;
use crate::error::Error;
use crate::identity::{Candidate, drop_ambiguous_names};
use crate::image::{FsInfo, Image};
use crate::leases::Leases;
use crate::manifest::PlatformPreference;
use crate::metadata::{Change, LayerRecord, Loaded, Metadata, Preloaded, Record, Sources};
use crate::reference::{Digest, ImageId, ImageRef};
use crate::singleflight::InFlightPulls;
use crate::transfers::{Transfer, TransferCounts, Transfers, UnpackObserver};
use crate::unpack::UnpackerLauncher;

/// The images of one node. Cheap to clone; clones are the same store.
#[derive(Clone)]
pub struct Images {
    pub(crate) inner: Arc<Inner>,
}

/// A layer that is unpacked below `tmp/`.
pub(crate) struct LayerDraft {
    pub(crate) chain: Digest,
    pub(crate) draft: Temporary,
    pub(crate) record: LayerRecord,
}

pub(crate) struct Inner {
    pub(crate) config: ImagesConfig,
    pub(crate) unpackers: Arc<dyn UnpackerLauncher>,
    pub(crate) blobs: Blobs,
    pub(crate) in_flight: InFlightPulls,
    pub(crate) transfers: Transfers,
    pub(crate) metadata: Metadata,
    index: RwLock<Index>,
    /// Held for a whole change: read, commit, publish.
    writer: Mutex<()>,
    /// How many pulls use a blob or a layer now.
    pins: Mutex<HashMap<Digest, usize>>,
    /// Set when records were lost: containers may use content without a record.
    pub(crate) keep_everything: AtomicBool,
    /// Wakes the collector.
    pub(crate) garbage: tokio::sync::Notify,
}

/// The images that have one name: an index may have one of each kind.
#[derive(Debug, Default)]
pub(crate) struct Named {
    wasm: Option<ImageId>,
    linux: Option<ImageId>,
}

impl Named {
    /// The one or two images, WebAssembly first.
    pub(crate) fn ids(&self) -> impl Iterator<Item = &ImageId> {
        self.wasm.iter().chain(&self.linux)
    }
}

/// Everything that lists and lookups need.
#[derive(Default)]
pub(crate) struct Index {
    pub(crate) images: BTreeMap<ImageId, (Record, Arc<Image>)>,
    pub(crate) names: HashMap<String, Named>,
    pub(crate) layers: HashMap<Digest, LayerRecord>,
    /// Layers that are not what was unpacked, and are still there.
    pub(crate) broken: HashSet<Digest>,
    pub(crate) leases: Leases,
    pub(crate) sources: Sources,
    pub(crate) preloaded: HashMap<String, Preloaded>,
}

impl Images {
    /// Opens the store under `config.root`, making it if it is not there; its layers are unpacked by `unpackers`.
    ///
    /// Temporary files are removed; images whose files are missing are dropped, with an error in the log; what is in them is
    /// looked at by [`Images::check_content`]. Unreferenced content stays until the first [`Images::collect`]. Errors: the store is open in another process, is of a newer
    /// version, or the disk fails.
    pub async fn open(
        config: ImagesConfig,
        unpackers: Arc<dyn UnpackerLauncher>,
    ) -> Result<Self, Error> {
        let open = move || Inner::open(config, unpackers);
        let inner = blocking("opening the image store", open).await?;
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// All images, by id.
    pub fn list(&self) -> Vec<Arc<Image>> {
        let index = self.inner.read();
        index
            .images
            .values()
            .filter(|(record, _)| !record.removed)
            .map(|(_, image)| image.clone())
            .collect()
    }

    /// Finds an image by id, tag or digest reference, completed or short; as [`Images::resolve_for`] with the default.
    pub fn resolve(&self, name: &str) -> Option<Arc<Image>> {
        self.resolve_for(name, PlatformPreference::default())
    }

    /// Finds an image by id, tag or digest reference, completed or short. One name of an index may be the name of a
    /// WebAssembly and of a Linux image; the preference decides between them, as in a pull.
    pub fn resolve_for(&self, name: &str, platform: PlatformPreference) -> Option<Arc<Image>> {
        let index = self.inner.read();
        let id = index.find(name, platform)?;
        index
            .images
            .get(&id)
            .filter(|(record, _)| !record.removed)
            .map(|(_, image)| image.clone())
    }

    /// Disk usage of the store. O(1).
    pub fn fs_info(&self) -> FsInfo {
        let ([blobs, layers], inodes_used) = self.inner.blobs.used();
        FsInfo {
            mountpoint: self.inner.blobs.directory().to_owned(),
            used_bytes: blobs + layers,
            layer_bytes: layers,
            inodes_used,
        }
    }

    /// The pulls and imports that are running, oldest first. `name` chooses those of one image, completed or short, or of
    /// one archive; empty for all.
    pub fn transfers(&self, name: &str) -> Vec<Transfer> {
        self.inner.transfers.list(name)
    }

    /// What all transfers have done since the daemon started.
    pub fn transfer_counts(&self) -> TransferCounts {
        self.inner.transfers.counts()
    }

    /// Tells `observer` of each layer that is unpacked from now on, once.
    pub fn observe_unpacking(&self, observer: UnpackObserver) {
        self.inner.transfers.observe(observer);
    }
}

impl Index {
    /// Finds an image by name, hidden ones included.
    pub(crate) fn find(&self, name: &str, platform: PlatformPreference) -> Option<ImageId> {
        if let Ok(id) = name.parse::<ImageId>() {
            return Some(id);
        }
        let reference: ImageRef = name.parse().ok()?;
        let named = self.names.get(&reference.to_string())?;
        // What has no index to choose from is the image for every platform.
        let is_only = |id: &&ImageId| {
            self.images
                .get(id)
                .is_some_and(|(record, _)| record.is_without_index())
        };
        let (wasm, linux) = (named.wasm.as_ref(), named.linux.as_ref());
        let found = match platform {
            PlatformPreference::WasmThenLinux => wasm.or(linux),
            PlatformPreference::Wasm => wasm.or(linux.filter(is_only)),
            PlatformPreference::Linux => linux.or(wasm.filter(is_only)),
        };
        found.cloned()
    }

    /// Makes an image have no names.
    pub(crate) fn drop_names(&mut self, id: &ImageId) {
        self.names.retain(|_, named| {
            for place in [&mut named.wasm, &mut named.linux] {
                *place = place.take().filter(|other| other != id);
            }
            named.wasm.is_some() || named.linux.is_some()
        });
    }

    pub(crate) fn put(&mut self, record: Record, blobs: &Blobs, pinned: &[String]) {
        self.drop_names(&record.id);
        for name in record.tags.iter().chain(&record.digests) {
            let named = self.names.entry(name.clone()).or_default();
            let place = if record.is_wasm() {
                &mut named.wasm
            } else {
                &mut named.linux
            };
            *place = Some(record.id.clone());
        }
        let image = Arc::new(record.image(blobs, pinned));
        self.images.insert(record.id.clone(), (record, image));
    }

    /// Blobs, then layers, that records name: a plain archive has one digest as both.
    pub(crate) fn referenced(&self) -> (HashSet<&Digest>, HashSet<&Digest>) {
        let records = || self.images.values().map(|(record, _)| record);
        let blobs = records().flat_map(Record::stored).collect();
        (blobs, records().flat_map(|record| &record.chains).collect())
    }
}

impl Inner {
    fn open(config: ImagesConfig, unpackers: Arc<dyn UnpackerLauncher>) -> Result<Self, Error> {
        let blobs = Blobs::open(&config.root)?;
        let mut config = config;
        config.complete_pinned();
        let (metadata, loaded) = Metadata::open(&blobs.database())?;
        let mut index = Index::default();
        let change = index.load(&loaded, &blobs, &config.pinned);
        metadata.commit(&change)?;
        let (recorded, _) = index.referenced();
        blobs.mark_synced(recorded.into_iter());
        for layer in index.layers.values() {
            blobs.grow(Part::Layers, layer.usage());
        }
        Ok(Self {
            config,
            unpackers,
            blobs,
            in_flight: InFlightPulls::default(),
            transfers: Transfers::default(),
            metadata,
            index: RwLock::new(index),
            writer: Mutex::default(),
            pins: Mutex::default(),
            keep_everything: AtomicBool::new(loaded.is_partial),
            garbage: tokio::sync::Notify::new(),
        })
    }

    /// True if the unpacked layer is here and came from this blob.
    pub(crate) fn has_layer(&self, chain: &Digest, blob: &Digest) -> bool {
        self.read()
            .layers
            .get(chain)
            .is_some_and(|layer| layer.blob == *blob)
    }

    /// Gives synced drafts of layers their names and records them, at once. Blocking.
    pub(crate) fn store_layers(&self, layers: Vec<LayerDraft>) -> Result<(), Error> {
        let mut put_layers = Vec::with_capacity(layers.len());
        for layer in layers {
            let (chain, usage) = (layer.chain, layer.record.usage());
            let is_ours = self.blobs.commit_layer(layer.draft, &chain, usage)?;
            // A stored layer without a record is as good, and gets a record now.
            if is_ours || !self.read().layers.contains_key(&chain) {
                if !is_ours {
                    self.blobs.grow(Part::Layers, usage);
                }
                put_layers.push((chain, layer.record));
            }
        }
        // Those of a faster pull may not be synced yet.
        self.blobs.sync_layers()?;
        let _writer = self.writer();
        let change = Change {
            put_layers,
            ..Change::default()
        };
        self.metadata.commit(&change)?;
        self.write().layers.extend(change.put_layers);
        Ok(())
    }

    /// Records and publishes an image; its names move here from other images, but not from the image of the other kind
    /// in the same index. An image that is stored already only gets the names. Blocking. Errors: there is no room for its
    /// texts; the disk fails.
    pub(crate) fn publish(&self, candidate: Candidate) -> Result<Arc<Image>, Error> {
        let _writer = self.writer();
        let new = candidate.record.clone();
        self.refuse_broken(&new.chains)?;
        let mut change = Change::default();
        let record = {
            let index = self.read();
            let sources = |blob: &Digest| Some((blob.clone(), index.sources.get(blob)?.clone()));
            change.put_sources = candidate.content.iter().filter_map(sources).collect();
            let known = |id: &ImageId| index.images.get(id).map(|(record, _)| record);
            let record = candidate.assign_id(known)?;
            let others = index.images.values().map(|(other, _)| other);
            let others =
                others.filter(|other| other.id != record.id && !other.is_other_entry(&new));
            change
                .put_images
                .extend(others.filter_map(|other| other.without_names(&new.tags, &new.digests)));
            record
        };
        self.make_room(&record, &new.tenant())?;
        let is_here = |id: &ImageId| self.read().images.contains_key(id);
        change.put_images.retain(|other| is_here(&other.id));
        let id = record.id.clone();
        change.put_images.push(record);
        self.metadata.commit(&change)?;
        let mut index = self.write();
        for record in change.put_images {
            index.put(record, &self.blobs, &self.config.pinned);
        }
        index
            .images
            .get(&id)
            .map(|(_, image)| image.clone())
            .ok_or_else(|| Error::NotInStore {
                name: id.to_string(),
            })
    }

    /// True while nothing may be deleted.
    pub(crate) fn keeps_everything(&self) -> bool {
        self.keep_everything.load(Ordering::Relaxed)
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn writer(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn lock_pins(&self) -> MutexGuard<'_, HashMap<Digest, usize>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index {
    /// Loads the records whose files exist. Returns the change that drops the others.
    fn load(&mut self, loaded: &Loaded, blobs: &Blobs, pinned: &[String]) -> Change {
        let mut change = Change::default();
        self.sources.clone_from(&loaded.sources);
        self.preloaded.clone_from(&loaded.preloaded);
        for (chain, record) in &loaded.layers {
            if blobs.layer(chain).is_dir() {
                self.layers.insert(chain.clone(), record.clone());
            } else {
                change.drop_layers.push(chain.clone());
            }
        }
        for record in &loaded.images {
            let mut record = record.clone();
            if drop_ambiguous_names(&mut record) {
                tracing::warn!(image = %record.id, "an earlier build may have merged several images in one record: its names are dropped, pull them again");
                change.put_images.push(record.clone());
            }
            let lost_blob = record
                .blobs
                .iter()
                .find(|digest| !blobs.blob(digest).is_file());
            let lost_layer = record
                .chains
                .iter()
                .find(|chain| !self.layers.contains_key(chain));
            if let Some(lost) = lost_blob.or(lost_layer) {
                tracing::error!(image = %record.id, %lost, "content of an image is gone: it has to be pulled again");
                change.drop_images.push(record.id.clone());
                change.put_images.retain(|kept| kept.id != record.id);
            } else {
                self.put(record, blobs, pinned);
            }
        }
        change
    }
}
