//! Runs the hooks of a container's devices: programs of the node that the operator has listed.
//!
//! Called by [`super`] for a container that has some: [`View::open`] as host root while the node's mounts are there,
//! [`View::hold`] on the stage, [`run`] when the root is complete and nothing of it is masked or read-only yet.
//!
//! ```text
//! node's root, copied ── DIRECTORY, covered by a tmpfs ── bundle/config.json
//!                                                      └─ bundle/rootfs, where the container's root is attached
//! ```
//! A hook has that copy, read-only, as its root, the container's namespaces and cgroup, its specification's environment and no descriptor
//! but its standard streams; the OCI state is its standard input.
//! Invariants: a hook ends in time or is killed; with it ends what it started; the copy is gone once the root is entered. The
//! directory hides the daemon's own sockets and records.
//! Must not know: which hooks may run, what they do.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat, readlinkat};
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, pidfd_open};
use serde_json::json;

use super::super::rootfs_path;
use super::super::stage::Stage;
use coracle_spec::error::{Context as _, Error, Kind, Result};
use coracle_spec::{ContainerSpec, Hook, Hooks};
use coracle_sys as sys;
use coracle_sys::mounts::{self, Forbid};

/// How long all hooks of a container may take, below the time that its keeper gives a start.
const ALL: Duration = Duration::from_secs(20);
/// How much of a hook's output an error shows. Bytes.
const SHOWN: usize = 1 << 10;
/// The version of the OCI runtime specification whose state and configuration hooks get.
const OCI_VERSION: &str = "1.1.0";
/// The directory of the stage that is a hook's root.
const NODE: &str = "node";

/// The node as hooks see it.
pub(super) struct View {
    node: OwnedFd,
    bundle: OwnedFd,
}

impl View {
    /// Copies the node's mounts and makes the bundle; `None` without hooks. Errors: the kernel refuses one.
    pub(super) fn open(spec: &ContainerSpec, hooks: &Hooks) -> Result<Option<Self>> {
        if hooks.is_empty() {
            return Ok(None);
        }
        let what = || "show the node to hooks".to_owned();
        let node = mounts::clone_tree(Path::new("/"), true).during(what)?;
        // A hook that follows a link of the image writes nowhere on the node.
        mounts::set_attributes(node.as_fd(), Forbid::WRITES, None, true).during(what)?;
        let options = [(c"size", Some("64k")), (c"mode", Some("0755"))];
        let bundle = mounts::filesystem(c"tmpfs", &options, Forbid::default()).during(what)?;
        let config = json!({
            "ociVersion": OCI_VERSION,
            "root": {"path": "rootfs", "readonly": spec.root.readonly},
        });
        fill(&bundle, config.to_string().as_bytes())
            .during(|| "make the bundle of hooks".into())?;
        Ok(Some(Self { node, bundle }))
    }

    /// Attaches both to the stage. Errors: the directory is none of the node's, or the kernel refuses.
    pub(super) fn hold(self, hooks: &Hooks, stage: &Stage) -> Result<()> {
        stage.hold(NODE, &self.node)?;
        let what = || format!("cover {} for hooks", hooks.directory.display());
        let node = stage.mount_point(NODE)?;
        let directory = hooks.directory.to_string_lossy();
        let covered = rootfs_path::inside(node.as_fd(), &directory).during(what)?;
        mounts::attach(self.bundle.as_fd(), covered.as_fd()).during(what)
    }
}

