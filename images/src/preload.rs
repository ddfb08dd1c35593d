//! The preload directory: archives of images that a node takes in at its start, for nodes without a registry.
//!
//! Called by: the daemon, before it answers on its socket.
//! Invariants: an archive is imported again only after its file has changed or one of its images is gone; its images are
//! pinned; an archive that cannot be imported, or not in time, is logged and stops neither the others nor the daemon, and is
//! not tried again before its file changes; archives that users other than root could have written are not read, because
//! they say what an image name means.
//! Not here: reading archives ([`crate::import`]).

use std::collections::HashSet;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::blobs::blocking;
use crate::error::{Error, Kind as ErrorKind};
use crate::image::Image;
use crate::import::ImportRequest;
use crate::metadata::{Change, Preloaded};
use crate::reference::ImageId;
use crate::regular_file;
use crate::store::{Images, Index, Inner};

/// Names of archives end in one of these; other files are ignored.
const ENDINGS: [&str; 5] = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst"];

/// Longest text of a failure that is recorded. Characters.
const MAX_FAILURE: usize = 1000;

impl Images {
    /// Imports the archives in `directory` that are new or have changed, in the order of their names, and pins their
    /// images. Returns the new images. An absent directory is an empty one.
    ///
    /// Failures are logged: none of them may keep a daemon from its start. If the future is dropped, what was imported
    /// stays, and the next call continues.
    pub async fn preload(&self, directory: &Path) -> Vec<Arc<Image>> {
        let path = directory.to_owned();
        let listed = blocking("listing archives", move || archives(&path)).await;
        let archives = match listed {
            Ok(archives) => archives,
            Err(error) => {
                tracing::error!(directory = %directory.display(), %error, "no image is preloaded");
                return Vec::new();
            }
        };
        let mut images = Vec::new();
        for archive in &archives {
            match self.preload_one(archive).await {
                Ok(new) => images.extend(new),
                Err(error) => {
                    let error = with_causes(&error);
                    tracing::error!(archive = %archive.display(), error, "an archive is not preloaded");
                }
            }
        }
        let inner = self.inner.clone();
        let drop_records = move || inner.drop_preloaded(&archives);
        if let Err(error) = blocking("dropping records of archives", drop_records).await {
            tracing::warn!(%error, "records of preloaded archives that are gone stay");
        }
        images
    }

    async fn preload_one(&self, path: &Path) -> Result<Vec<Arc<Image>>, Error> {
        let (inner, own) = (self.inner.clone(), path.to_owned());
        let opened = blocking("opening an archive", move || {
            let (file, facts) = open(&own)?;
            let is_known = inner.is_preloaded(&own, &facts);
            Ok((!is_known).then_some((file, facts)))
        });
        let Some((file, facts)) = opened.await? else {
            return Ok(Vec::new());
        };
        let imported = self.import_in_time(path, file).await;
        let (images, failure) = match &imported {
            Ok(images) => (images.iter().map(|image| image.id.clone()).collect(), None),
            Err(error) if is_transient(error) => return imported,
            Err(error) => (
                Vec::new(),
                Some(with_causes(error).chars().take(MAX_FAILURE).collect()),
            ),
        };
        let preloaded = Preloaded {
            size: facts.len(),
            modified_ns: modified_ns(&facts),
            images,
            failure,
        };
        let (inner, path) = (self.inner.clone(), path.to_owned());
        let recorded = blocking("recording an archive", move || {
            inner.put_preloaded(&path, preloaded)
        })
        .await;
        // Why the archive is not imported is more to the point than why that is not recorded.
        let images = imported?;
        recorded.map(|()| images)
    }

    /// Imports one archive. Errors: [`Error::Overdue`] if it takes too long, else its own.
    async fn import_in_time(&self, path: &Path, file: File) -> Result<Vec<Arc<Image>>, Error> {
        let request = ImportRequest {
            name: path.display().to_string(),
            pin: true,
            ..ImportRequest::default()
        };
        let allowed = self.inner.config.preload_timeout;
        let imported = tokio::time::timeout(allowed, self.import(file, &request)).await;
        imported.unwrap_or_else(|_| {
            Err(Error::Import {
                archive: request.name.clone(),
                cause: Box::new(Error::Overdue {
                    setting: "images.preload_timeout_s",
                    allowed,
                }),
            })
        })
    }
}

