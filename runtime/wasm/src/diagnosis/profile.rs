//! Profiles of guests: what their code was doing whenever the epoch advanced, counted by stack.
//!
//! The callback of a store's epoch takes a sample; the file is written when the program or the server ends. It is text
//! that tools for flame graphs read: one line a stack, outermost function first, separated by `;`, and a count.
//! Invariants: samples end after a time, distinct stacks and the length of one are bounded; what a guest waits for is not
//! in it, for its code does not run then.
//! Not here: what advances the epoch.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use wasmtime::{AsContext, FrameInfo, WasmBacktrace};

use super::Directory;
use coracle_spec::WasmSpec;
use coracle_spec::error::Result;

/// The annotation that turns them on.
const ANNOTATION: &str = "coracle.dev/guest-profile";
/// Name and suffix of the files.
const FILE: (&str, &str) = ("profile", "folded");
/// For how long samples are taken.
const MAX_TIME: Duration = Duration::from_secs(600);
/// Most distinct stacks; the samples of others are counted as one.
const MAX_STACKS: usize = 2_048;
/// Longest name of a function, in bytes: most bytes of a file follow from these, 32 frames a stack.
const MAX_NAME_BYTES: usize = 120;
const OTHERS: &str = "(others)";

/// The profile of all guests of one container.
pub(crate) struct Profile {
    directory: Directory,
    begun: Instant,
    stacks: Mutex<HashMap<String, u64>>,
}

impl Profile {
    /// That of `wasm`, if it is to have one. Errors: there is no such directory.
    pub(crate) fn of(wasm: &WasmSpec) -> Result<Option<Self>> {
        let path = wasm.diagnosis.guest_profile.as_deref();
        let directory = path.map(|path| Directory::open(path, ANNOTATION));
        Ok(directory.transpose()?.map(|directory| Self {
            directory,
            begun: Instant::now(),
            stacks: Mutex::default(),
        }))
    }

    /// Counts what the guest of `store` is doing.
    pub(crate) fn sample(&self, store: impl AsContext) {
        if self.begun.elapsed() > MAX_TIME {
            return;
        }
        let trace = WasmBacktrace::force_capture(store);
        let names: Vec<String> = trace.frames().iter().rev().map(name).collect();
        self.count(names.join(";"));
    }

    fn count(&self, stack: String) {
        let mut stacks = self.stacks.lock().unwrap_or_else(PoisonError::into_inner);
        let known = stacks.len() < MAX_STACKS || stacks.contains_key(&stack);
        let key = if known { stack } else { OTHERS.to_owned() };
        *stacks.entry(key).or_default() += 1;
    }

    /// Writes the file and gives a sentence on where it is, or why it is not.
    pub(crate) fn write(&self) -> String {
        let stacks = self.stacks.lock().unwrap_or_else(PoisonError::into_inner);
        let samples: u64 = stacks.values().sum();
        let mut lines: Vec<String> = stacks
            .iter()
            .map(|(stack, count)| format!("{stack} {count}\n"))
            .collect();
        lines.sort();
        let written = self
            .directory
            .create(FILE)
            .and_then(|file| file.fill(lines.concat().as_bytes()));
        match written {
            Ok(path) => format!("guest profile: {path} ({samples} samples)"),
            Err(e) => format!("no guest profile in {}: {e}", self.directory.path),
        }
    }
}

/// The name of a function, without what separates names and lines.
fn name(frame: &FrameInfo) -> String {
    let Some(own) = frame.func_name() else {
        return format!("wasm-function[{}]", frame.func_index());
    };
    let end = own.floor_char_boundary(MAX_NAME_BYTES);
    let plain = |c: char| match c {
        ';' | ' ' => '_',
        c if c.is_control() => '_',
        c => c,
    };
    own[..end].chars().map(plain).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn stacks_are_counted_and_their_number_is_bounded() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().to_str().unwrap();
        let profile = Profile {
            directory: Directory::open(path, ANNOTATION).unwrap(),
            begun: Instant::now(),
            stacks: Mutex::default(),
        };
        for number in 0..2 * MAX_STACKS {
            profile.count(format!("main;f{number}"));
            profile.count("main;f0".to_owned());
        }
        let said = profile.write();
        let samples = format!("/profile-0.folded ({} samples)", 4 * MAX_STACKS);
        assert!(said.contains(&samples), "{said}");
        let text = std::fs::read_to_string(place.path().join("profile-0.folded")).unwrap();
        assert_eq!(text.lines().count(), MAX_STACKS + 1);
        let often = format!("main;f0 {}", 2 * MAX_STACKS + 1);
        let others = format!("{OTHERS} {MAX_STACKS}");
        for line in [often.as_str(), "main;f1 1", &others] {
            assert!(text.lines().any(|own| own == line), "no {line}");
        }
    }
}
