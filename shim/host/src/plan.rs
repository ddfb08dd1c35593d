//! Resolves a container config against image and node: everything that can be refused is refused here.
//!
//! Called by: CreateContainer, before anything is created. Calls: images (by name, never a pull), the compile cache.
//! Invariant: a plan can be started without asking anybody again.
//! Must not know: cgroups, directories, processes.

mod host_paths;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_images::{Image, Kind as ImageKind};
use coracle_lifecycle::{
    ContainerConfig, Error, Handler, KeeperEngine, Kind, Payload, PidNamespaceConfig, Plan,
    PodRecord, SecurityProfile, WasmPlan, limits,
};
use coracle_spec::id::ContainerId;
use coracle_spec::{Mount, WasmKind, WasmNetwork};
use coracle_wasm::{EngineRef, ModuleInfo, ModuleRequest};

use super::egress;
use super::errors::invalid;
use super::image_files::read_images;
use super::linux::Hardware;
use super::paths::{Lookup, Missing};
use super::process_args::{argv, environment, linux_process, log_path, stop_signal, working_dir};
use super::user::Resolved;
use super::{Host, image_volumes, linux, mounts, pass, signatures, user};

pub(super) struct Module {
    pub(super) path: PathBuf,
    pub(super) digest: String,
}

/// What a plan is made from, and what both kinds of containers have.
pub(super) struct Draft {
    pub(super) pod: PodRecord,
    id: ContainerId,
    pub(super) config: Arc<ContainerConfig>,
    pub(super) image: Arc<Image>,
    /// The images that it mounts, in the order of its mounts.
    volumes: Vec<Arc<Image>>,
}

/// The parts in which the two kinds of containers differ.
struct Parts {
    args: Vec<String>,
    env: Vec<(String, String)>,
    user: Resolved,
    mounts: Vec<Mount>,
    payload: Payload,
}

impl Host {
    /// Plans container `id` of `pod`; its images are leased to it from here on.
    /// Errors: Missing for an absent image; Invalid, with what is wrong.
    pub async fn plan(
        self: &Arc<Self>,
        pod: &PodRecord,
        id: &ContainerId,
        config: &Arc<ContainerConfig>,
        engine: &KeeperEngine,
    ) -> Result<Plan, Error> {
        let image = self.image(&config.image)?;
        if let ImageKind::Artifact(_) = image.kind {
            return Err(invalid(format!(
                "image {:?} is an artifact: it holds files to mount and no program",
                config.image
            )));
        }
        self.lease(&image, id)?;
        let draft = Draft {
            pod: pod.clone(),
            id: id.clone(),
            config: Arc::clone(config),
            volumes: self.volumes(id, config)?,
            image,
        };
        signatures::check(
            &self.parts.images,
            &pod.config.name.namespace,
            config,
            &draft.image,
            &draft.volumes,
        )
        .await?;
        let (draft, parts) = self.parts_of(draft, engine).await?;
        draft.finish(parts, self)
    }

    /// The parts in which Wasm and Linux differ. What blocks runs on the blocking pool.
    async fn parts_of(
        self: &Arc<Self>,
        draft: Draft,
        engine: &KeeperEngine,
    ) -> Result<(Draft, Parts), Error> {
        match self.module(&draft).await? {
            Some(module) => {
                let engine = self.engine_of(engine);
                let payload = self.wasm_payload(&draft, module, &engine).await?;
                let (draft, mounts) = self.mounts(draft, false).await?;
                let files = self.pod_files(&draft.pod.id, &draft.id);
                read_images("checking user and mounts", move || {
                    draft
                        .wasm_parts(payload, mounts, &files)
                        .map(|parts| (draft, parts))
                })
                .await
            }
            None => {
                let host = Arc::clone(self);
                let (draft, mounts) = self.mounts(draft, true).await?;
                let hardware = self.hardware(&draft.config).await?;
                read_images("planning a Linux container", move || {
                    draft
                        .linux_parts(&host, mounts, &hardware)
                        .map(|parts| (draft, parts))
                })
                .await
            }
        }
    }

    /// The images that a container mounts, each leased to it.
    fn volumes(
        &self,
        id: &ContainerId,
        config: &ContainerConfig,
    ) -> Result<Vec<Arc<Image>>, Error> {
        let mut found = Vec::new();
        for mount in &config.mounts {
            let Some(volume) = &mount.image else { continue };
            let named = |error: Error| {
                let text = format!("mount an image at {:?}", mount.container_path);
                Error::because(Kind::ImageVolume, text, error)
            };
            let image = self.image(&volume.image).map_err(named)?;
            self.lease(&image, id).map_err(named)?;
            found.push(image);
        }
        Ok(found)
    }

