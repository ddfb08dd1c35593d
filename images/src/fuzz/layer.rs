//! The targets that read archives: the tar reader alone, and a whole unpacking into a directory.

use std::fs;
use std::path::{Path, PathBuf};

use coracle_unpack::Verdict;

use crate::config::Limits;
use crate::reference::Digest;
use crate::unpack::{self, Budget, Source};

/// Bytes of a tar block.
const BLOCK: usize = 512;

/// The reader holds no more than it was given, and gives names that are names. Checksums are made right first, so that
/// what is behind them is reached.
pub(super) fn tar(input: &[u8]) {
    let mut archive = input.to_vec();
    correct(&mut archive);
    let Ok(entries) = unpack::list(&archive) else {
        return;
    };
    assert!(entries.len() <= archive.len() / BLOCK);
    let total: usize = entries.iter().map(|entry| entry.data).sum();
    assert!(total <= archive.len(), "more data than the archive has");
    for entry in &entries {
        assert!(!entry.path.contains(&0) && !entry.link.contains(&0));
        let held = entry.path.len() + entry.link.len() + entry.attributes;
        assert!(held <= archive.len(), "{held} bytes of names");
    }
}

/// An unpacking touches nothing beside its directory and stays within its budget. The first byte chooses what the
/// layer is packed with.
pub(super) fn layer(input: &[u8]) {
    let Some((packing, bytes)) = input.split_first() else {
        return;
    };
    let mut archive = bytes.to_vec();
    let media_type = match packing % 4 {
        0 => "application/vnd.oci.image.layer.v1.tar+gzip",
        1 => "application/vnd.oci.image.layer.v1.tar+zstd",
        _ => {
            correct(&mut archive);
            "application/vnd.oci.image.layer.v1.tar"
        }
    };
    let place = Place::new();
    fs::write(place.0.join("layer"), &archive).expect("the directory is ours");
    let limits = Limits {
        max_unpacked_bytes: 1 << 20,
        max_entries: 64,
        max_path_depth: 16,
        ..Limits::default()
    };
    let source = Source {
        path: &place.0.join("layer"),
        digest: &Digest::of(b"fuzz"),
        media_type,
        diff_id: &Digest::of(b"fuzz"),
    };
    let open = |name: &str| fs::File::open(place.0.join(name)).expect("it was made above");
    let job = source.job(archive.len() as u64, &Budget::new(&limits, ""));
    let job = job.expect("the media type is one of those above");
    let verdict = unpack::unpack_here(&job, open("layer").into(), open("into").into());
    if let Verdict::Unpacked(unpacked) = verdict {
        assert!(unpacked.archive_bytes <= limits.max_unpacked_bytes);
        assert!(unpacked.entries <= limits.max_entries);
    }
    place.is_untouched();
}

/// A directory with a layer's directory in it, and what must stay beside that.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        let shared = Path::new("/dev/shm");
        let parent = if shared.is_dir() {
            shared.to_owned()
        } else {
            std::env::temp_dir()
        };
        let place = Self(parent.join(format!("coracle-fuzz-{}", std::process::id())));
        let _ = fs::remove_dir_all(&place.0);
        fs::create_dir_all(place.0.join("into")).expect("a directory can be made");
        fs::write(place.0.join("canary"), b"alive").expect("the directory is ours");
        place
    }

    fn is_untouched(&self) {
        let entries = fs::read_dir(&self.0).expect("the directory is there");
        let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        assert_eq!(names, ["canary", "into", "layer"]);
        let canary = fs::read(self.0.join("canary")).expect("the canary is there");
        assert_eq!(canary, b"alive");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Makes the checksum of each header right, as far as sizes lead from one to the next.
fn correct(archive: &mut [u8]) {
    let mut at = 0;
    while let Some(header) = archive.get_mut(at..at + BLOCK) {
        if header.iter().all(|byte| *byte == 0) {
            at += BLOCK;
            continue;
        }
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let digits = header[124..136]
            .iter()
            .filter(|byte| (b'0'..=b'7').contains(byte));
        let size = digits.fold(0_usize, |size, digit| {
            (size << 3 | usize::from(digit - b'0')) & 0xff_ffff
        });
        at += BLOCK + size.next_multiple_of(BLOCK);
    }
}
