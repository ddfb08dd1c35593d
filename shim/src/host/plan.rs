//! Resolves a container wish against image and node: everything that can be refused is refused here.
//!
//! Called by: CreateContainer, before anything is made. Calls: images (by name, never a pull), the compile cache.
//! Invariant: a plan that is made can be started without asking anybody again what was meant.
//! Not here: cgroups, directories, processes.

use std::path::PathBuf;
use std::sync::Arc;

use coracle_images::{Image, Kind as ImageKind, WasmImage};
use coracle_runtime::id::{ContainerId, hex};
use coracle_runtime::wasm::{Compiled, EngineRef, ModuleInfo};
use sha2::{Digest as _, Sha256};

use super::{Host, blocking, io_error, limits, mounts, runtime_error, user};
use crate::lifecycle::{ContainerWish, Error, Kind, Plan, PodRecord};

const SIGTERM: i32 = libc::SIGTERM;
/// Most bytes of arguments and environment together.
const MAX_WORDS_BYTES: usize = 1 << 20;

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
        let image = self.parts.images.resolve(&wish.image).ok_or_else(|| {
            Error::new(Kind::Missing, format!("image {:?} is not on this node; pull it first", wish.image))
        })?;
        self.lease(&image, id)?;
        let wasm = wasm_part(&image, pod, wish)?;
        let args = argv(&image, wish)?;
        let module = find_module(&image, &wasm, &args[0]).await?;
        let compiled = self.compiled(engine, &module.path, &module.digest).await?;
        let memory_limit_bytes = limits::memory_limit(&wish.resources);
        judge(&compiled.info, &wish.image, memory_limit_bytes)?;
        let (user_wish, mount_wishes) = (wish.user.clone(), wish.mounts.clone());
        let (image_user, layers, range) = (image.config.user.clone(), wasm.layers.clone(), pod.range);
        let (identity, mounts) = blocking("checking user and mounts", move || {
            Ok((user::identity(&user_wish, &image_user, &layers, range)?, mounts::check(&mount_wishes)?))
        })
        .await?;
        Ok(Plan {
            image_id: image.id.as_str().to_owned(),
            module: module.path,
            module_digest: module.digest,
            kind: compiled.info.kind,
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

    /// Compiles an image's module into the cache for the engine that new keepers have. A Linux image needs nothing.
    pub async fn prepare_image(&self, image: &Image) -> Result<(), Error> {
        let ImageKind::Wasm(wasm) = &image.kind else { return Ok(()) };
        let engine = self.own_engine();
        self.compiled(&engine, &wasm.module_path, wasm.module.hex()).await.map(|_| ())
    }

    /// The engine that this daemon's spawner gives to new keepers.
    pub fn own_engine(&self) -> EngineRef {
        EngineRef { hash: self.parts.spawner.engine_hash().to_owned(), exe: PathBuf::from("/proc/self/exe") }
    }

    /// The engine of a keeper; one of another build compiles with the keeper's own executable.
    pub fn engine_of(&self, hash: &str, keeper_pid: i32) -> EngineRef {
        let own = self.own_engine();
        if own.hash == hash {
            return own;
        }
        EngineRef { hash: hash.to_owned(), exe: PathBuf::from(format!("/proc/{keeper_pid}/exe")) }
    }

    pub(super) async fn compiled(&self, engine: &EngineRef, module: &PathBuf, digest: &str) -> Result<Arc<Compiled>, Error> {
        let compiled = self.parts.compiler.compiled(engine, module, digest).await;
        compiled.map_err(|error| runtime_error(format!("compile module sha256:{digest}"), error))
    }

    /// Keeps the image's content for `holder`, whatever happens to its names.
    pub fn lease(&self, image: &Image, holder: &ContainerId) -> Result<(), Error> {
        let leased = self.parts.images.lease(&image.id, holder.as_str());
        leased.map_err(|error| Error::because(Kind::Missing, format!("lease image {}", image.id.as_str()), error))
    }
}

fn invalid(text: String) -> Error {
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
            format!("image {:?} holds Linux programs; Linux images are not run by this build", wish.image),
        )),
    }
}

/// Arguments as Kubernetes composes them: `command` replaces the entrypoint and drops the image's cmd; `args`
/// replaces cmd. An artifact without either is named after its file or image.
fn argv(image: &Image, wish: &ContainerWish) -> Result<Vec<String>, Error> {
    let config = &image.config;
    let (head, tail) = match (wish.command.is_empty(), wish.args.is_empty()) {
        (false, _) => (&wish.command, &wish.args),
        (true, false) => (&config.entrypoint, &wish.args),
        (true, true) => (&config.entrypoint, &config.cmd),
    };
    let mut words = head.clone();
    if words.is_empty() && config.entrypoint.is_empty() && config.cmd.is_empty() && wish.command.is_empty() {
        words.push(own_name(image, wish));
    }
    words.extend(tail.iter().cloned());
    if words.first().is_none_or(String::is_empty) {
        return Err(invalid(format!("image {:?}: neither the image nor the container names a program", wish.image)));
    }
    if let Some(word) = words.iter().find(|word| word.contains('\0')) {
        return Err(invalid(format!("argument {word:?} holds a NUL byte")));
    }
    let bytes: usize = words.iter().map(|word| word.len() + 1).sum();
    if bytes > MAX_WORDS_BYTES {
        return Err(invalid(format!("the arguments hold {bytes} bytes, {MAX_WORDS_BYTES} are allowed")));
    }
    Ok(words)
}

