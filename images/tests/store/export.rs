//! Exports: what an archive brought in, an export gives out again, as it came or with the same files.

mod limits;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use coracle_images::{Error, ErrorKind, Exported, Image, Images, ImagesConfig, ImportRequest};
use serde_json::{Value, json};
use tar::{EntryType, Header};

use super::{GZIP, ZSTD, content, native, open};
use crate::support::archive::{named, oci};
use crate::support::{MODULE, Parts, Scratch, Unpackers, noise, tar as tar_of};

const NAME: &str = "registry.example/team/app:v1";

async fn keeping(root: &Path) -> Images {
    let mut config = ImagesConfig::new(root);
    config.keep_blobs = true;
    Images::open(config, Arc::new(Unpackers)).await.unwrap()
}

async fn import(images: &Images, dir: &Path, archive: &[u8]) -> Arc<Image> {
    let path = dir.join("archive");
    std::fs::write(&path, archive).unwrap();
    let request = ImportRequest {
        name: path.display().to_string(),
        ..ImportRequest::default()
    };
    let imported = images.import(File::open(path).unwrap(), &request).await;
    imported.unwrap().remove(0)
}

async fn export(images: &Images, name: &str) -> Result<(Vec<u8>, Vec<Exported>), Error> {
    let export = images.export(name, None).await?;
    tokio::task::spawn_blocking(move || {
        let mut archive = Vec::new();
        let exported = export.write_to(&mut archive)?;
        Ok((archive, exported))
    })
    .await
    .unwrap()
}

fn layout(parts: &Parts) -> Vec<u8> {
    let files = oci(&[(named(NAME), parts)]);
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(name, bytes)| (&name[..], &bytes[..]))
        .collect();
    tar_of(&files)
}

/// The files of an archive, by name.
fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut tar = tar::Archive::new(archive);
    let mut files = BTreeMap::new();
    for entry in tar.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
        let path = entry.path().unwrap().display().to_string();
        assert!(files.insert(path, bytes).is_none(), "a file twice");
    }
    files
}

struct Entry<'a> {
    path: &'a [u8],
    kind: EntryType,
    mode: u32,
    target: &'a [u8],
    data: &'a [u8],
}

/// A tar with everything that a layer can have.
fn odd_layer(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (number, entry) in entries.iter().enumerate() {
        let mut header = Header::new_gnu();
        header.set_entry_type(entry.kind);
        header.set_mode(entry.mode);
        header.set_uid(1000 + number as u64);
        header.set_gid(4_000_000_000);
        header.set_mtime(1_000_000_000 + number as u64);
        header.set_size(entry.data.len() as u64);
        let mut pax = vec![("path", entry.path), ("linkpath", entry.target)];
        if entry.kind == EntryType::Regular {
            pax.push(("SCHILY.xattr.user.note", b"a\0b\n"));
            // Version 2, cap_net_bind_service, effective.
            pax.push((
                "SCHILY.xattr.security.capability",
                b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            ));
            pax.push(("mtime", b"-12"));
        }
        pax.retain(|(_, value)| !value.is_empty());
        builder.append_pax_extensions(pax).unwrap();
        header.set_path("short").unwrap();
        header.set_cksum();
        builder.append(&header, entry.data).unwrap();
    }
    builder.into_inner().unwrap()
}

fn odd() -> Parts {
    let long = [&b"d/"[..], &[b'n'; 200], b"/\xff", &[b'm'; 120]].concat();
    let target = [b't'; 300];
    let entry = |path, kind, mode, target, data| Entry {
        path,
        kind,
        mode,
        target,
        data,
    };
    let data = noise(3, 300_000);
    let lower = odd_layer(&[
        entry(b"./", EntryType::Directory, 0o751, b"", b""),
        entry(b"d/", EntryType::Directory, 0o1777, b"", b""),
        entry(b"d/setuid", EntryType::Regular, 0o4755, b"", &data),
        entry(b"d/again", EntryType::Link, 0, b"d/setuid", b""),
        entry(
            b"d/a-link",
            EntryType::Symlink,
            0o777,
            b"..//./d/../../etc/passwd",
            b"",
        ),
        entry(b"d/far", EntryType::Symlink, 0o777, &target, b""),
        entry(&long, EntryType::Regular, 0o600, b"", b"long"),
        entry(b"d/fifo", EntryType::Fifo, 0o640, b"", b""),
        entry(b"empty", EntryType::Regular, 0o644, b"", b""),
        entry(b"o/below", EntryType::Regular, 0o644, b"", b"x"),
    ]);
    let upper = odd_layer(&[
        entry(b"d/.wh.setuid", EntryType::Regular, 0, b"", b""),
        entry(b"o/", EntryType::Directory, 0o700, b"", b""),
        entry(b"o/.wh..wh..opq", EntryType::Regular, 0, b"", b""),
        entry(b"o/above", EntryType::Regular, 0o644, b"", b"y"),
        entry(b"bin/app", EntryType::Regular, 0o755, b"", b"#!"),
    ]);
    let config = json!({"Cmd": ["/bin/app"], "Labels": {"a": "b"}, "User": "7"});
    Parts::archives("linux", native(), config, &[(GZIP, lower), (ZSTD, upper)])
}

