//! Starts, kills and restarts a Coracle daemon in a scratch of its own, and checks that it leaves nothing behind.
//!
//! A test takes a [`Daemon`], talks to it through [`Daemon::cri`], and ends with [`Daemon::finish`], which removes the
//! pods, compares the machine with its state before, and drains the daemon. A test that panics sees the daemon's log.
//! Invariant: dropping a [`Daemon`] kills everything that it started.

mod options;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;
use rustix::process::Signal;

pub use crate::builds::{binary, failpoints_binary};
use crate::client::{self, Cri};
use crate::leaks::{self, Snapshot};
use crate::procs::{self, Process, Role};
use crate::scratch::Scratch;
use crate::{Outcome, cni, log, peer};

pub use options::Options;

/// How long a start may take before the tests give up on it.
const START_DEADLINE: Duration = Duration::from_secs(120);
/// Where a hybrid node has the unified tree of cgroups.
pub const UNIFIED: &str = "/sys/fs/cgroup/unified";
/// How long a drain after SIGTERM may take.
const DRAIN_DEADLINE: Duration = Duration::from_secs(60);
/// How long the last processes of a daemon that has ended may take to go.
const GONE_DEADLINE: Duration = Duration::from_secs(30);
/// Lines of the daemon's log shown for a test that failed.
const LOG_TAIL_LINES: usize = 60;

/// A running (or just killed) daemon and its scratch.
#[derive(Debug)]
pub struct Daemon {
    scratch: Scratch,
    options: Options,
    child: Option<Child>,
    before: Option<Snapshot>,
    finished: bool,
}

impl Daemon {
    /// Starts an ordinary daemon and waits until it answers.
    pub async fn start() -> Outcome<Self> {
        Self::start_with(Options::default()).await
    }

    /// Starts a daemon of the failpoint build with this plan.
    pub async fn start_failing(plan: &str) -> Outcome<Self> {
        let binary = Some(failpoints_binary()?);
        Self::start_with(Options {
            binary,
            failpoints: Some(plan.into()),
            ..Options::default()
        })
        .await
    }

    /// Starts a daemon. Errors: no binary, or it does not answer in time, with the end of its log.
    pub async fn start_with(options: Options) -> Outcome<Self> {
        let mut daemon = Self::prepare(options)?;
        daemon.launch().await?;
        daemon.before = Some(Snapshot::take(&daemon.scratch));
        Ok(daemon)
    }

    /// Everything but the process: directories, configuration, failpoint plan.
    pub fn prepare(options: Options) -> Outcome<Self> {
        let scratch = Scratch::new()?;
        let root = scratch.dir().join("root");
        fs::create_dir_all(&root)?;
        fs::create_dir_all(scratch.dir().join("logs"))?;
        if let Some(bytes) = options.root_bytes {
            run(Command::new("mount")
                .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
                .arg(&root))?;
        }
        if options.peer_sandbox_image.is_some() {
            fs::create_dir_all(scratch.dir().join("cni"))?;
            fs::write(scratch.dir().join("cni/10.conflist"), peer::cni(&scratch))?;
        }
        if options.cni.is_some() {
            cni::prepare(&scratch)?;
        }
        let config = options.config_text(&scratch);
        fs::write(scratch.dir().join("config.toml"), config)?;
        if let Some(plan) = &options.failpoints {
            fs::write(scratch.dir().join("failpoints"), plan)?;
        }
        Ok(Self {
            scratch,
            options,
            child: None,
            before: None,
            finished: false,
        })
    }