/// Whether the same archive may be imported at the next start: it is the node that has failed.
fn is_transient(error: &Error) -> bool {
    let is_disk_full = match error {
        Error::Import { cause, .. } => matches!(**cause, Error::DiskFull { .. }),
        _ => false,
    };
    is_disk_full || matches!(error.kind(), ErrorKind::Io | ErrorKind::Cancelled)
}

impl Inner {
    /// Whether the file is one whose images are all here, or that was found to be unusable; the log says that.
    fn is_preloaded(&self, path: &Path, facts: &Metadata) -> bool {
        let index = self.read();
        let known = index.preloaded.get(&key(path));
        let Some(known) = known.filter(|known| is_of(known, facts)) else {
            return false;
        };
        if let Some(failure) = &known.failure {
            tracing::error!(
                archive = %path.display(), failure,
                "an archive is skipped: an earlier start could not import it; change the file, or touch it, to try again"
            );
        }
        known.images.iter().all(|id| has_image(&index, id))
    }

    /// Drops the records of archives that are not in `listed`, if none of their images is here. Blocking.
    fn drop_preloaded(&self, listed: &[PathBuf]) -> Result<(), Error> {
        let _writer = self.writer();
        let listed: HashSet<String> = listed.iter().map(|path| key(path)).collect();
        let drop_preloaded: Vec<String> = {
            let index = self.read();
            let is_of_use = |path: &str, record: &Preloaded| {
                listed.contains(path) || record.images.iter().any(|id| has_image(&index, id))
            };
            let records = index.preloaded.iter();
            records
                .filter(|(path, record)| !is_of_use(path, record))
                .map(|(path, _)| path.clone())
                .collect()
        };
        self.metadata.commit(&Change {
            drop_preloaded: drop_preloaded.clone(),
            ..Change::default()
        })?;
        let mut index = self.write();
        index
            .preloaded
            .retain(|path, _| !drop_preloaded.contains(path));
        Ok(())
    }

    fn put_preloaded(&self, path: &Path, preloaded: Preloaded) -> Result<(), Error> {
        let _writer = self.writer();
        self.metadata.commit(&Change {
            put_preloaded: vec![(key(path), preloaded.clone())],
            ..Change::default()
        })?;
        self.write().preloaded.insert(key(path), preloaded);
        Ok(())
    }
}

/// Whether the record is of this file, unchanged.
fn is_of(known: &Preloaded, facts: &Metadata) -> bool {
    known.size == facts.len() && known.modified_ns == modified_ns(facts)
}

fn has_image(index: &Index, id: &ImageId) -> bool {
    index
        .images
        .get(id)
        .is_some_and(|(record, _)| !record.removed)
}

fn key(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn modified_ns(facts: &Metadata) -> i128 {
    i128::from(facts.mtime()) * 1_000_000_000 + i128::from(facts.mtime_nsec())
}

/// The archives in `directory`, sorted by name.
fn archives(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |error| Error::io("list", directory, error);
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    only_root_writes(directory, &fs::metadata(directory).map_err(failed)?)?;
    let mut archives = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let name = path
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        if name.starts_with('.') {
            continue;
        }
        if ENDINGS.iter().any(|ending| name.ends_with(ending)) {
            archives.push(path);
        } else {
            tracing::warn!(file = %path.display(), "not an archive of images: the name ends in none of {}", ENDINGS.join(" "));
        }
    }
    archives.sort();
    Ok(archives)
}

fn open(path: &Path) -> Result<(File, Metadata), Error> {
    let failed = |error| Error::io("open", path, error);
    let (file, facts) = regular_file::open(path).map_err(failed)?;
    if !facts.is_file() {
        return Err(Error::invalid(
            path.display().to_string(),
            "it is not a regular file",
        ));
    }
    only_root_writes(path, &facts)?;
    Ok((file, facts))
}

/// Errors: somebody else than root could have written it.
fn only_root_writes(path: &Path, facts: &Metadata) -> Result<(), Error> {
    let group_writes = facts.mode() & 0o020 != 0 && facts.gid() != 0;
    if facts.uid() == 0 && facts.mode() & 0o002 == 0 && !group_writes {
        return Ok(());
    }
    let (mode, uid, gid) = (facts.mode() & 0o7777, facts.uid(), facts.gid());
    let problem =
        format!("it has mode {mode:04o} and owner {uid}:{gid}, only root may be able to write it");
    Err(Error::invalid(path.display().to_string(), problem))
}

fn with_causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.beneath();
    while let Some(next) = cause {
        text.push_str(&format!(": {next}"));
        cause = next.source();
    }
    text
}