/// All that a layer says of each of its names: kind, mode, owner, time, device, links, attributes, content.
fn tree(layer: &Path) -> BTreeMap<Vec<u8>, String> {
    let (mut found, mut pending) = (BTreeMap::new(), vec![layer.to_owned()]);
    while let Some(path) = pending.pop() {
        let facts = std::fs::symlink_metadata(&path).unwrap();
        let kind = facts.file_type();
        let mut text = format!(
            "{:o} {}:{} {}",
            facts.mode(),
            facts.uid(),
            facts.gid(),
            facts.rdev()
        );
        if kind.is_dir() {
            pending.extend(
                std::fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else {
            text += &format!(" {} links", facts.nlink());
            // Directories and FIFOs get theirs when something is put there.
            if !kind.is_fifo() && !kind.is_char_device() {
                text += &format!(" at {}", facts.mtime());
            }
        }
        if kind.is_symlink() {
            text += &format!(" to {:?}", std::fs::read_link(&path).unwrap());
        } else if kind.is_file() {
            text += &format!(
                " {}",
                coracle_images::Digest::of(&std::fs::read(&path).unwrap())
            );
        }
        if kind.is_file() || kind.is_dir() {
            for name in ["user.note", "security.capability", "trusted.overlay.opaque"] {
                let mut value = [0; 64];
                if let Ok(count) = rustix::fs::lgetxattr(&path, name, &mut value[..]) {
                    text += &format!(" {name}={}", value[..count].escape_ascii());
                }
            }
        }
        let name = path
            .strip_prefix(layer)
            .unwrap()
            .as_os_str()
            .as_bytes()
            .to_vec();
        found.insert(name, text);
    }
    found
}

fn trees(image: &Image) -> Vec<BTreeMap<Vec<u8>, String>> {
    image
        .kind
        .layers()
        .iter()
        .map(|layer| tree(layer))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_was_not_kept_is_packed_anew_with_the_same_files() {
    let (here, there) = (Scratch::new(), Scratch::new());
    let (images, others) = (open(&here.0).await, open(&there.0).await);
    let parts = odd();
    let image = import(&images, &here.0, &layout(&parts)).await;
    let expected = trees(&image);
    let shown = format!("{:?}", expected[0]);
    for part in [
        "104755",
        "a\\\\x00b",
        "-12",
        "2 links",
        "1777",
        "4000000000",
    ] {
        assert!(
            shown.contains(part),
            "the test's own layer lacks {part}: {shown}"
        );
    }
    assert!(format!("{:?}", expected[1]).contains("overlay.opaque=y"));
    let (archive, exported) = export(&images, NAME).await.unwrap();
    assert_eq!(exported.len(), 1);
    assert!(!exported[0].is_as_received);
    assert_eq!(exported[0].names, [NAME]);
    // The same again: nothing but the files decides.
    assert_eq!(export(&images, NAME).await.unwrap().0, archive);
    let imported = import(&others, &there.0, &archive).await;
    assert_eq!(imported.repo_tags, [NAME]);
    assert_eq!(trees(&imported), expected);
    assert_eq!(imported.config, image.config);
    assert_eq!(imported.spec_annotations, image.spec_annotations);
    // The config is the same but for the layers.
    let files = files(&archive);
    let blob = |digest: &Value| {
        let name = digest.as_str().unwrap().replace(':', "/");
        serde_json::from_slice::<Value>(&files[&format!("blobs/{name}")]).unwrap()
    };
    let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
    let manifest = blob(&index["manifests"][0]["digest"]);
    let (mut config, mut own) = (
        blob(&manifest["config"]["digest"]),
        serde_json::from_slice::<Value>(&parts.config.1).unwrap(),
    );
    assert_ne!(config["rootfs"], own["rootfs"]);
    for config in [&mut config, &mut own] {
        config["rootfs"] = Value::Null;
    }
    assert_eq!(config, own);
    assert_eq!(index["manifests"][0]["platform"]["os"], "linux");
    // Nothing is left of it.
    let temporary = content(&here.0);
    assert!(
        !temporary
            .iter()
            .any(|path| path.starts_with(here.0.join("images/tmp")))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_images_and_artifacts_are_exported_as_they_came() {
    for (parts, keeps) in [(odd(), true), (Parts::artifact(MODULE), false)] {
        let (here, there) = (Scratch::new(), Scratch::new());
        let images = match keeps {
            true => keeping(&here.0).await,
            false => open(&here.0).await,
        };
        let image = import(&images, &here.0, &layout(&parts)).await;
        drop(images);
        let images = open(&here.0).await;
        let prepared = images.export(&image.id.to_string(), None).await.unwrap();
        assert!(prepared.is_as_received() && prepared.total_bytes() > Some(0));
        drop(prepared);
        let (archive, exported) = export(&images, &image.id.to_string()).await.unwrap();
        assert!(exported[0].is_as_received);
        let own = oci(&[(named(NAME), &parts)]);
        let given = files(&archive);
        for (name, bytes) in own.iter().filter(|(name, _)| name.starts_with("blobs/")) {
            assert_eq!(given.get(name), Some(bytes), "{name}");
        }
        let others = open(&there.0).await;
        let imported = import(&others, &there.0, &archive).await;
        assert_eq!(
            (&imported.id, &imported.repo_digests),
            (&image.id, &image.repo_digests)
        );
        // What was kept goes with the image.
        images.remove(NAME).await.unwrap().unwrap();
        let left = content(&here.0);
        assert!(left.is_empty(), "{left:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_kept_from_the_next_pull_on() {
    let scratch = Scratch::new();
    let archive = layout(&odd());
    let images = open(&scratch.0).await;
    let image = import(&images, &scratch.0, &archive).await;
    let is_as_received = async |images: &Images| {
        let export = images.export(NAME, None).await.unwrap();
        export.is_as_received()
    };
    assert!(!is_as_received(&images).await);
    drop(images);
    let images = keeping(&scratch.0).await;
    assert_eq!(import(&images, &scratch.0, &archive).await.id, image.id);
    assert!(is_as_received(&images).await);
    // A blob that is lost costs no image, only the exact export.
    let layer = coracle_images::Digest::of(&odd().layers[0].1);
    std::fs::remove_file(scratch.0.join("images/blobs/sha256").join(layer.hex())).unwrap();
    drop(images);
    let images = open(&scratch.0).await;
    assert!(!is_as_received(&images).await);
    export(&images, NAME).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_removed_meanwhile_is_exported_to_its_end() {
    let scratch = Scratch::new();
    let images = open(&scratch.0).await;
    import(&images, &scratch.0, &layout(&odd())).await;
    let export = images.export(NAME, None).await.unwrap();
    images.remove(NAME).await.unwrap().unwrap();
    images.collect(std::time::Duration::ZERO).await.unwrap();
    let written = tokio::task::spawn_blocking(move || export.write_to(std::io::sink()));
    assert_eq!(written.await.unwrap().unwrap().len(), 1);
    images.collect(std::time::Duration::ZERO).await.unwrap();
    let left = content(&scratch.0);
    assert!(left.is_empty(), "{left:?}");
    let gone = images.export(NAME, None).await.err().unwrap();
    assert_eq!(gone.kind(), ErrorKind::Missing);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_chooses_and_a_reader_that_leaves_ends_the_export() {
    let scratch = Scratch::new();
    let images = open(&scratch.0).await;
    import(&images, &scratch.0, &layout(&odd())).await;
    for platform in ["linux", &format!("linux/{}", native())] {
        images.export(NAME, Some(platform)).await.unwrap();
    }
    for platform in ["wasi/wasm", "wasm", "linux/mips", "windows", ""] {
        let refused = images.export(NAME, Some(platform)).await.err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::Invalid, "{platform}");
        assert!(refused.to_string().contains(platform), "{refused}");
    }
    let export = images.export(NAME, None).await.unwrap();
    let closed = tokio::task::spawn_blocking(move || export.write_to(Closed))
        .await
        .unwrap();
    assert_eq!(closed.unwrap_err().kind(), ErrorKind::Io);
}

/// A reader that has left.
struct Closed;

impl std::io::Write for Closed {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }
}
