//! Finds the module of an image.
//!
//! Called by: the pull, after the layers are unpacked and before the image is recorded.
//! Invariants: a module begins with `\0asm`; machine code is refused under any name, because compiled code is
//! never accepted from an image.
//! Not here: parsing modules, compiling them.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::config::Limits;
use crate::error::Error;
use crate::magic::Magic;
use crate::metadata::Program;
use crate::reference::Digest;
use crate::run_config::{RunConfig, absolute};
use crate::snapshot::{ImageFile, Merged};

/// The file that the image would start, if it exists. A bare name is searched in the working directory first, then in
/// the root, then in the directories of the image's `PATH`.
fn entrypoint(merged: &Merged<'_>, run: &RunConfig) -> Result<Option<ImageFile>, Error> {
    let Some(argv0) = run.argv0() else {
        return Ok(None);
    };
    let mut places = vec![absolute(&run.working_dir, argv0)];
    if !argv0.starts_with('/') {
        places.push(argv0.to_owned());
    }
    if !argv0.contains('/') {
        let path = run.env.iter().find_map(|pair| pair.strip_prefix("PATH="));
        let directories = path.unwrap_or_default().split(':');
        places.extend(
            directories
                .filter(|d| !d.is_empty())
                .map(|d| format!("{d}/{argv0}")),
        );
    }
    for place in places {
        if let Some(found) = merged.find_file(&place)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The part of a name that an error shows.
fn shown(name: &str) -> &str {
    &name[..name.floor_char_boundary(200)]
}

/// The module of an image whose platform says WebAssembly.
fn find(merged: &Merged<'_>, run: &RunConfig) -> Result<ImageFile, Error> {
    if let Some(argv0) = run.argv0() {
        return entrypoint(merged, run)?.ok_or_else(|| {
            Error::invalid(
                format!("entrypoint {:?}", shown(argv0)),
                "the image has no such file",
            )
        });
    }
    let mut found = merged.find_modules(9)?;
    match (found.pop(), found.len()) {
        (Some(only), 0) => Ok(only),
        (None, _) => Err(Error::invalid(
            "image without entrypoint",
            "it holds no .wasm file",
        )),
        (Some(last), _) => {
            let names: Vec<&str> = found
                .iter()
                .chain([&last])
                .map(|file| shown(&file.guest_path))
                .collect();
            let problem = format!(
                "it holds {} .wasm files, set one of them: {}",
                names.len(),
                names.join(", ")
            );
            Err(Error::invalid("image without entrypoint", problem))
        }
    }
}

/// What an unpacked image runs. An image for Linux whose entrypoint is a module is a Wasm image, too.
///
/// `layers` lie in the directory `above`. Blocking.
pub(crate) fn program(
    above: &Path,
    layers: &[PathBuf],
    run: &RunConfig,
    is_wasm: bool,
    limits: &Limits,
) -> Result<Program, Error> {
    let merged = Merged::open(layers)?;
    let module = if is_wasm {
        find(&merged, run)?
    } else {
        match entrypoint(&merged, run)? {
            Some(file) if file.magic()? == Magic::Module => file,
            _ => return Ok(Program::Linux),
        }
    };
    let (guest_path, host_path) = (module.guest_path.clone(), module.host_path.clone());
    module
        .magic()?
        .require_module(&format!("file {}", shown(&guest_path)))?;
    let digest = digest(module, limits)?;
    let file = host_path.strip_prefix(above);
    let file = file
        .expect("the module was found in a layer, all of which lie in `above`")
        .to_owned();
    Ok(Program::ModuleFile {
        digest,
        file,
        guest_path,
    })
}

/// Reads the module once. Errors: too large, the disk fails.
fn digest(module: ImageFile, limits: &Limits) -> Result<Digest, Error> {
    let (guest_path, host_path) = (module.guest_path.clone(), module.host_path.clone());
    let mut hasher = Sha256::new();
    let mut reader = module.into_file().take(limits.max_module_bytes + 1);
    let count =
        io::copy(&mut reader, &mut hasher).map_err(|error| Error::io("read", &host_path, error))?;
    if count > limits.max_module_bytes {
        let what = format!("module {}", shown(&guest_path));
        return Err(Error::Limit {
            what,
            limit: "max_module_bytes",
            allowed: limits.max_module_bytes,
        });
    }
    Ok(Digest::from_hasher(hasher))
}
