//! The files of an OCI artifact: one layer of the store in which each blob has its name.
//!
//! Called by: the pull, for a manifest whose config is not that of an image. Invariants: files are hard links to verified blobs,
//! so that they take no room twice; they can be read by everybody and written by nobody; a layer of files is named by a digest
//! over all their paths and contents.
//! Not here: what a path may be ([`crate::manifest`]), mounting.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::Pull;
use super::fetch::Want;
use crate::blobs::{Blobs, blocking};
use crate::error::Error;
use crate::manifest::ArtifactFile;
use crate::metadata::{LayerRecord, Record};
use crate::reference::Digest;
use crate::store::Inner;
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
        let store = move || inner.store_files(&chain, &files);
        blocking("storing the files of an artifact", store).await
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
    /// Stores the layer `chain` of these files, unless it is there. Blocking.
    fn store_files(&self, chain: &Digest, files: &[ArtifactFile]) -> Result<(), Error> {
        let Some(first) = files.first() else {
            return Ok(());
        };
        if self.has_layer(chain, &first.blob.digest) {
            return Ok(());
        }
        let draft = self.blobs.layer_draft()?;
        let inodes = link_all(&self.blobs, draft.path(), files)?;
        // The bytes of its files are those of the blobs.
        let usage = Usage { bytes: 0, inodes };
        let is_ours = self.blobs.commit_layer(draft, chain, usage)?;
        if is_ours || !self.read().layers.contains_key(chain) {
            if !is_ours {
                self.blobs.grow(usage);
            }
            let record = LayerRecord {
                blob: first.blob.digest.clone(),
                bytes: usage.bytes,
                inodes: usage.inodes,
            };
            self.record_layer(chain, record)?;
        }
        Ok(())
    }
}

/// Gives each file its name below `directory`. Returns the number of directories.
fn link_all(blobs: &Blobs, directory: &Path, files: &[ArtifactFile]) -> Result<u64, Error> {
    let mut directories = 1;
    for file in files {
        for (end, _) in file.path.match_indices('/') {
            let path = directory.join(&file.path[..end]);
            match fs::create_dir(&path) {
                Ok(()) => {
                    directories += 1;
                    set_mode(&path, ENTERABLE)?;
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io("create directory", &path, error)),
            }
        }
        let (blob, path) = (blobs.blob(&file.blob.digest), directory.join(&file.path));
        set_mode(&blob, READ_ONLY)?;
        fs::hard_link(&blob, &path).map_err(|error| Error::io("link", &path, error))?;
    }
    Ok(directories)
}

fn set_mode(path: &Path, mode: u32) -> Result<(), Error> {
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(|error| Error::io("set the mode of", path, error))
}
