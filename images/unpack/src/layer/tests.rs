#![allow(clippy::unwrap_used, reason = "a test panics to fail")]

mod gnu_tar;
mod hostile;
mod limits;
mod umoci;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::PathBuf;

use super::*;

const BOUNDS: Bounds = Bounds {
    bytes: 1 << 30,
    entries: 100_000,
    ratio: 200,
    path_bytes: 4096,
    path_depth: 256,
    zstd_window_log: 27,
};

/// A scratch directory with a layer to fill and a canary that nothing may touch.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("images-unpack-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("layer")).unwrap();
        fs::create_dir_all(path.join("canary/dir")).unwrap();
        fs::write(path.join("canary/file"), "untouched").unwrap();
        Self(path)
    }

    fn layer(&self) -> PathBuf {
        self.0.join("layer")
    }

    /// Everything that can be seen of the canary.
    fn canary(&self) -> Vec<(PathBuf, u32, i64, i64, u64, Vec<u8>)> {
        ["canary", "canary/dir", "canary/file"]
            .iter()
            .map(|name| {
                let path = self.0.join(name);
                let found = fs::symlink_metadata(&path).unwrap();
                let data = fs::read(&path).unwrap_or_default();
                (
                    path,
                    found.mode(),
                    found.mtime(),
                    found.ctime_nsec(),
                    found.nlink(),
                    data,
                )
            })
            .collect()
    }

    fn unpack(&self, layer: &Layer) -> Result<Unpacked, Verdict> {
        self.unpack_as(&layer.bytes(), Compression::None, BOUNDS)
    }

    /// As daemon and unpacker do it, but for the jail.
    fn unpack_as(
        &self,
        blob: &[u8],
        compression: Compression,
        bounds: Bounds,
    ) -> Result<Unpacked, Verdict> {
        let path = self.0.join("blob");
        fs::write(&path, blob).unwrap();
        let job = Job {
            compression,
            packed_bytes: blob.len() as u64,
            bounds,
        };
        let (ours, theirs) = crate::begin(&job).unwrap();
        let directory = OwnedFd::from(File::open(self.layer()).unwrap());
        let (blob, inside) = (File::open(&path).unwrap(), directory.try_clone().unwrap());
        let unpacker = std::thread::spawn(move || crate::serve(&theirs, blob.into(), inside));
        let verdict = crate::supervise(&ours, &directory, 100).unwrap();
        unpacker.join().unwrap().unwrap();
        match verdict {
            Verdict::Unpacked(unpacked) => Ok(unpacked),
            other => Err(other),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Writes raw headers, so that names no honest tool would write can be written.
#[derive(Default, Clone)]
struct Layer(Vec<u8>);

impl Layer {
    fn entry(mut self, kind: u8, name: &[u8], link: &[u8], data: &[u8]) -> Self {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_mode(0o644);
        header.set_uid(1000);
        header.set_gid(1000);
        header.set_mtime(1);
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(b'0', name.as_bytes(), b"", data)
    }

    fn dir(self, name: &str) -> Self {
        self.entry(b'5', name.as_bytes(), b"", b"")
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length += 1;
            }
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.entry(b'x', b"pax", b"", &data)
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.0.clone();
        bytes.resize(bytes.len() + 1024, 0);
        bytes
    }
}

#[test]
fn whiteouts_become_what_overlayfs_reads() {
    let scratch = Scratch::new("whiteout");
    let layer = Layer::default()
        .file("a/.wh.gone", b"")
        .file("b/own", b"1")
        .file("b/.wh..wh..opq", b"")
        .file(".wh.back", b"")
        .dir("back")
        .file(".wh.file", b"")
        .file("file", b"2")
        .file("late", b"3")
        .file(".wh.late", b"")
        .file(".wh..wh.plnk", b"");
    scratch.unpack(&layer).unwrap();
    let at = |name: &str| scratch.layer().join(name);
    let gone = fs::symlink_metadata(at("a/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let is_opaque = |name: &str| {
        let mut value = [0; 4];
        rustix::fs::getxattr(at(name), crate::OPAQUE, &mut value)
            .is_ok_and(|count| &value[..count] == b"y")
    };
    assert!(is_opaque("b") && is_opaque("back") && !is_opaque("a"));
    assert_eq!(fs::read(at("b/own")).unwrap(), b"1");
    assert_eq!(fs::read(at("file")).unwrap(), b"2");
    assert_eq!(fs::read(at("late")).unwrap(), b"3");
    let names: Vec<_> = fs::read_dir(scratch.layer())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(
        names
            .iter()
            .all(|name| !name.to_string_lossy().starts_with(".wh.")),
        "{names:?}"
    );
}

#[test]
fn owners_modes_and_harmless_attributes_are_kept() {
    let scratch = Scratch::new("dress");
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // That of mode 0644, and user 5 may write.
    let acl: Vec<u8> = [
        (1, 6, u32::MAX),
        (2, 6, 5),
        (4, 4, u32::MAX),
        (16, 6, u32::MAX),
        (32, 4, u32::MAX),
    ]
    .iter()
    .flat_map(|(tag, allowed, id): &(u16, u16, u32)| {
        [
            &tag.to_le_bytes()[..],
            &allowed.to_le_bytes(),
            &id.to_le_bytes(),
        ]
        .concat()
    })
    .collect();
    let acl = [&2_u32.to_le_bytes()[..], &acl].concat();
    let layer = Layer::default()
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.overlay.metacopy", b""),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.ima", b"\x01signed"),
            ("SCHILY.xattr.security.selinux", b"u:r:t:s0\0"),
            ("SCHILY.xattr.system.posix_acl_access", &acl),
            ("SCHILY.xattr.security.capability", &capability),
            ("uid", b"70000"),
        ])
        .file("f", b"x")
        .entry(b'3', b"dev/mem", b"", b"")
        .entry(b'4', b"dev/sda", b"", b"")
        .entry(b'6', b"fifo", b"", b"");
    scratch.unpack(&layer).unwrap();
    let path = scratch.layer().join("f");
    let found = fs::metadata(&path).unwrap();
    assert_eq!(
        (
            found.uid(),
            found.gid(),
            found.mode() & 0o7777,
            found.mtime()
        ),
        (70000, 1000, 0o644, 1)
    );
    let mut names = [0; 256];
    let count = rustix::fs::listxattr(&path, &mut names).unwrap();
    assert_eq!(&names[..count], b"security.capability\0");
    for device in ["dev/mem", "dev/sda"] {
        let made = fs::symlink_metadata(scratch.layer().join(device));
        assert!(made.is_err(), "device nodes are skipped: {device}");
    }
    assert!(
        fs::symlink_metadata(scratch.layer().join("fifo"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    let refused = scratch
        .unpack(
            &Layer::default()
                .pax(&[("uid", b"4294967295")])
                .file("g", b""),
        )
        .unwrap_err();
    assert!(
        matches!(&refused, Verdict::Invalid(text) if text.contains("owner")),
        "{refused:?}"
    );
}

/// The length of a record alone says where it ends.
#[test]
fn attributes_keep_every_byte_and_malformed_records_are_refused() {
    let scratch = Scratch::new("bytes");
    // dac_override and fowner, effective: the byte of both is a line feed.
    let both = b"\x01\0\0\x02\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let records: [(&str, &[u8]); 2] = [
        ("SCHILY.xattr.security.capability", both),
        ("SCHILY.xattr.user.note", b"=\n9 a=b\n"),
    ];
    let layer = Layer::default().pax(&records).file("f", b"x");
    scratch.unpack(&layer).unwrap();
    let path = scratch.layer().join("f");
    for (key, expected) in records {
        let mut value = [0; 64];
        let name = key.strip_prefix("SCHILY.xattr.").unwrap();
        let count = rustix::fs::getxattr(&path, name, &mut value).unwrap();
        assert_eq!(&value[..count], expected, "{name}");
    }
    for malformed in [
        &b"9 path=x"[..],
        b"9 path=xy",
        b"99 path=x\n",
        b"0 path=x\n",
        b"1\n",
        b"4 a\n",
        b"5 =b\n",
        b"path=x\n",
        b"18446744073709551616 path=x\n",
        b"9 path=x\n\0",
    ] {
        let layer = Layer::default()
            .entry(b'x', b"pax", b"", malformed)
            .file("g", b"");
        let refused = scratch.unpack(&layer).unwrap_err();
        assert!(
            matches!(&refused, Verdict::Invalid(text) if text.contains("PAX record")),
            "{:?}: {refused:?}",
            malformed.escape_ascii().to_string()
        );
    }
}

/// Build tools compare times, and what is written into a directory changes the directory's.
#[test]
fn every_entry_has_the_time_of_the_archive_to_the_nanosecond() {
    let scratch = Scratch::new("times");
    let at = |time: &'static [u8]| [("mtime", time)];
    let layer = Layer::default()
        .pax(&at(b"5.5"))
        .dir("./")
        .pax(&at(b"1700000000.123456789"))
        .dir("d")
        .pax(&at(b"-1.25"))
        .dir("d/inner")
        .pax(&at(b"12.0000000019"))
        .file("d/inner/f", b"x")
        .file("d/implied/deeper/f", b"x")
        .file("d/.wh.gone", b"")
        .file("d/f", b"old")
        .file("d/f", b"new")
        .entry(b'1', b"d/hard", b"d/f", b"")
        .pax(&at(b"7"))
        .entry(b'6', b"d/fifo", b"", b"")
        .pax(&at(b"8.000001"))
        .entry(b'2', b"d/link", b"nowhere", b"");
    scratch.unpack(&layer).unwrap();
    for (name, seconds, nanoseconds) in [
        ("", 5, 500_000_000),
        ("d", 1_700_000_000, 123_456_789),
        ("d/inner", -2, 750_000_000),
        ("d/inner/f", 12, 1),
        ("d/f", 1, 0),
        ("d/fifo", 7, 0),
        ("d/link", 8, 1_000),
    ] {
        let found = fs::symlink_metadata(scratch.layer().join(name)).unwrap();
        assert_eq!(
            (found.mtime(), found.mtime_nsec()),
            (seconds, nanoseconds),
            "{name:?}"
        );
    }
    for bad in [&b"1.x"[..], b"1.-5", b".", b"", b"1e3"] {
        let layer = Layer::default().pax(&[("mtime", bad)]).file("g", b"");
        let refused = scratch.unpack(&layer).unwrap_err();
        assert!(
            matches!(&refused, Verdict::Invalid(text) if text.contains("PAX time")),
            "{:?}: {refused:?}",
            bad.escape_ascii().to_string()
        );
    }
}

/// As zstd:chunked is: a frame for each file, and tables of contents in frames that are to be skipped.
#[test]
fn frames_of_zstd_are_one_archive_and_those_to_skip_are_none_of_it() {
    let scratch = Scratch::new("chunked");
    let archive = Layer::default().file("a", b"1").file("b", b"2").bytes();
    let skipped = |kind: u8, data: &[u8]| {
        let length = u32::try_from(data.len()).unwrap().to_le_bytes();
        [&[kind, 0x2a, 0x4d, 0x18][..], &length, data].concat()
    };
    let mut blob = skipped(0x50, b"first");
    for chunk in archive.chunks(1024) {
        blob.extend(zstd::encode_all(chunk, 3).unwrap());
        blob.extend(skipped(
            0x5f,
            &zstd::encode_all(&b"no file"[..], 3).unwrap(),
        ));
    }
    blob.extend(skipped(0x51, &[0; 64]));
    let unpacked = scratch.unpack_as(&blob, Compression::Zstd, BOUNDS).unwrap();
    for (name, data) in [("a", b"1"), ("b", b"2")] {
        assert_eq!(fs::read(scratch.layer().join(name)).unwrap(), data);
    }
    let plain = Scratch::new("not-chunked");
    let plain = plain.unpack_as(&archive, Compression::None, BOUNDS);
    assert_eq!(unpacked, plain.unwrap());
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
