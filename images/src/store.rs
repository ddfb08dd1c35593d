//! The store: which images there are, who uses them, what may be deleted.
//!
//! Place in the flow: [`Images`] is what the daemon holds; pulls publish here.
//! Invariants: lists and lookups read memory and wait for nobody but a writer that is updating a map; a change is
//! durable before it is visible; content is deleted only when no record names it, no lease holds its image
//! and no pull has pinned it.
//! Not here: network, archives.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::blobs::{Blobs, blocking};
use crate::config::ImagesConfig;
use crate::error::Error;
use crate::flight::{self, Flights, PullRequest};
use crate::image::{FsInfo, Image};
use crate::metadata::{Change, LayerRecord, Loaded, Metadata, Record};
use crate::reference::{Digest, ImageId, ImageRef};

/// The images of one node. Cheap to clone; clones are the same store.
#[derive(Clone)]
pub struct Images {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: ImagesConfig,
    pub(crate) blobs: Blobs,
    pub(crate) flights: Flights,
    pub(crate) metadata: Metadata,
    index: RwLock<Index>,
    /// Held over a whole change: read, commit, show.
    writer: Mutex<()>,
    /// How many pulls use a blob or a layer now.
    pins: Mutex<HashMap<Digest, usize>>,
    /// Records were lost: content without a record may be somebody's.
    pub(crate) keep_everything: bool,
}

/// Everything that lists and lookups need.
#[derive(Default)]
pub(crate) struct Index {
    pub(crate) images: BTreeMap<ImageId, (Record, Arc<Image>)>,
    names: HashMap<String, ImageId>,
    pub(crate) layers: HashMap<Digest, LayerRecord>,
    leases: HashMap<String, BTreeSet<ImageId>>,
}

