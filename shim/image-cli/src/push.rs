//! `coracle image push`: an image of the daemon, or of an OCI layout, goes to a registry.
//!
//! Called by: the commands; `pack` pushes what it has made. Calls: `export` (an image of the store becomes a layout in a
//! temporary file), `source`, `registry`.
//! Invariants: a manifest is pushed after all that it names, so that nobody sees half an image; the tag comes last; each
//! document and each blob is sent once, after it was verified, and one file is open at a time.
//! Must not know: what the image holds.

use std::collections::HashSet;
use std::io::Cursor;
use std::path::Path;

use clap::Args;
use coracle_proto::archives::v1::ExportRequest;
use serde_json::json;

use crate::client::Client;
use crate::error::Error;
use crate::export::{self, Received};
use crate::oci::{MANIFEST, Packed, digest};
use crate::print::Output;
use crate::progress::{Count, counted};
use crate::registry::{Registries, RegistryArgs, Repository};
use crate::source::{Descriptor, Links, Source};

/// Most indexes inside indexes.
const MAX_DEPTH: u32 = 4;

/// Most manifests and blobs of an image.
const MAX_NAMED: usize = 100_000;

/// Arguments of `push`.
#[derive(Debug, Args)]
pub struct PushArgs {
    /// An image of the daemon, by name or id, or an OCI layout: a directory or a tar, by a path that begins with . or /
    pub source: String,
    /// The name to push it by: REGISTRY/REPOSITORY:TAG; that of the image unless given
    #[arg(value_name = "REF")]
    pub reference: Option<String>,
    /// Of a name with an image for Linux and one for WebAssembly, the one for this platform, as linux/amd64 or wasi/wasm
    #[arg(long, value_name = "OS[/ARCH]", default_value = "")]
    pub platform: String,
    /// How the registry is used
    #[command(flatten)]
    pub registry: RegistryArgs,
    /// Of a layout in a directory, follow symbolic links that lead out of it, too, as Bazel makes them
    #[arg(long)]
    pub follow_links: bool,
    /// As one JSON object
    #[arg(long)]
    pub json: bool,
}

impl PushArgs {
    /// Which links of a layout are followed.
    fn links(&self) -> Links {
        match self.follow_links {
            true => Links::Outside,
            false => Links::Inside,
        }
    }
}

/// Pushes an image. Errors: there is none, or the registry refuses, with its answer.
pub(crate) async fn run(
    client: Client,
    registries: &Registries,
    args: PushArgs,
) -> Result<u8, Error> {
    let is_path = args.source.starts_with(['/', '.']);
    let Some(reference) = args
        .reference
        .clone()
        .or((!is_path).then(|| args.source.clone()))
    else {
        return Err(Error::new(
            "name what to push it by: coracle image push LAYOUT REF",
        ));
    };
    // First what costs little: the registry may refuse.
    let repository = Repository::open(&args.registry, registries, &reference).await?;
    let source = match is_path {
        true => Source::open(Path::new(&args.source), args.links())?,
        false => stored(client, &args).await?,
    };
    let image = only(&source, &args.source, &reference)?;
    let count = Count::default();
    let transfer = Transfer {
        source: &source,
        repository: &repository,
        count: &count,
    };
    let doing = format!("pushing {reference}");
    counted(&doing, &count, transfer.image(&image)).await?;
    let mut out = Output::default();
    if args.json {
        out.json(&json!({"reference": reference, "digest": image.digest}));
    } else {
        out.line(&format!("{reference} {}", image.digest));
    }
    out.print()
}

/// An image of the daemon, as a layout in a temporary file without a name.
async fn stored(mut client: Client, args: &PushArgs) -> Result<Source, Error> {
    // Gone when it is closed, in TMPDIR.
    let made = tempfile::tempfile();
    let mut file = made.map_err(|error| Error::because("make a temporary file", error))?;
    let request = ExportRequest {
        image: args.source.clone(),
        platform: args.platform.clone(),
    };
    match export::receive(&mut client, request, &mut file).await? {
        Received::Whole(_) => Source::tar(args.source.clone(), file),
        Received::NotWanted => Err(Error::new("the temporary file was closed")),
    }
}

