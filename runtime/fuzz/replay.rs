//! Replays the corpora in `fuzz` directories with the tests of whichever crate has the targets.
//!
//! A module of each `fuzz.rs`. Invariant: a target without a corpus fails.
//! Not here: the targets.

use std::fs;
use std::path::{Path, PathBuf};

/// The corpus of `name`: in the nearest `fuzz` directory above or in the crate.
fn corpus(name: &str) -> PathBuf {
    let mut above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let dir = above.find_map(|dir| Some(dir.join("fuzz").join(name)).filter(|dir| dir.is_dir()));
    dir.unwrap_or_else(|| panic!("{name} has no corpus"))
}

/// Runs a target on each input of its corpus, on every beginning of it, and on it with single bytes changed.
fn replay(name: &str, target: fn(&[u8])) {
    let dir = corpus(name);
    let mut count = 0;
    for entry in fs::read_dir(&dir).unwrap() {
        let input = fs::read(entry.unwrap().path()).unwrap();
        target(&input);
        let step = input.len() / 64 + 1;
        for at in (0..input.len()).step_by(step) {
            target(&input[..at]);
            for change in [1, 0x20, 0x80, 0xff] {
                let mut changed = input.clone();
                changed[at] ^= change;
                target(&changed);
            }
        }
        count += 1;
    }
    assert!(count > 0, "{} is empty", dir.display());
}

#[test]
fn corpora_are_replayed() {
    for (name, target) in super::TARGETS {
        replay(name, *target);
    }
}
