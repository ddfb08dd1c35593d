//! Resolves a container wish against image and node: everything that can be refused is refused here.
//!
//! Called by: CreateContainer, before anything is made. Calls: images (by name, never a pull), the compile cache.
//! Invariant: a plan that is made can be started without asking anybody again what was meant.
//! Not here: cgroups, directories, processes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_images::{Image, Kind as ImageKind, WasmImage};
use coracle_runtime::id::{ContainerId, hex};
use coracle_runtime::wasm::{Compiled, EngineRef, ModuleInfo};
use sha2::{Digest as _, Sha256};

use super::words::{argv, environment, log_path, stop_signal, working_dir};
use super::{Host, blocking, io_error, limits, mounts, pass, runtime_error, user};
use crate::lifecycle::{ContainerWish, Error, Kind, Payload, Plan, PodRecord, WasmPlan};

struct Module {
    path: PathBuf,
    digest: String,
}

impl Host {
    /// Decides what container `id` of `pod` is to be; its image is leased to it from here on.
    /// Errors: Missing for an absent image; Invalid, naming what is wrong; Unsupported for a Linux image.
    pub async fn plan(
        self: &Arc<Self>,
        pod: &PodRecord,
        id: &ContainerId,
        wish: &Arc<ContainerWish>,
        engine: &EngineRef,
    ) -> Result<Plan, Error> {
        let image = self.image(&wish.image)?;
        self.lease(&image, id)?;
        let wasm = wasm_part(&image, pod, wish)?;
        let args = argv(&image, wish)?;
        let module = find_module(&image, &wasm, &args[0]).await?;
        pass("create.compile")?;
        let compiled = self.compiled(engine, &module.path, &module.digest).await?;
        let memory_limit_bytes = limits::memory_limit(&wish.resources);
        judge(&compiled.info, &wish.image, memory_limit_bytes)?;
        let (asked, user, layers) = (
            Arc::clone(wish),
            image.config.user.clone(),
            wasm.layers.clone(),
        );
        let range = pod.range;
        let (identity, mounts) = blocking("checking user and mounts", move || {
            let identity = user::identity(&asked.user, &user, &layers, range)?;
            Ok((identity, mounts::check(&asked.mounts)?))
        })
        .await?;
        Ok(Plan {
            image_id: image.id.as_str().to_owned(),
            image_volumes: Vec::new(),
            payload: Payload::Wasm(WasmPlan {
                module: module.path,
                module_digest: module.digest,
                kind: compiled.info.kind,
            }),
            layers: wasm.layers.clone(),
            env: environment(&image, wish)?,
            args,
            working_dir: working_dir(&image, wish)?,
            mounts,
            identity,
            stop_signal: stop_signal(&image, wish)?,
            log_path: log_path(&pod.wish.log_directory, &wish.log_path)?,
            cgroup: format!("{}/{id}", pod.cgroup_parent.trim_end_matches('/')),
            memory_limit_bytes,
            spawn: self.config.spawn_of(pod.wish.handler),
        })
    }

    fn image(&self, name: &str) -> Result<Arc<Image>, Error> {
        let text = || format!("image {name:?} is not on this node; pull it first");
        let found = self.parts.images.resolve(name);
        found.ok_or_else(|| Error::new(Kind::Missing, text()))
    }

    /// Compiles an image's module into the cache for the engine that new keepers have. A Linux image needs nothing.
    pub async fn prepare_image(&self, image: &Image) -> Result<(), Error> {
        let ImageKind::Wasm(wasm) = &image.kind else {
            return Ok(());
        };
        let engine = self.own_engine();
        self.compiled(&engine, &wasm.module_path, wasm.module.hex())
            .await
            .map(|_| ())
    }

    /// The engine that this daemon's spawner gives to new keepers.
    pub fn own_engine(&self) -> EngineRef {
        EngineRef {
            hash: self.parts.spawner.engine_hash().to_owned(),
            exe: PathBuf::from("/proc/self/exe"),
        }
    }

    /// The engine of a keeper; one of another build compiles with the keeper's own executable.
    pub fn engine_of(&self, hash: &str, keeper_pid: i32) -> EngineRef {
        let own = self.own_engine();
        if own.hash == hash {
            return own;
        }
        EngineRef {
            hash: hash.to_owned(),
            exe: PathBuf::from(format!("/proc/{keeper_pid}/exe")),
        }
    }

