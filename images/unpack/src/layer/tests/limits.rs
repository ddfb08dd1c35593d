//! Bounds: bytes, entries, paths, compression, extended headers.

use super::super::*;
use super::{BOUNDS, Layer, Scratch, gzip};

#[test]
fn amounts_are_bounded_while_they_grow() {
    let scratch = Scratch::new("limits");
    let check = |blob: &[u8], compression, bounds: Bounds, limit| {
        let refused = scratch.unpack_as(blob, compression, bounds).unwrap_err();
        assert_eq!(refused, Verdict::Limit(limit));
    };
    let plain = Compression::None;
    let three = Layer::default()
        .file("1", b"")
        .file("2", b"")
        .file("3", b"")
        .bytes();
    let few = Bounds {
        entries: 2,
        ..BOUNDS
    };
    check(&three, plain, few, Limit::Entries);
    let short = Bounds {
        bytes: 1500,
        ..BOUNDS
    };
    check(&three, plain, short, Limit::Bytes);
    let deep = Layer::default()
        .pax(&[("path", "d/".repeat(257).as_bytes())])
        .dir("d")
        .bytes();
    check(&deep, plain, BOUNDS, Limit::PathDepth);
    let long = Layer::default()
        .pax(&[("path", &[b'x'; 5000])])
        .file("d", b"")
        .bytes();
    check(&long, plain, BOUNDS, Limit::PathBytes);
    let zeros = Layer::default().file("zeros", &vec![0; 80 << 20]).bytes();
    check(&gzip(&zeros), Compression::Gzip, BOUNDS, Limit::Ratio);
    let window = zstd::encode_all(&zeros[..], 1).unwrap();
    check(&window, Compression::Zstd, BOUNDS, Limit::Ratio);
}

/// The head of a frame says how much memory its decoder takes.
#[test]
fn a_window_of_zstd_beyond_the_bound_is_refused_whatever_the_frame_holds() {
    let scratch = Scratch::new("window");
    let layer = Layer::default().file("f", b"x").bytes();
    // A head without a length, its window a power of two; one raw block, the last.
    let frame = |log: u8| {
        let block = u32::try_from(layer.len()).unwrap() << 3 | 1;
        let head = [0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3];
        [&head[..], &block.to_le_bytes()[..3], &layer].concat()
    };
    let unpack = |log| scratch.unpack_as(&frame(log), Compression::Zstd, BOUNDS);
    unpack(27).unwrap();
    for log in [28, 31, 41] {
        let refused = unpack(log).unwrap_err();
        assert!(
            matches!(&refused, Verdict::Invalid(text) if text.contains("too much memory")),
            "{log}: {refused:?}"
        );
    }
}

/// The directories of a name need no entry, and occupy the disk all the same.
#[test]
fn directories_without_an_entry_are_counted() {
    let name = |number: usize| format!("{number}/{}file", "d/".repeat(200));
    let layer = |count: usize| {
        let layers = (0..count).fold(Layer::default(), |layer, number| {
            layer
                .pax(&[("path", name(number).as_bytes())])
                .file("f", b"")
        });
        layers.bytes()
    };
    let bounds = |entries| Bounds { entries, ..BOUNDS };
    let unpack = |count, entries| {
        let scratch = Scratch::new("implicit");
        scratch.unpack_as(&layer(count), Compression::None, bounds(entries))
    };
    let unpacked = unpack(2, 2 * 202).unwrap();
    assert_eq!((unpacked.entries, unpacked.inodes), (2 * 202, 2 * 202 + 1));
    assert_eq!(unpacked.bytes, unpacked.inodes * 512);
    for (count, entries) in [(2, 2 * 202 - 1), (50, 1000)] {
        let refused = unpack(count, entries).unwrap_err();
        assert_eq!(refused, Verdict::Limit(Limit::Entries));
    }
}

/// A decompressor may work for minutes on what gives nothing.
#[test]
fn a_stream_that_unpacks_to_little_is_given_up() {
    let scratch = Scratch::new("useless");
    let honest = Layer::default().file("1", b"one").bytes();
    let member = gzip(b"");
    let members = |count: usize| [gzip(&honest), member.repeat(count)].concat();
    let check = |blob: &[u8], compression| {
        let refused = scratch.unpack_as(blob, compression, BOUNDS).unwrap_err();
        match refused {
            Verdict::Invalid(text) => assert!(text.contains("that unpack to"), "{text}"),
            other => panic!("{other:?}"),
        }
    };
    let useless = (65 << 20) / member.len();
    check(&members(useless), Compression::Gzip);
    // Frames of zstd that hold nothing.
    let frame = zstd::encode_all(&b""[..], 1).unwrap();
    let blob = [
        zstd::encode_all(&honest[..], 1).unwrap(),
        frame.repeat((65 << 20) / frame.len()),
    ];
    check(&blob.concat(), Compression::Zstd);
    scratch
        .unpack_as(&members(100_000), Compression::Gzip, BOUNDS)
        .unwrap();
}

/// Headers that follow each other add up, and each entry begins anew.
#[test]
fn extended_headers_of_one_entry_are_bounded_together() {
    let scratch = Scratch::new("extensions");
    let attribute = vec![b'x'; 40 << 10];
    let pax = |layer: Layer| layer.pax(&[("SCHILY.xattr.user.big", &attribute)]);
    let mut honest = Layer::default();
    for number in 0..60 {
        honest = pax(honest).entry(b'3', number.to_string().as_bytes(), b"", b"");
    }
    scratch.unpack(&honest).unwrap();
    let mut many = Layer::default();
    for _ in 0..60 {
        many = pax(many);
    }
    let mut empty = Layer::default();
    for _ in 0..3_000 {
        empty = empty.entry(b'L', b"long", b"", b"");
    }
    let global = (0..60).fold(Layer::default(), |layer, _| {
        layer.entry(b'g', b"pax", b"", &attribute)
    });
    for layer in [many, empty, global] {
        let refused = scratch.unpack(&layer.file("f", b"x")).unwrap_err();
        assert!(
            matches!(&refused, Verdict::Invalid(text) if text.contains("1 MiB")),
            "{refused:?}"
        );
    }
}
