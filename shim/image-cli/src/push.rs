//! `coracle image push`: an image of the daemon, or of an OCI layout, goes to a registry.
//!
//! Called by: the commands; `pack` pushes what it has made. Calls: `export` (an image of the store becomes a layout in a
//! temporary file), `source`, `registry`.
//! Invariants: a manifest is pushed after all that it names, so that nobody sees half an image; the tag comes last.
//! Must not know: what the image holds.

use std::collections::HashSet;
use std::fs::File;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use clap::Args;
use coracle_proto::archives::v1::ExportRequest;
use serde_json::json;

use crate::client::Client;
use crate::error::Error;
use crate::export::{self, Received};
use crate::pack::{MANIFEST, Packed, digest};
use crate::print::Output;
use crate::progress::{Count, counted};
use crate::registry::{Registries, RegistryArgs, Repository};
use crate::source::{Descriptor, Source};

/// Most indexes inside indexes.
const MAX_DEPTH: u32 = 4;

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
    /// As one JSON object
    #[arg(long)]
    pub json: bool,
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
        true => Source::open(Path::new(&args.source))?,
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
    let made = temporary();
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

/// A file that is gone when it is closed, in TMPDIR.
fn temporary() -> std::io::Result<File> {
    let name = format!("coracle-push-{}", std::process::id());
    let path: PathBuf = std::env::temp_dir().join(name);
    let mut options = File::options();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
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
        let mut pending = vec![(image.clone(), 0)];
        let mut documents = Vec::new();
        let mut blobs = Vec::new();
        // Indexes first: what they name has to be pushed before them.
        while let Some((document, depth)) = pending.pop() {
            let (bytes, named) = self.source.document(&document)?;
            match document.is_index() {
                true if depth < MAX_DEPTH => {
                    pending.extend(named.into_iter().map(|inner| (inner, depth + 1)));
                }
                true => return Err(Error::new("indexes lie in indexes, more than four deep")),
                false => blobs.extend(named),
            }
            documents.push((document, bytes));
        }
        self.blobs(blobs).await?;
        let top = documents.len();
        for (at, (document, bytes)) in documents.into_iter().enumerate().rev() {
            let by_digest = (at > 0 && top > 1).then_some(document.digest.as_str());
            let media_type = media_type(&document, &bytes);
            self.repository
                .manifest(bytes, &media_type, by_digest)
                .await?;
        }
        Ok(())
    }

    async fn blobs(&self, blobs: Vec<Descriptor>) -> Result<(), Error> {
        let mut seen = HashSet::new();
        let mut missing = Vec::new();
        for blob in blobs {
            if seen.insert(blob.digest.clone()) && !self.repository.has(&blob.digest).await {
                let piece = self.source.blob(&blob.digest)?;
                self.count.expect(piece.size());
                missing.push((blob.digest, piece));
            }
        }
        for (digest, piece) in missing {
            let size = piece.size();
            self.repository
                .blob(&digest, size, piece, self.count)
                .await?;
        }
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
