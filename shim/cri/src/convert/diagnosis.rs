//! The annotations that have the Wasm containers of a pod write files for whoever looks for a bug.
//!
//! Called by: [`super::sandbox`]. Pure. Invariant: what leaves here is an absolute path without `..`; none of them gives a
//! pod anything, for the files are written as its guests could write them.
//! Not here: opening, what is written.

use coracle_spec::Diagnosis;

use super::BadRequest;
use super::annotations::{Narrows, Reader, field};

/// A directory of the container for core dumps of traps.
const CORE_DUMP: Narrows = Narrows("coracle.dev/core-dump");
/// A directory of the container for profiles.
const GUEST_PROFILE: Narrows = Narrows("coracle.dev/guest-profile");
/// Longest path. Source: PATH_MAX.
const MAX_PATH_BYTES: usize = 4096;

/// What a pod says of such files. Errors: [`BadRequest`] that names the annotation.
pub(super) fn diagnosis(reader: &Reader) -> Result<Diagnosis, BadRequest> {
    Ok(Diagnosis {
        core_dump: directory(reader, &CORE_DUMP)?,
        guest_profile: directory(reader, &GUEST_PROFILE)?,
    })
}

fn directory(reader: &Reader, key: &Narrows) -> Result<Option<String>, BadRequest> {
    let Some(path) = reader.narrowing(key) else {
        return Ok(None);
    };
    let is_up = |part: &str| part == "..";
    let is_plain = path.starts_with('/') && !path.contains('\0') && !path.split('/').any(is_up);
    if is_plain && path.len() < MAX_PATH_BYTES {
        return Ok(Some(path.to_owned()));
    }
    let shown: String = path.chars().take(64).collect();
    let problem = format!(
        "is {shown:?}, must be the absolute path of a directory in the container, without .."
    );
    Err(BadRequest::invalid(field(key.0), problem))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::super::annotations::tests::reader;
    use super::*;

    #[test]
    fn directories_are_absolute_paths_in_the_container() {
        let read = |path| diagnosis(&reader(&[(CORE_DUMP.0, path)], &[]));
        let both = [(CORE_DUMP.0, "/dumps"), (GUEST_PROFILE.0, "/a/..b")];
        let all = diagnosis(&reader(&both, &[])).unwrap();
        assert_eq!(all.core_dump.as_deref(), Some("/dumps"));
        assert_eq!(all.guest_profile.as_deref(), Some("/a/..b"));
        assert!(diagnosis(&reader(&[], &[])).unwrap().is_empty());
        let long = format!("/{}", "a".repeat(MAX_PATH_BYTES));
        for odd in ["", "dumps", "/a/../b", "/a\0b", &long] {
            let refused = read(odd).unwrap_err().to_string();
            assert!(refused.contains("coracle.dev/core-dump"), "{refused}");
        }
    }
}
