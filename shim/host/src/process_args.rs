//! A container's process arguments, environment, working directory, log path and stop signal, composed from image and
//! config.
//!
//! Called by: [`super::plan`]. Pure.
//! Invariants: the results contain no NUL and are bounded; a container's value replaces the image's.
//! Must not know: which module runs.

use coracle_images::{Image, Kind as ImageKind, WasmImage};
use coracle_lifecycle::{ContainerConfig, Error};

use super::errors::invalid;

const SIGTERM: i32 = libc::SIGTERM;
/// Most bytes of arguments, and of environment.
const MAX_ARGS_BYTES: usize = 1 << 20;
/// The longest argument or variable that `execve` takes, with its NUL: MAX_ARG_STRLEN. Bytes.
const MAX_STRING_BYTES: usize = 128 << 10;
/// The longest path: PATH_MAX. Bytes.
const MAX_PATH_BYTES: usize = 4096;

/// Arguments and environment.
type Process = (Vec<String>, Vec<(String, String)>);

/// Arguments as Kubernetes composes them: `command` replaces the entrypoint and drops the image's cmd; `args`
/// replaces cmd. An artifact without either is named after its file or image, if it `may_be_unnamed`.
pub(super) fn argv(
    image: &Image,
    config: &ContainerConfig,
    may_be_unnamed: bool,
) -> Result<Vec<String>, Error> {
    let image_config = &image.config;
    let (head, tail) = match (config.command.is_empty(), config.args.is_empty()) {
        (false, _) => (&config.command, &config.args),
        (true, false) => (&image_config.entrypoint, &config.args),
        (true, true) => (&image_config.entrypoint, &image_config.cmd),
    };
    let mut args = head.clone();
    if args.is_empty()
        && may_be_unnamed
        && image_config.entrypoint.is_empty()
        && image_config.cmd.is_empty()
        && config.command.is_empty()
    {
        args.push(default_name(image, config));
    }
    args.extend(tail.iter().cloned());
    if args.first().is_none_or(String::is_empty) {
        return Err(invalid(format!(
            "image {:?}: neither the image nor the container names a program",
            config.image
        )));
    }
    if let Some(arg) = args.iter().find(|arg| arg.contains('\0')) {
        return Err(invalid(format!("argument {arg:?} holds a NUL byte")));
    }
    let bytes: usize = args.iter().map(|arg| arg.len() + 1).sum();
    if bytes > MAX_ARGS_BYTES {
        return Err(invalid(format!(
            "the arguments hold {bytes} bytes, {MAX_ARGS_BYTES} are allowed"
        )));
    }
    Ok(args)
}

/// The name of a program without arguments: its file in the image, else the last part of the image's name.
fn default_name(image: &Image, config: &ContainerConfig) -> String {
    if let ImageKind::Wasm(WasmImage {
        guest_path: Some(path),
        ..
    }) = &image.kind
    {
        return path.clone();
    }
    let requested = [&config.user_specified_image, &config.image];
    let known = image.repo_tags.first().or(image.repo_digests.first());
    let full = requested
        .into_iter()
        .find(|name| !name.is_empty() && !name.starts_with("sha256:"))
        .or(known);
    let name = full
        .and_then(|name| name.rsplit('/').next())
        .unwrap_or_default();
    let name = name.split(['@', ':']).next().unwrap_or_default();
    if name.is_empty() {
        "main.wasm".to_owned()
    } else {
        name.to_owned()
    }
}

/// The environment: `usual` first, then the image's, then the container's, then that of devices.
pub(super) fn environment(
    image: &Image,
    config: &ContainerConfig,
    usual: &[(&str, &str)],
    devices: &[(String, String)],
) -> Result<Vec<(String, String)>, Error> {
    // Invalid entries of an image are dropped: the kubelet cannot help it, and without a name they are useless.
    let of_image = image
        .config
        .env
        .iter()
        .filter_map(|entry| entry.split_once('='))
        .filter(|(name, value)| !name.is_empty() && !name.contains('\0') && !value.contains('\0'));
    let mut env: Vec<(String, String)> = Vec::new();
    for (name, value) in usual.iter().copied().chain(of_image) {
        set(&mut env, name, value);
    }
    for (name, value) in config.env.iter().chain(devices) {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(invalid(format!(
                "environment variable {name:?}: a name is not empty and holds no `=` or NUL"
            )));
        }
        set(&mut env, name, value);
    }
    let bytes: usize = env
        .iter()
        .map(|(name, value)| name.len() + value.len() + 2)
        .sum();
    if bytes > MAX_ARGS_BYTES {
        return Err(invalid(format!(
            "the environment holds {bytes} bytes, {MAX_ARGS_BYTES} are allowed"
        )));
    }
    Ok(env)
}

