//! Syncs records to the disk within a second, in the background: no request waits for a disk.
//!
//! ```text
//! save --> queue --after 200 ms, all at once--> fsync of each, or one syncfs of many
//!                                                  |
//!       older generations are unlinked, waiters run <
//! ```
//! Called by: [`super::store`], which queues, `serve`, which starts it and flushes it at the end. One thread, which
//! sleeps while nothing is queued and ends with the last handle.
//! Invariants: an older generation is unlinked only after a newer one is on the disk; a waiter runs only after its
//! record is on the disk, else never. An object appears on the disk after its contents: directories are synced from the
//! deepest one up.
//! Must not know: the contents of a record.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use coracle_spec::failpoint;
use tokio::sync::oneshot;

use super::generations::{drop_older, path_of};

/// How long changes gather before they are synced.
const GATHER: Duration = Duration::from_millis(200);
/// From this number of changes on, one syncfs is cheaper than an fsync of each. It also writes what containers have
/// written to the same file system.
const MANY: usize = 64;

/// Queues changes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Syncer(Sender<Message>);

#[derive(Debug)]
enum Message {
    Changed(Change),
    /// Answered once the newest record of this directory is on the disk; dropped if it cannot be synced.
    Wait(PathBuf, oneshot::Sender<()>),
    /// Answered once everything queued before it was tried.
    Flush(oneshot::Sender<()>),
}

/// What has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    /// A generation was written. `is_new`: the directories above it may be new, too.
    Record {
        directory: PathBuf,
        generation: u64,
        is_new: bool,
    },
    /// A file was written that will not change again.
    File(PathBuf),
    /// Names were removed from a directory.
    Directory(PathBuf),
}

impl Syncer {
    /// Starts the thread for records below `root`; it syncs directories up to there. Errors: the thread cannot be
    /// started.
    pub fn start(root: &Path) -> io::Result<Syncer> {
        let (sender, receiver) = channel();
        let mut disk = Disk {
            root: root.to_owned(),
            failed: HashSet::new(),
        };
        std::thread::Builder::new()
            .name("syncer".to_owned())
            .spawn(move || disk.run(&receiver))?;
        Ok(Syncer(sender))
    }

    /// Queues generation `generation` of the record in `directory`.
    pub fn record(&self, directory: &Path, generation: u64, is_new: bool) {
        self.send(Message::Changed(Change::Record {
            directory: directory.to_owned(),
            generation,
            is_new,
        }));
    }

    /// Queues a file that was written completely, with its name.
    pub fn file(&self, path: &Path) {
        self.send(Message::Changed(Change::File(path.to_owned())));
    }

    /// Queues removals from a directory; the directory itself may be removed.
    pub fn directory(&self, path: &Path) {
        self.send(Message::Changed(Change::Directory(path.to_owned())));
    }

    /// Resolves once the last record queued for `directory` is on the disk. Closed when the disk refuses.
    pub fn wait(&self, directory: &Path) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        self.send(Message::Wait(directory.to_owned(), sender));
        receiver
    }

    /// Waits until everything queued before is on the disk, or was tried.
    pub async fn flush(&self) {
        let (sender, receiver) = oneshot::channel();
        self.send(Message::Flush(sender));
        // Closed only when the thread is gone.
        let _ = receiver.await;
    }

    fn send(&self, message: Message) {
        // The thread outlives every handle, unless it panicked: records are then as durable as the kernel makes them.
        let _ = self.0.send(message);
    }
}

impl Change {
    /// The object of the change: of two changes with the same key the later one counts.
    fn key(&self) -> &Path {
        match self {
            Change::Record { directory, .. } => directory,
            Change::File(path) | Change::Directory(path) => path,
        }
    }

    /// The file that has to be synced.
    fn file(&self) -> Option<PathBuf> {
        match self {
            Change::Record {
                directory,
                generation,
                ..
            } => Some(path_of(directory, *generation)),
            Change::File(path) => Some(path.clone()),
            Change::Directory(_) => None,
        }
    }

    /// The directory with the changed name, and whether directories above it may be new.
    fn directory(&self) -> (&Path, bool) {
        match self {
            Change::Record {
                directory, is_new, ..
            } => (directory, *is_new),
            Change::File(path) => (path.parent().unwrap_or(path), false),
            Change::Directory(path) => (path, false),
        }
    }

    /// Replaces this change by `later`.
    fn replace(&mut self, later: Change) {
        match (&*self, later) {
            (
                Change::Record { is_new: before, .. },
                Change::Record {
                    directory,
                    generation,
                    is_new,
                },
            ) => {
                let is_new = is_new || *before;
                *self = Change::Record {
                    directory,
                    generation,
                    is_new,
                };
            }
            (_, later) => *self = later,
        }
    }
}

