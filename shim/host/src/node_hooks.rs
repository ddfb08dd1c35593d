//! Runs the hooks of a container's devices that run on the node: programs that the operator has listed.
//!
//! Called by: drivers, when a container has started (`poststart`) and when it has ended and its cgroup is gone (`poststop`).
//! Source: the OCI runtime specification, "Lifecycle" and "POSIX-platform Hooks". Hooks inside of a container are run by its own
//! process, see `coracle_sandbox`.
//! Invariants: a hook has the environment of its specification, no descriptor but its standard streams, and the OCI state as
//! its input; it ends in time or is killed, and with it its process group; what it prints is bounded; one that fails is
//! logged, the others run, and the container goes on as if it had succeeded. A daemon that dies in between runs the hooks
//! of an end again.
//! Must not know: which hooks may run, what they do.

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use coracle_control::process::Process;
use coracle_lifecycle::{Error, NodeHookRun, Payload, blocking};
use coracle_spec::Hook;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};

use super::{Host, io_error, make_private};

/// How long all hooks of one moment may take.
const ALL: Duration = Duration::from_secs(20);
/// How much of a hook's output the log shows. Bytes.
const SHOWN: usize = 1 << 10;
/// How long what a hook left behind may keep its output open once it was killed.
const LINGER: Duration = Duration::from_millis(200);
/// The version of the OCI runtime specification whose state and configuration hooks get.
const OCI_VERSION: &str = "1.1.0";

impl Host {
    /// Runs the hooks for the moment that `run` names, one after the other.
    pub async fn run_node_hooks(&self, run: &NodeHookRun) {
        let Payload::Linux(linux) = &run.plan.payload else {
            return;
        };
        let hooks = match run.pid {
            Some(_) => &linux.node_hooks.started,
            None => &linux.node_hooks.stopped,
        };
        if hooks.is_empty() {
            return;
        }
        let state = match self.state(run).await {
            Ok(state) => state,
            Err(error) => {
                tracing::warn!(id = %run.id, error = error.chain(), "the hooks of a container were not run");
                return;
            }
        };
        let until = Instant::now() + ALL;
        for hook in hooks {
            let left = until.saturating_duration_since(Instant::now());
            let time = left.min(Duration::from_secs(hook.timeout_s.into()));
            let began = Instant::now();
            match one(hook, &state, time).await {
                Ok(()) => {
                    tracing::debug!(id = %run.id, hook = hook.path, took_ms = began.elapsed().as_millis(), "a hook has run");
                }
                Err(why) => {
                    tracing::warn!(id = %run.id, hook = hook.path, why, "a hook failed; its container goes on without it");
                }
            }
        }
    }

    /// What hooks read on their standard input, and the bundle that it names.
    async fn state(&self, run: &NodeHookRun) -> Result<Vec<u8>, Error> {
        let (bundle, pid) = (self.bundle(run), run.pid);
        let root = match pid {
            Some(pid) => format!("/proc/{pid}/root"),
            None => "rootfs".to_owned(),
        };
        let config = json!({"ociVersion": OCI_VERSION, "root": {"path": root}});
        let directory = bundle.clone();
        blocking("making the bundle of hooks", move || {
            make_private(&directory)?;
            let file = directory.join("config.json");
            std::fs::write(&file, config.to_string())
                .map_err(|error| io_error(format!("write {}", file.display()), error))
        })
        .await?;
        let mut state = json!({
            "ociVersion": OCI_VERSION,
            "id": run.id.as_str(),
            "status": if pid.is_some() { "running" } else { "stopped" },
            "bundle": bundle,
        });
        if let Some(pid) = pid {
            state["pid"] = pid.into();
        }
        Ok(state.to_string().into_bytes())
    }

    /// It goes with the container's directory.
    fn bundle(&self, run: &NodeHookRun) -> PathBuf {
        let container = self.layout.container_directory(&run.pod, &run.id);
        container.join("bundle")
    }
}

/// Runs one hook. Errors: why it did not succeed.
async fn one(hook: &Hook, state: &[u8], time: Duration) -> Result<(), String> {
    let text = |error: io::Error| format!("it was not started: {error}");
    let (mut child, output) = start(hook, state).map_err(text)?;
    let mut said = Tail::default();
    let ended = watch(&mut child.0, output, time, &mut said).await;
    match ended.map_err(|error| format!("it cannot be waited for: {error}"))? {
        None => Err(format!("it did not end within {} s", time.as_secs())),
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(format!("{status}: {}", said.text())),
    }
}

/// A hook that is killed with its group when nobody waits for it any more.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        end_group(&self.0);
    }
}

/// Kills a hook's process group. The pid is known until the hook was reaped, so it cannot be another's.
fn end_group(child: &Child) {
    let leader = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    if let Some(leader) = leader {
        let _ = kill_process_group(leader, Signal::KILL);
    }
}

/// Starts the hook, in a process group of its own; its output comes from the pipe.
fn start(hook: &Hook, state: &[u8]) -> io::Result<(Group, tokio::net::unix::pipe::Receiver)> {
    // Unlike a pipe, a file never blocks us when the hook does not read it.
    let mut input = File::from(memfd_create("oci-state", MemfdFlags::CLOEXEC)?);
    input.write_all(state)?;
    input.rewind()?;
    let (output, sink) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let mut command = Command::new(&hook.path);
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    let variables = hook.env.iter().filter_map(|entry| entry.split_once('='));
    command
        .env_clear()
        .envs(variables)
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(sink.try_clone()?))
        .stderr(Stdio::from(sink));
    let child = command.spawn()?;
    // `command` holds the other end.
    drop(command);
    rustix::io::ioctl_fionbio(&output, true)?;
    Ok((
        Group(child),
        tokio::net::unix::pipe::Receiver::from_owned_fd(output)?,
    ))
}

/// Waits for the end of the hook, reading what it writes, and ends what it has left. `None` if it did not end in time.
async fn watch(
    child: &mut Child,
    mut output: impl AsyncRead + Unpin,
    time: Duration,
    said: &mut Tail,
) -> io::Result<Option<ExitStatus>> {
    let gone = || io::Error::other("it has no pid");
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    let process = pidfd_open(pid.ok_or_else(gone)?, PidfdFlags::empty())?;
    let process = Process::from_pidfd(process).map_err(io::Error::other)?;
    let ending = async {
        tokio::select! {
            () = process.ended() => {}
            () = said.follow(&mut output) => process.ended().await,
        }
    };
    let ended = tokio::time::timeout(time, ending).await;
    // Before it is reaped: until then its group is its own.
    end_group(child);
    let status = child.wait().await?;
    let _ = tokio::time::timeout(LINGER, said.follow(&mut output)).await;
    Ok(ended.is_ok().then_some(status))
}

/// The end of what a hook has printed.
#[derive(Default)]
struct Tail(Vec<u8>);

impl Tail {
    /// Reads to the end and keeps the last bytes.
    async fn follow(&mut self, from: &mut (impl AsyncRead + Unpin)) {
        let mut piece = [0; 4096];
        while let Ok(got @ 1..) = from.read(&mut piece).await {
            self.0.extend_from_slice(&piece[..got]);
            let surplus = self.0.len().saturating_sub(SHOWN);
            self.0.drain(..surplus);
        }
    }

    /// As part of a message of one line.
    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.0);
        let text = text.trim().replace(|c: char| c.is_control(), " ");
        text.trim().to_owned()
    }
}