    pub(super) async fn compiled(
        &self,
        engine: &EngineRef,
        module: &Path,
        digest: &str,
    ) -> Result<Arc<Compiled>, Error> {
        let compiled = self.parts.compiler.compiled(engine, module, digest).await;
        compiled.map_err(|error| runtime_error(format!("compile module sha256:{digest}"), error))
    }

    /// Keeps the image's content for `holder`, whatever happens to its names.
    pub fn lease(&self, image: &Image, holder: &ContainerId) -> Result<(), Error> {
        let leased = self.parts.images.lease(&image.id, holder.as_str());
        leased.map_err(|error| {
            Error::because(
                Kind::Missing,
                format!("lease image {}", image.id.as_str()),
                error,
            )
        })
    }
}

pub(super) fn invalid(text: String) -> Error {
    Error::new(Kind::Invalid, text)
}

fn wasm_part(image: &Image, pod: &PodRecord, wish: &ContainerWish) -> Result<WasmImage, Error> {
    match &image.kind {
        ImageKind::Wasm(wasm) => Ok(wasm.clone()),
        ImageKind::Linux(_) if pod.wish.handler.is_wasm_only() => Err(invalid(format!(
            "image {:?} holds Linux programs; handler {:?} runs WebAssembly only",
            wish.image,
            pod.wish.handler.as_str()
        ))),
        ImageKind::Linux(_) => Err(Error::new(
            Kind::Unsupported,
            format!(
                "image {:?} holds Linux programs; Linux images are not run by this build",
                wish.image
            ),
        )),
    }
}

async fn find_module(image: &Arc<Image>, wasm: &WasmImage, argv0: &str) -> Result<Module, Error> {
    let own = Module {
        path: wasm.module_path.clone(),
        digest: wasm.module.hex().to_owned(),
    };
    if image.config.argv0() == Some(argv0)
        || wasm.guest_path.as_deref() == Some(argv0)
        || wasm.layers.is_empty()
    {
        return Ok(own);
    }
    let (wasm, argv0) = (wasm.clone(), argv0.to_owned());
    blocking("looking for a module", move || {
        let found = wasm.module_for(&argv0);
        let found = found.map_err(|error| {
            Error::because(Kind::Io, format!("look for {argv0:?} in its image"), error)
        })?;
        let Some(path) = found else { return Ok(own) };
        let bytes = std::fs::read(&path)
            .map_err(|error| io_error(format!("read module {}", path.display()), error))?;
        Ok(Module {
            digest: hex(&Sha256::digest(&bytes)),
            path,
        })
    })
    .await
}

fn judge(info: &ModuleInfo, image: &str, memory_limit_bytes: Option<u64>) -> Result<(), Error> {
    if !info.missing_imports.is_empty() {
        return Err(invalid(format!(
            "image {image:?}: its module imports {}, which nothing here offers; offered is {}",
            info.missing_imports.join(", "),
            info.offers
        )));
    }
    if let Some(problem) = &info.problem {
        return Err(invalid(format!("image {image:?}: {problem}")));
    }
    match memory_limit_bytes {
        Some(limit) if info.memory_min_bytes > limit => Err(invalid(format!(
            "image {image:?}: its module starts with {} bytes of memory, the container's limit is {limit}",
            info.memory_min_bytes
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use coracle_runtime::spec::WasmKind;

    use super::*;

    #[test]
    fn a_program_that_cannot_run_here_is_refused_before_it_is_started() {
        let info = |memory, missing: &[&str], problem: Option<&str>| ModuleInfo {
            kind: WasmKind::Module,
            memory_min_bytes: memory,
            missing_imports: missing.iter().map(|name| (*name).to_owned()).collect(),
            offers: "wasi_snapshot_preview1".to_owned(),
            problem: problem.map(str::to_owned),
        };
        assert!(judge(&info(65_536, &[], None), "i", Some(65_536)).is_ok());
        assert!(judge(&info(65_536, &[], None), "i", None).is_ok());
        let text = judge(&info(65_537, &[], None), "i", Some(65_536))
            .unwrap_err()
            .to_string();
        assert!(text.contains("65537") && text.contains("65536"), "{text}");
        let text = judge(&info(0, &["env.run", "env.stop"], None), "i", None)
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("env.run, env.stop") && text.contains("wasi_snapshot_preview1"),
            "{text}"
        );
        assert!(
            judge(&info(0, &[], Some("no _start")), "i", None)
                .unwrap_err()
                .to_string()
                .contains("no _start")
        );
    }
}
