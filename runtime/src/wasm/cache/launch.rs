//! Starts one compiler process and waits for its verdict, never longer than allowed.
//!
//! Called by the cache. Invariant: whatever happens, the process is gone when the call returns or is dropped.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use tokio::io::AsyncReadExt as _;

use crate::control::read_all;
use crate::error::{Context as _, Error, Kind, Result};
use crate::wasm::compiler::{Bounds, Verdict};
use crate::wasm::inspect::ModuleInfo;

/// Largest compiled code, bytes; real code is some four times its module.
const MAX_CODE_BYTES: usize = 1 << 30;
/// Largest verdict, bytes.
const MAX_VERDICT_BYTES: u64 = 1 << 20;

/// Compiles `module` with `exe`. Errors as [`super::CompileCache::compiled`].
pub(super) async fn compile(
    exe: &Path,
    module: &Path,
    bounds: Bounds,
    timeout: Duration,
) -> Result<(ModuleInfo, Vec<u8>)> {
    let what = || format!("compile {}", module.display());
    let input: OwnedFd = super::open_read(module).during(what)?.into();
    let output = memfd_create("cwasm", MemfdFlags::CLOEXEC).during(what)?;
    let mut child = command(exe, bounds, &input, &output).spawn().during(what)?;
    let _lifeline = child.stdin.take();
    let mut text = Vec::new();
    let told = async {
        if let Some(stdout) = child.stdout.take() {
            stdout
                .take(MAX_VERDICT_BYTES)
                .read_to_end(&mut text)
                .await?;
        }
        child.wait().await
    };
    let status = match tokio::time::timeout(timeout, told).await {
        Ok(status) => status.during(what)?,
        Err(_) => {
            return Err(Error::new(
                Kind::Exhausted,
                format!("{}: not done within {} s", what(), timeout.as_secs()),
            ));
        }
    };
    match serde_json::from_slice::<Verdict>(&text) {
        Ok(Verdict::Compiled(info)) if status.success() => {
            let code = tokio::task::spawn_blocking(move || {
                read_all(std::os::fd::AsFd::as_fd(&output), MAX_CODE_BYTES)
            });
            let code = code
                .await
                .map_err(|e| Error::with(Kind::Bug, what(), e))?
                .during(what)?;
            Ok((info, code))
        }
        Ok(Verdict::Refused(reason)) => Err(Error::new(
            Kind::Invalid,
            format!("not a WebAssembly program that can run here: {reason}"),
        )),
        _ => Err(died(&what(), status, bounds)),
    }
}

fn died(what: &str, status: std::process::ExitStatus, bounds: Bounds) -> Error {
    use std::os::unix::process::ExitStatusExt as _;
    let limits = format!(
        "(limits: {} s of CPU, {} MiB)",
        bounds.cpu_s,
        bounds.memory_bytes >> 20
    );
    match status.signal() {
        Some(libc::SIGXCPU | libc::SIGKILL) => Error::new(
            Kind::Exhausted,
            format!("{what}: the compiler ran into its CPU limit {limits}"),
        ),
        Some(libc::SIGABRT | libc::SIGSEGV) => Error::new(
            Kind::Exhausted,
            format!("{what}: the compiler ran into its memory limit {limits}"),
        ),
        _ => Error::new(
            Kind::Bug,
            format!("{what}: the compiler ended with {status}"),
        ),
    }
}

fn command(
    exe: &Path,
    bounds: Bounds,
    input: &OwnedFd,
    output: &OwnedFd,
) -> tokio::process::Command {
    let mut command = std::process::Command::new(exe);
    command.arg0("coracle").args([
        "compiler",
        &bounds.cpu_s.to_string(),
        &bounds.memory_bytes.to_string(),
        &bounds.module_bytes.to_string(),
    ]);
    command
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let (input, output) = (input.as_raw_fd(), output.as_raw_fd());
    // SAFETY: between fork and exec the closure makes only async-signal-safe calls on integers it owns. Both sources
    // are lifted above the targets first, so neither dup2 overwrites the other's source.
    unsafe {
        command.pre_exec(move || {
            let lifted = [
                libc::fcntl(input, libc::F_DUPFD_CLOEXEC, 16),
                libc::fcntl(output, libc::F_DUPFD_CLOEXEC, 16),
            ];
            for (target, source) in [3, 4].into_iter().zip(lifted) {
                if source < 0 || libc::dup2(source, target) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true);
    command
}