/// Changes that are synced together.
#[derive(Default)]
struct Batch {
    /// In the order of the first change of each object.
    changes: Vec<Change>,
    positions: HashMap<PathBuf, usize>,
    waits: Vec<(PathBuf, oneshot::Sender<()>)>,
    flushes: Vec<oneshot::Sender<()>>,
}

impl Batch {
    fn add(&mut self, message: Message) {
        match message {
            Message::Changed(change) => match self.positions.get(change.key()) {
                Some(position) => self.changes[*position].replace(change),
                None => {
                    let position = self.changes.len();
                    self.positions.insert(change.key().to_owned(), position);
                    self.changes.push(change);
                }
            },
            Message::Wait(directory, sender) => self.waits.push((directory, sender)),
            Message::Flush(sender) => self.flushes.push(sender),
        }
    }
}

/// The thread's state.
struct Disk {
    root: PathBuf,
    /// Directories whose newest record could not be synced.
    failed: HashSet<PathBuf>,
}

impl Disk {
    fn run(&mut self, queue: &Receiver<Message>) {
        while let Ok(first) = queue.recv() {
            let mut batch = Batch::default();
            batch.add(first);
            std::thread::sleep(GATHER);
            for message in queue.try_iter() {
                batch.add(message);
            }
            self.sync(batch);
        }
    }

    fn sync(&mut self, batch: Batch) {
        let refused = self.bring(&batch.changes);
        for (change, refusal) in batch.changes.iter().zip(refused) {
            match refusal {
                None => {
                    self.failed.remove(change.key());
                    drop_older_of(change);
                }
                // Older generations stay; a later save of the same object tries again with a new file.
                Some(error) => {
                    tracing::error!(object = %change.key().display(), error, "a record could not be synced to the disk");
                    self.failed.insert(change.key().to_owned());
                }
            }
        }
        // Deleted objects need no sync any more.
        self.failed.retain(|path| path.exists());
        for (directory, sender) in batch.waits {
            if !self.failed.contains(&directory) {
                let _ = sender.send(());
            }
        }
        for sender in batch.flushes {
            let _ = sender.send(());
        }
    }

    /// The reason why each change is not on the disk; `None` where it is.
    fn bring(&self, changes: &[Change]) -> Vec<Option<String>> {
        if let Err(error) = failpoint::hit("sync.records") {
            return vec![Some(error.to_string()); changes.len()];
        }
        // A syncfs also fails for files of others; then each change is synced alone.
        if changes.len() > MANY && self.sync_all() {
            return vec![None; changes.len()];
        }
        let mut directories = BTreeSet::new();
        let mut refused: Vec<Option<String>> = Vec::with_capacity(changes.len());
        for change in changes {
            let synced = change.file().map_or(Ok(()), |file| sync_if_there(&file));
            refused.push(synced.err().map(|error| error.to_string()));
            directories.extend(self.directories_of(change));
        }
        // A directory sorts before its contents.
        for directory in directories.into_iter().rev() {
            if let Err(error) = sync_if_there(&directory) {
                let why = format!("sync directory {}: {error}", directory.display());
                refused.fill(Some(why));
            }
        }
        refused
    }

    fn sync_all(&self) -> bool {
        File::open(&self.root).is_ok_and(|root| rustix::fs::syncfs(root).is_ok())
    }

    /// The directories to sync for a change: its own, and those above if one of them may be new or have lost a child.
    fn directories_of(&self, change: &Change) -> impl Iterator<Item = PathBuf> {
        let (directory, is_new) = change.directory();
        let is_new = is_new || self.failed.contains(change.key()) || !directory.exists();
        let depth = if is_new { usize::MAX } else { 1 };
        let below_root = |path: &&Path| path.starts_with(&self.root);
        let up = directory.ancestors().take_while(below_root).take(depth);
        up.map(Path::to_owned).collect::<Vec<_>>().into_iter()
    }
}

/// Unlinks the older generations once a change is on the disk.
fn drop_older_of(change: &Change) {
    if let Change::Record {
        directory,
        generation,
        ..
    } = change
        && let Err(error) = drop_older(directory, *generation)
    {
        tracing::warn!(directory = %directory.display(), error = %error, "an old record was not removed");
    }
}

fn sync_if_there(path: &Path) -> io::Result<()> {
    match File::open(path).and_then(|file| file.sync_all()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests;
