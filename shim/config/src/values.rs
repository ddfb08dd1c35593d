//! What the checks of all tables share: a refused value, ranges and paths.
//!
//! Called by: [`super::check`] and the checks of single tables. Pure. Must not know: any key.

use std::borrow::Cow;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// Default of `run`, on which the default of another setting depends.
pub(super) const RUN: &str = "/run/coracle";

pub(super) const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;
pub(super) const TIB: u64 = 1 << 40;

/// A setting and what is wrong with its value; reads as a sentence, `KEY WHY`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Invalid {
    /// With its tables.
    pub key: Cow<'static, str>,
    /// The fact and what it should have been.
    pub why: String,
}

/// Refuses the value of `key`.
pub(super) fn invalid<T>(
    key: impl Into<Cow<'static, str>>,
    why: impl Into<String>,
) -> Result<T, Invalid> {
    Err(Invalid {
        key: key.into(),
        why: why.into(),
    })
}

/// An absolute path without `.` and `..`, as its components spell it.
pub(super) fn plain_absolute(path: &Path) -> Option<PathBuf> {
    let parts: PathBuf = path.components().collect();
    let plain = path
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    (path.is_absolute() && plain && parts.file_name().is_some()).then_some(parts)
}

/// The value of `key` when it is in `range`.
pub(super) fn within(
    key: &'static str,
    value: u64,
    range: std::ops::RangeInclusive<u64>,
) -> Result<u64, Invalid> {
    if range.contains(&value) {
        return Ok(value);
    }
    invalid(
        key,
        format!("is {value}, must be {} to {}", range.start(), range.end()),
    )
}

/// A directory that is the value of `key`.
pub(super) fn directory(key: &'static str, path: &Path) -> Result<PathBuf, Invalid> {
    match plain_absolute(path) {
        Some(path) => Ok(path),
        None => invalid(
            key,
            format!("is {path:?}, must be an absolute directory below / without `..`"),
        ),
    }
}

/// A time that is the value of `key`, at most an hour.
pub(super) fn seconds(key: &'static str, value: u64) -> Result<Duration, Invalid> {
    within(key, value, 1..=3_600).map(Duration::from_secs)
}
