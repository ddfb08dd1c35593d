//! Exports images as a tar that holds an OCI layout: as they were received where the store has all of that, else with
//! layers that are packed anew.
//!
//! Called by: the daemon, for `coracle image export` and `push`. [`layout`] writes the tar, [`layer`] packs a layer.
//! Invariants: the content of the images stays until the export has ended; documents that are made here name only what is
//! in the same tar; nothing is held in memory but documents and, within a bound, names in a layer.
//! Not here: protocols, registries, where the tar goes.

mod layer;
mod layout;
mod pax;
mod room;

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;

use crate::blobs::blocking;
use crate::collect::Pins;
use crate::error::Error;
use crate::manifest::{self, Blob, Content, Document, Manifest, Platform};
use crate::metadata::{Program, Record};
use crate::reference::{Digest, ImageRef, Target};
use crate::store::{Images, Inner};
use layout::Layout;

/// An export that can begin.
pub struct Export {
    inner: Arc<Inner>,
    images: Vec<Chosen>,
    /// Protects the content from the garbage collector.
    _pins: Pins,
}

/// An image that was exported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Its id in this store.
    pub id: String,
    /// The names that it has in the layout; empty if it has none that would be right there.
    pub names: Vec<String>,
    /// The digest of its manifest in the layout.
    pub digest: Digest,
    /// Whether manifest and layers are the ones that were received.
    pub is_as_received: bool,
}

/// One image to export.
struct Chosen {
    record: Record,
    names: Vec<ImageRef>,
    /// Its manifest and what that names, if all of it is in the store.
    received: Option<Received>,
}

/// An image as it came.
struct Received {
    manifest: Vec<u8>,
    digest: Digest,
    config: Digest,
    /// Config and layers.
    blobs: Vec<Blob>,
}

impl Images {
    /// Prepares to export the image `name`: an id, or a tag or digest reference, completed or short. One name of an index may
    /// be the name of two images: both are exported, unless `platform` chooses (`linux`, `linux/amd64`, `wasi/wasm`).
    ///
    /// Errors: [`Error::NotInStore`]; Invalid for a platform that the store does not have of it.
    pub async fn export(&self, name: &str, platform: Option<&str>) -> Result<Export, Error> {
        let (inner, name) = (self.inner.clone(), name.to_owned());
        let platform = platform.map(str::to_owned);
        blocking("looking for an image to export", move || {
            Export::new(inner, &name, platform.as_deref())
        })
        .await
    }
}

impl Export {
    fn new(inner: Arc<Inner>, name: &str, platform: Option<&str>) -> Result<Self, Error> {
        // Pins that are dropped wake the collector: an image may have been removed meanwhile.
        let mut pins = Pins::new(inner.clone());
        let mut records = inner.named_records(name)?;
        if let Some(platform) = platform {
            retain(&mut records, name, platform)?;
        }
        for (record, _) in &records {
            record
                .stored()
                .chain(&record.chains)
                .for_each(|digest| pins.add(digest));
        }
        // Removed before it was pinned: its content may be gone.
        if inner.named_records(name)?.is_empty() {
            return Err(Error::NotInStore {
                name: name.to_owned(),
            });
        }
        let chosen = records.into_iter().map(|(record, names)| {
            let received = inner.received(&record)?;
            Ok(Chosen {
                record,
                names,
                received,
            })
        });
        let images = chosen.collect::<Result<Vec<_>, Error>>()?;
        Ok(Self {
            inner,
            images,
            _pins: pins,
        })
    }

    /// Whether every image is exported as it was received.
    pub fn is_as_received(&self) -> bool {
        self.images.iter().all(|image| image.received.is_some())
    }

    /// Bytes of all blobs; `None` if some are still to be made.
    pub fn total_bytes(&self) -> Option<u64> {
        let received = self.images.iter().map(|image| image.received.as_ref());
        let received = received.collect::<Option<Vec<_>>>()?;
        let blobs: BTreeSet<(&str, u64)> = received
            .iter()
            .flat_map(|image| {
                image
                    .blobs
                    .iter()
                    .map(|blob| (blob.digest.as_str(), blob.size))
            })
            .collect();
        Some(blobs.into_iter().map(|(_, size)| size).sum())
    }

