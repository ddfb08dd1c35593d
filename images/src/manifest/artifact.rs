//! The files of an OCI artifact: its layers, under the names that their titles give them.
//!
//! Called by: the parent, for a manifest whose config is not that of an image. Pure. Source: the image specification,
//! `org.opencontainers.image.title`, as ORAS and CRI-O use it.
//! Invariants: a path is relative, has no `..`, and is no other file's, nor the directory of one; its length, its depth and the
//! sizes of all files are bounded.
//! Not here: writing files.

use std::collections::BTreeSet;

use super::Blob;
use crate::config::Limits;
use crate::error::Error;

/// The type of a layer, or config, that stands for nothing.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// The annotation with the name of a layer's file.
pub(super) const TITLE: &str = "org.opencontainers.image.title";
/// Longest name of a file or directory. Bytes; the kernel's limit.
const MAX_NAME_BYTES: usize = 255;

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ArtifactFile {
    /// Relative, clean: `model/weights.bin`.
    pub path: String,
    pub blob: Blob,
}

/// The files of an artifact with these layers, each with its title. A layer without a title is a file named by its digest.
///
/// Errors: it has none; a title cannot be a path, or is another's; they are too large together.
pub(super) fn files(
    what: &str,
    layers: impl Iterator<Item = (Blob, Option<String>)>,
    limits: &Limits,
) -> Result<Vec<ArtifactFile>, Error> {
    let mut files = Vec::new();
    let mut total: u64 = 0;
    for (blob, title) in layers {
        if blob.media_type == EMPTY {
            continue;
        }
        total = total.saturating_add(blob.size);
        let path = match title {
            Some(title) => clean(&title, limits).map_err(|problem| {
                let title: String = title.chars().take(200).collect();
                Error::invalid(what, format!("the title {title:?} of a layer {problem}"))
            })?,
            None => blob.digest.hex().to_owned(),
        };
        files.push(ArtifactFile { path, blob });
    }
    if files.is_empty() {
        return Err(Error::invalid(what, "it is an artifact without files"));
    }
    if total > limits.max_unpacked_bytes {
        return Err(Error::Limit {
            what: format!("{what} with files of {total} bytes"),
            limit: "max_unpacked_bytes",
            allowed: limits.max_unpacked_bytes,
        });
    }
    check_distinct(what, &files)?;
    Ok(files)
}

/// A title as a path. Errors: why it cannot be one, as the rest of a sentence.
fn clean(title: &str, limits: &Limits) -> Result<String, String> {
    if title.starts_with('/') {
        return Err("is an absolute path".to_owned());
    }
    if title.chars().any(char::is_control) {
        return Err("has control characters".to_owned());
    }
    if title.len() as u64 > limits.max_path_bytes {
        return Err(format!("is longer than {} bytes", limits.max_path_bytes));
    }
    let names = title.split('/').filter(|name| !matches!(*name, "" | "."));
    let names: Vec<&str> = names.collect();
    if names.is_empty() || title.ends_with('/') {
        return Err("names no file".to_owned());
    }
    if names.contains(&"..") {
        return Err("has a `..`".to_owned());
    }
    if names.iter().any(|name| name.len() > MAX_NAME_BYTES) {
        return Err(format!("has a name of more than {MAX_NAME_BYTES} bytes"));
    }
    if names.len() as u64 > limits.max_path_depth {
        return Err(format!(
            "is deeper than {} directories",
            limits.max_path_depth
        ));
    }
    Ok(names.join("/"))
}

/// Errors: two files have one path, or one is where another needs a directory.
fn check_distinct(what: &str, files: &[ArtifactFile]) -> Result<(), Error> {
    let twice = |path: &str| {
        let path: String = path.chars().take(200).collect();
        Error::invalid(what, format!("two layers want the path {path:?}"))
    };
    let mut paths = BTreeSet::new();
    for file in files {
        if !paths.insert(file.path.as_str()) {
            return Err(twice(&file.path));
        }
    }
    for path in &paths {
        let mut above = path.match_indices('/').map(|(end, _)| &path[..end]);
        if let Some(file) = above.find(|above| paths.contains(above)) {
            return Err(twice(file));
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test panics to fail")]
mod tests {
    use super::*;
    use crate::reference::Digest;

    fn of(titles: &[Option<&str>]) -> Result<Vec<String>, Error> {
        let blob = |number: usize| Blob {
            digest: Digest::of(&[number as u8]),
            size: 10,
            media_type: "application/octet-stream".to_owned(),
        };
        let layers = titles.iter().enumerate();
        let layers = layers.map(|(number, title)| (blob(number), title.map(str::to_owned)));
        let files = files("it", layers, &Limits::default())?;
        Ok(files.into_iter().map(|file| file.path).collect())
    }

    #[test]
    fn files_have_the_titles_of_their_layers_or_their_digests() {
        let hex = Digest::of(&[2]).hex().to_owned();
        assert_eq!(
            of(&[
                Some("a"),
                Some("./b//c.bin"),
                None,
                Some("b/d"),
                Some("..x")
            ])
            .unwrap(),
            ["a", "b/c.bin", hex.as_str(), "b/d", "..x"]
        );
    }

    #[test]
    fn titles_that_could_lead_elsewhere_or_hide_a_file_are_refused() {
        let long = "n".repeat(256);
        let far = "n/".repeat(300) + "n";
        for titles in [
            &[Some("../a")][..],
            &[Some("a/../../b")],
            &[Some("a/..")],
            &[Some("..")],
            &[Some("/etc/passwd")],
            &[Some("")],
            &[Some(".")],
            &[Some("a/")],
            &[Some("a\0b")],
            &[Some("a\nb")],
            &[Some(&long)],
            &[Some(&far)],
            &[Some("a"), Some("a")],
            &[Some("a"), Some("./a")],
            &[Some("a"), Some("a/b")],
            &[Some("a/b/c"), Some("a/b")],
            &[],
        ] {
            let refused = of(titles).unwrap_err().to_string();
            assert!(
                refused.starts_with("it: ") && refused.len() < 300,
                "{refused}"
            );
        }
    }

    #[test]
    fn a_layer_that_stands_for_nothing_is_no_file_and_all_files_have_a_limit() {
        let empty = Blob {
            digest: Digest::of(b"{}"),
            size: 2,
            media_type: EMPTY.to_owned(),
        };
        let limits = Limits::default();
        assert!(files("it", [(empty.clone(), None)].into_iter(), &limits).is_err());
        let large = Blob {
            size: limits.max_unpacked_bytes / 2 + 1,
            media_type: String::new(),
            ..empty
        };
        let two = ["a", "b"].map(|title| (large.clone(), Some(title.to_owned())));
        let refused = files("it", two.into_iter(), &limits).unwrap_err();
        assert!(
            refused.to_string().contains("max_unpacked_bytes"),
            "{refused}"
        );
    }
}
