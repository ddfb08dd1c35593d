//! Odd archives, unpacked here and by GNU tar: the same names, kinds, modes, owners, times, links, attributes and bytes.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use super::*;

/// Changes a header before its checksum is made.
type Change<'a> = &'a dyn Fn(&mut tar::Header);

impl Layer {
    fn odd(mut self, kind: u8, name: &[u8], data: &[u8], change: Change<'_>) -> Self {
        let at = self.0.len();
        self = self.entry(kind, name, b"", data);
        let mut header = tar::Header::new_old();
        let block = &mut self.0[at..at + 512];
        header.as_mut_bytes().copy_from_slice(block);
        change(&mut header);
        header.set_cksum();
        block.copy_from_slice(header.as_bytes());
        self
    }
}

/// Everything that can be seen of what has a name.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Facts {
    mode: u32,
    owner: (u32, u32),
    /// `None`: it was not in the archive.
    pub(super) time: Option<(i64, i64)>,
    target: Vec<u8>,
    data: Vec<u8>,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
    /// The first of its names.
    first: Vec<u8>,
}

fn attributes(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let (mut names, mut value) = (vec![0; 4096], vec![0; 4096]);
    let count = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let mut found = Vec::new();
    for name in names[..count].split(|byte| *byte == 0) {
        if !name.is_empty() {
            let size = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            found.push((name.to_vec(), value[..size].to_vec()));
        }
    }
    found.sort();
    found
}

/// What is below `root`, by name. What is as new as `began` was not in the archive.
pub(super) fn listing(root: &Path, began: i64) -> BTreeMap<Vec<u8>, Facts> {
    let (mut all, mut firsts) = (BTreeMap::new(), HashMap::new());
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let found = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes();
        if found.is_dir() {
            let entries = fs::read_dir(&path).unwrap();
            let mut inner: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
            inner.sort();
            pending.extend(inner.into_iter().rev());
        }
        let first = firsts.entry(found.ino()).or_insert_with(|| name.to_vec());
        let target = fs::read_link(&path).map(|target| target.as_os_str().as_bytes().to_vec());
        let data = found.is_file().then(|| fs::read(&path).unwrap());
        let facts = Facts {
            mode: found.mode(),
            owner: (found.uid(), found.gid()),
            time: (found.mtime() < began).then(|| (found.mtime(), found.mtime_nsec())),
            target: target.unwrap_or_default(),
            data: data.unwrap_or_default(),
            attributes: attributes(&path),
            first: first.clone(),
        };
        all.insert(name.to_vec(), facts);
    }
    all
}

/// Unpacks by GNU tar, as root does.
fn by_gnu_tar(archive: &Path, directory: &Path) {
    let output = Command::new("tar")
        .args([
            "--extract",
            "--same-owner",
            "--same-permissions",
            "--numeric-owner",
        ])
        .args([
            "--xattrs",
            "--xattrs-include=user.*",
            "--xattrs-include=security.capability",
        ])
        .arg("--file")
        .arg(archive)
        .arg("--directory")
        .arg(directory)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_ne!(output.status.code(), None, "tar: {said}");
}

