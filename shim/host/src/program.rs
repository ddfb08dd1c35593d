//! Which program of its image a container runs, and by what: as WebAssembly or on Linux.
//!
//! Called by: a container's plan, and execs for other modules of the image. Calls: images, digests of modules.
//! Invariant: what begins as a module runs as one; annotations say only whether an image for Linux is searched for one,
//! and whether anything else is refused.
//! Not here: compiling it, whether its imports are there.

use std::sync::Arc;

use coracle_images::{Image, Kind as ImageKind, WasmImage};
use coracle_lifecycle::{Error, Kind, WasmVariant};

use super::Host;
use super::errors::invalid;
use super::image_files::read_images;
use super::plan::{Draft, Module};
use super::process_args::argv;

impl Host {
    /// The module that a container of `draft` runs; `None`: it is a Linux program. Errors: it is one, and may not be.
    pub(super) async fn module(&self, draft: &Draft) -> Result<Option<Module>, Error> {
        let image = &draft.image;
        if let ImageKind::Wasm(wasm) = &image.kind {
            let args = argv(image, &draft.config, true)?;
            let named = self.named_module(image, &args[0]).await?;
            return Ok(Some(named.unwrap_or_else(|| own_module(wasm))));
        }
        let variant = draft.config.wasm_variant.or(draft.pod.config.wasm_variant);
        let variant = variant.or(of_image(image));
        if variant == WasmVariant::ByImage {
            return Ok(None);
        }
        let args = argv(image, &draft.config, false)?;
        let named = self.named_module(image, &args[0]).await?;
        if named.is_none() && variant == WasmVariant::Only {
            return Err(invalid(format!(
                "image {:?}: {:?} is no WebAssembly module, and annotation {} or {} asks for nothing else; with compat-smart or wasm-smart Linux programs run, too",
                draft.config.image,
                args[0],
                WasmVariant::KEYS[0],
                WasmVariant::KEYS[1]
            )));
        }
        Ok(named)
    }

    /// The module that `argv0` names in an image, if it names one.
    pub(super) async fn named_module(
        &self,
        image: &Arc<Image>,
        argv0: &str,
    ) -> Result<Option<Module>, Error> {
        if let ImageKind::Wasm(wasm) = &image.kind
            && (image.config.argv0() == Some(argv0) || wasm.guest_path.as_deref() == Some(argv0))
        {
            return Ok(Some(own_module(wasm)));
        }
        if image.kind.layers().is_empty() {
            return Ok(None);
        }
        let (image, argv0) = (Arc::clone(image), argv0.to_owned());
        let found = read_images("looking for a module", move || {
            let found = image.module_for(&argv0);
            found.map_err(|error| {
                Error::because(Kind::Io, format!("look for {argv0:?} in its image"), error)
            })
        });
        let Some(path) = found.await? else {
            return Ok(None);
        };
        let limit = self.config.max_module_bytes;
        let digest = self.module_digests.digest(&path, limit).await?;
        Ok(Some(Module { path, digest }))
    }
}

/// What the image's own annotations say.
fn of_image(image: &Image) -> WasmVariant {
    let variant = |key: &&str| WasmVariant::of(key, image.spec_annotations.get(*key)?);
    let mut variants = WasmVariant::KEYS.iter().filter_map(variant);
    variants.next().unwrap_or_default()
}

fn own_module(wasm: &WasmImage) -> Module {
    Module {
        path: wasm.module_path.clone(),
        digest: wasm.module.hex().to_owned(),
    }
}
