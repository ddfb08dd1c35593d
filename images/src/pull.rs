//! One pull, or one image of an archive: resolve, fetch, verify, unpack, record.
//!
//! Called by: [`crate::Images::pull`] and [`crate::import`]. Calls: the origin, the unpacker, the store.
//! Invariants: stored content is used only after the repository of this pull has confirmed that these credentials may
//! read it; what a failed pull leaves is either reusable or deleted.
//! Not here: pods, policies, joining pulls ([`join`]), fetching blobs ([`fetch`]), unpacking layers ([`layers`]).

mod artifact;
mod fetch;
mod join;
mod keep;
mod layers;
mod names;
mod origin;
mod signatures;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::try_join;
use tracing::{Instrument as _, info_span};

use crate::blobs::blocking;
use crate::collect::Pins;
use crate::endpoint::{Document as DocumentBytes, large_document};
use crate::error::{Error, Kind as ErrorKind};
use crate::identity::Candidate;
use crate::image::Image;
use crate::magic::Magic;
use crate::manifest::{self, Blob, Content, Document, Manifest, PlatformPreference};
use crate::metadata::{Program, Record};
use crate::record::Facts;
use crate::reference::{Digest, ImageId, ImageRef, Target};
use crate::registry::Registry;
use crate::run_config::RunConfig;
use crate::signature::Demands;
use crate::singleflight::PullRequest;
use crate::store::Inner;
use crate::tenants::Tenant;
use crate::transfers::Progress;
use crate::{failpoint, image_config, verify, wasm};
use fetch::Want;
use layers::wanted;
pub(crate) use names::Names;
pub(crate) use origin::Origin;

/// A resolved reference.
struct Resolved {
    /// The digest of the topmost document: the manifest, or the index that names it.
    top: Digest,
    /// The digest of the manifest.
    digest: Digest,
    manifest: Manifest,
    /// The manifest as it came, unless it is large and not needed any more.
    document: Option<DocumentBytes>,
}

/// The state of one pull.
pub(crate) struct Pull {
    inner: Arc<Inner>,
    names: Names,
    target: Target,
    platform: PlatformPreference,
    origin: Origin,
    /// Who brings the image.
    tenant: Tenant,
    /// What the signature policy demands of the image.
    demands: Demands,
    progress: Arc<Progress>,
    /// Protects the content of this pull from the garbage collector.
    pins: Pins,
}

impl Pull {
    /// Prepares a pull of `reference`; nothing is sent yet.
    pub(crate) fn new(
        inner: Arc<Inner>,
        reference: ImageRef,
        request: &PullRequest,
        demands: Demands,
    ) -> Result<Self, Error> {
        let (auth, namespace) = (request.auth.as_ref(), request.namespace.as_str());
        let registry = Registry::new(&reference, auth, namespace, &inner.config)?;
        let target = reference.target().clone();
        let names = Names {
            references: vec![reference],
            has_digest: true,
            is_pinned: false,
        };
        let origin = Origin::Registry(registry);
        let tenant = Tenant::of_pull(namespace, names.registry());
        Ok(Self {
            tenant,
            demands,
            ..Self::from(inner, origin, names, target, request.platform)
        })
    }

    /// Prepares the transfer of the image `target` of `origin` into the store, under `names`, for the operator.
    pub(crate) fn from(
        inner: Arc<Inner>,
        origin: Origin,
        names: Names,
        target: Target,
        platform: PlatformPreference,
    ) -> Self {
        let pins = Pins::new(inner.clone());
        let progress = inner.transfers.begin(names.first(), origin.archive());
        Self {
            inner,
            names,
            target,
            platform,
            origin,
            tenant: Tenant::Operator,
            demands: Demands::default(),
            progress,
            pins,
        }
    }

    /// The name of the image, for messages.
    pub(crate) fn name(&self) -> String {
        self.names.first()
    }

    /// What has been transferred.
    pub(crate) fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    /// Where the image came from, and how many bytes of blobs did.
    pub(crate) fn transfer(&self) -> (String, u64) {
        (self.origin.source(), self.progress.received())
    }

