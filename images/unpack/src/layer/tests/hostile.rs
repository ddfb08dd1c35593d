//! Names, links and archives that a hostile or careless image has.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use super::super::*;
use super::{BOUNDS, Layer, Scratch, gzip};

/// A layer that begins with the link `l` to `target`.
fn through(target: &str) -> Layer {
    Layer::default().entry(b'2', b"l", target.as_bytes(), b"")
}

/// Layers that lead to the directory `outside`, or to another place outside of the layer, by name of what they do.
fn leading_to(outside: &str) -> Vec<(&'static str, Layer)> {
    let up = "../".repeat(10) + outside.trim_start_matches('/');
    vec![
        ("dots", Layer::default().file("../canary/file", b"x")),
        (
            "dots inside",
            Layer::default().file("a/../../canary/file", b"x"),
        ),
        (
            "dots in a PAX name",
            Layer::default()
                .pax(&[("path", b"../canary/file")])
                .file("a", b"x"),
        ),
        (
            "through an absolute link",
            through(outside).file("l/file", b"x"),
        ),
        (
            "through a relative link",
            through("../canary").file("l/file", b"x"),
        ),
        ("through many dots", through(&up).file("l/file", b"x")),
        (
            "hardlink out",
            Layer::default().entry(b'1', b"h", format!("{outside}/file").as_bytes(), b""),
        ),
        (
            "hardlink by dots",
            Layer::default().entry(b'1', b"h", b"../canary/file", b""),
        ),
        (
            "hardlink through a link",
            through(outside).entry(b'1', b"h", b"l/file", b""),
        ),
        (
            "whiteout through a link",
            through(outside).file("l/.wh.file", b""),
        ),
        ("whiteout of ..", Layer::default().file(".wh...", b"")),
        ("whiteout of .", Layer::default().file("a/.wh..", b"")),
        ("whiteout of nothing", Layer::default().file(".wh.", b"")),
        (
            "magic link",
            through("/proc/self/root").file("l/tmp/x", b"x"),
        ),
        (
            "root as a file",
            Layer::default().file("/", b"").file(".", b"x"),
        ),
    ]
}

#[test]
fn hostile_names_reach_nothing_outside() {
    let scratch = Scratch::new("hostile");
    let outside = scratch
        .0
        .join("canary")
        .into_os_string()
        .into_string()
        .unwrap();
    let before = scratch.canary();
    for (name, layer) in leading_to(&outside) {
        let refused = scratch.unpack(&layer).expect_err(name);
        assert!(
            matches!(refused, Verdict::Invalid(_)),
            "{name}: {refused:?}"
        );
        assert_eq!(scratch.canary(), before, "{name}");
        fs::remove_dir_all(scratch.layer()).unwrap();
        fs::create_dir(scratch.layer()).unwrap();
    }
    // An absolute name counts from the layer's root; a directory replaces a link of the same name.
    let layer = through(&outside)
        .dir("l")
        .file("l/file", b"mine")
        .file("/etc/x", b"y");
    scratch.unpack(&layer).unwrap();
    assert_eq!(scratch.canary(), before);
    assert_eq!(fs::read(scratch.layer().join("l/file")).unwrap(), b"mine");
    assert_eq!(fs::read(scratch.layer().join("etc/x")).unwrap(), b"y");
}

#[test]
fn links_are_followed_inside_the_layer() {
    let scratch = Scratch::new("inside");
    let layer = Layer::default()
        .dir("usr/lib")
        .entry(b'2', b"lib", b"/usr/lib", b"")
        .file("lib/a", b"a")
        .entry(b'1', b"lib/b", b"lib/a", b"")
        .entry(b'1', b"lib/a", b"usr/lib/a", b"");
    scratch.unpack(&layer).unwrap();
    assert_eq!(fs::read(scratch.layer().join("usr/lib/b")).unwrap(), b"a");
    assert_eq!(
        fs::metadata(scratch.layer().join("usr/lib/a"))
            .unwrap()
            .nlink(),
        2
    );
}

