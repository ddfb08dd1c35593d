//! Looks at stored content in the background: whether it still is what was stored.
//!
//! Called by: the daemon, once a day, beside all requests ([`Images::check_content`]).
//! Invariants: one thread at most, and a quarter of its time; an image with broken content is named, and from then on neither
//! listed nor the result of a pull; what containers use stays until they have ended. An error of the disk breaks no image:
//! what cannot be read now may be readable later.
//! Not here: records ([`crate::metadata`]), compiled code. Of the files in a layer names, kinds, modes, owners and sizes are
//! compared, and the bytes of the module that the image runs; for others nothing vouches, only their archive had a digest.

mod progress;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{ErrorKind, Read as _, Take};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::blocking::{blocking, removing};
use crate::error::Error;
use crate::metadata::{LayerRecord, Program, Record};
use crate::reference::{Digest, ImageId};
use crate::regular_file;
use crate::store::{Images, Inner};
use crate::unpack::measure;
use crate::verify::Verifier;

/// How much of a blob is read at a time. Bytes.
const SLICE: u64 = 4 << 20;
/// How often the place of a check is saved.
const SAVE_INTERVAL: Duration = Duration::from_secs(10);
/// How long it rests after each step, as a multiple of the step.
const REST: u32 = 3;

/// Something that images consist of.
#[derive(Debug)]
enum Content {
    Blob(Digest),
    Layer(Digest),
}

/// What to look at, of one content.
enum Look {
    /// At the bytes of a file, which have this digest.
    File(PathBuf, Digest),
    /// At the names in a layer and their facts.
    Tree(Digest),
}

/// A file of which a part is read.
struct Reading {
    file: Take<File>,
    verifier: Verifier,
}

impl Images {
    /// How long to wait before the next [`Images::check_content`]: a day after the last whole one, and half a minute in any
    /// case. Errors: the daemon ends.
    pub async fn pause_before_check(&self) -> Result<Duration, Error> {
        let file = progress::file(self.inner.blobs.directory());
        blocking("looking for the last check", move || {
            Ok(progress::pause(&file))
        })
        .await
    }

    /// Checks the content of all images, or what an interrupted check has left. Returns those that were dropped, because theirs
    /// is broken.
    ///
    /// Errors: the disk fails where it is written to; the daemon ends.
    pub async fn check_content(&self) -> Result<Vec<ImageId>, Error> {
        let file = progress::file(self.inner.blobs.directory());
        let (inner, own) = (Arc::clone(&self.inner), file.clone());
        let content = blocking("looking for the last check", move || {
            let mut content = inner.all_content();
            if let Some(last) = progress::place(&own) {
                content.retain(|place, _| *place > last);
            }
            Ok(content)
        });
        let save = async |place: String| {
            let file = file.clone();
            let save = move || {
                progress::save(&file, &place);
                Ok(())
            };
            blocking("saving the place of a check", save).await
        };
        let (mut dropped, mut saved) = (BTreeSet::new(), Instant::now());
        for (place, (content, look)) in content.await? {
            dropped.extend(self.inner.check_one(content, look).await?);
            if saved.elapsed() >= SAVE_INTERVAL {
                save(place).await?;
                saved = Instant::now();
            }
        }
        save(String::new()).await?;
        Ok(dropped.into_iter().collect())
    }
}

impl Inner {
    /// Checks one content. Returns the images that were dropped because of it.
    async fn check_one(
        self: &Arc<Self>,
        content: Content,
        look: Look,
    ) -> Result<Vec<ImageId>, Error> {
        let checked = match look {
            Look::File(path, digest) => check_file(path, digest).await,
            Look::Tree(chain) => self.check_layer(&chain).await,
        };
        let problem = match checked {
            Ok(None) => return Ok(Vec::new()),
            Ok(Some(problem)) => problem,
            Err(Error::Cancelled { doing }) => return Err(Error::Cancelled { doing }),
            Err(error) => {
                tracing::error!(?content, %error, "stored content of images cannot be checked");
                return Ok(Vec::new());
            }
        };
        let inner = Arc::clone(self);
        let drop_broken = move || inner.drop_broken(&content, &problem);
        removing("dropping a broken image", drop_broken).await
    }

    /// All content by its place, by which it is checked in order.
    fn all_content(&self) -> BTreeMap<String, (Content, Look)> {
        let index = self.read();
        let (blobs, layers) = index.referenced();
        let blobs = blobs.into_iter().map(|digest| {
            let look = Look::File(self.blobs.blob(digest), digest.clone());
            let content = Content::Blob(digest.clone());
            (format!("blob {digest}"), (content, look))
        });
        let layers = layers.into_iter().map(|chain| {
            let content = Content::Layer(chain.clone());
            (
                format!("layer {chain}"),
                (content, Look::Tree(chain.clone())),
            )
        });
        let records = index.images.values().map(|(record, _)| record);
        let modules = records.filter_map(|record| self.module_file(record));
        blobs.chain(layers).chain(modules).collect()
    }

    /// The file of a layer that an image runs.
    fn module_file(&self, record: &Record) -> Option<(String, (Content, Look))> {
        let Program::ModuleFile { digest, file, .. } = &record.program else {
            return None;
        };
        let layers = record.chains.iter();
        let chain = layers.rev().find(|chain| file.starts_with(chain.hex()))?;
        let look = Look::File(self.blobs.layers().join(file), digest.clone());
        let place = format!("module {}", file.display());
        Some((place, (Content::Layer(chain.clone()), look)))
    }

