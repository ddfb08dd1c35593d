//! A real kubelet without a cluster: static pods from a directory, on a daemon of the tests; and kubectl to talk to it.
//!
//! ```text
//! test --writes--> static pods -> kubelet --CRI--> daemon
//! test --kubectl--> podapi (tests/tools/kubelet/podapi) --https--> kubelet
//! ```
//! Called by: `tests/kubelet.rs`. The programs come from `tests/tools/kubelet.sh`.
//! Invariants: the kubelet sees other files in place of the sysctls it would set and of /var/lib and /var/log, so the
//! machine stays as it is; its cgroups are below the scratch's; its ports are free ones, so several can run.
//! Not here: what is expected of it.

mod api;
mod settings;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};
use serde_json::Value;

use crate::daemon::Daemon;
use crate::{Outcome, http, log, scratch, tools};
use settings::Ports;

/// How long the kubelet may take to be healthy.
const START: Duration = Duration::from_secs(60);
/// How long a pod may take to be what a test waits for: probes, restarts and their back-off among it.
const TIMEOUT: Duration = Duration::from_secs(90);
/// How often the kubelet is polled meanwhile.
const LOOK: Duration = Duration::from_millis(200);
/// Lines of the kubelet's log shown for a test that failed.
const LOG_TAIL_LINES: usize = 40;
/// The node's name, which ends the name of every static pod.
pub const NODE: &str = "node1";

/// A daemon, a kubelet on it, and what kubectl is pointed at. Ends with all it started on [`Node::finish`] or on drop.
#[derive(Debug)]
pub struct Node {
    daemon: Option<Daemon>,
    dir: PathBuf,
    programs: PathBuf,
    ports: Ports,
    kubelet: Option<Child>,
    podapi: Child,
    server: String,
    finished: bool,
}

impl Node {
    /// Starts a kubelet on `daemon` and waits until it is healthy. `changes` are laid over its configuration, key by
    /// key. Errors: it is not built, or does not come up, with the end of its log.
    pub async fn start(daemon: Daemon, changes: &Value) -> Outcome<Self> {
        let kubelet = tools::build("kubelet.sh", &[])?;
        let programs = kubelet.parent().ok_or("no directory")?.to_owned();
        settings::make_directories(daemon.scratch().dir())?;
        let root = daemon.scratch().dir().join(settings::ROOT);
        // What the kubelet mounts for a pod has to be seen by the daemon, and nothing else of its mount namespace.
        mount_bind(&root, &root)?;
        mount_change(&root, MountPropagationFlags::SHARED)?;
        let ports = Ports::free()?;
        let (podapi, server) = api::start_podapi(&programs, &ports)?;
        let mut node = Self {
            dir: daemon.scratch().dir().to_owned(),
            daemon: Some(daemon),
            programs,
            ports,
            kubelet: None,
            podapi,
            server,
            finished: false,
        };
        node.launch(changes).await?;
        Ok(node)
    }

    /// The runtime. There until [`Node::finish`].
    pub fn daemon(&mut self) -> &mut Daemon {
        self.daemon
            .as_mut()
            .expect("taken by finish alone, which consumes the node")
    }

    fn runtime(&self) -> &Daemon {
        self.daemon
            .as_ref()
            .expect("taken by finish alone, which consumes the node")
    }

    /// Ends the kubelet and starts it again with other changes. Pods go on.
    pub async fn restart_kubelet(&mut self, changes: &Value) -> Outcome<()> {
        self.end_kubelet();
        self.launch(changes).await
    }

