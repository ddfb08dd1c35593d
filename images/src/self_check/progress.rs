//! How far the check of stored content is, in a file: it goes on after a restart, and a whole one is repeated a day later.
//!
//! Called by: [`super`], on threads that may block. Invariant: a file that is wrong, or cannot be written, costs one check too
//! many or a late one, and nothing else. Not here: what is checked.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How long after the start of a daemon, or after a check, the next one begins at the earliest: a daemon that is started again
/// and again checks nothing.
const SETTLE: Duration = Duration::from_secs(30);
/// How long after a whole check the next one is due.
const INTERVAL: Duration = Duration::from_secs(86_400);

/// The file of a store: the place of what was checked last, empty after a whole check.
pub(super) fn file(store: &Path) -> PathBuf {
    store.join("checked")
}

/// The place of what was checked last, by a check that has not ended.
pub(super) fn place(file: &Path) -> Option<String> {
    let place = fs::read_to_string(file).ok();
    place.filter(|place| !place.is_empty())
}

/// Saves what was checked last; empty for all.
pub(super) fn save(file: &Path, place: &str) {
    let new = file.with_extension("new");
    let written = fs::write(&new, place).and_then(|()| fs::rename(&new, file));
    if let Err(error) = written {
        tracing::debug!(file = %file.display(), %error, "the place of the check of images was not saved");
    }
}

/// How long to wait before the next check.
pub(super) fn pause(file: &Path) -> Duration {
    match age(file).ok().flatten() {
        Some(age) if place(file).is_none() => INTERVAL.saturating_sub(age).max(SETTLE),
        _ => SETTLE,
    }
}

/// How long ago the file was written; `None` if that will be, because the clock went back.
fn age(file: &Path) -> io::Result<Option<Duration>> {
    let written = fs::metadata(file)?.modified()?;
    Ok(SystemTime::now().duration_since(written).ok())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test panics to fail")]
mod tests {
    use super::*;

    #[test]
    fn a_whole_check_is_repeated_a_day_later_and_an_interrupted_one_goes_on_soon() {
        let scratch = tempfile::tempdir().unwrap();
        let file = file(scratch.path());
        assert_eq!((pause(&file), place(&file)), (SETTLE, None));
        save(&file, "blob 5");
        assert_eq!(
            (pause(&file), place(&file)),
            (SETTLE, Some("blob 5".into()))
        );
        save(&file, "");
        assert!(pause(&file) > INTERVAL - SETTLE && place(&file).is_none());
        let written = |at: SystemTime| {
            let file = fs::File::options().write(true).open(&file).unwrap();
            file.set_modified(at).unwrap();
        };
        let now = SystemTime::now();
        written(now - INTERVAL / 2);
        assert!(pause(&file) <= INTERVAL / 2);
        for at in [now - INTERVAL * 2, now + INTERVAL] {
            written(at);
            assert_eq!(pause(&file), SETTLE, "{at:?}");
        }
    }
}