/// The arguments and the environment of a Linux program. Errors: as [`argv`] and [`environment`]; a text that is too long for
/// the kernel.
pub(super) fn linux_process(
    image: &Image,
    config: &ContainerConfig,
    usual: &[(&'static str, String)],
    devices: &[(String, String)],
) -> Result<Process, Error> {
    let usual = usual.iter().map(|(name, value)| (*name, value.as_str()));
    let usual: Vec<_> = usual.collect();
    let args = argv(image, config, false)?;
    let env = environment(image, config, &usual, devices)?;
    check_for_execve(&args, &env)?;
    Ok((args, env))
}

/// Refuses an argument or a variable with which Linux starts no program, whatever its limits.
fn check_for_execve(args: &[String], env: &[(String, String)]) -> Result<(), Error> {
    let args = args.iter().enumerate();
    let args = args.map(|(index, arg)| (format!("argument {index}"), arg.len() + 1));
    let env = env.iter().map(|(name, value)| {
        // Its name may be what is long, its value a secret.
        let start: String = name.chars().take(64).collect();
        let bytes = name.len() + value.len() + 2;
        (format!("environment variable {start:?}"), bytes)
    });
    match args.chain(env).find(|(_, bytes)| *bytes > MAX_STRING_BYTES) {
        Some((what, bytes)) => Err(invalid(format!(
            "{what} has {bytes} bytes, and Linux starts no program with one of more than {MAX_STRING_BYTES}; \
             mount it as a file"
        ))),
        None => Ok(()),
    }
}

fn set(env: &mut Vec<(String, String)>, name: &str, value: &str) {
    match env.iter_mut().find(|(old, _)| old == name) {
        Some((_, old)) => value.clone_into(old),
        None => env.push((name.to_owned(), value.to_owned())),
    }
}

pub(super) fn working_dir(image: &Image, config: &ContainerConfig) -> Result<String, Error> {
    let requested = [&config.working_dir, &image.config.working_dir];
    let directory = requested
        .into_iter()
        .find(|text| !text.is_empty())
        .map_or("/", String::as_str);
    if directory.len() > MAX_PATH_BYTES {
        return Err(invalid(format!(
            "the working directory has {} bytes, {MAX_PATH_BYTES} are allowed",
            directory.len()
        )));
    }
    if !directory.starts_with('/')
        || directory.contains('\0')
        || directory.split('/').any(|part| part == "..")
    {
        return Err(invalid(format!(
            "working directory {directory:?} is not a clean absolute path"
        )));
    }
    Ok(directory.to_owned())
}

pub(super) fn stop_signal(image: &Image, config: &ContainerConfig) -> Result<i32, Error> {
    if let Some(signal) = config.stop_signal {
        return Ok(signal);
    }
    let text = image.config.stop_signal.trim();
    if text.is_empty() {
        return Ok(SIGTERM);
    }
    signal_number(text).ok_or_else(|| {
        invalid(format!(
            "image {:?}: {text:?} is not a signal",
            config.image
        ))
    })
}

/// Signals 1 to 31 in order, without `SIG`.
const SIGNALS: &str = "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP \
    TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS";

/// The number of a signal given as `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`; `None` when there is none.
pub fn signal_number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        return real_time(offset, '+').map(|offset| 34 + offset);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        return real_time(offset, '-').map(|offset| 64 - offset);
    }
    (1..)
        .zip(SIGNALS.split(' '))
        .find(|(_, known)| *known == name)
        .map(|(number, _)| number)
}

fn real_time(offset: &str, sign: char) -> Option<i32> {
    if offset.is_empty() {
        return Some(0);
    }
    let offset = offset.strip_prefix(sign)?.parse().ok()?;
    (0..=30).contains(&offset).then_some(offset)
}

/// The log's absolute path; empty when either part is missing, by which the kubelet means "no log".
pub(super) fn log_path(directory: &str, path: &str) -> Result<String, Error> {
    if directory.is_empty() || path.is_empty() {
        return Ok(String::new());
    }
    let odd = path.starts_with('/')
        || path.contains('\0')
        || path.split('/').any(|part| part == ".." || part == ".");
    if odd || !directory.starts_with('/') {
        return Err(invalid(format!(
            "log path {path:?} is not a clean path below log directory {directory:?}"
        )));
    }
    Ok(format!("{}/{path}", directory.trim_end_matches('/')))
}

#[cfg(test)]
mod tests;