    /// Writes the tar. Blocking, and long. Errors: the disk's, or that of `out`.
    pub fn write_to(self, out: impl Write) -> Result<Vec<Exported>, Error> {
        let mut layout = Layout::new(out)?;
        let mut exported = Vec::new();
        for image in &self.images {
            let (digest, names) = match &image.received {
                Some(received) => self.write_received(&mut layout, image, received)?,
                None => self.write_remade(&mut layout, image)?,
            };
            exported.push(Exported {
                id: image.record.id.to_string(),
                names,
                digest,
                is_as_received: image.received.is_some(),
            });
        }
        layout.finish()?;
        Ok(exported)
    }

    fn write_received(
        &self,
        layout: &mut Layout<impl Write>,
        image: &Chosen,
        received: &Received,
    ) -> Result<(Digest, Vec<String>), Error> {
        for blob in &received.blobs {
            layout.stored(&self.inner.blobs.blob(&blob.digest), &blob.digest)?;
        }
        let names = names(&image.names, &received.digest);
        let config = self.inner.document(&received.config)?.unwrap_or_default();
        layout.image(&received.manifest, &config, &names)?;
        Ok((received.digest.clone(), names))
    }

    /// Writes an image whose layers are packed anew, so that config and manifest are new, too.
    fn write_remade(
        &self,
        layout: &mut Layout<impl Write>,
        image: &Chosen,
    ) -> Result<(Digest, Vec<String>), Error> {
        let (record, blobs) = (&image.record, &self.inner.blobs);
        if record.is_artifact {
            let problem =
                "its manifest is not in the store, and cannot be made anew for an artifact";
            return Err(Error::invalid(format!("image {}", record.id), problem));
        }
        let mut config = self.inner.config_of(record)?;
        let mut made = Vec::new();
        if let Program::Module { digest } = &record.program {
            layout.stored(&blobs.blob(digest), digest)?;
            made.push(layout::module(&blobs.blob(digest), digest)?);
        } else {
            let mut diff_ids = Vec::new();
            for chain in &record.chains {
                let max_ratio = self.inner.config.limits.max_ratio;
                let layer = blobs.layer(chain);
                let packed = layer::pack(blobs, &layer, max_ratio, || layout.is_wanted())?;
                layout.made(&packed)?;
                made.push(packed.descriptor());
                diff_ids.push(packed.diff_id.clone());
            }
            config = layout::with_diff_ids(&config, &diff_ids)?;
        }
        let config_digest = layout.document(&config)?;
        let manifest = layout::manifest(record, &config_digest, config.len(), made);
        let names = names(&image.names, &Digest::of(&manifest));
        layout.image(&manifest, &config, &names)?;
        Ok((Digest::of(&manifest), names))
    }
}

/// The names that an image with this manifest may have.
fn names(names: &[ImageRef], manifest: &Digest) -> Vec<String> {
    let is_right = |name: &&ImageRef| match name.target() {
        Target::Tag(_) => true,
        Target::Digest(digest) => digest == manifest,
    };
    names
        .iter()
        .filter(is_right)
        .map(ImageRef::to_string)
        .collect()
}

/// Keeps the images for `platform`. Errors: there is none.
fn retain(
    records: &mut Vec<(Record, Vec<ImageRef>)>,
    name: &str,
    platform: &str,
) -> Result<(), Error> {
    let offered = records.len();
    records.retain(|(record, _)| is_for(platform, record));
    if !records.is_empty() {
        return Ok(());
    }
    let problem = format!(
        "none of its {offered} images on this node is for {platform}: a node has images for its own Linux ({}) and for \
         WebAssembly (wasi/wasm)",
        Platform::native(),
    );
    Err(Error::invalid(format!("image {name}"), problem))
}

/// Whether the image is for `platform`: `os`, or `os/architecture` with or without a variant.
fn is_for(platform: &str, record: &Record) -> bool {
    let mut parts = platform.split('/');
    let os = parts.next().unwrap_or_default().to_ascii_lowercase();
    let architecture = parts.next().map(str::to_ascii_lowercase);
    let wanted = |default: &str| Platform {
        os: os.clone(),
        architecture: architecture.clone().unwrap_or_else(|| default.to_owned()),
        variant: None,
    };
    match record.is_wasm() {
        true => os == "wasm" || wanted("wasm").is_wasm(),
        false => wanted(Platform::native().architecture.as_str()).is_native(),
    }
}