/// Archives as tools of all ages write them.
pub(super) fn odd_archives() -> Vec<(&'static str, Vec<u8>)> {
    let new = Layer::default;
    let long = [&[b'd'; 90][..], b"/", &[b'n'; 200]].concat();
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let whole = |layer: Layer| layer.bytes();
    let with_mode = |mode| move |header: &mut tar::Header| header.set_mode(mode);
    let bare: Change<'_> = &|header| header.as_mut_bytes()[257..].fill(0);
    let prefixed: Change<'_> = &|header| header.as_mut_bytes()[345..348].copy_from_slice(b"a/b");
    let field = |from: usize, text: &'static [u8]| {
        move |header: &mut tar::Header| {
            header.as_mut_bytes()[from..from + text.len()].copy_from_slice(text);
        }
    };
    vec![
        (
            "version 7",
            whole(new().odd(b'0', b"f", b"x", bare).odd(0, b"g", b"y", bare)),
        ),
        ("a prefix", whole(new().odd(b'0', b"c", b"x", prefixed))),
        (
            "a name of 100 bytes",
            whole(new().entry(b'0', &[b'n'; 100], b"", b"x")),
        ),
        (
            "GNU long name",
            whole(
                new()
                    .entry(b'L', b"././@LongLink", b"", &[&long[..], b"\0"].concat())
                    .file("short", b"x"),
            ),
        ),
        (
            "GNU long link",
            whole(
                new()
                    .entry(b'K', b"././@LongLink", b"", &[&long[..], b"\0"].concat())
                    .entry(b'2', b"l", b"short", b""),
            ),
        ),
        (
            "PAX names",
            whole(
                new()
                    .pax(&[("path", &long)])
                    .file("short", b"x")
                    .pax(&[("linkpath", &long)])
                    .entry(b'2', b"l", b"short", b""),
            ),
        ),
        (
            "a PAX name whose header is cut",
            whole(
                new()
                    .pax(&[("path", b"d/\xff")])
                    .file("d/", b"x")
                    .pax(&[("path", b"e/")])
                    .file("e", b""),
            ),
        ),
        (
            "PAX owners",
            whole(
                new()
                    .pax(&[("uid", b"3000000000"), ("gid", b"2999999999")])
                    .file("f", b"x"),
            ),
        ),
        (
            "PAX times",
            whole(
                new()
                    .pax(&[("mtime", b"1234567890.123456789")])
                    .file("f", b"x")
                    .pax(&[("mtime", b"-77.5")])
                    .dir("d")
                    .file("d/f", b"y"),
            ),
        ),
        (
            "a PAX size",
            whole(
                new()
                    .pax(&[("size", b"3")])
                    .odd(b'0', b"f", b"abc", &|header| header.set_size(0)),
            ),
        ),
        (
            "a global header",
            whole(
                new()
                    .entry(b'g', b"pax_global_header", b"", b"19 comment=0123456\n")
                    .file("f", b"x"),
            ),
        ),
        (
            "binary owners",
            whole(new().odd(b'0', b"f", b"x", &|header| {
                header.set_uid(3_000_000);
                header.set_gid(4_000_000);
            })),
        ),
        (
            "a late time",
            whole(new().odd(b'0', b"f", b"x", &|header| header.set_mtime(1 << 30))),
        ),
        (
            "numbers that end in blanks",
            whole(new().odd(b'0', b"f", b"x", &field(100, b"   644 \0"))),
        ),
        (
            "owners of blanks",
            whole(new().odd(b'0', b"f", b"x", &field(108, b"        "))),
        ),
        (
            "a contiguous file",
            whole(new().entry(b'7', b"f", b"", b"x")),
        ),
        (
            "a directory of old",
            whole(new().entry(b'0', b"d/", b"", b"").file("d/f", b"x")),
        ),
        (
            "names with dots and slashes",
            whole(
                new()
                    .file("./a/./b//c", b"x")
                    .file("/absolute/f", b"y")
                    .dir("./"),
            ),
        ),
        (
            "names that are no text",
            whole(
                new()
                    .entry(b'0', b"\xff\xfe/\x80", b"", b"x")
                    .entry(b'2', b"l", b"\xff", b""),
            ),
        ),
        (
            "hard links",
            whole(
                new()
                    .file("f", b"x")
                    .entry(b'1', b"g", b"f", b"")
                    .entry(b'1', b"d/h", b"./g", b""),
            ),
        ),
        (
            "a hard link to a link",
            whole(
                new()
                    .entry(b'2', b"l", b"nowhere", b"")
                    .entry(b'1', b"m", b"l", b""),
            ),
        ),
        (
            "a directory after what is in it",
            whole(
                new()
                    .file("d/e/f", b"x")
                    .odd(b'5', b"d/e/", b"", &with_mode(0o2510))
                    .dir("d/"),
            ),
        ),
        (
            "a file twice",
            whole(
                new()
                    .file("f", b"first, and longer")
                    .file("f", b"second")
                    .entry(b'2', b"l", b"f", b"")
                    .file("l", b"third"),
            ),
        ),
        (
            "modes",
            whole(
                new()
                    .odd(b'0', b"setuid", b"x", &with_mode(0o4755))
                    .odd(b'0', b"setgid", b"x", &with_mode(0o2711))
                    .odd(b'5', b"sticky", b"", &with_mode(0o1777))
                    .odd(b'0', b"nothing", b"x", &with_mode(0))
                    .odd(b'6', b"fifo", b"", &with_mode(0o640)),
            ),
        ),
        (
            "attributes",
            whole(
                new()
                    .pax(&[
                        ("SCHILY.xattr.user.note", b"a=\0\n"),
                        ("SCHILY.xattr.security.capability", capability),
                    ])
                    .file("f", b"x"),
            ),
        ),
        ("no end", new().file("f", b"x").0),
        (
            "something after the end",
            [new().file("f", b"x").bytes(), new().file("g", b"y").0].concat(),
        ),
        ("nothing", whole(new())),
    ]
}

