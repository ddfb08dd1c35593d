//! One pull: resolve, fetch, verify, unpack, record.
//!
//! Called by: [`crate::Images::pull`]. Calls: the registry, the unpacker, the store.
//! Invariants: stored content is used only after the repository of this pull has confirmed that these credentials may
//! read it; what a failed pull leaves is either reusable or deleted.
//! Not here: pods, policies, joining pulls ([`join`]), fetching blobs ([`fetch`]).

mod fetch;
mod join;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use crate::blobs::blocking;
use crate::collect::Pins;
use crate::endpoint::{Document as DocumentBytes, large_document};
use crate::error::{Error, Kind as ErrorKind};
use crate::identity::Candidate;
use crate::image::Image;
use crate::magic::Magic;
use crate::manifest::{self, Blob, Content, Document, Manifest, PlatformPreference};
use crate::metadata::{LayerRecord, Program, Record};
use crate::reference::{Digest, ImageId, ImageRef, Target};
use crate::registry::Registry;
use crate::run_config::RunConfig;
use crate::singleflight::PullRequest;
use crate::store::Inner;
use crate::unpack::{Budget, Source, unpack};
use crate::{failpoint, image_config, verify, wasm};
use fetch::Want;

/// A resolved reference.
struct Resolved {
    /// The digest of the topmost document: the manifest, or the index that names it.
    top: Digest,
    /// The digest of the manifest.
    digest: Digest,
    manifest: Manifest,
}

/// The state of one pull.
pub(crate) struct Pull {
    inner: Arc<Inner>,
    reference: ImageRef,
    platform: PlatformPreference,
    registry: Registry,
    /// Protects the content of this pull from the garbage collector.
    pins: Pins,
}

impl Pull {
    /// Prepares a pull of `reference`; nothing is sent yet.
    pub(crate) fn new(
        inner: Arc<Inner>,
        reference: ImageRef,
        request: &PullRequest,
    ) -> Result<Self, Error> {
        let registry = Registry::new(&reference, request.auth.as_ref(), &inner.config)?;
        let pins = Pins::new(inner.clone());
        Ok(Self {
            inner,
            reference,
            platform: request.platform,
            registry,
            pins,
        })
    }

    /// Runs the pull. Returns when the image is recorded and published.
    pub(crate) async fn run(&mut self) -> Result<Arc<Image>, Error> {
        let resolved = self.resolve().await?;
        failpoint::pass("pull.manifest")?;
        let config = self.fetch_config(&resolved.manifest.config).await?;
        let mut record = self.draft(&resolved);
        let Resolved {
            digest, manifest, ..
        } = resolved;
        match &manifest.content {
            Content::Module(module) => {
                record.config.target = image_config::target(&config);
                self.add_module(module, &mut record).await?;
            }
            Content::Archives(layers) => self.add_layers(&config, layers, &mut record).await?,
        }
        let image = self
            .publish(Candidate {
                record,
                manifest: digest,
                config: manifest.config.digest.clone(),
                content: self.pins.digests(),
            })
            .await?;
        self.drop_packed_layers(&manifest.content).await?;
        self.pins.is_done = true;
        Ok(image)
    }

    /// The record of an image, without its content.
    fn draft(&self, resolved: &Resolved) -> Record {
        let manifest = &resolved.manifest;
        let layers = match &manifest.content {
            Content::Module(module) => std::slice::from_ref(module),
            Content::Archives(layers) => layers.as_slice(),
        };
        let mut record = Record {
            id: ImageId::new(manifest.config.digest.clone()),
            tags: BTreeSet::new(),
            digests: BTreeSet::from([self.reference.at(&resolved.top).to_string()]),
            size: layers.iter().fold(manifest.config.size, |sum, layer| {
                sum.saturating_add(layer.size)
            }),
            config: RunConfig::default(),
            program: Program::Linux,
            blobs: BTreeSet::from([manifest.config.digest.clone()]),
            chains: Vec::new(),
            annotations: manifest.annotations.clone(),
            removed: false,
            manifest: Some(resolved.digest.clone()),
        };
        if matches!(self.reference.target(), Target::Tag(_)) {
            record.tags.insert(self.reference.to_string());
        }
        record
    }

