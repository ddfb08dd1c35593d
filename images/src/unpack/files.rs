//! Opens what an unpacker gets.
//!
//! Called by: [`super`], before it starts one. Invariant: an async thread never waits for the disk.
//! Not here: what is in the files.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use coracle_unpack::Compression;

use crate::blocking::blocking;
use crate::error::Error;

/// What an unpacker gets, open.
pub(super) struct Files {
    pub(super) blob: File,
    pub(super) compression: Compression,
    pub(super) packed_bytes: u64,
    pub(super) directory: OwnedFd,
}

impl Files {
    /// Those of a layer, whose blob is at `path`.
    pub(super) async fn of_layer(
        path: &Path,
        compression: Compression,
        into: &Path,
    ) -> Result<Self, Error> {
        let path = path.to_owned();
        Self::open(into, move || {
            let blob = File::open(&path).map_err(|error| Error::io("open", &path, error))?;
            Ok((blob, compression))
        })
        .await
    }

    /// Those of an archive, which is called `path` in errors.
    pub(super) async fn of_archive(archive: File, path: &Path, into: &Path) -> Result<Self, Error> {
        let path = path.to_owned();
        Self::open(into, move || {
            let mut first = [0; 4];
            let read = rustix::io::pread(&archive, &mut first, 0);
            read.map_err(|errno| Error::io("read", &path, errno.into()))?;
            Ok((archive, compression_of(first)))
        })
        .await
    }

    /// Opens them on a thread that may wait for the disk: the file to unpack with `open`, and the directory `into`.
    async fn open(
        into: &Path,
        open: impl FnOnce() -> Result<(File, Compression), Error> + Send + 'static,
    ) -> Result<Self, Error> {
        let into = into.to_owned();
        blocking("opening a layer", move || {
            let (blob, compression) = open()?;
            let failed = |error| Error::io("unpack into", &into, error);
            Ok(Self {
                packed_bytes: blob.metadata().map_err(failed)?.len(),
                directory: OwnedFd::from(File::open(&into).map_err(failed)?),
                blob,
                compression,
            })
        })
        .await
    }
}

/// The compression of a file that begins with these bytes.
pub(crate) fn compression_of(first: [u8; 4]) -> Compression {
    match first {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        // A frame, or one to skip in front of it.
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Compression::Zstd,
        _ => Compression::None,
    }
}