/// The name of a program that nobody named: its file in the image, else the last part of the image's name.
fn own_name(image: &Image, wish: &ContainerWish) -> String {
    if let ImageKind::Wasm(WasmImage { guest_path: Some(path), .. }) = &image.kind {
        return path.clone();
    }
    let asked = [&wish.user_specified_image, &wish.image];
    let known = image.repo_tags.first().or(image.repo_digests.first());
    let full = asked.into_iter().find(|name| !name.is_empty() && !name.starts_with("sha256:")).or(known);
    let name = full.and_then(|name| name.rsplit('/').next()).unwrap_or_default();
    let name = name.split(['@', ':']).next().unwrap_or_default();
    if name.is_empty() { "main.wasm".to_owned() } else { name.to_owned() }
}

async fn find_module(image: &Arc<Image>, wasm: &WasmImage, argv0: &str) -> Result<Module, Error> {
    let own = Module { path: wasm.module_path.clone(), digest: wasm.module.hex().to_owned() };
    if image.config.argv0() == Some(argv0) || wasm.guest_path.as_deref() == Some(argv0) || wasm.layers.is_empty() {
        return Ok(own);
    }
    let (wasm, argv0) = (wasm.clone(), argv0.to_owned());
    blocking("looking for a module", move || {
        let found = wasm.module_for(&argv0);
        let found = found.map_err(|error| Error::because(Kind::Io, format!("look for {argv0:?} in its image"), error))?;
        let Some(path) = found else { return Ok(own) };
        let bytes = std::fs::read(&path).map_err(|error| io_error(format!("read module {}", path.display()), error))?;
        Ok(Module { digest: hex(&Sha256::digest(&bytes)), path })
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

fn environment(image: &Image, wish: &ContainerWish) -> Result<Vec<(String, String)>, Error> {
    // An image's odd entries are dropped: it is not the kubelet's fault, and a name is needed to be of any use.
    let of_image = image.config.env.iter().filter_map(|entry| entry.split_once('=')).filter(|(name, value)| {
        !name.is_empty() && !name.contains('\0') && !value.contains('\0')
    });
    let mut env: Vec<(String, String)> = Vec::new();
    for (name, value) in of_image {
        set(&mut env, name, value);
    }
    for (name, value) in &wish.env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(invalid(format!("environment variable {name:?}: a name is not empty and holds no `=` or NUL")));
        }
        set(&mut env, name, value);
    }
    let bytes: usize = env.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
    if bytes > MAX_WORDS_BYTES {
        return Err(invalid(format!("the environment holds {bytes} bytes, {MAX_WORDS_BYTES} are allowed")));
    }
    Ok(env)
}

fn set(env: &mut Vec<(String, String)>, name: &str, value: &str) {
    match env.iter_mut().find(|(old, _)| old == name) {
        Some((_, old)) => value.clone_into(old),
        None => env.push((name.to_owned(), value.to_owned())),
    }
}

fn working_dir(image: &Image, wish: &ContainerWish) -> Result<String, Error> {
    let asked = [&wish.working_dir, &image.config.working_dir];
    let directory = asked.into_iter().find(|text| !text.is_empty()).map_or("/", String::as_str);
    if !directory.starts_with('/') || directory.contains('\0') || directory.split('/').any(|part| part == "..") {
        return Err(invalid(format!("working directory {directory:?} is no clean absolute path")));
    }
    Ok(directory.to_owned())
}

fn stop_signal(image: &Image, wish: &ContainerWish) -> Result<i32, Error> {
    if let Some(signal) = wish.stop_signal {
        return Ok(signal);
    }
    let text = image.config.stop_signal.trim();
    if text.is_empty() {
        return Ok(SIGTERM);
    }
    signal_number(text).ok_or_else(|| invalid(format!("image {:?}: {text:?} is no signal", wish.image)))
}

/// The number of a signal given as `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`; `None` when there is none.
pub fn signal_number(text: &str) -> Option<i32> {
    const NAMES: [(&str, i32); 31] = [
        ("HUP", 1), ("INT", 2), ("QUIT", 3), ("ILL", 4), ("TRAP", 5), ("ABRT", 6), ("BUS", 7), ("FPE", 8),
        ("KILL", 9), ("USR1", 10), ("SEGV", 11), ("USR2", 12), ("PIPE", 13), ("ALRM", 14), ("TERM", 15),
        ("STKFLT", 16), ("CHLD", 17), ("CONT", 18), ("STOP", 19), ("TSTP", 20), ("TTIN", 21), ("TTOU", 22),
        ("URG", 23), ("XCPU", 24), ("XFSZ", 25), ("VTALRM", 26), ("PROF", 27), ("WINCH", 28), ("IO", 29),
        ("PWR", 30), ("SYS", 31),
    ];
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset = if offset.is_empty() { 0 } else { offset.strip_prefix('+')?.parse().ok()? };
        return (0..=30).contains(&offset).then_some(34 + offset);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        let offset = if offset.is_empty() { 0 } else { offset.strip_prefix('-')?.parse().ok()? };
        return (0..=30).contains(&offset).then_some(64 - offset);
    }
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// The log's absolute path; empty when one half is missing, as kubelet means "no log" by that.
fn log_path(directory: &str, path: &str) -> Result<String, Error> {
    if directory.is_empty() || path.is_empty() {
        return Ok(String::new());
    }
    let odd = path.starts_with('/') || path.contains('\0') || path.split('/').any(|part| part == ".." || part == ".");
    if odd || !directory.starts_with('/') {
        return Err(invalid(format!("log path {path:?} is not a clean path below log directory {directory:?}")));
    }
    Ok(format!("{}/{path}", directory.trim_end_matches('/')))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