    async fn publish(&self, candidate: Candidate) -> Result<Arc<Image>, Error> {
        let inner = self.inner.clone();
        let publish = move || {
            failpoint::pass("pull.commit")?;
            let image = inner.publish(candidate)?;
            failpoint::pass("pull.record").map(|()| image)
        };
        blocking("recording an image", publish).await
    }

    /// Follows indexes down to one manifest.
    async fn resolve(&self) -> Result<Resolved, Error> {
        let mut target = self.reference.target().clone();
        let mut top = None;
        for _ in 0..=self.inner.config.limits.max_index_depth {
            let document = self.fetch_document(&target).await?;
            let digest = Digest::of(&document.bytes);
            let what = format!("manifest {digest}");
            let top = top.get_or_insert_with(|| digest.clone()).clone();
            let requested = format!("manifest {target} of {}", self.reference.name());
            let parsed = manifest::parse(&what, &document.bytes, &self.inner.config.limits);
            match parsed.map_err(|error| document.withhold(requested, error))? {
                Document::Manifest(manifest) => {
                    return Ok(Resolved {
                        top,
                        digest,
                        manifest,
                    });
                }
                Document::Index(entries) => {
                    target =
                        Target::Digest(manifest::choose(&what, &entries, self.platform)?.digest);
                }
            }
        }
        let what = format!("index {}", self.reference);
        Err(Error::Limit {
            what,
            limit: "max_index_depth",
            allowed: self.inner.config.limits.max_index_depth,
        })
    }

    async fn fetch_document(&self, target: &Target) -> Result<DocumentBytes, Error> {
        let allowed = self.inner.config.limits.max_manifest_bytes;
        let document = self.registry.manifest(target, allowed).await?;
        if let Target::Digest(want) = target {
            let what = format!("manifest {}", self.reference.name());
            let bytes = &document.bytes;
            verify::check(&what, bytes, want, bytes.len() as u64)
                .map_err(|error| document.withhold(&what, error))?;
        }
        Ok(document)
    }

    async fn fetch_config(&mut self, blob: &Blob) -> Result<Vec<u8>, Error> {
        self.fetch(vec![Want::whole(blob)]).await?;
        let _permit = large_document(blob.size).await;
        let (path, blob) = (self.inner.blobs.blob(&blob.digest), blob.clone());
        blocking("reading a config", move || {
            let bytes = std::fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
            verify::check("config", &bytes, &blob.digest, blob.size)?;
            Ok(bytes)
        })
        .await
    }

    /// The content of an artifact: the module is the blob.
    async fn add_module(&mut self, module: &Blob, record: &mut Record) -> Result<(), Error> {
        self.fetch(vec![Want::whole(module)]).await?;
        let (path, what) = (
            self.inner.blobs.blob(&module.digest),
            format!("layer {}", module.digest),
        );
        blocking("looking at a module", move || {
            let mut first = [0; 4];
            let file =
                std::fs::File::open(&path).map_err(|error| Error::io("open", &path, error))?;
            let count = rustix::io::pread(&file, &mut first, 0)
                .map_err(|errno| Error::io("read", &path, errno.into()))?;
            Magic::of(&first[..count]).require_module(&what)
        })
        .await?;
        record.program = Program::Module {
            digest: module.digest.clone(),
        };
        record.blobs.insert(module.digest.clone());
        Ok(())
    }

    /// The content of an image of archives: unpacked layers, and the module in them if there is one.
    async fn add_layers(
        &mut self,
        config: &[u8],
        layers: &[Blob],
        record: &mut Record,
    ) -> Result<(), Error> {
        let what = format!("config {}", record.id);
        let config =
            image_config::parse_config(&what, config, layers.len(), &self.inner.config.limits)?;
        if !config.platform.is_wasm() && !config.platform.is_native() {
            return Err(Error::invalid(
                what,
                format!("it is for {}, which this node cannot run", config.platform),
            ));
        }
        record.config = config.run;
        record.chains = image_config::layer_names(&config.diff_ids, layers);
        for chain in &record.chains {
            self.pins.add(chain);
        }
        let jobs = self.missing_layers(layers, &record.chains, &config.diff_ids);
        self.fetch(wanted(layers, &jobs)).await?;
        self.unpack(jobs).await?;
        record.program = self.program(record, config.platform.is_wasm()).await?;
        Ok(())
    }