fn fill(bundle: &OwnedFd, config: &[u8]) -> std::io::Result<()> {
    for directory in ["bundle", "bundle/rootfs"] {
        mkdirat(bundle, directory, Mode::from_raw_mode(0o755))?;
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = openat(
        bundle,
        "bundle/config.json",
        flags,
        Mode::from_raw_mode(0o644),
    )?;
    std::fs::File::from(file).write_all(config)
}

/// The directory at which the container's root is attached where hooks see it.
pub(super) fn root_of(stage: &Stage, hooks: &Hooks) -> Result<OwnedFd> {
    let node = stage.mount_point(NODE)?;
    let path = hooks.directory.join("bundle/rootfs");
    rootfs_path::inside(node.as_fd(), &path.to_string_lossy())
        .during(|| "open the root of hooks".into())
}

/// Runs the hooks, one after the other.
///
/// Errors: the first that cannot be executed, fails or does not end in time, with the end of its output.
pub(super) fn run(spec: &ContainerSpec, hooks: &Hooks, stage: &Stage) -> Result<()> {
    if hooks.is_empty() {
        return Ok(());
    }
    let what = || "prepare hooks".to_owned();
    sys::fork::close_on_exec_from(3).during(what)?;
    let node = stage.mount_point(NODE)?;
    let state = state(spec, hooks);
    let until = Instant::now() + ALL;
    sys::ids::set_umask(0o022);
    let done = hooks.create_container.iter().try_for_each(|hook| {
        let left = until.saturating_duration_since(Instant::now());
        let time = left.min(Duration::from_secs(hook.timeout_s.into()));
        one(hook, &node, &state, time)
            .map_err(|why| Error::new(Kind::StartFailed, format!("hook {:?}: {why}", hook.path)))
    });
    sys::ids::set_umask(0);
    end_orphans();
    done
}

/// What hooks read on their standard input. The pid is the node's.
fn state(spec: &ContainerSpec, hooks: &Hooks) -> Vec<u8> {
    let pid = readlinkat(CWD, format!("{NODE}/proc/self"), Vec::new());
    let pid = pid.ok().and_then(|link| link.to_str().ok()?.parse().ok());
    let own = || rustix::process::getpid().as_raw_pid();
    let state = json!({
        "ociVersion": OCI_VERSION,
        "id": spec.id.as_str(),
        "status": "creating",
        "pid": pid.unwrap_or_else(own),
        "bundle": hooks.directory.join("bundle"),
    });
    state.to_string().into_bytes()
}

/// Runs one hook. Errors: why it did not succeed.
fn one(hook: &Hook, node: &OwnedFd, state: &[u8], time: Duration) -> Result<(), String> {
    let text = |error: std::io::Error| format!("it was not started: {error}");
    let until = Instant::now() + time;
    let (output, child) = start(hook, node).map_err(text)?;
    let mut child = Killed(child);
    if let Some(mut input) = child.0.stdin.take() {
        // One that does not read it does not need it.
        let _ = input.write_all(state);
    }
    let ended = watch(&child.0, &output, until);
    let pid = Pid::from_child(&child.0);
    let _ = kill_process_group(pid, Signal::KILL);
    let status = child.0.wait().map_err(text)?;
    match ended.map_err(text)? {
        Ended::Late => Err(format!("it did not end within {} s", time.as_secs())),
        Ended::With(_) if status.success() => Ok(()),
        Ended::With(said) if said.is_empty() => Err(format!("{status}")),
        Ended::With(said) => Err(format!("{status}: {said}")),
    }
}

/// A hook that is killed when nobody waits for it any more.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the hook, in a process group of its own; its output comes from the descriptor.
fn start(hook: &Hook, node: &OwnedFd) -> std::io::Result<(std::fs::File, Child)> {
    use std::os::unix::process::CommandExt as _;
    let (output, sink) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&output, true)?;
    let mut command = Command::new(&hook.path);
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    let variables = hook.env.iter().filter_map(|entry| entry.split_once('='));
    command
        .env_clear()
        .envs(variables)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::from(sink.try_clone()?))
        .stderr(Stdio::from(sink));
    sys::command::enter_root(&mut command, node.try_clone()?);
    let child = command.spawn()?;
    // `command` holds the other end, and the directory.
    drop(command);
    Ok((output.into(), child))
}

/// How a hook ended.
enum Ended {
    /// By itself, with the end of its output.
    With(String),
    /// Not in time.
    Late,
}

/// Waits for the end of the hook, reading what it writes.
fn watch(child: &Child, output: &std::fs::File, until: Instant) -> std::io::Result<Ended> {
    let process = pidfd_open(Pid::from_child(child), rustix::process::PidfdFlags::empty())?;
    let mut said = Vec::new();
    let mut is_open = true;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Ended::Late);
        }
        let mut ready = vec![PollFd::new(&process, PollFlags::IN)];
        if is_open {
            ready.push(PollFd::new(output, PollFlags::IN));
        }
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut ready, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => continue,
            polled => polled?,
        };
        let has_ended = !ready[0].revents().is_empty();
        is_open &= drain(output, &mut said);
        if has_ended {
            return Ok(Ended::With(readable(&said)));
        }
    }
}

/// Reads what is there, and keeps the last of it. Whether more may come.
fn drain(mut output: &std::fs::File, said: &mut Vec<u8>) -> bool {
    let mut buffer = [0; SHOWN];
    // Bounded: a hook that never stops writing has a deadline, too.
    for _ in 0..64 {
        match output.read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => said.extend_from_slice(&buffer[..count]),
            Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
        }
        let surplus = said.len().saturating_sub(SHOWN);
        said.drain(..surplus);
    }
    true
}

/// Output as part of a message of one line.
fn readable(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let text = text.trim().replace(|c: char| c.is_control(), " ");
    text.trim().to_owned()
}

/// Kills what hooks have left in the container's pid namespace, whose first process this is.
fn end_orphans() {
    if rustix::process::getpid() != Pid::INIT {
        return;
    }
    // kill(-1, ...): all of the namespace but this process.
    let _ = kill_process_group(Pid::INIT, Signal::KILL);
    while let Ok(Some(_)) = rustix::process::wait(WaitOptions::empty()) {}
}