    async fn wasm_payload(
        self: &Arc<Self>,
        draft: &Draft,
        module: Module,
        engine: &EngineRef,
    ) -> Result<WasmPayload, Error> {
        only_linux_has(&draft.config)?;
        let args = argv(&draft.image, &draft.config, true)?;
        self.modules.add(&module.digest, &draft.image.id);
        pass("create.compile")?;
        let request = ModuleRequest {
            path: &module.path,
            digest: &module.digest,
            tenant: &draft.pod.config.name.namespace,
            image: draft.image.id.as_str(),
        };
        let compiled = self.compiled(engine, request).await?;
        let limit = limits::memory_limit(&draft.config.resources);
        judge(&compiled.info, &draft.config.image, limit)?;
        self.check_wasi_version(&draft.pod, &compiled.info)?;
        let env = environment(&draft.image, &draft.config, &[], &[])?;
        let (pod, image) = (&draft.pod, &draft.image);
        let server = match super::http::is_served(
            &compiled.info,
            &pod.config.http,
            image.config.target.as_deref(),
        )? {
            true => Some(self.server(pod, &draft.config, &env, image)?),
            false => None,
        };
        let plan = WasmPlan {
            module: module.path,
            module_digest: module.digest,
            kind: compiled.info.kind,
            network: self.wasm_network(&draft.pod.config)?,
            resolver: egress::resolver(&draft.pod.config, compiled.info.kind)?,
            toolbox: draft.pod.config.handler != Handler::Strict,
            server,
            diagnosis: draft.pod.config.diagnosis.clone(),
            wasi_p3: compiled.info.wasi_p3,
            rlimits: Vec::new(),
        };
        Ok(WasmPayload { args, env, plan })
    }

    fn image(&self, name: &str) -> Result<Arc<Image>, Error> {
        let text = || format!("image {name:?} is not on this node; pull it first");
        let found = self.parts.images.resolve(name);
        found.ok_or_else(|| Error::new(Kind::Missing, text()))
    }
}

/// The parts of a Wasm container that are known once its module is compiled.
struct WasmPayload {
    args: Vec<String>,
    env: Vec<(String, String)>,
    plan: WasmPlan,
}

impl Draft {
    /// Blocks on the image's files. The pod's files will be in directory `files`.
    fn wasm_parts(
        &self,
        payload: WasmPayload,
        mut mounts: Vec<Mount>,
        files: &Path,
    ) -> Result<Parts, Error> {
        // A core module has no sockets and needs no resolver.
        if payload.plan.network != WasmNetwork::Off && payload.plan.kind == WasmKind::Component {
            let own = linux::files::PodFiles {
                pod: &self.pod,
                directory: files,
            };
            own.add(true, &mut mounts);
        }
        Ok(Parts {
            args: payload.args,
            env: payload.env,
            user: self.user()?,
            mounts,
            payload: Payload::Wasm(payload.plan),
        })
    }

    /// Blocks on the image's and the node's file systems.
    fn linux_parts(
        &self,
        host: &Host,
        mut mounts: Vec<Mount>,
        hardware: &Hardware,
    ) -> Result<Parts, Error> {
        self.refuse_wasm_only()?;
        let (pod, config) = (&self.pod, &self.config);
        let handler = host.config.live.get().handler_of(pod)?;
        let subject = linux::Subject {
            handler,
            guards_limits: host.parts.cgroups.guards_limits(),
            pod,
            id: &self.id,
            config,
            image: &self.image,
            containers: &host.layout.containers_directory(&pod.id),
            files: &host.pod_files(&pod.id, &self.id),
        };
        let additions = &hardware.additions;
        mounts::add(&mut mounts, &additions.mounts)?;
        let mut user = self.user()?;
        user.identity.groups.extend(&additions.groups);
        user.identity.groups = user::distinct(user.identity.groups);
        linux::has_ids(pod, &user.identity)?;
        let plan = linux::plan(&subject, hardware, &mut mounts)?;
        host.claim_own_level(&self.id, config);
        egress::check_linux(&pod.config, plan.jail.capabilities.bounding)?;
        let usual = linux::usual_environment(&subject, &user.home);
        let (args, env) = linux_process(&self.image, config, &usual, &additions.env)?;
        Ok(Parts {
            args,
            env,
            user,
            mounts,
            payload: Payload::Linux(plan),
        })
    }