    /// What is wrong with a layer. Errors: it cannot be read.
    async fn check_layer(&self, chain: &Digest) -> Result<Option<String>, Error> {
        let Some(recorded) = self.read().layers.get(chain).cloned() else {
            return Ok(None);
        };
        let path = self.blobs.layer(chain);
        let look = move || match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Ok(Some("its directory is gone".to_owned()))
            }
            opened => {
                difference(&recorded, opened).map_err(|error| Error::io("read", &path, error))
            }
        };
        throttled("checking a layer", look).await
    }

    /// Drops the images that need this broken content, and the content, as far as no container uses it. Blocking. Returns
    /// the images.
    fn drop_broken(&self, content: &Content, problem: &str) -> Result<Vec<ImageId>, Error> {
        let writer = self.writer();
        if !self.is_named(content) {
            // Removed meanwhile.
            return Ok(Vec::new());
        }
        let broken = self.records_that_need(content);
        for record in &broken {
            let names: Vec<&String> = record.tags.iter().chain(&record.digests).collect();
            tracing::error!(
                image = %record.id, ?names, ?content, problem,
                "content of an image is not what was stored: the image is dropped, it has to be pulled again"
            );
            self.hide_or_forget(record)?;
        }
        match content {
            // Nobody may take it for the content of that digest, not even who has it leased.
            Content::Blob(digest) => {
                if broken.is_empty() {
                    tracing::warn!(%digest, problem, "what was kept for exports is not what was stored: it is removed");
                }
                self.blobs.remove_blob(digest)?;
            }
            Content::Layer(chain) => {
                let mut index = self.write();
                if index.layers.contains_key(chain) {
                    index.broken.insert(chain.clone());
                }
            }
        }
        drop(writer);
        for record in &broken {
            let blobs: Vec<Digest> = record.stored().cloned().collect();
            self.discard(&blobs, &record.chains, 0)?;
        }
        self.garbage.notify_one();
        Ok(broken.into_iter().map(|record| record.id).collect())
    }

    fn is_named(&self, content: &Content) -> bool {
        let index = self.read();
        let (blobs, layers) = index.referenced();
        match content {
            Content::Blob(digest) => blobs.contains(digest),
            Content::Layer(chain) => layers.contains(chain),
        }
    }

    fn records_that_need(&self, content: &Content) -> Vec<Record> {
        let needs = |record: &&Record| match content {
            Content::Blob(digest) => record.blobs.contains(digest),
            Content::Layer(chain) => record.chains.contains(chain),
        };
        let index = self.read();
        let records = index.images.values().map(|(record, _)| record);
        records.filter(needs).cloned().collect()
    }

    /// Errors: one of these layers is known to be broken, and has not gone yet.
    pub(crate) fn refuse_broken(&self, chains: &[Digest]) -> Result<(), Error> {
        let index = self.read();
        let Some(chain) = chains.iter().find(|chain| index.broken.contains(chain)) else {
            return Ok(());
        };
        let problem = "it is not what was unpacked, and stays as long as containers use it: it can be unpacked anew when those have been removed";
        let (path, problem) = (self.blobs.layer(chain), std::io::Error::other(problem));
        Err(Error::io("use layer", &path, problem))
    }
}

/// What is wrong with a file that has this digest. Errors: it cannot be read.
async fn check_file(path: PathBuf, digest: Digest) -> Result<Option<String>, Error> {
    let opened = path.clone();
    let open = move || open_file(&opened, digest);
    let Some(mut reading) = throttled("opening stored content", open).await? else {
        return Ok(Some("its file is gone".to_owned()));
    };
    loop {
        let path = path.clone();
        let read = move || read_slice(reading, &path);
        let (next, is_whole) = throttled("checking stored content", read).await?;
        if is_whole {
            let finished = next.verifier.finish();
            return Ok(finished.err().map(|error| error.to_string()));
        }
        reading = next;
    }
}

/// `None` if there is none. Another thing in its place is an empty file.
fn open_file(path: &Path, digest: Digest) -> Result<Option<Reading>, Error> {
    let (file, facts) = match regular_file::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|error| Error::io("open", path, error))?,
    };
    let size = if facts.is_file() { facts.len() } else { 0 };
    let what = path.display().to_string();
    Ok(Some(Reading {
        file: file.take(size),
        verifier: Verifier::new(what, digest, size),
    }))
}

/// Reads on. True at its end.
fn read_slice(mut reading: Reading, path: &Path) -> Result<(Reading, bool), Error> {
    let mut bytes = Vec::new();
    let slice = reading.file.by_ref().take(SLICE).read_to_end(&mut bytes);
    slice.map_err(|error| Error::io("read", path, error))?;
    reading.verifier.update(&bytes)?;
    Ok((reading, bytes.is_empty()))
}

/// Runs blocking work, and rests for longer than it took.
async fn throttled<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let timed = move || {
        let began = Instant::now();
        Ok((work()?, began.elapsed()))
    };
    let (done, took) = blocking(doing, timed).await?;
    tokio::time::sleep(took * REST).await;
    Ok(done)
}

/// How a layer differs from its record; builds before have not recorded what its tree was.
fn difference(
    recorded: &LayerRecord,
    opened: std::io::Result<File>,
) -> std::io::Result<Option<String>> {
    let Some(tree) = recorded.tree else {
        return Ok(None);
    };
    let found = measure(&OwnedFd::from(opened?), u64::MAX)?;
    let is_same = found.is_some_and(|found| found.tree == tree);
    Ok((!is_same).then(|| "files in its directory are not those that were unpacked".to_owned()))
}