#[test]
fn odd_archives_become_the_trees_that_gnu_tar_makes() {
    let began = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let began = i64::try_from(began).unwrap() - 60;
    for (number, (what, archive)) in odd_archives().into_iter().enumerate() {
        let scratch = Scratch::new(&format!("gnu-{number}"));
        let theirs = scratch.0.join("theirs");
        fs::create_dir(&theirs).unwrap();
        let unpacked = scratch.unpack_as(&archive, Compression::None, BOUNDS);
        unpacked.unwrap_or_else(|verdict| panic!("{what}: {verdict:?}"));
        by_gnu_tar(&scratch.0.join("blob"), &theirs);
        let (ours, theirs) = (listing(&scratch.layer(), began), listing(&theirs, began));
        assert_eq!(ours, theirs, "{what}");
        assert!(
            ours.len() > 1 || what == "nothing",
            "{what}: nothing was unpacked"
        );
    }
}

/// A file with data at its beginning, in its middle and nowhere near its end, and others that are all hole, or full of them.
fn sparse_files(directory: &Path) {
    use std::os::unix::fs::FileExt as _;
    fs::create_dir_all(directory).unwrap();
    let make = |name: &str, size: u64, parts: &[(u64, usize)]| {
        let file = fs::File::create(directory.join(name)).unwrap();
        file.set_len(size).unwrap();
        for (at, length) in parts {
            file.write_all_at(&vec![b'd'; *length], *at).unwrap();
        }
    };
    make("some", 9 << 20, &[(0, 5000), (4 << 20, 100_000)]);
    make("end", 3 << 20, &[((3 << 20) - 7, 7)]);
    make("hole", 5 << 20, &[]);
    let many: Vec<_> = (0..90).map(|number| (number << 17, 4096)).collect();
    make("many", 90 << 17, &many);
    let long = "n".repeat(200);
    make(&long, 2 << 20, &[(1 << 20, 1)]);
}

#[test]
fn sparse_files_of_all_formats_are_those_that_gnu_tar_packed() {
    for (what, arguments) in [
        ("old", &["--format=gnu"][..]),
        ("0.0", &["--format=posix", "--sparse-version=0.0"]),
        ("0.1", &["--format=posix", "--sparse-version=0.1"]),
        ("1.0", &["--format=posix", "--sparse-version=1.0"]),
    ] {
        let scratch = Scratch::new(&format!("sparse-{what}"));
        let (files, packed) = (scratch.0.join("files"), scratch.0.join("packed"));
        sparse_files(&files);
        let output = Command::new("tar")
            .args(["--create", "--sparse", "--numeric-owner"])
            .args(arguments)
            .arg("--file")
            .arg(&packed)
            .arg("--directory")
            .arg(&files)
            .arg(".")
            .output()
            .unwrap();
        assert!(output.status.success(), "{what}: {output:?}");
        let archive = fs::read(&packed).unwrap();
        assert!(archive.len() < 1 << 20, "{what}: {}", archive.len());
        let unpacked = scratch.unpack_as(&archive, Compression::None, BOUNDS);
        let unpacked = unpacked.unwrap_or_else(|verdict| panic!("{what}: {verdict:?}"));
        let (ours, theirs) = (
            listing(&scratch.layer(), i64::MIN),
            listing(&files, i64::MIN),
        );
        assert_eq!(
            ours.keys().collect::<Vec<_>>(),
            theirs.keys().collect::<Vec<_>>()
        );
        for (name, facts) in &ours {
            assert!(*facts == theirs[name], "{what}: {}", name.escape_ascii());
        }
        // Holes take no room, and count for what an image may unpack to.
        let blocks = |name: &str| fs::metadata(scratch.layer().join(name)).unwrap().blocks();
        assert_eq!(blocks("hole"), 0, "{what}");
        assert!(blocks("some") * 512 < 1 << 20, "{what}");
        assert!(unpacked.bytes < 2 << 20, "{what}: {unpacked:?}");
        assert!(unpacked.archive_bytes > 30 << 20, "{what}: {unpacked:?}");
        let small = Bounds {
            bytes: 16 << 20,
            ..BOUNDS
        };
        let scratch = Scratch::new(&format!("sparse-small-{what}"));
        let refused = scratch.unpack_as(&archive, Compression::None, small);
        assert_eq!(refused, Err(Verdict::Limit(Limit::Bytes)), "{what}");
    }
}
