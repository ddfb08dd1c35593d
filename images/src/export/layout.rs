//! The OCI layout in a tar: its files, and the documents that are made for it.
//!
//! Called by: the export. Invariants: each blob is written once, under its own digest; the index comes last, because only then
//! all manifests are known. Source: OCI image-spec v1.1, image-layout, annotations.
//! Not here: which images, layers.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write};
use std::path::Path;

use serde_json::{Value, json};

use crate::archive::{FULL_NAME, REF_NAME};
use crate::blobs::Temporary;
use crate::error::Error;
use crate::manifest::OCI_MANIFEST;
use crate::metadata::{Program, Record};
use crate::reference::Digest;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const IMAGE_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const ARTIFACT_CONFIG: &str = "application/vnd.wasm.config.v0+json";
const MODULE: &str = "application/wasm";

const GZIP_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A packed layer, deleted when this is dropped.
pub(super) struct Packed {
    /// The digest of the tar.
    pub(super) diff_id: Digest,
    /// The digest of the file.
    pub(super) digest: Digest,
    /// Bytes of the file.
    pub(super) size: u64,
    pub(super) temporary: Temporary,
}

impl Packed {
    /// How a manifest names it.
    pub(super) fn descriptor(&self) -> Value {
        descriptor(GZIP_LAYER, &self.digest, self.size)
    }

    /// It, open. Errors: none.
    pub(super) fn file(&self) -> Result<&File, Error> {
        self.temporary.file()
    }

    /// For messages.
    pub(super) fn path(&self) -> &Path {
        self.temporary.path()
    }
}

/// A layout that is being written.
pub(super) struct Layout<W: Write> {
    tar: tar::Builder<W>,
    written: HashSet<Digest>,
    /// The entries of the index.
    entries: Vec<Value>,
}

impl<W: Write> Layout<W> {
    /// Begins a layout. Errors: that of `out`.
    pub(super) fn new(out: W) -> Result<Self, Error> {
        let mut layout = Self {
            tar: tar::Builder::new(out),
            written: HashSet::new(),
            entries: Vec::new(),
        };
        let version = br#"{"imageLayoutVersion":"1.0.0"}"#;
        layout.file("oci-layout", version.len() as u64, &version[..])?;
        Ok(layout)
    }

    /// Errors: nobody wants the rest. To be called now and then during long work.
    pub(super) fn is_wanted(&mut self) -> io::Result<()> {
        self.tar.get_mut().flush()
    }

    /// Writes a document as a blob.
    pub(super) fn document(&mut self, bytes: &[u8]) -> Result<Digest, Error> {
        let digest = Digest::of(bytes);
        self.blob(&digest, bytes.len() as u64, bytes)?;
        Ok(digest)
    }

    /// Writes a blob of the store.
    pub(super) fn stored(&mut self, path: &Path, digest: &Digest) -> Result<(), Error> {
        let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
        let size = size(&file, path)?;
        self.blob(digest, size, file)
    }

    /// Writes a layer that was packed here.
    pub(super) fn made(&mut self, packed: &Packed) -> Result<(), Error> {
        let mut file = packed.file()?;
        let back = file.seek(SeekFrom::Start(0));
        back.map_err(|error| Error::io("read", packed.path(), error))?;
        self.blob(&packed.digest, packed.size, file)
    }

    fn blob(&mut self, digest: &Digest, size: u64, bytes: impl Read) -> Result<(), Error> {
        if !self.written.insert(digest.clone()) {
            return Ok(());
        }
        self.file(&format!("blobs/sha256/{}", digest.hex()), size, bytes)
    }

    /// Writes a manifest, and its entry in the index under each name. `config` says for which platform it is.
    pub(super) fn image(
        &mut self,
        manifest: &[u8],
        config: &[u8],
        names: &[String],
    ) -> Result<(), Error> {
        let digest = self.document(manifest)?;
        let own: Value = crate::manifest::json("the manifest", manifest)?;
        let media_type = own["mediaType"].as_str().unwrap_or(OCI_MANIFEST);
        let mut entry = descriptor(media_type, &digest, manifest.len() as u64);
        // That of an artifact may be anything.
        let config: Value = serde_json::from_slice(config).unwrap_or_default();
        if config["os"].is_string() && config["architecture"].is_string() {
            entry["platform"] = json!({"os": config["os"], "architecture": config["architecture"]});
            if config["variant"].is_string() {
                entry["platform"]["variant"] = config["variant"].clone();
            }
        }
        for name in names {
            let mut named = entry.clone();
            named["annotations"] = json!({FULL_NAME: name, REF_NAME: name});
            self.entries.push(named);
        }
        if names.is_empty() {
            self.entries.push(entry);
        }
        Ok(())
    }