impl Inner {
    /// The images of a name, each with the names that it is exported by. Never empty. Errors: [`Error::NotInStore`].
    fn named_records(&self, name: &str) -> Result<Vec<(Record, Vec<ImageRef>)>, Error> {
        let index = self.read();
        let reference = name.parse::<ImageRef>().ok();
        let reference = reference.filter(|name| index.names.contains_key(&name.to_string()));
        let ids = match &reference {
            Some(reference) => {
                let named = index.names.get(&reference.to_string());
                named
                    .iter()
                    .flat_map(|named| named.ids())
                    .cloned()
                    .collect()
            }
            None => Vec::from_iter(index.find(name, Default::default())),
        };
        let records = ids.iter().filter_map(|id| index.images.get(id));
        let records = records
            .filter(|(record, _)| !record.removed)
            .map(|(record, _)| {
                let own = || record.tags.iter().filter_map(|tag| tag.parse().ok());
                let names = match &reference {
                    Some(by_tag) if matches!(by_tag.target(), Target::Tag(_)) => {
                        vec![by_tag.clone()]
                    }
                    by_digest => own().chain(by_digest.clone()).collect(),
                };
                (record.clone(), names)
            });
        let records: Vec<_> = records.collect();
        match records.is_empty() {
            true => Err(Error::NotInStore {
                name: name.to_owned(),
            }),
            false => Ok(records),
        }
    }

    /// The image as it came, if the store has all of it. Blocking.
    fn received(&self, record: &Record) -> Result<Option<Received>, Error> {
        let Some(kept) = &record.kept else {
            return Ok(None);
        };
        let Some(bytes) = self.document(&kept.manifest)? else {
            return Ok(None);
        };
        let what = format!("manifest {}", kept.manifest);
        let Document::Manifest(Manifest {
            config, content, ..
        }) = manifest::parse(&what, &bytes, &self.config.limits)?
        else {
            return Ok(None);
        };
        let digest = config.digest.clone();
        let mut blobs = vec![config];
        match content {
            Content::Module(module) => blobs.push(module),
            Content::Files(files) => blobs.extend(files.into_iter().map(|file| file.blob)),
            Content::Archives(layers) => blobs.extend(layers),
        }
        let is_whole = blobs.iter().all(|blob| self.blobs.has(blob));
        Ok(is_whole.then(|| Received {
            manifest: bytes,
            digest: kept.manifest.clone(),
            config: digest,
            blobs,
        }))
    }

    /// The config of an image. Blocking.
    fn config_of(&self, record: &Record) -> Result<Vec<u8>, Error> {
        let module = match &record.program {
            Program::Module { digest } => Some(digest),
            Program::ModuleFile { .. } | Program::Linux => None,
        };
        let other = |digest: &&Digest| Some(*digest) != module;
        // Both are one blob if the module is its own config.
        let config = record.blobs.iter().find(other).or(module);
        let bytes = config.map(|config| self.document(config)).transpose()?;
        bytes.flatten().ok_or_else(|| {
            Error::invalid(
                format!("image {}", record.id),
                "its config is not in the store",
            )
        })
    }

    /// A document of the store; `None` if it is not there. Blocking. Errors: it is damaged or too large; the disk's.
    fn document(&self, digest: &Digest) -> Result<Option<Vec<u8>>, Error> {
        let path = self.blobs.blob(digest);
        let size = match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            found => found
                .map_err(|error| Error::io("look at", &path, error))?
                .len(),
        };
        let allowed = self.config.limits.max_manifest_bytes;
        if size > allowed {
            return Err(Error::Limit {
                what: format!("document {digest} of {size} bytes"),
                limit: "max_manifest_bytes",
                allowed,
            });
        }
        let bytes = std::fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
        crate::verify::check("document", &bytes, digest, size)?;
        Ok(Some(bytes))
    }
}