#[test]
fn broken_archives_are_told_apart() {
    let scratch = Scratch::new("broken");
    let good = Layer::default().file("f", b"hello").bytes();
    let gz = Compression::Gzip;
    let plain = Compression::None;
    let unpack = |blob: &[u8], compression| scratch.unpack_as(blob, compression, BOUNDS);
    unpack(&gzip(&good), gz).unwrap();
    let first = unpack(&good, plain).unwrap();
    let packed = zstd::encode_all(&good[..], 1).unwrap();
    assert_eq!(unpack(&packed, Compression::Zstd).unwrap(), first);
    let mut flipped = good.clone();
    flipped[512] ^= 1;
    assert_ne!(unpack(&flipped, plain).unwrap().digest, first.digest);
    let mut trailer = gzip(&good);
    let last = trailer.len() - 5;
    trailer[last] ^= 1;
    let mut checksum = good.clone();
    checksum[0] ^= 1;
    for (blob, compression) in [
        (&trailer[..], gz),
        (&gzip(&good)[..30], gz),
        (&good[..700], plain),
        (&good[..100], plain),
        (&checksum, plain),
        (&good, gz),
    ] {
        let refused = unpack(blob, compression).unwrap_err();
        assert!(matches!(refused, Verdict::Invalid(_)), "{refused:?}");
    }
}

#[test]
fn a_directory_that_becomes_a_file_is_replaced_whole() {
    let scratch = Scratch::new("replace");
    symlink("/", scratch.0.join("root")).unwrap();
    let layer = Layer::default()
        .file("d/e/f", b"1")
        .entry(
            b'2',
            b"d/e/out",
            scratch.0.join("canary").to_str().unwrap().as_bytes(),
            b"",
        )
        .file("d/g", b"2")
        .file("d", b"now a file");
    let before = scratch.canary();
    scratch.unpack(&layer).unwrap();
    assert_eq!(fs::read(scratch.layer().join("d")).unwrap(), b"now a file");
    assert_eq!(scratch.canary(), before);
    assert_eq!(
        fs::metadata(scratch.layer()).unwrap().permissions().mode() & 0o777,
        0o755
    );
}

#[test]
fn sparse_files_that_are_too_large_or_contradict_themselves_are_refused() {
    let pax = |records: &[(&str, &[u8])], data: &[u8]| {
        let layer = Layer::default().pax(records).file("f", data);
        layer.file("after", b"x")
    };
    let old = |sparse: bool| {
        let mut layer = Layer::default().entry(b'S', b"f", b"", b"data");
        if sparse {
            let mut header = tar::Header::new_gnu();
            header.as_mut_bytes().copy_from_slice(&layer.0[..512]);
            header.as_mut_bytes()[257..265].copy_from_slice(b"ustar  \0");
            let gnu = header.as_gnu_mut().unwrap();
            gnu.set_real_size(100);
            gnu.set_is_extended(true);
            header.set_cksum();
            layer.0[..512].copy_from_slice(header.as_bytes());
        }
        layer
    };
    let major = ("GNU.sparse.major", &b"1"[..]);
    let minor = ("GNU.sparse.minor", &b"0"[..]);
    let size = ("GNU.sparse.realsize", &b"100"[..]);
    let many = format!("{}\n{}", u64::MAX, "1\n".repeat(1 << 20));
    for (what, layer) in [
        (
            "a map of other data",
            pax(
                &[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"0,5")],
                b"1234",
            ),
        ),
        (
            "a file without data",
            pax(
                &[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"0,5")],
                b"",
            ),
        ),
        (
            "eight exbibytes",
            pax(
                &[
                    ("GNU.sparse.size", b"9223372036854775807"),
                    ("GNU.sparse.map", b"0,4"),
                ],
                b"1234",
            ),
        ),
        ("no map", pax(&[major, minor, size], b"")),
        (
            "a map without end",
            pax(&[major, minor, size], many.as_bytes()),
        ),
        ("a long line", pax(&[major, minor, size], &[b'1'; 4096])),
        ("no numbers", pax(&[major, minor, size], &[0; 1024])),
        (
            "a directory",
            Layer::default()
                .pax(&[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"0,0")])
                .dir("d"),
        ),
        (
            "a directory of old",
            Layer::default()
                .pax(&[("GNU.sparse.size", b"0"), ("GNU.sparse.map", b"0,0")])
                .file("d/", b""),
        ),
        ("another header", old(false)),
        ("a map that is data", old(true)),
    ] {
        let scratch = Scratch::new("sparse-hostile");
        let before = scratch.canary();
        let refused = scratch.unpack(&layer).unwrap_err();
        let is_right = match refused {
            Verdict::Limit(Limit::Bytes) => what == "eight exbibytes",
            Verdict::Invalid(_) => true,
            _ => false,
        };
        assert!(is_right, "{what}: {refused:?}");
        assert_eq!(scratch.canary(), before);
    }
}