    /// Writes the index and ends the tar.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        let entries = std::mem::take(&mut self.entries);
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
        let index = index.to_string().into_bytes();
        self.file("index.json", index.len() as u64, &index[..])?;
        let ended = self.tar.into_inner().and_then(|mut out| out.flush());
        ended.map_err(unwritten)
    }

    fn file(&mut self, name: &str, size: u64, bytes: impl Read) -> Result<(), Error> {
        let mut header = tar::Header::new_ustar();
        header.set_size(size);
        header.set_mode(0o644);
        let whole = Whole { bytes, left: size };
        self.tar
            .append_data(&mut header, name, whole)
            .map_err(unwritten)
    }
}

fn unwritten(error: io::Error) -> Error {
    Error::io("write", Path::new("the exported archive"), error)
}

/// A file of a known size: exactly that is read. Errors: it is shorter.
pub(super) struct Whole<R> {
    pub(super) bytes: R,
    pub(super) left: u64,
}

impl<R: Read> Read for Whole<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let count = self.bytes.read(&mut buffer[..most])?;
        if count == 0 {
            let problem = "a file of the store has become shorter";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, problem));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// Bytes of a file between two questions whether anybody wants the rest.
const ASK_BYTES: u64 = 4 << 20;

/// A reader that ends when nobody wants the rest.
pub(super) struct Asking<'a, R, F> {
    bytes: R,
    is_wanted: &'a mut F,
    /// Bytes since the last question.
    since: u64,
}

impl<'a, R, F: FnMut() -> io::Result<()>> Asking<'a, R, F> {
    pub(super) fn new(bytes: R, is_wanted: &'a mut F) -> Self {
        Self {
            bytes,
            is_wanted,
            since: 0,
        }
    }
}

impl<R: Read, F: FnMut() -> io::Result<()>> Read for Asking<'_, R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.since >= ASK_BYTES {
            (self.is_wanted)()?;
            self.since = 0;
        }
        let count = self.bytes.read(buffer)?;
        self.since += count as u64;
        Ok(count)
    }
}

fn size(file: &File, path: &Path) -> Result<u64, Error> {
    let facts = file
        .metadata()
        .map_err(|error| Error::io("look at", path, error))?;
    Ok(facts.len())
}

/// How a document names a blob.
pub(super) fn descriptor(media_type: &str, digest: &Digest, size: u64) -> Value {
    json!({"mediaType": media_type, "digest": digest.as_str(), "size": size})
}

/// The descriptor of an artifact's module.
pub(super) fn module(path: &Path, digest: &Digest) -> Result<Value, Error> {
    let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
    Ok(descriptor(MODULE, digest, size(&file, path)?))
}

/// An image config with other layers; all else stays.
pub(super) fn with_diff_ids(config: &[u8], diff_ids: &[Digest]) -> Result<Vec<u8>, Error> {
    let mut config: Value = crate::manifest::json("the config", config)?;
    let diff_ids: Vec<&str> = diff_ids.iter().map(Digest::as_str).collect();
    config["rootfs"] = json!({"type": "layers", "diff_ids": diff_ids});
    Ok(config.to_string().into_bytes())
}

/// The manifest of an image whose layers were packed anew, or of an artifact whose manifest was not kept.
pub(super) fn manifest(
    record: &Record,
    config: &Digest,
    config_bytes: usize,
    layers: Vec<Value>,
) -> Vec<u8> {
    let config_type = match record.program {
        Program::Module { .. } => ARTIFACT_CONFIG,
        Program::ModuleFile { .. } | Program::Linux => IMAGE_CONFIG,
    };
    let mut manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": descriptor(config_type, config, config_bytes as u64), "layers": layers,
    });
    if !record.annotations.is_empty() {
        manifest["annotations"] = json!(*record.annotations);
    }
    manifest.to_string().into_bytes()
}
