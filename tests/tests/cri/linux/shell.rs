//! What the Linux tests share: images made once, scripts as containers, and the probe's facts.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::daemon::{Daemon, Options};
use coracle_tests::oracle::{self, Facts};
use coracle_tests::push::{Image, Pushed};
use coracle_tests::{client, linux};

use crate::site::{self, Pod};

/// What the kubelet sends as `masked_paths` for an ordinary container. Source: kubernetes `pkg/securitycontext`.
pub const MASKED: [&str; 9] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/scsi",
    "/sys/firmware",
];
/// What the kubelet sends as `readonly_paths` for an ordinary container.
pub const READONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// The Linux images in the registry of this test process.
pub struct Images {
    /// busybox, the probe, users and groups; no entry point.
    pub base: Pushed,
    /// The same with user, working directory, volume, entry point and stop signal.
    pub dressed: Pushed,
    /// Files to be mounted.
    pub content: Pushed,
}

/// Pushed once a process.
pub fn images() -> &'static Images {
    static IMAGES: OnceLock<Images> = OnceLock::new();
    IMAGES.get_or_init(|| Images {
        base: push("linux-base", &linux::base().unwrap()),
        dressed: push("linux-dressed", &linux::dressed().unwrap()),
        content: push("linux-content", &linux::content().unwrap()),
    })
}

/// Pushes an image into the registry of the tests.
pub fn push(name: &str, image: &Image) -> Pushed {
    let host = site::images().registry.host();
    image.push(host, name, "v1").unwrap()
}

/// Whether the tests run against containerd + runc; Debian's 1.6 lacks what CRI gained later.
pub fn on_peer() -> bool {
    std::env::var_os("CORACLE_TEST_PEER").is_some()
}

/// A daemon that has pulled the base image.
pub async fn daemon() -> Daemon {
    daemon_with(Options::default()).await
}

/// The same, started in another way.
pub async fn daemon_with(options: Options) -> Daemon {
    let mut daemon = site::daemon_with(options).await;
    daemon.cri().pull(&images().base.reference).await.unwrap();
    daemon.rebase();
    daemon
}

/// A container that runs a script, with the paths masked that the kubelet masks.
pub fn sh(name: &str, script: &str) -> cri::ContainerConfig {
    program(name, &["/bin/sh", "-c", script])
}

/// A container that runs a program of the base image.
pub fn program(name: &str, command: &[&str]) -> cri::ContainerConfig {
    let mut config = client::container(name, &images().base.reference, &[]);
    config.command = command.iter().map(|arg| (*arg).to_owned()).collect();
    let security = security(&mut config);
    security.masked_paths = MASKED.map(str::to_owned).to_vec();
    security.readonly_paths = READONLY.map(str::to_owned).to_vec();
    config
}

/// A name that no other container of this process has.
pub fn fresh(stem: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{stem}-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// The security context of a container made here.
pub fn security(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerSecurityContext {
    let linux = config.linux.as_mut().unwrap();
    linux.security_context.as_mut().unwrap()
}

/// The resources of a container made here.
pub fn resources(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerResources {
    let linux = config.linux.as_mut().unwrap();
    linux.resources.as_mut().unwrap()
}

/// The namespaces of a container made here.
pub fn namespaces(config: &mut cri::ContainerConfig) -> &mut cri::NamespaceOption {
    security(config).namespace_options.as_mut().unwrap()
}

/// The security context of a pod made by [`Daemon::pod`].
pub fn pod_security(config: &mut cri::PodSandboxConfig) -> &mut cri::LinuxSandboxSecurityContext {
    let linux = config.linux.as_mut().unwrap();
    linux.security_context.as_mut().unwrap()
}

/// A directory of the host to be mounted, empty and new.
pub fn host_dir(daemon: &Daemon, name: &str) -> PathBuf {
    let dir = daemon.scratch().dir().join("volumes").join(name);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// A mount of a host path.
pub fn mount(host: &Path, inside: &str, readonly: bool) -> cri::Mount {
    cri::Mount {
        host_path: host.display().to_string(),
        container_path: inside.into(),
        readonly,
        ..Default::default()
    }
}

/// A container that has ended.
#[derive(Debug)]
pub struct Ran {
    pub status: cri::ContainerStatus,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// Holds the exit code to 0 and gives what it wrote.
    #[track_caller]
    pub fn ok(self) -> String {
        let Self { status, out, err } = self;
        let ended = (status.exit_code, status.reason.as_str());
        assert_eq!(ended, (0, "Completed"), "{}\n{out}{err}", status.message);
        out
    }

    /// Holds the exit code to 0 and what it wrote to these lines.
    #[track_caller]
    pub fn says(self, lines: &[&str]) {
        let out = self.ok();
        assert_eq!(out.lines().collect::<Vec<_>>(), lines);
    }
}

/// Runs a container to its end.
pub async fn run(daemon: &Daemon, pod: &Pod, config: &cri::ContainerConfig) -> Ran {
    let (status, out) = pod.finish(daemon, config).await;
    let name = &config.metadata.as_ref().unwrap().name;
    let pod = &pod.config.metadata.as_ref().unwrap().name;
    let err = daemon.output(pod, name, "stderr").unwrap();
    Ran { status, out, err }
}

/// Runs a script to its end, as [`sh`] has it.
pub async fn run_sh(daemon: &Daemon, pod: &Pod, script: &str) -> Ran {
    run(daemon, pod, &sh(&fresh("c"), script)).await
}

/// Reads the probe's output. Panics at a line that is none of its.
#[track_caller]
pub fn facts(text: &str) -> Facts {
    oracle::parse(text).unwrap()
}

/// Runs `probe look` as this container, whose command is replaced.
pub async fn look(daemon: &Daemon, pod: &Pod, mut config: cri::ContainerConfig) -> Facts {
    config.command = vec!["/bin/probe".into(), "look".into()];
    config.args.clear();
    facts(&run(daemon, pod, &config).await.ok())
}

/// The host pid of the process with exactly these arguments, once there is one: a shell that starts it may be slow.
pub fn host_pid(daemon: &Daemon, command: &str) -> i32 {
    let end = Instant::now() + client::TIMEOUT;
    loop {
        let found = coracle_tests::procs::of_scratch(daemon.scratch());
        if let Some(process) = found.iter().find(|process| process.command == command) {
            return process.pid;
        }
        assert!(Instant::now() < end, "no {command:?} in {found:#?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A namespace of a process of the host, or of the tests' own process (`self`).
pub fn namespace(pid: &str, kind: &str) -> String {
    let link = std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    link.display().to_string()
}