/// The one image of a layout, or that with the name to push.
fn only(source: &Source, name: &str, reference: &str) -> Result<Descriptor, Error> {
    let entries = source.index()?;
    let named = entries
        .iter()
        .find(|entry| entry.names.iter().any(|name| name == reference));
    let digests: HashSet<&str> = entries.iter().map(|entry| entry.digest.as_str()).collect();
    match (named, &entries[..]) {
        (_, []) => Err(Error::new(format!("{name} holds no image"))),
        (_, [first, ..]) if digests.len() == 1 => Ok(first.clone()),
        (Some(named), _) if named_once(&entries, reference) => Ok(named.clone()),
        _ => Err(Error::new(format!(
            "{name} holds {} images, of which none alone is called {reference}; import it, and push one of them",
            digests.len()
        ))),
    }
}

fn named_once(entries: &[Descriptor], reference: &str) -> bool {
    let is_named = |entry: &&Descriptor| entry.names.iter().any(|name| name == reference);
    let named: HashSet<&str> = entries
        .iter()
        .filter(is_named)
        .map(|entry| entry.digest.as_str())
        .collect();
    named.len() == 1
}

/// An image on its way.
struct Transfer<'a> {
    source: &'a Source,
    repository: &'a Repository,
    count: &'a Count,
}

impl Transfer<'_> {
    /// Pushes what the image names, then its manifest or index, by the tag.
    async fn image(&self, image: &Descriptor) -> Result<(), Error> {
        let mut content = Content::default();
        content.add(self.source, image, 0)?;
        self.blobs(content.blobs).await?;
        for document in &content.documents {
            let (bytes, _) = self.source.document(document)?;
            let by_digest = (document.digest != image.digest).then_some(document.digest.as_str());
            let media_type = media_type(document, &bytes);
            self.repository
                .manifest(bytes, &media_type, by_digest)
                .await?;
        }
        Ok(())
    }

    async fn blobs(&self, blobs: Vec<String>) -> Result<(), Error> {
        let mut missing = Vec::new();
        for digest in blobs {
            if !self.repository.has(&digest).await {
                self.count.expect(self.source.blob(&digest)?.size());
                missing.push(digest);
            }
        }
        for digest in missing {
            let piece = self.source.verified(&digest).await?;
            let size = piece.size();
            self.repository
                .blob(&digest, size, piece, self.count)
                .await?;
        }
        Ok(())
    }
}

/// What an image consists of, each once.
#[derive(Default)]
struct Content {
    seen: HashSet<String>,
    /// Manifests and indexes, each after those that it names.
    documents: Vec<Descriptor>,
    /// Digests of configs and layers.
    blobs: Vec<String>,
}

impl Content {
    /// Adds a manifest or an index, `depth` indexes below the first, with all that it names.
    fn add(&mut self, source: &Source, document: &Descriptor, depth: u32) -> Result<(), Error> {
        if !self.seen.insert(document.digest.clone()) {
            return Ok(());
        }
        if self.seen.len() > MAX_NAMED {
            return Err(Error::new(format!(
                "the image names more than {MAX_NAMED} manifests and blobs"
            )));
        }
        let (_, named) = source.document(document)?;
        for inner in named {
            if !document.is_index() {
                if self.seen.insert(inner.digest.clone()) {
                    self.blobs.push(inner.digest);
                }
            } else if depth < MAX_DEPTH {
                self.add(source, &inner, depth + 1)?;
            } else {
                return Err(Error::new("indexes lie in indexes, more than four deep"));
            }
        }
        self.documents.push(document.clone());
        Ok(())
    }
}