    /// Runs the pull. Returns when the image is recorded and published.
    pub(crate) async fn run(&mut self) -> Result<Arc<Image>, Error> {
        let span = info_span!(target: "otel", "image.resolve");
        let mut resolved = self.resolve().instrument(span).await?;
        failpoint::pass("pull.manifest")?;
        let span = info_span!(target: "otel", "image.verify");
        let facts = self
            .check_signatures(&mut resolved)
            .instrument(span)
            .await?;
        let mut record = self.draft(&resolved, facts);
        let Resolved {
            digest,
            manifest,
            document,
            ..
        } = resolved;
        let keep = self.keep_manifest(&record, document);
        let (config, ()) = try_join(self.fetch_config(&manifest.config), keep).await?;
        match &manifest.content {
            Content::Module(module) => {
                let target = image_config::target(&config);
                record.config = Arc::new(RunConfig {
                    target,
                    ..RunConfig::default()
                });
                self.add_module(module, &mut record).await?;
            }
            Content::Archives(layers) => self.add_layers(&config, layers, &mut record).await?,
            Content::Files(files) => self.add_files(files, &mut record).await?,
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
    fn draft(&self, resolved: &Resolved, facts: Facts) -> Record {
        let manifest = &resolved.manifest;
        let mut record = Record {
            id: ImageId::new(manifest.config.digest.clone()),
            tags: BTreeSet::new(),
            digests: BTreeSet::new(),
            pins: BTreeSet::new(),
            size: manifest.size(),
            config: Arc::default(),
            program: Program::Linux,
            blobs: BTreeSet::from([manifest.config.digest.clone()]),
            chains: Vec::new(),
            annotations: Arc::new(manifest.annotations.clone()),
            removed: false,
            manifest: Some(resolved.digest.clone()),
            is_artifact: false,
            verified: self.verified(&facts),
            proven: self.proven(facts),
            of_namespace: BTreeSet::new(),
            brought_by: Some(self.tenant.clone()),
            kept: self.kept(resolved),
        };
        self.names.add_to(&mut record, &resolved.top);
        self.mark_names(&mut record);
        record
    }

    async fn publish(&self, candidate: Candidate) -> Result<Arc<Image>, Error> {
        let inner = self.inner.clone();
        let publish = move || {
            inner.blobs.sync_blobs(candidate.record.stored())?;
            failpoint::pass("pull.commit")?;
            let image = inner.publish(candidate)?;
            failpoint::pass("pull.record").map(|()| image)
        };
        blocking("recording an image", publish).await
    }

    /// Follows indexes down to one manifest.
    async fn resolve(&self) -> Result<Resolved, Error> {
        let mut target = self.target.clone();
        let mut top = None;
        for _ in 0..=self.inner.config.limits.max_index_depth {
            let document = self.fetch_document(&target).await?;
            let digest = Digest::of(&document.bytes);
            let what = format!("manifest {digest}");
            let top = top.get_or_insert_with(|| digest.clone()).clone();
            let requested = format!("manifest {target} of {}", self.names.first());
            let parsed = manifest::parse_sent(
                &what,
                &document.bytes,
                document.content_type.as_deref(),
                &self.inner.config.limits,
            );
            match parsed.map_err(|error| document.withhold(requested, error))? {
                Document::Manifest(manifest) => {
                    return Ok(Resolved {
                        top,
                        digest,
                        manifest,
                        document: Some(document),
                    });
                }
                Document::Index(entries) => {
                    target =
                        Target::Digest(manifest::choose(&what, &entries, self.platform)?.digest);
                }
            }
        }
        let what = format!("index {}", self.names.first());
        Err(Error::Limit {
            what,
            limit: "max_index_depth",
            allowed: self.inner.config.limits.max_index_depth,
        })
    }

    async fn fetch_document(&self, target: &Target) -> Result<DocumentBytes, Error> {
        let allowed = self.inner.config.limits.max_manifest_bytes;
        let document = self.origin.manifest(target, allowed).await?;
        if let Target::Digest(want) = target {
            let what = format!("manifest {}", self.names.first());
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
                format!(
                    "it is for {}, which this node cannot run",
                    config.platform.shown()
                ),
            ));
        }
        record.config = Arc::new(config.run);
        record.chains = image_config::layer_names(&config.diff_ids, layers);
        for chain in &record.chains {
            self.pins.add(chain);
        }
        let jobs = self.missing_layers(layers, record, &config.diff_ids);
        let wants = wanted(layers, &jobs, self.inner.config.keep_blobs);
        let reused = layers.len().saturating_sub(jobs.len());
        self.fetch_and_unpack(wants, jobs).await?;
        self.inner.transfers.reuse_layers(reused);
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
            tracing::warn!(image = self.names.first(), %error, "content of a failed pull stays until the next collection");
        }
    }
}
