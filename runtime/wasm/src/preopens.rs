//! The directories that a guest is given: the root, its mounts, and the one that it starts in.
//!
//! Called by [`super::host`] and [`super::surroundings`] inside the finished jail, where `/` is the container's own root.
//! WASI preview 1 has no working directory: a libc makes every path absolute, takes it to begin at `/`, and looks for the
//! preopened directory with the longest name that fits; of two that fit equally well, as `/` and `.` do, the later one
//! wins. So a working directory is given last, as `.`, and every directory of the root by its own name before it.
//! Invariant: permissions follow the path, whatever name a directory is given under.
//! Not here: what is mounted.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use wasmtime_wasi::filesystem::Dir;
use wasmtime_wasi::{FsPerms, OpenMode, WasiCtxBuilder};

use coracle_spec::{ContainerSpec, WasmSpec};

/// Most directories of the root that are given by name.
const MAX_OF_ROOT: usize = 256;

/// Whether the container starts in a directory other than `/`.
pub(super) fn has_own_directory(wasm: &WasmSpec) -> bool {
    Path::new(&wasm.working_dir).components().count() > 1
}

/// A directory that a guest is given, and what it may do there.
pub(super) struct Preopen {
    path: PathBuf,
    /// The name that the guest knows it by.
    name: String,
    perms: FsPerms,
}

impl Preopen {
    fn at(path: &Path, perms: &Perms<'_>) -> Self {
        Self {
            name: path.to_string_lossy().into_owned(),
            path: path.to_owned(),
            perms: perms.at(path),
        }
    }

    /// Opens it for any number of instances, whose calls may wait if `may_block`. Errors: it cannot be opened.
    pub(super) fn open(self, may_block: bool) -> wasmtime::Result<(Dir, String)> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(CWD, &self.path, flags, Mode::empty()).map_err(|e| {
            wasmtime::Error::msg(format!("open the directory {}: {e}", self.path.display()))
        })?;
        let mode = match self.perms {
            FsPerms::ReadOnly => OpenMode::READ,
            FsPerms::ReadWrite => OpenMode::READ | OpenMode::WRITE,
        };
        let dir = Dir::new(opened.into(), self.perms, mode, may_block);
        Ok((dir, self.name))
    }
}

/// Gives `builder` its directories. Errors: one cannot be opened, or the working directory is none.
pub(super) fn add(
    builder: &mut WasiCtxBuilder,
    spec: &ContainerSpec,
    wasm: &WasmSpec,
) -> wasmtime::Result<()> {
    for Preopen { path, name, perms } in list(spec, wasm)? {
        builder.preopened_dir(path, name, perms)?;
    }
    Ok(())
}

/// The directories that a guest of this container is given. Errors: the working directory is none.
pub(super) fn list(spec: &ContainerSpec, wasm: &WasmSpec) -> wasmtime::Result<Vec<Preopen>> {
    let perms = Perms::of(spec);
    if !has_own_directory(wasm) {
        let paths = std::iter::once("/").chain(perms.directories());
        return Ok(paths
            .map(|path| Preopen::at(Path::new(path), &perms))
            .collect());
    }
    let own = Path::new(&wasm.working_dir);
    if !own.is_dir() {
        return Err(wasmtime::Error::msg(format!(
            "the working directory {} is not a directory, or cannot be made",
            own.display()
        )));
    }
    let mut paths: Vec<PathBuf> = vec![PathBuf::from("/")];
    paths.extend(of_root());
    paths.extend(perms.directories().map(PathBuf::from));
    paths.sort();
    paths.dedup();
    let mut all: Vec<_> = paths.iter().map(|path| Preopen::at(path, &perms)).collect();
    all.push(Preopen {
        name: ".".to_owned(),
        ..Preopen::at(own, &perms)
    });
    Ok(all)
}

/// The directories of the root, and the links to directories, in the order of their names.
fn of_root() -> Vec<PathBuf> {
    let listed = fs::read_dir("/").into_iter().flatten().flatten();
    let paths = listed.map(|entry| entry.path());
    let mut found: Vec<_> = paths
        .filter(|path| path.to_str().is_some() && path.is_dir())
        .take(MAX_OF_ROOT)
        .collect();
    found.sort();
    found
}

/// What may be done where.
struct Perms<'a> {
    root: FsPerms,
    /// Mounted directories.
    mounts: Vec<(&'a str, FsPerms)>,
}

impl<'a> Perms<'a> {
    fn of(spec: &'a ContainerSpec) -> Self {
        let perms = |readonly| match readonly {
            true => FsPerms::ReadOnly,
            false => FsPerms::ReadWrite,
        };
        let is_dir = |path: &str| fs::metadata(path).is_ok_and(|found| found.is_dir());
        // A writable file mounted into a read-only root is reached through `/`: the kernel keeps the rest read-only.
        let writable_file = spec
            .mounts
            .iter()
            .any(|mount| !mount.readonly && !is_dir(&mount.target));
        let mounts = spec.mounts.iter().filter(|mount| is_dir(&mount.target));
        Self {
            root: perms(spec.root.readonly && !writable_file),
            mounts: mounts
                .map(|mount| (mount.target.as_str(), perms(mount.readonly)))
                .collect(),
        }
    }

    fn directories(&self) -> impl Iterator<Item = &'a str> {
        self.mounts.iter().map(|(path, _)| *path)
    }

    /// Those of the innermost mount that holds `path`. A directory with something writable mounted inside is writable:
    /// that is reached through it, and the kernel keeps the rest read-only.
    fn at(&self, path: &Path) -> FsPerms {
        let mut inside = self.mounts.iter().filter(|(mount, perms)| {
            matches!(perms, FsPerms::ReadWrite) && Path::new(mount).starts_with(path)
        });
        if path != Path::new("/") && inside.next().is_some() {
            return FsPerms::ReadWrite;
        }
        let around = self
            .mounts
            .iter()
            .filter(|(mount, _)| path.starts_with(mount));
        let innermost = around.max_by_key(|(mount, _)| mount.len());
        innermost.map_or(self.root, |(_, perms)| *perms)
    }
}
