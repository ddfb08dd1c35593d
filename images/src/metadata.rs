//! The store's database (redb): one record per image, one per layer.
//!
//! Read when the store opens; written by the store, one transaction per change.
//! Invariants: a change is on disk before it is visible; a damaged database is renamed and logged, never
//! replaced silently; a database of a newer version is refused unchanged.
//! Not here: which files exist, leases.

use std::collections::{BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use redb::{
    Database, DatabaseError, ReadTransaction, ReadableDatabase as _, ReadableTable as _,
    StorageError, TableDefinition,
};
use serde::Serialize;

use crate::error::{Cause, Error};
pub(crate) use crate::record::{LayerRecord, Preloaded, Program, Record, Sources};
use crate::reference::{Digest, ImageId};

const IMAGES: TableDefinition<&str, &[u8]> = TableDefinition::new("images");
const LAYERS: TableDefinition<&str, &[u8]> = TableDefinition::new("layers");
/// Which repositories have delivered a blob; see [`crate::sources`]. Older builds ignore it.
const SOURCES: TableDefinition<&str, &[u8]> = TableDefinition::new("sources");
/// What was imported from the preload directory, by path. Older builds ignore it.
const PRELOADED: TableDefinition<&str, &[u8]> = TableDefinition::new("preloaded");
const FORMAT: TableDefinition<&str, u64> = TableDefinition::new("format");
/// The version of the records below.
const VERSION: u64 = 1;
/// The suffix of a damaged database's name, after `metadata.redb`.
const DAMAGED: &str = ".damaged-";

/// The content of the database.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub images: Vec<Record>,
    pub layers: HashMap<Digest, LayerRecord>,
    pub sources: Sources,
    pub preloaded: HashMap<String, Preloaded>,
    /// Whether something could not be read: content without a record may still be in use.
    pub is_partial: bool,
}

/// One transaction's worth of changes.
#[derive(Debug, Default)]
pub(crate) struct Change {
    pub put_images: Vec<Record>,
    pub drop_images: Vec<ImageId>,
    pub put_layers: Vec<(Digest, LayerRecord)>,
    pub drop_layers: Vec<Digest>,
    pub put_sources: Vec<(Digest, BTreeSet<String>)>,
    pub drop_sources: Vec<Digest>,
    pub put_preloaded: Vec<(String, Preloaded)>,
    pub drop_preloaded: Vec<String>,
}

impl Change {
    pub(crate) fn is_empty(&self) -> bool {
        self.put_images.is_empty()
            && self.drop_images.is_empty()
            && self.put_layers.is_empty()
            && self.drop_layers.is_empty()
            && self.put_sources.is_empty()
            && self.drop_sources.is_empty()
            && self.put_preloaded.is_empty()
            && self.drop_preloaded.is_empty()
    }
}

/// The open database.
pub(crate) struct Metadata {
    database: Database,
    path: PathBuf,
}

/// Why a database does not open.
enum Refusal {
    /// It is damaged.
    Damaged(Cause),
    /// Anything else: in use, newer, no space, no permission.
    Other(Cause),
}

impl Metadata {
    /// Opens or creates the database and reads it whole. Blocking.
    ///
    /// A damaged one is renamed, and `is_partial` is true until the operator removes that file.
    /// Errors: it is in use by another process, of a newer version, or the disk fails.
    pub(crate) fn open(path: &Path) -> Result<(Self, Loaded), Error> {
        let failed = |source| Error::Metadata {
            operation: "open",
            path: path.to_owned(),
            source,
        };
        let (database, mut loaded) = match try_open(path) {
            Ok(opened) => opened,
            Err(Refusal::Other(source)) => return Err(failed(source)),
            Err(Refusal::Damaged(source)) => {
                let aside = put_aside(path)?;
                tracing::error!(
                    database = %path.display(), kept_as = %aside.display(), error = %source,
                    "image metadata is damaged: starting without it; images have to be pulled again"
                );
                try_open(path)
                    .map_err(|(Refusal::Damaged(source) | Refusal::Other(source))| failed(source))?
            }
        };
        if let Some(aside) = find_put_aside(path)? {
            tracing::error!(
                kept_as = %aside.display(),
                "damaged image metadata is kept: no content is deleted before an operator removes that file"
            );
            loaded.is_partial = true;
        }
        Ok((
            Self {
                database,
                path: path.to_owned(),
            },
            loaded,
        ))
    }

    /// Commits a change. Blocking. Errors: disk full, disk broken; then nothing has changed.
    pub(crate) fn commit(&self, change: &Change) -> Result<(), Error> {
        if change.is_empty() {
            return Ok(());
        }
        self.try_commit(change)
            .map_err(|error| self.failure("write", error))
    }