    async fn launch(&mut self, changes: &Value) -> Outcome<()> {
        let dir = self.dir.clone();
        let config = settings::kubelet(self.runtime(), &self.ports, changes);
        fs::write(dir.join("kubelet.json"), config.to_string())?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())?;
        let script = settings::script(self.runtime(), &self.programs.join("kubelet"))?;
        let child = Command::new("unshare")
            .args([
                "-m",
                "--propagation",
                "unchanged",
                "/bin/sh",
                "-ec",
                &script,
            ])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.kubelet = Some(child);
        let healthz = format!("127.0.0.1:{}", self.ports.healthz);
        let end = Instant::now() + START;
        while !http::request(&healthz, "GET", "/healthz", None).is_ok_and(|r| r.status == 200) {
            let ended = match &mut self.kubelet {
                Some(kubelet) => kubelet.try_wait()?,
                None => None,
            };
            if ended.is_some() || Instant::now() > end {
                return Err("the kubelet does not come up".into());
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Hands the kubelet a pod: a manifest as in a static pod's file. Errors: it has no name.
    pub fn put(&self, pod: &Value) -> Outcome<()> {
        let name = pod["metadata"]["name"]
            .as_str()
            .ok_or("a pod needs a name")?;
        // Written aside and renamed: the kubelet reads whatever it finds.
        let (aside, file) = (self.dir().join("next.json"), self.manifest(name));
        fs::write(&aside, pod.to_string())?;
        Ok(fs::rename(aside, file)?)
    }

    /// Takes a pod's manifest away; the kubelet then ends the pod.
    pub fn take(&self, name: &str) -> Outcome<()> {
        Ok(fs::remove_file(self.manifest(name))?)
    }

    fn manifest(&self, name: &str) -> PathBuf {
        self.dir()
            .join(settings::MANIFESTS)
            .join(format!("{name}.json"))
    }

    /// What the kubelet's read-only port answers. Errors: no JSON, or as [`Node::text`].
    pub fn get(&self, path: &str) -> Outcome<Value> {
        Ok(serde_json::from_str(&self.text(path)?)?)
    }

    /// What the kubelet's read-only port answers, as it is. Errors: not 200, no text.
    pub fn text(&self, path: &str) -> Outcome<String> {
        let host = format!("127.0.0.1:{}", self.ports.read_only);
        let reply = http::request(&host, "GET", path, None)?;
        if reply.status != 200 {
            return Err(format!("GET {path}: {}", reply.status).into());
        }
        Ok(String::from_utf8(api::whole(&reply))?)
    }

    /// The pod as the kubelet has it; null when it has none of this name.
    pub fn pod(&self, name: &str) -> Outcome<Value> {
        let pods = self.get("/pods")?;
        let full = format!("{name}-{NODE}");
        let found = pods["items"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|pod| pod["metadata"]["name"] == full.as_str());
        Ok(found.cloned().unwrap_or(Value::Null))
    }

    /// Waits until the pod is as `is_so` wants it, and gives it. Errors: it never was, with how it is and the log.
    pub async fn wait(
        &self,
        name: &str,
        what: &str,
        is_so: impl Fn(&Value) -> bool,
    ) -> Outcome<Value> {
        let end = Instant::now() + TIMEOUT;
        loop {
            let pod = self.pod(name)?;
            if is_so(&pod) {
                return Ok(pod);
            }
            if Instant::now() > end {
                let status = serde_json::to_string_pretty(&pod["status"])?;
                return Err(format!("{name} is never {what}; it is {status}").into());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until `is_so`, as long as for a pod; whether it came so.
    pub async fn eventually(&self, is_so: impl Fn() -> bool) -> bool {
        let end = Instant::now() + TIMEOUT;
        while Instant::now() < end {
            if is_so() {
                return true;
            }
            tokio::time::sleep(LOOK).await;
        }
        false
    }

    /// Waits until every container of the pod is ready.
    pub async fn ready(&self, name: &str) -> Outcome<Value> {
        self.wait(name, "ready", |pod| {
            let containers = pod["status"]["containerStatuses"].as_array();
            containers
                .is_some_and(|all| !all.is_empty() && all.iter().all(|one| one["ready"] == true))
        })
        .await
    }

    /// kubectl with these words, pointed at the kubelet. Streams are WebSockets unless `spdy`.
    pub fn kubectl(&self, spdy: bool, arguments: &[&str]) -> Command {
        let websockets = if spdy { "false" } else { "true" };
        let mut command = Command::new(self.programs.join("kubectl"));
        command
            .env("KUBECONFIG", "/nonexistent")
            .env("HOME", self.dir())
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets)
            .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets)
            .args(["--server", &self.server, "--namespace", "default"])
            .args(arguments);
        command
    }

    /// Runs kubectl to its end. Errors: it cannot be run.
    pub fn run(&self, spdy: bool, args: &[&str]) -> Outcome<Output> {
        Ok(self.kubectl(spdy, args).stdin(Stdio::null()).output()?)
    }

    /// What kubectl prints. Errors: it failed, in its own words.
    pub fn says(&self, spdy: bool, args: &[&str]) -> Outcome<String> {
        let output = self.run(spdy, args)?;
        if !output.status.success() {
            let printed = String::from_utf8_lossy(&output.stderr);
            return Err(format!("kubectl {args:?}: {}: {printed}", output.status).into());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The scratch's directory, with the kubelet's files among the daemon's.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The log files of a container, newest last by name: what is there of `0.log` and of those rotated away.
    pub fn log_files(&self, pod: &str, container: &str) -> Outcome<Vec<PathBuf>> {
        let logs = self.dir().join("logs");
        let prefix = format!("default_{pod}-{NODE}_");
        let mut found = Vec::new();
        for entry in fs::read_dir(logs)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                let files = fs::read_dir(entry.path().join(container))?;
                found.extend(files.filter_map(|file| Some(file.ok()?.path())));
            }
        }
        found.sort();
        Ok(found)
    }

    /// What a container has written to standard output, as far as it lies in its newest log file.
    pub fn log_text(&self, pod: &str, container: &str) -> Outcome<String> {
        let files = self.log_files(pod, container)?;
        let newest = files
            .iter()
            .rfind(|file| file.extension().is_some_and(|kind| kind == "log"));
        let newest = newest.ok_or_else(|| format!("{pod} has no log of {container}"))?;
        Ok(log::text(&log::read(newest)?, "stdout"))
    }

    /// Everything the kubelet has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Takes every pod away, waits until the kubelet has ended them, ends it, and holds the machine against how it was.
    /// Errors: pods stay, or something is left.
    pub async fn finish(mut self) -> Outcome<()> {
        for entry in fs::read_dir(self.dir().join(settings::MANIFESTS))? {
            fs::remove_file(entry?.path())?;
        }
        let end = Instant::now() + TIMEOUT;
        while !self.is_empty().await? {
            if Instant::now() > end {
                return Err(format!("pods stay\n{}", self.log_tail()).into());
            }
            tokio::time::sleep(LOOK).await;
        }
        self.end_kubelet();
        self.clean_up();
        self.finished = true;
        match self.daemon.take() {
            Some(daemon) => daemon.finish().await,
            None => Ok(()),
        }
    }

    /// Whether no container runs and the kubelet has removed the cgroups of all pods.
    async fn is_empty(&self) -> Outcome<bool> {
        let pods = self.runtime().cri().list_pods(Default::default()).await?;
        let ready = pods.iter().any(|pod| pod.state == 0);
        Ok(!ready && self.pod_cgroups().is_empty())
    }

    /// The cgroups that the kubelet has made for pods, in every hierarchy.
    pub fn pod_cgroups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for below in ["", "burstable", "besteffort"] {
            for dir in self
                .runtime()
                .scratch()
                .cgroup_dirs(&format!("pods/kubepods/{below}"))
            {
                let entries = fs::read_dir(dir).into_iter().flatten().flatten();
                found.extend(entries.map(|entry| entry.path()).filter(|path| {
                    path.file_name()
                        .is_some_and(|name| name.to_string_lossy().starts_with("pod"))
                }));
            }
        }
        found
    }

    fn end_kubelet(&mut self) {
        if let Some(mut kubelet) = self.kubelet.take() {
            let _ = kubelet.kill();
            let _ = kubelet.wait();
        }
    }

    fn clean_up(&mut self) {
        let _ = self.podapi.kill();
        let _ = self.podapi.wait();
        for mount in self.runtime().scratch().mounts().iter().rev() {
            if mount.starts_with(&self.dir.join(settings::ROOT).display().to_string()) {
                let _ = unmount(mount.as_str(), UnmountFlags::DETACH);
            }
        }
        for dir in self.runtime().scratch().cgroup_dirs("pods/kubepods") {
            scratch::remove_cgroups(&dir);
        }
    }

    fn log_path(&self) -> PathBuf {
        self.dir().join("kubelet.log")
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let from = lines.len().saturating_sub(LOG_TAIL_LINES);
        format!("the kubelet's log ends:\n{}", lines[from..].join("\n"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end_kubelet();
        if !self.finished {
            let _ = writeln!(std::io::stderr(), "{}", self.log_tail());
            self.clean_up();
        }
    }
}