impl Images {
    /// Opens the store under `config.root`, making it if it is not there.
    ///
    /// Half-made files and layers are removed; images whose files are gone are forgotten, with an error in the
    /// log. Errors: the store is open elsewhere, is of a newer version, or the disk fails.
    pub async fn open(config: ImagesConfig) -> Result<Self, Error> {
        let inner = blocking("opening the image store", move || Inner::open(config)).await?;
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Pulls an image and answers when it is whole, recorded and listed.
    ///
    /// Callers that ask for the same reference with the same credentials share one pull; dropping the future
    /// of the last one stops it. Errors: [`Error::Name`] for a bad reference, else [`Error::Pull`].
    pub async fn pull(&self, request: PullRequest) -> Result<Arc<Image>, Error> {
        flight::pull(&self.inner, request).await
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

    /// The image that `name` means: an id, a tag, a digest reference, completed or short.
    pub fn resolve(&self, name: &str) -> Option<Arc<Image>> {
        let index = self.inner.read();
        let id = index.find(name)?;
        index
            .images
            .get(&id)
            .filter(|(record, _)| !record.removed)
            .map(|(_, image)| image.clone())
    }

    /// Removes an image with all its names; it is gone from lists at once. Content that a lease holds stays.
    ///
    /// Answers what was removed; `Ok(None)` if there was nothing. Errors: the disk fails.
    pub async fn remove(&self, name: &str) -> Result<Option<Arc<Image>>, Error> {
        let (inner, name) = (self.inner.clone(), name.to_owned());
        blocking("removing an image", move || inner.remove(&name)).await
    }

    /// What the store occupies. O(1).
    pub fn fs_info(&self) -> FsInfo {
        let (used_bytes, inodes_used) = self.inner.blobs.used();
        FsInfo {
            mountpoint: self.inner.blobs.directory().to_owned(),
            used_bytes,
            inodes_used,
        }
    }

    /// Keeps the content of image `id` until `holder` is released. The same holder may hold several.
    ///
    /// Errors: [`Error::NotInStore`].
    pub fn lease(&self, id: &ImageId, holder: &str) -> Result<(), Error> {
        let mut index = self.inner.write();
        if !index.images.contains_key(id) {
            return Err(Error::NotInStore {
                name: id.to_string(),
            });
        }
        index
            .leases
            .entry(holder.to_owned())
            .or_default()
            .insert(id.clone());
        Ok(())
    }

    /// Ends all leases of `holder`. What nobody holds any more goes with the next [`Images::collect`].
    pub fn release(&self, holder: &str) {
        self.inner.write().leases.remove(holder);
    }

    /// The image that a lease holds, even if it has been removed meanwhile.
    pub fn leased(&self, id: &ImageId) -> Option<Arc<Image>> {
        let index = self.inner.read();
        index
            .images
            .get(id)
            .filter(|_| index.is_leased(id))
            .map(|(_, image)| image.clone())
    }

    /// Deletes content that no image, lease or pull needs. After a start, call it when leases are declared again.
    ///
    /// Deletes nothing while damaged metadata is kept (see the log). Errors: the disk fails.
    pub async fn collect(&self) -> Result<(), Error> {
        let inner = self.inner.clone();
        blocking("collecting unused content", move || inner.collect()).await
    }
}

impl Index {
    /// The image that `name` means, hidden ones included.
    fn find(&self, name: &str) -> Option<ImageId> {
        if let Ok(id) = name.parse::<ImageId>() {
            return Some(id);
        }
        let reference: ImageRef = name.parse().ok()?;
        self.names.get(&reference.to_string()).cloned()
    }

    pub(crate) fn is_leased(&self, id: &ImageId) -> bool {
        self.leases.values().any(|held| held.contains(id))
    }

    fn put(&mut self, record: Record, blobs: &Blobs, pinned: &[String]) {
        self.names.retain(|_, id| *id != record.id);
        for name in record.tags.iter().chain(&record.digests) {
            self.names.insert(name.clone(), record.id.clone());
        }
        let image = Arc::new(record.image(blobs, pinned));
        self.images.insert(record.id.clone(), (record, image));
    }

    /// Blobs, then layers, that records name: a plain archive has one digest as both.
    pub(crate) fn referenced(&self) -> (HashSet<&Digest>, HashSet<&Digest>) {
        let records = || self.images.values().map(|(record, _)| record);
        let blobs = records().flat_map(|record| &record.blobs).collect();
        (blobs, records().flat_map(|record| &record.chains).collect())
    }
}

impl Inner {
    fn open(config: ImagesConfig) -> Result<Self, Error> {
        let blobs = Blobs::open(&config.root)?;
        let (metadata, loaded) = Metadata::open(&blobs.database())?;
        let mut index = Index::default();
        let change = index.load(&loaded, &blobs, &config.pinned);
        metadata.commit(&change)?;
        for layer in index.layers.values() {
            blobs.grow(layer.usage());
        }
        let inner = Self {
            config,
            blobs,
            flights: Flights::default(),
            metadata,
            index: RwLock::new(index),
            writer: Mutex::default(),
            pins: Mutex::default(),
            keep_everything: loaded.is_partial,
        };
        inner.sweep_unrecorded_layers()?;
        Ok(inner)
    }

    /// True if the unpacked layer is here and came from this blob.
    pub(crate) fn has_layer(&self, chain: &Digest, blob: &Digest) -> bool {
        self.read()
            .layers
            .get(chain)
            .is_some_and(|layer| layer.blob == *blob)
    }

    /// Records an unpacked layer. Blocking.
    pub(crate) fn record_layer(&self, chain: &Digest, record: LayerRecord) -> Result<(), Error> {
        let _writer = self.writer();
        let put_layers = vec![(chain.clone(), record.clone())];
        self.metadata.commit(&Change {
            put_layers,
            ..Change::default()
        })?;
        self.write().layers.insert(chain.clone(), record);
        Ok(())
    }

    /// Records an image and shows it. Tags move here from other images; names it had are kept. Blocking.
    pub(crate) fn publish(&self, mut record: Record) -> Result<Arc<Image>, Error> {
        let _writer = self.writer();
        let mut change = Change::default();
        {
            let index = self.read();
            for (other, _) in index.images.values() {
                if other.id == record.id {
                    record.tags.extend(other.tags.iter().cloned());
                    record.digests.extend(other.digests.iter().cloned());
                } else if !other.tags.is_disjoint(&record.tags) {
                    let tags = other.tags.difference(&record.tags).cloned().collect();
                    change.put_images.push(Record {
                        tags,
                        ..other.clone()
                    });
                }
            }
        }
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

    fn remove(&self, name: &str) -> Result<Option<Arc<Image>>, Error> {
        let guard = self.writer();
        let (record, image, is_leased) = {
            let index = self.read();
            let found = index.find(name).and_then(|id| index.images.get(&id));
            let Some((record, image)) = found.filter(|(record, _)| !record.removed) else {
                return Ok(None);
            };
            (record.clone(), image.clone(), index.is_leased(&record.id))
        };
        let mut change = Change::default();
        if is_leased {
            change.put_images.push(record.hidden());
        } else {
            change.drop_images.push(record.id.clone());
        }
        self.metadata.commit(&change)?;
        let mut index = self.write();
        // A lease taken since we looked keeps the image, too.
        if is_leased || index.is_leased(&record.id) {
            index.put(record.hidden(), &self.blobs, &[]);
        } else {
            index.images.remove(&record.id);
            index.names.retain(|_, id| *id != record.id);
        }
        drop(index);
        drop(guard);
        self.discard(
            &record.blobs.iter().cloned().collect::<Vec<_>>(),
            &record.chains,
            0,
        )?;
        Ok(Some(image))
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
    /// Takes over what was remembered, as far as its files are there. Answers what has to be forgotten.
    fn load(&mut self, loaded: &Loaded, blobs: &Blobs, pinned: &[String]) -> Change {
        let mut change = Change::default();
        for (chain, record) in &loaded.layers {
            if blobs.layer(chain).is_dir() {
                self.layers.insert(chain.clone(), record.clone());
            } else {
                change.drop_layers.push(chain.clone());
            }
        }
        for record in &loaded.images {
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
            } else {
                self.put(record.clone(), blobs, pinned);
            }
        }
        change
    }
}