/// What a manifest says that it is; else what its entry in the index says.
fn media_type(document: &Descriptor, bytes: &[u8]) -> String {
    let own: Option<serde_json::Value> = serde_json::from_slice(bytes).ok();
    let own = own.and_then(|own| own["mediaType"].as_str().map(str::to_owned));
    own.unwrap_or_else(|| document.media_type.clone())
}

/// Pushes what `pack` has made. Errors: as [`run`].
pub(crate) async fn packed(
    args: &RegistryArgs,
    registries: &Registries,
    reference: &str,
    packed: &Packed,
) -> Result<(), Error> {
    let repository = Repository::open(args, registries, reference).await?;
    let count = Count::default();
    let work = async {
        for blob in &packed.blobs {
            let (digest, size) = (digest(blob), blob.len() as u64);
            if !repository.has(&digest).await {
                count.expect(size);
                let bytes = Cursor::new(blob.clone());
                repository.blob(&digest, size, bytes, &count).await?;
            }
        }
        repository
            .manifest(packed.manifest.clone(), MANIFEST, None)
            .await
    };
    counted(&format!("pushing {reference}"), &count, work).await
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use std::fs;

    use super::*;

    const INDEX: &str = "application/vnd.oci.image.index.v1+json";

    /// A layout that is filled by hand.
    struct Layout(tempfile::TempDir);

    impl Layout {
        fn new() -> Self {
            let layout = Self(tempfile::tempdir().unwrap());
            fs::create_dir_all(layout.0.path().join("blobs/sha256")).unwrap();
            layout
        }

        fn put(&self, media_type: &str, document: &serde_json::Value) -> Descriptor {
            let bytes = document.to_string().into_bytes();
            let digest = digest(&bytes);
            let name = digest.trim_start_matches("sha256:");
            fs::write(self.0.path().join("blobs/sha256").join(name), &bytes).unwrap();
            Descriptor {
                digest,
                media_type: media_type.to_owned(),
                names: Vec::new(),
            }
        }

        fn index(&self, of: &[&Descriptor]) -> Descriptor {
            let entries: Vec<_> = of.iter().map(|one| entry(one)).collect();
            self.put(INDEX, &json!({"manifests": entries}))
        }
    }

    fn entry(of: &Descriptor) -> serde_json::Value {
        json!({"digest": of.digest, "mediaType": of.media_type})
    }

    #[test]
    fn each_document_is_pushed_once_after_all_that_it_names() {
        let layout = Layout::new();
        let blob = json!({"digest": format!("sha256:{}", "a".repeat(64))});
        let manifest = |note: u32| {
            let document = json!({"config": blob, "layers": [blob, blob], "note": note});
            layout.put(MANIFEST, &document)
        };
        let (one, other) = (manifest(1), manifest(2));
        let inner = layout.index(&[&one, &other, &one]);
        let top = layout.index(&[&one, &inner, &inner, &other, &inner]);
        let source = Source::open(layout.0.path(), Links::Inside).unwrap();
        let mut content = Content::default();
        content.add(&source, &top, 0).unwrap();
        let pushed: Vec<&str> = content
            .documents
            .iter()
            .map(|document| document.digest.as_str())
            .collect();
        let all = [&one, &other, &inner, &top];
        assert_eq!(pushed, all.map(|one| one.digest.as_str()));
        assert_eq!(content.blobs, [format!("sha256:{}", "a".repeat(64))]);
    }

    #[test]
    fn indexes_in_indexes_end() {
        let layout = Layout::new();
        let mut deep = layout.put(MANIFEST, &json!({}));
        let mut is_accepted = Vec::new();
        for _ in 0..6 {
            deep = layout.index(&[&deep]);
            let source = Source::open(layout.0.path(), Links::Inside).unwrap();
            is_accepted.push(Content::default().add(&source, &deep, 0).is_ok());
        }
        assert_eq!(is_accepted, [true, true, true, true, false, false]);
    }
}