    fn try_commit(&self, change: &Change) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut images = transaction.open_table(IMAGES)?;
            for record in &change.put_images {
                images.insert(record.id.as_str(), to_json(record).as_slice())?;
            }
            for id in &change.drop_images {
                images.remove(id.as_str())?;
            }
            let mut layers = transaction.open_table(LAYERS)?;
            for (chain, record) in &change.put_layers {
                layers.insert(chain.as_str(), to_json(record).as_slice())?;
            }
            for chain in &change.drop_layers {
                layers.remove(chain.as_str())?;
            }
            let mut sources = transaction.open_table(SOURCES)?;
            for (blob, repositories) in &change.put_sources {
                sources.insert(blob.as_str(), to_json(repositories).as_slice())?;
            }
            for blob in &change.drop_sources {
                sources.remove(blob.as_str())?;
            }
            let mut preloaded = transaction.open_table(PRELOADED)?;
            for (path, record) in &change.put_preloaded {
                preloaded.insert(path.as_str(), to_json(record).as_slice())?;
            }
            for path in &change.drop_preloaded {
                preloaded.remove(path.as_str())?;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    fn failure(&self, operation: &'static str, error: redb::Error) -> Error {
        match error {
            redb::Error::Io(source) => Error::io(operation, &self.path, source),
            other => Error::Metadata {
                operation,
                path: self.path.clone(),
                source: other.into(),
            },
        }
    }
}

fn try_open(path: &Path) -> Result<(Database, Loaded), Refusal> {
    // A damaged file must not crash the daemon: a panic counts as damage.
    catch_unwind(AssertUnwindSafe(|| {
        let database = Database::create(path).map_err(refusal)?;
        let loaded = load(&database)?;
        Ok((database, loaded))
    }))
    .unwrap_or_else(|_| Err(Refusal::Damaged("the database code panicked on it".into())))
}

fn refusal(error: DatabaseError) -> Refusal {
    let is_damage = match &error {
        DatabaseError::Storage(StorageError::Corrupted(_)) | DatabaseError::RepairAborted => true,
        DatabaseError::Storage(StorageError::Io(error)) => {
            matches!(
                error.kind(),
                std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof
            )
        }
        _ => false,
    };
    if is_damage {
        Refusal::Damaged(error.into())
    } else {
        Refusal::Other(error.into())
    }
}

fn load(database: &Database) -> Result<Loaded, Refusal> {
    let damaged = |error: redb::Error| match error {
        redb::Error::Io(error) if error.kind() == std::io::ErrorKind::StorageFull => {
            Refusal::Other(error.into())
        }
        other => Refusal::Damaged(other.into()),
    };
    let found = prepare(database).map_err(damaged)?;
    if found != VERSION {
        return Err(Refusal::Other(
            format!("its records have version {found}, this build knows {VERSION}").into(),
        ));
    }
    read(database).map_err(damaged)
}

/// Creates missing tables and returns the version of the records.
fn prepare(database: &Database) -> Result<u64, redb::Error> {
    let transaction = database.begin_write()?;
    let version = {
        transaction.open_table(IMAGES)?;
        transaction.open_table(LAYERS)?;
        transaction.open_table(SOURCES)?;
        transaction.open_table(PRELOADED)?;
        let mut format = transaction.open_table(FORMAT)?;
        let found = format.get("version")?.map(|version| version.value());
        if found.is_none() {
            format.insert("version", VERSION)?;
        }
        found.unwrap_or(VERSION)
    };
    transaction.commit()?;
    Ok(version)
}

fn read(database: &Database) -> Result<Loaded, redb::Error> {
    let mut loaded = Loaded::default();
    let transaction = database.begin_read()?;
    for row in transaction.open_table(IMAGES)?.iter()? {
        let (id, json) = row?;
        match serde_json::from_slice::<Record>(json.value()) {
            Ok(record) => loaded.images.push(record),
            Err(error) => {
                tracing::error!(image = id.value(), %error, "the record of an image is damaged: it has to be pulled again");
                loaded.is_partial = true;
            }
        }
    }
    for row in transaction.open_table(LAYERS)?.iter()? {
        let (chain, json) = row?;
        match (chain.value().parse(), serde_json::from_slice(json.value())) {
            (Ok(chain), Ok(record)) => drop(loaded.layers.insert(chain, record)),
            _ => {
                tracing::error!(layer = chain.value(), "the record of a layer is damaged");
                loaded.is_partial = true;
            }
        }
    }
    read_shortcuts(&transaction, &mut loaded)?;
    Ok(loaded)
}

/// Reads what only saves work. An unreadable record is left out.
fn read_shortcuts(transaction: &ReadTransaction, loaded: &mut Loaded) -> Result<(), redb::Error> {
    for row in transaction.open_table(SOURCES)?.iter()? {
        let (blob, json) = row?;
        // An unreadable record only costs a transfer.
        if let (Ok(blob), Ok(repositories)) =
            (blob.value().parse(), serde_json::from_slice(json.value()))
        {
            loaded.sources.insert(blob, repositories);
        }
    }
    for row in transaction.open_table(PRELOADED)?.iter()? {
        let (path, json) = row?;
        // An unreadable record only costs an import.
        if let Ok(record) = serde_json::from_slice(json.value()) {
            loaded.preloaded.insert(path.value().to_owned(), record);
        }
    }
    Ok(())
}

fn put_aside(path: &Path) -> Result<PathBuf, Error> {
    let seconds = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |age| age.as_secs());
    let mut name = path.as_os_str().to_owned();
    name.push(format!("{DAMAGED}{seconds}"));
    let aside = PathBuf::from(name);
    std::fs::rename(path, &aside).map_err(|error| Error::io("put aside", path, error))?;
    Ok(aside)
}

