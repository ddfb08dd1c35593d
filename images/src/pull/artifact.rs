//! The files of an OCI artifact: one layer of the store in which each blob has its name.
//!
//! Called by: the pull, for a manifest whose config is not that of an image. Invariants: files are hard links to verified blobs,
//! so that they take no room twice; they can be read by everybody and written by nobody; a layer of files is named by a digest
//! over all their paths and contents.
//! Not here: what a path may be ([`crate::manifest`]), mounting.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::Pull;
use super::fetch::Want;
use super::layers::Ready;
use crate::blobs::{Blobs, blocking};
use crate::error::Error;
use crate::manifest::ArtifactFile;
use crate::metadata::{LayerRecord, Record};
use crate::reference::Digest;
use crate::store::{Inner, LayerDraft};
use crate::unpack::Usage;

/// Of files.
const READ_ONLY: u32 = 0o444;
/// Of directories.
const ENTERABLE: u32 = 0o755;

impl Pull {
    /// The content of an artifact: its files.
    pub(super) async fn add_files(
        &mut self,
        files: &[ArtifactFile],
        record: &mut Record,
    ) -> Result<(), Error> {
        let chain = layer_name(files);
        self.pins.add(&chain);
        let mut wants: Vec<Want> = Vec::new();
        for file in files {
            if record.blobs.insert(file.blob.digest.clone()) {
                wants.push(Want::whole(&file.blob));
            }
        }
        self.fetch(wants).await?;
        let (inner, files) = (self.inner.clone(), files.to_vec());
        record.chains = vec![chain.clone()];
        record.is_artifact = true;
        let link = move || inner.link_files(&chain, &files);
        let layer = blocking("linking the files of an artifact", link).await?;
        self.store(layer.map(Ready::one).unwrap_or_default()).await
    }
}

/// The name of the layer that has these files: a digest over them.
fn layer_name(files: &[ArtifactFile]) -> Digest {
    let mut text = "coracle artifact files\n".to_owned();
    for file in files {
        // Neither digests nor paths have a line break.
        text.push_str(&format!("{} {}\n", file.blob.digest, file.path));
    }
    Digest::of(text.as_bytes())
}

impl Inner {
    /// Makes the layer `chain` of these files, unless it is there. Blocking.
    fn link_files(
        &self,
        chain: &Digest,
        files: &[ArtifactFile],
    ) -> Result<Option<LayerDraft>, Error> {
        let first = files.first();
        let Some(first) = first.filter(|first| !self.has_layer(chain, &first.blob.digest)) else {
            return Ok(None);
        };
        let draft = self.blobs.layer_draft()?;
        let usage = link_all(&self.blobs, draft.path(), files)?;
        let record = LayerRecord {
            blob: first.blob.digest.clone(),
            bytes: usage.bytes,
            inodes: usage.inodes,
            tree: None,
        };
        Ok(Some(LayerDraft {
            chain: chain.clone(),
            draft,
            record,
        }))
    }
}

/// Gives each file its name below `directory`. Returns what that occupies besides the blobs.
fn link_all(blobs: &Blobs, directory: &Path, files: &[ArtifactFile]) -> Result<Usage, Error> {
    let mut usage = Usage {
        bytes: 0,
        inodes: 1,
    };
    for file in files {
        for (end, _) in file.path.match_indices('/') {
            let path = directory.join(&file.path[..end]);
            match fs::create_dir(&path) {
                Ok(()) => {
                    usage.inodes += 1;
                    set_mode(&path, ENTERABLE)?;
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io("create directory", &path, error)),
            }
        }
        let (blob, path) = (blobs.blob(&file.blob.digest), directory.join(&file.path));
        set_mode(&blob, READ_ONLY)?;
        let copied = link_or_copy(&blob, &path)?;
        usage.bytes += copied.unwrap_or(0);
        usage.inodes += u64::from(copied.is_some());
    }
    Ok(usage)
}

/// Gives the file another name, or copies it when it has as many as the file system allows. Returns the bytes of a copy.
fn link_or_copy(blob: &Path, path: &Path) -> Result<Option<u64>, Error> {
    match fs::hard_link(blob, path) {
        Ok(()) => Ok(None),
        Err(error) if error.kind() == ErrorKind::TooManyLinks => {
            // With the mode of the blob.
            let copied = fs::copy(blob, path).map_err(|error| Error::io("copy", path, error))?;
            Ok(Some(copied))
        }
        Err(error) => Err(Error::io("link", path, error)),
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<(), Error> {
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(|error| Error::io("set the mode of", path, error))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test panics to fail")]
mod tests {
    use super::*;

    /// ext4 gives a file 65,000 names.
    #[test]
    fn a_file_that_may_have_no_more_names_is_copied() {
        let directory = tempfile::tempdir().unwrap();
        let blob = directory.path().join("blob");
        fs::write(&blob, "text").unwrap();
        set_mode(&blob, READ_ONLY).unwrap();
        for number in 0..70_000 {
            let name = directory.path().join(number.to_string());
            let copied = link_or_copy(&blob, &name).unwrap();
            let facts = fs::metadata(&name).unwrap();
            assert_eq!(
                (facts.len(), facts.permissions().mode() & 0o777),
                (4, READ_ONLY)
            );
            if copied.is_some() {
                assert_eq!(copied, Some(4));
                return;
            }
        }
    }
}