    /// The command that serves, for tests that expect it to fail. In the scratch's cgroup, with a descriptor too many.
    pub fn command(&self) -> Outcome<Command> {
        let binary = match &self.options.binary {
            Some(binary) => binary.clone(),
            None if self.options.peer_sandbox_image.is_some() => PathBuf::new(),
            None => binary()?,
        };
        let mut command = Command::new("/bin/sh");
        let mut enter = self.scratch.enter_cgroup() + "exec 9<\"$1\"; exec ";
        if self.options.shared_mounts {
            enter += "unshare -m --propagation shared ";
        }
        let script = match &self.options.boot_id {
            _ if self.options.peer_sandbox_image.is_some() => {
                format!("{enter}containerd --config \"$1\"")
            }
            None if self.options.pure_v1 => format!(
                "{enter}unshare -m --propagation slave /bin/sh -c 'umount -l {UNIFIED}; \
                 exec \"$0\" serve --config \"$1\"' \"$0\" \"$1\""
            ),
            None => format!("{enter}\"$0\" serve --config \"$1\""),
            // In a mount namespace of its own, so that only this daemon sees the other boot id.
            Some(other) => format!(
                "{enter}unshare -m --propagation slave /bin/sh -c 'mount --bind {} \
                 /proc/sys/kernel/random/boot_id; exec \"$0\" serve --config \"$1\"' \"$0\" \"$1\"",
                other.display()
            ),
        };
        command
            .args(["-c", &script])
            .arg(binary)
            .arg(self.scratch.dir().join("config.toml"));
        if self.options.failpoints.is_some() {
            command.env("CORACLE_FAILPOINTS", self.scratch.dir().join("failpoints"));
        }
        command.stdin(Stdio::null());
        Ok(command)
    }

