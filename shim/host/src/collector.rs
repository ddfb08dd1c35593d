//! Leases of images, the collector that deletes unused ones, and the check of the others after a start.
//!
//! Called by: plans (leases), recovery (leases of plans), `serve` (the collector, one task for the life of the daemon).
//! Calls: the image store, the compile cache.
//! Invariants: nothing is collected before every container has its leases; a collection runs beside requests, one at a
//! time; the task sleeps while there is nothing to do. Compiled code is removed with the last image that has its
//! module.
//! Must not know: which images are removed.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coracle_images::{Image, ImageId};
use coracle_lifecycle::{Error, Kind, Payload, Plan};
use coracle_spec::id::ContainerId;

use super::{Host, blocking, runtime_error};

/// How long the remains of a failed pull wait for another attempt.
const SPARE: Duration = Duration::from_secs(10 * 60);
/// Removals within this time are collected together.
const GATHER: Duration = Duration::from_millis(200);

/// Most modules of one image whose compiled code stays because somebody has named them.
const MAX_OF_IMAGE: usize = 64;

/// Modules that containers run although they are not the main module of an image.
#[derive(Debug, Default)]
pub(super) struct NamedModules(Mutex<Named>);

#[derive(Debug, Default)]
struct Named {
    /// By digest; their images, with the number of the last naming.
    modules: HashMap<String, BTreeMap<ImageId, u64>>,
    /// How often one was named.
    namings: u64,
}

impl NamedModules {
    fn lock(&self) -> MutexGuard<'_, Named> {
        // A panic while it is locked leaves plain maps, which stay usable.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the module with this digest (64 digits) to those of `image`. When it has too many, the one that was named longest
    /// ago is forgotten: its compiled code may be collected, and is compiled again when it is needed.
    pub(super) fn add(&self, digest: &str, image: &ImageId) {
        let mut named = self.lock();
        named.namings += 1;
        let now = named.namings;
        let images = named.modules.entry(digest.to_owned()).or_default();
        images.insert(image.clone(), now);
        let all = named.modules.iter();
        let of_image = all.filter_map(|(digest, images)| Some((*images.get(image)?, digest)));
        if of_image.clone().count() <= MAX_OF_IMAGE {
            return;
        }
        let oldest = of_image.min().map(|(_, digest)| digest.clone());
        if let Some(oldest) = oldest
            && let Some(images) = named.modules.get_mut(&oldest)
        {
            images.remove(image);
        }
        named.modules.retain(|_, images| !images.is_empty());
    }

    /// Drops the modules of images that are gone.
    fn forget(&self, gone: &[ImageId]) {
        self.lock().modules.retain(|_, images| {
            images.retain(|image, _| !gone.contains(image));
            !images.is_empty()
        });
    }

    fn has(&self, digest: &str) -> bool {
        self.lock().modules.contains_key(digest)
    }
}

impl Host {
    /// Leases the image's content to `holder`, whatever happens to its names.
    pub fn lease(&self, image: &Image, holder: &ContainerId) -> Result<(), Error> {
        let leased = self.parts.images.lease(&image.id, holder.as_str());
        leased.map_err(|error| {
            Error::because(
                Kind::Missing,
                format!("lease image {}", image.id.as_str()),
                error,
            )
        })
    }

    /// Leases the images and modules that the plan of a recovered container uses, even if they were removed.
    pub fn claim_images(&self, holder: &ContainerId, plan: &Plan) {
        let mut paths: Vec<PathBuf> = plan.layers.clone();
        if let Payload::Wasm(wasm) = &plan.payload {
            paths.push(wasm.module.clone());
        }
        for name in plan.image_volumes.iter().chain([&plan.image_id]) {
            let Ok(id) = name.parse::<ImageId>() else {
                tracing::error!(container = %holder, image = name, "its record names no image id");
                continue;
            };
            // The module is of the container's own image, not of those that it mounts.
            if let Payload::Wasm(wasm) = &plan.payload
                && *name == plan.image_id
            {
                self.modules.add(&wasm.module_digest, &id);
            }
            if !self.parts.images.claim(&id, &paths, holder.as_str()) {
                tracing::error!(container = %holder, image = name, "the record of its image is gone; its content is kept");
            }
        }
    }

