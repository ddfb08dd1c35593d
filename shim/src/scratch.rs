//! A directory for one unit test. Used by tests of this crate and of those that include this file; end-to-end tests
//! have the harness's own.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::path::PathBuf;

/// A new empty directory, removed with its contents when this is dropped.
pub struct Scratch(pub PathBuf);

impl Scratch {
    /// Creates it; no other test of this process may use `name`. Removes the remains of a killed run first.
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("coracle-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Writes a file and returns its path.
    #[allow(
        dead_code,
        reason = "not every crate that includes this file writes one"
    )]
    pub fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
