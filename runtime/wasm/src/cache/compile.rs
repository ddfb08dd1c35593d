//! Starts one compiler process and waits for its verdict.
//!
//! Called by the cache. Invariants: the process is gone when the call returns or is dropped; its limit counts CPU time, so
//! that a module compiles on a busy node, too.
//! It must not know where compiled code is kept.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;

use crate::compiler::{Bounds, DISK_FULL, Verdict};
use crate::inspect::{self, ModuleInfo};
use coracle_sandbox::helper::{self, Permit};
use coracle_spec::error::{Context as _, Error, Kind, Result};

/// Largest verdict, in bytes.
const MAX_VERDICT_BYTES: u64 = 64 << 10;

/// One compilation.
pub(super) struct Job<'a> {
    /// The executable that compiles: see [`super::EngineRef::exe`].
    pub(super) exe: &'a Path,
    pub(super) module: &'a Path,
    pub(super) bounds: Bounds,
}

impl Job<'_> {
    /// Wall-clock limit for a compiler that gets no CPU time, without the wait for a permit.
    fn timeout(&self) -> Duration {
        Duration::from_secs(self.bounds.cpu_s)
            .saturating_mul(20)
            .saturating_add(Duration::from_secs(60))
    }

    /// The error of a compiler that had too little CPU time within `timeout`.
    fn starved(&self, what: &str, timeout: Duration) -> Error {
        let text = format!(
            "{what}: not done within {} s of wall-clock time, {} s of CPU time: the node is busy with other things",
            timeout.as_secs(),
            self.bounds.cpu_s
        );
        Error::new(Kind::Exhausted, text)
    }
}

/// The files of a compiler.
pub(super) struct Files {
    input: OwnedFd,
    output: OwnedFd,
}

impl Files {
    /// Those that compile the file `module` into the empty file `output`. Blocks. Errors: the module cannot be opened.
    pub(super) fn open(module: &Path, output: &File) -> Result<Self> {
        let what = || format!("compile {}", module.display());
        Ok(Self {
            input: super::open_read(module).during(what)?.into(),
            output: output.try_clone().during(what)?.into(),
        })
    }
}

/// Compiles `files` by a compiler that has a permit. The inner error is the verdict on the module: a
/// retry within the same limits would fail the same way. The outer error is not about the module. For the kinds see
/// [`super::CompileCache::compiled`].
pub(super) async fn compile(
    _permit: Permit,
    job: &Job<'_>,
    files: Files,
) -> Result<Result<ModuleInfo>> {
    let what = || format!("compile {}", job.module.display());
    let arguments = [
        "compiler".to_owned(),
        job.bounds.cpu_s.to_string(),
        job.bounds.memory_bytes.to_string(),
        job.bounds.module_bytes.to_string(),
    ];
    let mut helper = helper::start(
        job.exe,
        &arguments,
        vec![files.input, files.output],
        Stdio::piped(),
    )
    .during(what)?;
    let timeout = job.timeout();
    let ended = tokio::time::timeout(timeout, end(&mut helper.child)).await;
    let Ok(ended) = ended else {
        return Err(job.starved(&what(), timeout));
    };
    let (status, text) = ended.during(what)?;
    match serde_json::from_slice::<Verdict>(&text) {
        Ok(Verdict::Compiled(info)) if status.success() => Ok(Ok(info.bounded())),
        Ok(Verdict::Refused(reason)) => Ok(Err(Error::new(
            Kind::Invalid,
            format!(
                "not a WebAssembly program that can run here: {}",
                inspect::text(&reason)
            ),
        ))),
        _ => died(&what(), status, &helper.error_line().await, job.bounds),
    }
}

/// Waits for the compiler to exit and returns its output, at most [`MAX_VERDICT_BYTES`] of it.
async fn end(child: &mut tokio::process::Child) -> std::io::Result<(ExitStatus, Vec<u8>)> {
    let mut text = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout
            .take(MAX_VERDICT_BYTES)
            .read_to_end(&mut text)
            .await?;
    }
    Ok((child.wait().await?, text))
}

/// The result of a compiler that exited without a verdict; `line` is what it wrote to its standard error.
fn died(what: &str, status: ExitStatus, line: &str, bounds: Bounds) -> Result<Result<ModuleInfo>> {
    use std::os::unix::process::ExitStatusExt as _;
    let limits = format!(
        "(limits: {} s of CPU, {} MiB)",
        bounds.cpu_s,
        bounds.memory_bytes >> 20
    );
    if status.code() == Some(DISK_FULL) {
        let text = format!("{what}: no space left for the compiled code");
        return Err(Error::new(Kind::Exhausted, text));
    }
    let limit = match status.signal() {
        // Killed by the OOM killer or somebody else: not the module's fault.
        Some(libc::SIGKILL) => {
            let text = format!("{what}: the compiler was killed {limits}");
            return Err(Error::new(Kind::Exhausted, text));
        }
        Some(libc::SIGXCPU) => {
            format!("the compiler ran into its CPU limit {limits}: raise wasm.compile_timeout_s")
        }
        Some(libc::SIGABRT | libc::SIGSEGV) => {
            format!(
                "the compiler ran into its memory limit {limits}: raise wasm.compile_memory_bytes"
            )
        }
        Some(libc::SIGXFSZ) => "its compiled code is too large".to_owned(),
        _ => {
            let text = format!("{what}: the compiler ended with {status}{line}");
            return Err(Error::new(Kind::Bug, text));
        }
    };
    Ok(Err(Error::new(Kind::Exhausted, format!("{what}: {limit}"))))
}
