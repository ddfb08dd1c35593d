//! Writes an OCI layout with one image: a directory, or a tar.
//!
//! Called by: `pack`. Invariant: a directory that exists is not written into. Must not know: what the image holds.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde_json::json;

use crate::error::Error;
use crate::oci::{MANIFEST, Packed, descriptor, digest};

/// Writes the image `reference` to `path`: a tar if it ends in .tar or is -, else a new directory.
pub(crate) fn write(path: &Path, reference: &str, packed: &Packed) -> Result<(), Error> {
    let failed = |error: io::Error| Error::because(&format!("write {}", path.display()), error);
    let files = files(reference, packed);
    if path.as_os_str() == "-" {
        return match tar(io::stdout().lock(), &files) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(failed(error)),
            _ => Ok(()),
        };
    }
    if path.extension().is_some_and(|extension| extension == "tar") {
        let file = fs::File::create(path).map_err(failed)?;
        return tar(io::BufWriter::new(file), &files).map_err(failed);
    }
    fs::create_dir(path).map_err(failed)?;
    fs::create_dir_all(path.join("blobs/sha256")).map_err(failed)?;
    for (name, bytes) in files {
        fs::write(path.join(name), bytes).map_err(failed)?;
    }
    Ok(())
}

fn files<'a>(reference: &str, packed: &'a Packed) -> Vec<(String, std::borrow::Cow<'a, [u8]>)> {
    let mut entry = descriptor(MANIFEST, &packed.manifest);
    entry["annotations"] = json!({
        "io.containerd.image.name": reference, "org.opencontainers.image.ref.name": reference,
    });
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": [entry]});
    let mut files = vec![
        (
            "oci-layout".to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.as_slice().into(),
        ),
        (
            "index.json".to_owned(),
            index.to_string().into_bytes().into(),
        ),
    ];
    for blob in packed.blobs.iter().chain([&packed.manifest]) {
        let digest = digest(blob);
        let name = digest.trim_start_matches("sha256:");
        files.push((format!("blobs/sha256/{name}"), blob.as_slice().into()));
    }
    files
}

fn tar(out: impl Write, files: &[(String, std::borrow::Cow<'_, [u8]>)]) -> io::Result<()> {
    let mut tar = tar::Builder::new(out);
    for (name, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes.as_ref())?;
    }
    tar.into_inner()?.flush()
}