    fn refuse_wasm_only(&self) -> Result<(), Error> {
        let handler = self.pod.config.handler;
        if !handler.is_wasm_only() {
            return Ok(());
        }
        Err(invalid(format!(
            "image {:?} holds Linux programs; handler {:?} runs WebAssembly only",
            self.config.image,
            self.pod.config.handler_name()
        )))
    }

    fn user(&self) -> Result<Resolved, Error> {
        let layers = self.image.kind.layers();
        user::resolve(
            &self.config.user,
            &self.image.config.user,
            layers,
            self.pod.range,
        )
    }

    fn mounts(
        &self,
        is_linux: bool,
        missing: Missing,
        lookup: &Lookup<'_>,
    ) -> Result<Vec<Mount>, Error> {
        let layers = |image: &Arc<Image>| image.kind.layers().to_vec();
        let images: Vec<Vec<PathBuf>> = self.volumes.iter().map(layers).collect();
        image_volumes::check(&self.config.mounts, &images)?;
        let setting = mounts::Setting {
            is_linux,
            userns: self.pod.config.userns.as_ref(),
            images: &images,
            missing,
        };
        mounts::check(&self.config.mounts, setting, lookup)
    }

    fn finish(&self, parts: Parts, host: &Host) -> Result<Plan, Error> {
        let (pod, config, image) = (&self.pod, &self.config, &self.image);
        let id_of = |image: &Arc<Image>| image.id.as_str().to_owned();
        Ok(Plan {
            image_id: id_of(image),
            image_volumes: self.volumes.iter().map(id_of).collect(),
            payload: parts.payload,
            layers: image.kind.layers().to_vec(),
            args: parts.args,
            env: parts.env,
            working_dir: working_dir(image, config)?,
            mounts: parts.mounts,
            identity: parts.user.identity,
            stop_signal: stop_signal(image, config)?,
            log_path: log_path(&pod.config.log_directory, &config.log_path)?,
            cgroup: format!("{}/{}", pod.cgroup_parent.trim_end_matches('/'), self.id),
            memory_limit_bytes: limits::memory_limit(&config.resources),
            spawn: host.config.live.get().handler_of(pod)?.spawn,
        })
    }
}

/// Refuses requests that a WebAssembly container cannot meet. Requests that only give it more (privileges,
/// capabilities) are ignored: an instance has none of that.
fn only_linux_has(config: &ContainerConfig) -> Result<(), Error> {
    let security = &config.security;
    let is_localhost = |profile: &SecurityProfile| matches!(profile, SecurityProfile::Localhost(_));
    let what = if !config.devices.is_empty() || !config.cdi_devices.is_empty() {
        "devices"
    } else if is_localhost(&security.seccomp) || is_localhost(&security.apparmor) {
        "a profile of the node"
    } else if matches!(security.pid, PidNamespaceConfig::Target(_)) {
        "another container's processes"
    } else if config
        .resources
        .hugepages
        .iter()
        .any(|(_, limit)| *limit != 0)
    {
        "huge pages"
    } else {
        return Ok(());
    };
    Err(Error::new(
        Kind::Unsupported,
        format!(
            "the container asks for {what}, and image {:?} is WebAssembly, which has none",
            config.image
        ),
    ))
}

fn judge(info: &ModuleInfo, image: &str, memory_limit_bytes: Option<u64>) -> Result<(), Error> {
    if !info.missing_imports.is_empty() {
        return Err(invalid(format!(
            "image {image:?}: its module imports {}{}, which nothing here offers; offered to it: {}",
            info.missing_imports.join(", "),
            match info.more_missing {
                0 => String::new(),
                more => format!(" and {more} more"),
            },
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
    use super::*;

    #[test]
    fn a_program_that_cannot_run_here_is_refused_before_it_is_started() {
        let info = |memory, missing: &[&str], problem: Option<&str>| ModuleInfo {
            kind: WasmKind::Module,
            memory_min_bytes: memory,
            missing_imports: missing.iter().map(|name| (*name).to_owned()).collect(),
            more_missing: 0,
            offers: "wasi_snapshot_preview1".to_owned(),
            problem: problem.map(str::to_owned),
            serves_http: false,
            can_serve_http: false,
            wasi_p3: false,
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