    async fn launch(&mut self) -> Outcome<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())?;
        let child = self
            .command()?
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.child = Some(child);
        let end = Instant::now() + START_DEADLINE;
        loop {
            let answered = self.cri().wait_ready(Duration::from_millis(50)).await;
            let Err(refusal) = answered else {
                return Ok(());
            };
            let ended = match &mut self.child {
                Some(child) => child.try_wait()?,
                None => None,
            };
            if ended.is_some() || Instant::now() > end {
                let how = ended.map_or("still runs".into(), |status| status.to_string());
                let tail = self.log_tail();
                return Err(
                    format!("the daemon ({how}) does not answer: {refusal}\n{tail}").into(),
                );
            }
        }
    }

    /// A client of this daemon; one is enough, it reconnects.
    pub fn cri(&self) -> Cri {
        Cri::new(&self.socket())
    }

    /// The CRI socket.
    pub fn socket(&self) -> PathBuf {
        self.scratch.dir().join("run/coracle.sock")
    }

    /// The daemon's corner of the machine.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// The directories of its CNI network.
    pub fn cni(&self) -> cni::Place {
        cni::Place::of(&self.scratch)
    }

    /// The daemon's configuration file.
    pub fn config_path(&self) -> PathBuf {
        self.scratch.dir().join("config.toml")
    }

    /// The smallest pod of this name, with its log directory made.
    pub fn pod(&self, name: &str) -> cri::PodSandboxConfig {
        let logs = self.scratch.dir().join("logs").join(name);
        let _ = fs::create_dir_all(&logs);
        client::pod(name, &logs, &self.cgroup_parent())
    }

    /// The cgroup under which pods of this daemon are made.
    pub fn cgroup_parent(&self) -> String {
        format!("{}/pods", self.scratch.cgroup())
    }

    /// The log file of a container made by [`client::container`] in a pod made by [`Daemon::pod`].
    pub fn container_log(&self, pod: &str, container: &str) -> PathBuf {
        self.scratch
            .dir()
            .join("logs")
            .join(pod)
            .join(format!("{container}.log"))
    }

    /// What a container has written to one stream so far. Errors: a malformed log.
    pub fn output(&self, pod: &str, container: &str, stream: &str) -> Result<String, String> {
        Ok(log::text(
            &log::read(&self.container_log(pod, container))?,
            stream,
        ))
    }

    /// The daemon's pid; 0 when it was killed.
    pub fn pid(&self) -> i32 {
        self.child
            .as_ref()
            .map_or(0, |child| child.id().cast_signed())
    }

    /// The processes of this daemon that have this role.
    pub fn processes(&self, role: Role) -> Vec<Process> {
        procs::with_role(&self.scratch, role)
    }

    /// Kills the daemon with SIGKILL and waits until it is gone. Pods stay.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Waits until the daemon has ended by itself and forgets it. Errors: it still runs after the deadline.
    /// Clients of this thread go on meanwhile: a drain waits for them to hang up.
    pub async fn wait_end(&mut self, deadline: Duration) -> Outcome<ExitStatus> {
        let end = Instant::now() + deadline;
        loop {
            let child = self.child.as_mut().ok_or("the daemon is not running")?;
            if let Some(status) = child.try_wait()? {
                self.child = None;
                return Ok(status);
            }
            if Instant::now() > end {
                return Err(format!(
                    "the daemon still runs after {deadline:?}\n{}",
                    self.log_tail()
                )
                .into());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Starts the daemon again, over the state it left.
    pub async fn restart(&mut self) -> Outcome<()> {
        self.kill();
        self.launch().await
    }

    /// Starts another build over the same state.
    pub async fn restart_as(&mut self, binary: &Path) -> Outcome<()> {
        self.options.binary = Some(binary.to_owned());
        self.restart().await
    }

    /// Starts the daemon as if the machine had booted: with another boot id.
    pub async fn boot_anew(&mut self) -> Outcome<()> {
        let other = self.scratch.dir().join("boot_id");
        fs::write(&other, "00000000-0000-4000-8000-000000000001\n")?;
        self.options.boot_id = Some(other);
        self.restart().await
    }

    /// Gives up a daemon that was never started.
    pub fn abandon(mut self) {
        self.finished = true;
    }

    /// Sends SIGTERM and waits for the daemon to drain. Errors: it does not end in time.
    pub async fn terminate(&mut self) -> Outcome<ExitStatus> {
        procs::signal(self.pid(), Signal::TERM);
        self.wait_end(DRAIN_DEADLINE).await
    }

    /// Replaces the failpoint plan; every process reads it anew at the next site.
    pub fn plan(&self, plan: &str) -> Outcome<()> {
        Ok(fs::write(self.scratch.dir().join("failpoints"), plan)?)
    }

    /// The failpoint sites reached so far, in order, with repeats.
    pub fn reached(&self) -> Vec<String> {
        let path = self.scratch.dir().join("failpoints.reached");
        fs::read_to_string(path)
            .unwrap_or_default()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    /// Everything the daemon and its children have logged.
    pub fn log(&self) -> String {
        procs::wait_until_logged(self.pid());
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Fails unless the machine looks as it did when the daemon had started.
    pub async fn expect_no_leak(&self) -> Result<(), String> {
        if self.options.peer_sandbox_image.is_some() {
            return Ok(());
        }
        let before = self.before.as_ref().ok_or("the daemon never started")?;
        leaks::expect_as(before, &self.scratch).await
    }

    /// Takes the machine as it is now for what [`Daemon::expect_no_leak`] compares with.
    pub fn rebase(&mut self) {
        self.before = Some(Snapshot::take(&self.scratch));
    }

    /// Ends a test: removes all pods, holds the machine against how it was, drains the daemon, and looks again.
    pub async fn finish(mut self) -> Outcome<()> {
        self.cri().remove_all_pods().await?;
        self.expect_no_leak().await?;
        let status = self.terminate().await?;
        if !status.success() {
            return Err(format!("after SIGTERM the daemon ended with {status}").into());
        }
        if self.options.peer_sandbox_image.is_some() {
            self.finished = true;
            return Ok(());
        }
        let end = Instant::now() + GONE_DEADLINE;
        while !procs::of_scratch(&self.scratch).is_empty() && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let left = procs::of_scratch(&self.scratch);
        if !left.is_empty() {
            return Err(
                format!("processes outlive a drained daemon without pods: {left:?}").into(),
            );
        }
        if self.socket().exists() {
            return Err("the socket outlives the daemon".into());
        }
        let tables = leaks::tables_of_pods(&self.scratch);
        if !tables.is_empty() {
            return Err(format!("tables outlive a daemon without pods: {tables:?}").into());
        }
        self.finished = true;
        Ok(())
    }

    fn log_path(&self) -> PathBuf {
        self.scratch.dir().join("daemon.log")
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let from = lines.len().saturating_sub(LOG_TAIL_LINES);
        format!("the daemon's log ends:\n{}", lines[from..].join("\n"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.finished && !self.options.quiet {
            let _ = writeln!(std::io::stderr(), "{}", self.log_tail());
        }
        self.kill();
        if self.options.peer_sandbox_image.is_some() || self.options.cni.is_some() {
            peer::remove_bridge(&self.scratch);
        }
    }
}

fn run(command: &mut Command) -> Outcome<()> {
    let status = command.status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{command:?}: {status}").into())
    }
}