fn find_put_aside(path: &Path) -> Result<Option<PathBuf>, Error> {
    let Some(directory) = path.parent() else {
        return Ok(None);
    };
    let failed = |error| Error::io("list", directory, error);
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().to_string_lossy().contains(DAMAGED) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

fn to_json<T: Serialize>(record: &T) -> Vec<u8> {
    serde_json::to_vec(record)
        .expect("records are plain structs with text keys, which always become JSON")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test panics to fail")]
mod tests {
    use super::*;
    use crate::unpack::Usage;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("images-metadata-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn database(&self) -> PathBuf {
            self.0.join("metadata.redb")
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn layer() -> (Digest, LayerRecord) {
        (
            Digest::of(b"chain"),
            LayerRecord {
                blob: Digest::of(b"blob"),
                bytes: 1,
                inodes: 2,
                tree: Some(u64::MAX),
            },
        )
    }

    #[test]
    fn records_survive_a_reopen_and_two_owners_are_refused() {
        let scratch = Scratch::new("reopen");
        let (metadata, loaded) = Metadata::open(&scratch.database()).unwrap();
        assert!(loaded.images.is_empty() && !loaded.is_partial);
        metadata
            .commit(&Change {
                put_layers: vec![layer()],
                ..Change::default()
            })
            .unwrap();
        let second = Metadata::open(&scratch.database()).err().unwrap();
        assert!(
            matches!(
                second,
                Error::Metadata {
                    operation: "open",
                    ..
                }
            ),
            "{second}"
        );
        drop(metadata);
        let (_, loaded) = Metadata::open(&scratch.database()).unwrap();
        assert_eq!(
            loaded.layers[&layer().0].usage(),
            Usage {
                bytes: 1,
                inodes: 2
            }
        );
    }

    #[test]
    fn a_damaged_database_is_moved_aside_and_reported() {
        let scratch = Scratch::new("damaged");
        for bytes in [
            &b"this is no database at all, but long enough to look like one"[..],
            &[0xff; 1 << 20],
        ] {
            std::fs::write(scratch.database(), bytes).unwrap();
            let (metadata, loaded) = Metadata::open(&scratch.database()).unwrap();
            assert!(loaded.is_partial && loaded.layers.is_empty());
            drop(metadata);
            let aside = find_put_aside(&scratch.database()).unwrap().unwrap();
            assert_eq!(std::fs::read(&aside).unwrap(), bytes);
            // It stays partial until somebody has looked at the file.
            let (metadata, loaded) = Metadata::open(&scratch.database()).unwrap();
            assert!(loaded.is_partial);
            drop(metadata);
            std::fs::remove_file(aside).unwrap();
            assert!(!Metadata::open(&scratch.database()).unwrap().1.is_partial);
        }
    }

    #[test]
    fn a_newer_database_is_refused_untouched() {
        let scratch = Scratch::new("newer");
        let (metadata, _) = Metadata::open(&scratch.database()).unwrap();
        let transaction = metadata.database.begin_write().unwrap();
        transaction
            .open_table(FORMAT)
            .unwrap()
            .insert("version", VERSION + 1)
            .unwrap();
        transaction.commit().unwrap();
        drop(metadata);
        for _ in 0..2 {
            let refused = Metadata::open(&scratch.database()).err().unwrap();
            let cause = std::error::Error::source(&refused).unwrap().to_string();
            assert!(cause.contains("version 2, this build knows 1"), "{cause}");
        }
    }

    #[test]
    fn a_damaged_record_costs_that_image_alone() {
        let scratch = Scratch::new("record");
        let (metadata, _) = Metadata::open(&scratch.database()).unwrap();
        metadata
            .commit(&Change {
                put_layers: vec![layer()],
                ..Change::default()
            })
            .unwrap();
        let transaction = metadata.database.begin_write().unwrap();
        transaction
            .open_table(IMAGES)
            .unwrap()
            .insert("sha256:x", &b"{"[..])
            .unwrap();
        transaction.commit().unwrap();
        drop(metadata);
        let (_, loaded) = Metadata::open(&scratch.database()).unwrap();
        assert!(loaded.is_partial && loaded.layers.len() == 1);
    }
}
