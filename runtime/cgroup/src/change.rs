//! A transaction of writes: if a later one fails, the earlier ones are rolled back.
//! Called by `v1` and `v2`. Invariant: after an error each file reads as before, as far as the
//! kernel accepts the old value.
//! Not here: which files, which order.

use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::error::Error;
use super::files;

/// Writes to one cgroup.
#[derive(Debug)]
pub(super) struct Change {
    /// Files written and their old content; `None` if it is not restored.
    before: Option<Vec<(PathBuf, String)>>,
}

/// A file and what to write there.
pub(super) type Write = (PathBuf, String);

impl Change {
    /// A change that is rolled back when it fails. For a cgroup that `is_new` no old content is kept,
    /// because the cgroup will be removed.
    pub(super) fn new(is_new: bool) -> Self {
        let before = (!is_new).then(Vec::new);
        Self { before }
    }

    /// Writes one file.
    pub(super) fn put(&mut self, file: &Path, value: &str) -> Result<(), Error> {
        let old = match self.before {
            Some(_) => files::read(file).ok(),
            None => None,
        };
        files::write(file, value)?;
        if let (Some(before), Some(old)) = (&mut self.before, old) {
            before.push((file.to_owned(), old));
        }
        Ok(())
    }

    /// Writes two files that bound each other: the right order depends on their present values, so
    /// the other order is tried after EINVAL.
    pub(super) fn put_either_order(
        &mut self,
        first: Option<Write>,
        second: Option<Write>,
    ) -> Result<(), Error> {
        let mut put = |write: &Option<Write>| match write {
            Some((file, value)) => self.put(file, value),
            None => Ok(()),
        };
        match put(&first) {
            Err(error)
                if second.is_some()
                    && error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) =>
            {
                put(&second)?;
                put(&first)
            }
            Err(error) => Err(error),
            Ok(()) => put(&second),
        }
    }

    /// Ends the change and returns `done`; if that is an error, rolls the writes back, last first.
    pub(super) fn end<T>(self, done: Result<T, Error>) -> Result<T, Error> {
        if done.is_err() {
            for (file, old) in self.before.unwrap_or_default().iter().rev() {
                // Best effort: the first error is the one to report. A file of several lines takes one at a time; an
                // empty line empties a file.
                let lines = if old.trim().is_empty() {
                    vec!["\n"]
                } else {
                    old.lines().collect()
                };
                for line in lines {
                    let _ = files::write(file, line);
                }
            }
        }
        done
    }
}
