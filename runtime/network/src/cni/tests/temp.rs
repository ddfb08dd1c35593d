//! A place of one test's own for files and scripts.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory of one test's own.
pub struct Temp(PathBuf);

impl Temp {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("coracle-cni-{}-{count}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// A script that waits until there is a file of this name, at the longest until the end of the test.
    pub fn until(&self, name: &str) -> String {
        let dir = self.0.display();
        format!("while [ -d {dir} ] && [ ! -e {dir}/{name} ]; do sleep 0.02; done")
    }

    /// Writes an executable shell script.
    pub fn script(&self, name: &str, text: &str) {
        // Renamed into place: a test next door may be forking, and would hold a file that is written open.
        let (new, path) = (self.0.join("new-script"), self.0.join(name));
        fs::write(&new, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, path).unwrap();
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