    /// The image of a container, even if it has been removed meanwhile.
    pub(super) fn image_of(&self, plan: &Plan) -> Option<Arc<Image>> {
        self.parts.images.leased(&plan.image_id.parse().ok()?)
    }

    /// Collects at once, then after every removal of an image or of a container. Never returns.
    pub async fn collect_garbage(self: Arc<Self>) {
        let mut is_first = true;
        loop {
            let images = &self.parts.images;
            let collected = self.collect_once(is_first).await;
            if std::mem::take(&mut is_first) {
                tokio::spawn(Arc::clone(&self).check_images());
            }
            match collected {
                Ok(left_young) if left_young => {
                    // Whichever comes first: a new removal, or the time when recent content may be collected.
                    let _ = tokio::time::timeout(SPARE, images.garbage()).await;
                }
                Ok(_) => images.garbage().await,
                Err(error) => {
                    tracing::error!(error = error.chain(), "unused images were not collected");
                    images.garbage().await;
                }
            }
            tokio::time::sleep(GATHER).await;
        }
    }

    /// Looks for images that are not what was stored, once a day, after the leases are there.
    async fn check_images(self: Arc<Self>) {
        let images = &self.parts.images;
        while let Ok(pause) = images.pause_before_check().await {
            tokio::time::sleep(pause).await;
            match images.check_content().await {
                Ok(dropped) => {
                    tracing::debug!(dropped = dropped.len(), "stored images are checked");
                }
                Err(error) => {
                    let error = Error::because(Kind::Io, "check stored images", error);
                    tracing::error!(error = error.chain(), "stored images were not checked");
                }
            }
        }
    }

    async fn collect_once(self: &Arc<Self>, is_first: bool) -> Result<bool, Error> {
        let collected = self.parts.images.collect(SPARE).await;
        let collected = collected
            .map_err(|error| Error::because(Kind::Io, "collect unused content of images", error))?;
        self.modules.forget(&collected.images);
        let host = Arc::clone(self);
        let removed = blocking("collecting compiled code", move || host.collect_compiled());
        let removed = removed.await?;
        if is_first || removed > 0 || !collected.images.is_empty() {
            tracing::debug!(
                images = collected.images.len(),
                compiled = removed,
                "collected"
            );
        }
        Ok(collected.left_young)
    }

    /// Removes compiled code of modules that no image has. Blocks.
    fn collect_compiled(&self) -> Result<usize, Error> {
        // An image that is recorded later is compiled later, too, and stays.
        let retained = self
            .parts
            .compiler
            .retain(|digest| self.modules.has(digest) || self.parts.images.has_module(digest));
        retained.map_err(|error| runtime_error("drop compiled code", error))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use coracle_images::Digest;

    use super::*;

    #[test]
    fn of_too_many_modules_of_one_image_the_one_that_was_named_longest_ago_is_forgotten() {
        let modules = NamedModules::default();
        let of = |name: &[u8]| ImageId::new(Digest::of(name));
        let (image, other) = (of(b"a"), of(b"b"));
        for number in 0..MAX_OF_IMAGE {
            modules.add(&number.to_string(), &image);
        }
        modules.add("0", &image);
        modules.add("2", &other);
        for digest in ["one more", "and another"] {
            modules.add(digest, &image);
            assert!(modules.has(digest));
        }
        assert!(modules.has("0"), "it was named again");
        assert!(!modules.has("1"));
        assert!(modules.has("2"), "another image has it, too");
        modules.forget(std::slice::from_ref(&image));
        assert!(modules.has("2") && !modules.has("0"));
    }
}
