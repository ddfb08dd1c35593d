//! Leasing images to containers, and removing images.
//!
//! Called by: the daemon, which leases an image to each container that it creates and releases it with the container;
//! at its start it claims the leases of its records.
//! Invariants: a removed image disappears from lists at once and from the disk when its last holder releases it; an
//! image cannot be leased once its deletion has begun.
//! Not here: deleting content ([`crate::collect`]), what a container is.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::blocking::removing;
use crate::error::Error;
use crate::image::Image;
use crate::manifest::PlatformPreference;
use crate::metadata::{Change, Record};
use crate::reference::{Digest, ImageId};
use crate::store::{Images, Inner};

impl Images {
    /// Leases image `id` to `holder` until it is released. A holder may have several.
    ///
    /// Errors: [`Error::NotInStore`].
    pub fn lease(&self, id: &ImageId, holder: &str) -> Result<(), Error> {
        let mut index = self.inner.write();
        if !index.images.contains_key(id) {
            return Err(Error::NotInStore {
                name: id.to_string(),
            });
        }
        index.leases.take(holder, id);
        Ok(())
    }

    /// Restores the leases that an earlier daemon gave to `holder`: an image, removed or not, and content of the store
    /// by its paths, which stays even if the image's record was lost. To be called before the first [`Images::collect`].
    ///
    /// False if the image has no record.
    pub fn claim(&self, id: &ImageId, paths: &[PathBuf], holder: &str) -> bool {
        let root = self.inner.blobs.directory();
        let digests: Vec<Digest> = paths
            .iter()
            .filter_map(|path| content_of(root, path))
            .collect();
        let mut index = self.inner.write();
        for digest in digests {
            index.leases.claim(holder, digest);
        }
        index.leases.take(holder, id);
        index.images.contains_key(id)
    }

    /// Ends all leases of `holder` and triggers a collection, which deletes unused content.
    pub fn release(&self, holder: &str) {
        let mut index = self.inner.write();
        let (images, has_content) = index.leases.release(holder);
        let is_removed = |id: &ImageId| {
            index
                .images
                .get(id)
                .is_none_or(|(record, _)| record.removed)
        };
        let has_garbage = has_content || images.iter().any(is_removed);
        drop(index);
        if has_garbage {
            self.inner.garbage.notify_one();
        }
    }

    /// The image of a holder by its id, even if it was removed meanwhile.
    pub fn leased(&self, id: &ImageId) -> Option<Arc<Image>> {
        let index = self.inner.read();
        index
            .images
            .get(id)
            .filter(|_| index.leases.holds_image(id))
            .map(|(_, image)| image.clone())
    }

    /// Removes an image with all its names; it disappears from lists at once. Leased content stays.
    ///
    /// Of two images of one index that have the name, both. Returns one removed image; `Ok(None)` if there was none.
    /// Errors: the disk fails.
    pub async fn remove(&self, name: &str) -> Result<Option<Arc<Image>>, Error> {
        let (inner, name) = (self.inner.clone(), name.to_owned());
        removing("removing an image", move || {
            let first = inner.remove(&name)?;
            if first.is_some() {
                inner.remove(&name)?;
            }
            Ok(first)
        })
        .await
    }

    /// Stops all deletion of content for the life of this value: containers may use content that was not claimed.
    pub fn suspend_collection(&self) {
        self.inner.keep_everything.store(true, Ordering::Relaxed);
    }
}

/// The blob or layer of the store at `root` in which `path` lies.
fn content_of(root: &Path, path: &Path) -> Option<Digest> {
    let mut parts = path.strip_prefix(root).ok()?.components();
    let hex = match parts.next()? {
        Component::Normal(name) if name == "layers" => parts.next()?,
        Component::Normal(name) if name == "blobs" => parts.nth(1)?,
        _ => return None,
    };
    format!("sha256:{}", hex.as_os_str().to_str()?).parse().ok()
}

impl Inner {
    fn remove(&self, name: &str) -> Result<Option<Arc<Image>>, Error> {
        let (record, image) = {
            let _writer = self.writer();
            let found = {
                let index = self.read();
                let found = index
                    .find(name, PlatformPreference::default())
                    .and_then(|id| index.images.get(&id));
                found.filter(|(record, _)| !record.removed).cloned()
            };
            let Some((record, image)) = found else {
                return Ok(None);
            };
            self.hide_or_forget(&record)?;
            (record, image)
        };
        self.garbage.notify_one();
        let blobs: Vec<Digest> = record.stored().cloned().collect();
        self.discard(&blobs, &record.chains, 0)?;
        Ok(Some(image))
    }

    /// Deletes an image's record, or hides it while it is leased. The caller holds the writer's lock.
    pub(crate) fn hide_or_forget(&self, record: &Record) -> Result<(), Error> {
        if self.forget(|other| other.id == record.id)?.is_empty() {
            self.metadata.commit(&Change {
                put_images: vec![record.hidden()],
                ..Change::default()
            })?;
            self.write().put(record.hidden(), &self.blobs, &[]);
        }
        Ok(())
    }

    /// Deletes the records of the chosen images, unless they are leased, and returns them. The caller holds the writer's
    /// lock.
    pub(crate) fn forget(&self, choose: impl Fn(&Record) -> bool) -> Result<Vec<Record>, Error> {
        let gone: Vec<Record> = {
            let mut index = self.write();
            let records = index.images.values().map(|(record, _)| record);
            let records = records.filter(|record| choose(record));
            let free = records.filter(|record| !index.leases.holds_image(&record.id));
            let gone: Vec<Record> = free.cloned().collect();
            for record in &gone {
                index.images.remove(&record.id);
                index.drop_names(&record.id);
            }
            gone
        };
        let committed = self.metadata.commit(&Change {
            drop_images: gone.iter().map(|record| record.id.clone()).collect(),
            ..Change::default()
        });
        if let Err(error) = committed {
            let mut index = self.write();
            for record in gone {
                index.put(record, &self.blobs, &self.config.pinned);
            }
            return Err(error);
        }
        Ok(gone)
    }
}