    /// What an image of archives runs, by its unpacked layers.
    async fn program(&self, record: &Record, is_wasm: bool) -> Result<Program, Error> {
        let (inner, run) = (self.inner.clone(), record.config.clone());
        let layers: Vec<PathBuf> = record
            .chains
            .iter()
            .map(|chain| inner.blobs.layer(chain))
            .collect();
        let find = move || {
            wasm::program(
                &inner.blobs.layers(),
                &layers,
                &run,
                is_wasm,
                &inner.config.limits,
            )
        };
        blocking("looking for a module", find).await
    }

    /// The layers that have to be unpacked: those that are not here, or came from another blob.
    fn missing_layers(&self, layers: &[Blob], chains: &[Digest], diff_ids: &[Digest]) -> Vec<Job> {
        let all = layers.iter().zip(chains).zip(diff_ids);
        all.filter(|((blob, chain), _)| !self.inner.has_layer(chain, &blob.digest))
            .map(|((blob, chain), diff_id)| Job {
                blob: blob.clone(),
                chain: chain.clone(),
                diff_id: diff_id.clone(),
            })
            .collect()
    }

    async fn unpack(&self, jobs: Vec<Job>) -> Result<(), Error> {
        let mut budget = Budget::new(&self.inner.config.limits);
        for job in jobs {
            job.run(&self.inner, &mut budget).await?;
        }
        Ok(())
    }

    /// Layers are kept unpacked; their archives are not needed any more.
    async fn drop_packed_layers(&self, content: &Content) -> Result<(), Error> {
        let Content::Archives(layers) = content else {
            return Ok(());
        };
        let (inner, digests) = (
            self.inner.clone(),
            layers
                .iter()
                .map(|layer| layer.digest.clone())
                .collect::<Vec<_>>(),
        );
        blocking("removing packed layers", move || {
            inner.discard(&digests, &[], 1)
        })
        .await
    }

    /// Deletes what a later attempt cannot use: after a network failure the finished blobs stay for the next
    /// attempt, after any other failure they would only fill the disk.
    pub(crate) async fn clean_up(&mut self, error: &Error) {
        if matches!(
            error.kind(),
            ErrorKind::RegistryUnavailable | ErrorKind::Cancelled | ErrorKind::Unauthorized
        ) {
            return;
        }
        let (inner, digests) = (self.inner.clone(), self.pins.digests());
        if let Err(error) =
            blocking("cleaning up", move || inner.discard(&digests, &digests, 1)).await
        {
            tracing::warn!(image = %self.reference, %error, "content of a failed pull stays until the next collection");
        }
    }
}

/// The blobs to fetch for the layers of an image: for those that are unpacked already, only access is verified.
fn wanted(layers: &[Blob], jobs: &[Job]) -> Vec<Want> {
    let is_missing = |blob: &Blob| jobs.iter().any(|job| job.blob.digest == blob.digest);
    let want = |blob: &Blob| match is_missing(blob) {
        true => Want::whole(blob),
        false => Want::proof(blob),
    };
    layers.iter().map(want).collect()
}

/// One layer to unpack.
struct Job {
    blob: Blob,
    chain: Digest,
    diff_id: Digest,
}

impl Job {
    async fn run(&self, inner: &Arc<Inner>, budget: &mut Budget) -> Result<(), Error> {
        let own = inner.clone();
        let draft = blocking("making a layer's directory", move || {
            own.blobs.layer_draft()
        })
        .await?;
        let path: PathBuf = inner.blobs.blob(&self.blob.digest);
        let source = Source {
            path: &path,
            digest: &self.blob.digest,
            media_type: &self.blob.media_type,
            diff_id: &self.diff_id,
        };
        let unpacked = unpack(&*inner.unpackers, &source, draft.path(), budget).await;
        let (inner, chain, blob) = (inner.clone(), self.chain.clone(), self.blob.digest.clone());
        // In any case: removing a half-made layer blocks, too.
        blocking("storing a layer", move || {
            let usage = unpacked?;
            let is_ours = inner.blobs.commit_layer(draft, &chain, usage)?;
            // A stored layer without a record is as good, and gets a record now.
            if is_ours || !inner.read().layers.contains_key(&chain) {
                if !is_ours {
                    inner.blobs.grow(usage);
                }
                let record = LayerRecord {
                    blob,
                    bytes: usage.bytes,
                    inodes: usage.inodes,
                };
                inner.record_layer(&chain, record)?;
            }
            Ok(())
        })
        .await
    }
}
