//! Engines and the code compiled for them: this daemon's own engine, and those of keepers of another build.
//!
//! Called by: PullImage (compile ahead), CreateContainer, recovery. Calls: the compile cache.
//! Invariant: code for another build's engine is compiled by that build's own executable.
//! Must not know: what a module may import, what a container requests.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_images::{Image, Kind as ImageKind};
use coracle_lifecycle::{Error, KeeperEngine, StartRequest};
use coracle_wasm::{Compiled, EngineRef, ModuleRequest};

use super::{Host, runtime_error};

impl Host {
    /// Compiles an image's module into the cache for the engine of new keepers, in the turn of `namespace`. No effect for a
    /// Linux image.
    pub async fn prepare_image(&self, image: &Image, namespace: &str) -> Result<(), Error> {
        let ImageKind::Wasm(wasm) = &image.kind else {
            return Ok(());
        };
        let engine = self.own_engine();
        let request = ModuleRequest {
            path: &wasm.module_path,
            digest: wasm.module.hex(),
            tenant: namespace,
            image: image.id.as_str(),
        };
        let compiled = self.compiled(&engine, request).await;
        if !self.parts.images.has_module(wasm.module.hex()) {
            // The image was removed meanwhile: nothing else would collect the new code.
            self.parts.images.wake_collector();
        }
        compiled.map(|_| ())
    }

    /// The engine that this daemon's spawner gives to new keepers.
    pub fn own_engine(&self) -> EngineRef {
        EngineRef {
            hash: self.parts.spawner.engine_hash().to_owned(),
            exe: PathBuf::from("/proc/self/exe"),
        }
    }

    /// The engine of a keeper; the keeper's own executable compiles for an engine of another build.
    pub fn engine_of(&self, engine: &KeeperEngine) -> EngineRef {
        let own = self.own_engine();
        if own.hash == engine.hash {
            return own;
        }
        EngineRef {
            hash: engine.hash.clone(),
            exe: PathBuf::from(format!("/proc/{}/exe", engine.pid)),
        }
    }

    /// The compiled form of a module, by its path and digest, for a container that starts or runs.
    pub(super) async fn compiled_for(
        &self,
        request: &StartRequest,
        (path, digest): (&Path, &str),
    ) -> Result<Arc<Compiled>, Error> {
        let engine = self.engine_of(&request.engine);
        let request = ModuleRequest {
            path,
            digest,
            tenant: &request.namespace,
            image: &request.plan.image_id,
        };
        self.compiled(&engine, request).await
    }

    pub(super) async fn compiled(
        &self,
        engine: &EngineRef,
        request: ModuleRequest<'_>,
    ) -> Result<Arc<Compiled>, Error> {
        let compiled = self.parts.compiler.compiled(engine, request).await;
        compiled.map_err(|error| {
            runtime_error(format!("compile module sha256:{}", request.digest), error)
        })
    }
}
