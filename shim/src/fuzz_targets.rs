//! Fuzz targets of this crate: each reads one input as hostile bytes and panics where a promise is broken.
//!
//! Called by: the `fuzz` binary, and the test below, which replays the corpora of `shim/fuzz` with every `make test`.
//! The daemon has nothing of it. docs/security/fuzzing.md says what each target promises.
//! The targets themselves stand beside what they read. Invariant: a target touches nothing outside this process.

use crate::lifecycle::fuzz as records;

/// A target: its name, and what reads one input.
pub type FuzzTarget = (&'static str, fn(&[u8]));

/// The targets by name.
pub const TARGETS: &[FuzzTarget] = &[
    ("pod-record", records::pod),
    ("container-record", records::container),
];

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::fs;
    use std::path::Path;

    /// Runs a target on each input of its corpus, on every beginning of it, and on it with single bytes changed.
    fn replay(name: &str, target: fn(&[u8])) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz")
            .join(name);
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
}
