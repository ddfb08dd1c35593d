//! Churn: many pods, Wasm and Linux mixed, several in flight, while the daemon and the spawner are killed; afterwards
//! the machine holds what it held before.
//!
//! Called by: `make churn` ([`run`] with thousands of pods) and the end-to-end tests (with few).
//! Each pod lives the whole life that a kubelet gives it, with every call repeated until it is answered, and each exit
//! code must be the one the program gave: the death of the daemon or the spawner must not end a pod.
//! Invariant: there is a report only if nothing was left; otherwise an error names what is left.
//! Not here: times (see [`crate::bench`]).

mod footprint;
mod images;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{fmt, fs};

use coracle_proto::runtime::v1 as cri;
use footprint::{Footprint, wait_for_memory};
use images::Images;
use tokio::task::JoinSet;

use crate::client::Cri;
use crate::daemon::{Daemon, Options};
use crate::procs::{self, Role};
use crate::registry::Registry;
use crate::vitals::Vitals;
use crate::{Outcome, retry};

/// Pods of each kind that run before memory is read for the first time, so that the daemon's code is mapped.
const WARM_UP: usize = 24;

/// How much is churned.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Pods that run while the daemon and the spawner are killed.
    pub pods: usize,
    /// Pods after that, all served by one daemon that is not killed, so that its growth shows.
    pub undisturbed: usize,
    /// Pods in flight.
    pub in_flight: usize,
    /// Daemon and spawner are killed after each so many pods.
    pub kill_every: usize,
}

/// What a churn without leaks showed.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// The plan it was of.
    pub plan: Plan,
    /// How long it took.
    pub took: Duration,
    /// How often the daemon was killed, and the spawner with it.
    pub kills: usize,
    /// A fresh daemon before any pod.
    pub idle: Vitals,
    /// The last of the killed daemons' successors, after its share of the pods.
    pub after_kills: Vitals,
    /// A daemon after the warm-up, before the undisturbed pods.
    pub warm: Vitals,
    /// The same daemon after the undisturbed pods.
    pub after: Vitals,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan {
            pods,
            undisturbed,
            in_flight,
            ..
        } = self.plan;
        writeln!(
            f,
            "{pods} pods, {in_flight} in flight, {} kills of daemon and spawner; then {undisturbed} pods without; \
             {:.0?} in all; nothing is left",
            self.kills, self.took
        )?;
        writeln!(
            f,
            "{:<28}{:>12}{:>12}{:>8}{:>9}",
            "daemon", "RSS KiB", "anon KiB", "fds", "threads"
        )?;
        for (name, vitals) in [
            ("idle, before any pod", self.idle),
            ("after the pods with kills", self.after_kills),
            ("warm, before the others", self.warm),
            ("after the others", self.after),
        ] {
            writeln!(
                f,
                "{name:<28}{:>12}{:>12}{:>8}{:>9}",
                vitals.rss_kib, vitals.anonymous_kib, vitals.descriptors, vitals.threads
            )?;
        }
        Ok(())
    }
}

/// Churns on a daemon of its own. Errors: a call that is never answered, a wrong exit code, or anything that is left,
/// each by name.
pub async fn run(plan: Plan, registry: &Registry) -> Outcome<Report> {
    tokio::task::LocalSet::new()
        .run_until(run_here(plan, registry))
        .await
}

async fn run_here(plan: Plan, registry: &Registry) -> Outcome<Report> {
    let images = Images::push(registry)?;
    let mut daemon = started(&images).await?;
    let began = Instant::now();
    let idle = Vitals::of(daemon.pid())?;
    // The network's tables are there, and watched, from the first pod on.
    churn(&mut daemon, &images, Wave::warm_up("first")).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = Footprint::of(&daemon);

    let killed = Wave {
        name: "killed",
        pods: plan.pods,
        in_flight: plan.in_flight,
        kill_every: Some(plan.kill_every),
    };
    let kills = churn(&mut daemon, &images, killed).await?;
    before.expect_no_growth(&daemon).await?;
    let after_kills = wait_for_memory(&daemon, idle).await?;

    daemon.restart().await?;
    churn(&mut daemon, &images, Wave::warm_up("warm")).await?;
    let warm = Vitals::of(daemon.pid())?;
    let undisturbed = Wave {
        name: "on",
        pods: plan.undisturbed,
        kill_every: None,
        ..killed
    };
    churn(&mut daemon, &images, undisturbed).await?;
    before.expect_no_growth(&daemon).await?;
    let after = wait_for_memory(&daemon, idle).await?;
    daemon.finish().await?;
    Ok(Report {
        plan,
        took: began.elapsed(),
        kills,
        idle,
        after_kills,
        warm,
        after,
    })
}

/// A daemon whose predecessor has pulled the images and run a few pods: so has that of a daemon after a kill.
async fn started(images: &Images) -> Outcome<Daemon> {
    let mut daemon = Daemon::start_with(Options {
        quiet: true,
        ..Options::default()
    })
    .await?;
    daemon.cri().pull(&images.wasm).await?;
    daemon.cri().pull(&images.linux).await?;
    daemon.restart().await?;
    churn(&mut daemon, images, Wave::warm_up("first")).await?;
    daemon.restart().await?;
    daemon.rebase();
    Ok(daemon)
}

/// Pods that are run one after the other, several in flight.
#[derive(Clone, Copy, Debug)]
struct Wave {
    /// The beginning of their names.
    name: &'static str,
    pods: usize,
    in_flight: usize,
    kill_every: Option<usize>,
}

impl Wave {
    fn warm_up(name: &'static str) -> Self {
        Self {
            name,
            pods: WARM_UP,
            in_flight: 8,
            kill_every: None,
        }
    }
}

/// Runs one pod after the other until the wave is through.
#[derive(Clone)]
struct Worker {
    wave: Wave,
    cri: Cri,
    images: Images,
    template: cri::PodSandboxConfig,
    logs: PathBuf,
    /// The number of the next pod, and how many are done; shared by all workers.
    next: Arc<AtomicUsize>,
    done: Arc<AtomicUsize>,
}

impl Worker {
    async fn run(self) -> Result<(), String> {
        loop {
            let number = self.next.fetch_add(1, Ordering::SeqCst);
            if number >= self.wave.pods {
                return Ok(());
            }
            let name = format!("{}-{number}", self.wave.name);
            let config = named(&self.template, &name, &self.logs)?;
            let outcome = live(&self.cri, &self.images, &config, number).await;
            outcome.map_err(|why| format!("pod {name}: {why}"))?;
            let _ = fs::remove_dir_all(&config.log_directory);
            self.done.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Runs the pods of a wave from nothing to nothing; returns how often the daemon was killed.
async fn churn(daemon: &mut Daemon, images: &Images, wave: Wave) -> Outcome<usize> {
    let worker = Worker {
        wave,
        cri: daemon.cri(),
        images: images.clone(),
        template: daemon.pod("churn"),
        logs: daemon.scratch().dir().join("logs"),
        next: Arc::default(),
        done: Arc::default(),
    };
    let mut workers = JoinSet::new();
    for _ in 0..wave.in_flight {
        workers.spawn_local(worker.clone().run());
    }
    let mut kills = 0;
    loop {
        match tokio::time::timeout(Duration::from_millis(10), workers.join_next()).await {
            Ok(None) => return Ok(kills),
            Ok(Some(ended)) => ended?.map_err(|why: String| why)?,
            Err(_) => {}
        }
        let done = worker.done.load(Ordering::SeqCst);
        let due = wave.kill_every.map_or(0, |every| done / every);
        if due > kills && !workers.is_empty() {
            kills += 1;
            kill_both(daemon).await?;
        }
    }
}

/// Kills the spawner and then the daemon, while pods are being made, and starts the daemon again.
async fn kill_both(daemon: &mut Daemon) -> Outcome<()> {
    for spawner in daemon.processes(Role::Spawner) {
        procs::kill(spawner.pid);
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    daemon.restart().await
}

/// The template under another name, with a log directory.
fn named(
    template: &cri::PodSandboxConfig,
    name: &str,
    logs: &Path,
) -> Result<cri::PodSandboxConfig, String> {
    let logs = logs.join(name);
    fs::create_dir_all(&logs).map_err(|e| format!("make {}: {e}", logs.display()))?;
    let mut config = template.clone();
    if let Some(metadata) = &mut config.metadata {
        metadata.name = name.to_owned();
        metadata.uid = format!("uid-{name}");
    }
    config.hostname = name.to_owned();
    config.log_directory = logs.display().to_string();
    Ok(config)
}

/// One pod from nothing to nothing; `number` says which kind it is and how it ends.
async fn live(
    cri: &Cri,
    images: &Images,
    sandbox: &cri::PodSandboxConfig,
    number: usize,
) -> Result<(), String> {
    let pod = retry::until_answered("run", async || retry::run_pod(cri, sandbox).await).await?;
    let is_wasm = number.is_multiple_of(2);
    let mut containers = Vec::new();
    match number % 8 {
        0 | 1 | 4 => job(cri, &pod, &images.job(is_wasm), sandbox).await?,
        7 => {
            containers.push(begin(cri, &pod, &images.service(false), sandbox).await?);
            job(cri, &pod, &images.job(true), sandbox).await?;
        }
        _ => containers.push(begin(cri, &pod, &images.service(is_wasm), sandbox).await?),
    }
    if let (false, Some(id)) = (is_wasm, containers.first()) {
        retry::until_answered("exec", async || exec(cri, id).await).await?;
    }
    // A kubelet stops and removes each container first; others remove the pod with all that is in it.
    if number.is_multiple_of(3) {
        for id in &containers {
            retry::until_answered("stop", async || cri.stop(id, 0).await).await?;
            retry::until_answered("remove", async || cri.remove(id).await).await?;
        }
    }
    if number % 3 != 1 {
        retry::until_answered("stop pod", async || cri.stop_pod(&pod).await).await?;
    }
    retry::until_answered("remove pod", async || cri.remove_pod(&pod).await).await
}

/// Creates and starts a container.
async fn begin(
    cri: &Cri,
    pod: &str,
    config: &cri::ContainerConfig,
    sandbox: &cri::PodSandboxConfig,
) -> Result<String, String> {
    let create = async || retry::create(cri, pod, config, sandbox).await;
    let id = retry::until_answered("create", create).await?;
    retry::until_answered("start", async || retry::start(cri, &id).await).await?;
    Ok(id)
}

/// Runs a container that exits 5 to its end.
async fn job(
    cri: &Cri,
    pod: &str,
    config: &cri::ContainerConfig,
    sandbox: &cri::PodSandboxConfig,
) -> Result<(), String> {
    let id = begin(cri, pod, config, sandbox).await?;
    let ended = retry::until_answered("wait", async || cri.wait_exit(&id).await).await?;
    if ended.exit_code == 5 {
        return Ok(());
    }
    Err(format!(
        "the job in container {id} exited {} ({} {}) instead of 5",
        ended.exit_code, ended.reason, ended.message
    ))
}

/// ExecSync of a program that prints its arguments.
async fn exec(cri: &Cri, id: &str) -> Result<(), tonic::Status> {
    let request = cri::ExecSyncRequest {
        container_id: id.into(),
        cmd: vec!["/tool".into(), "show".into()],
        timeout: 10,
    };
    let reply = cri.runtime.clone().exec_sync(request).await?.into_inner();
    if reply.exit_code == 0 {
        return Ok(());
    }
    let output = String::from_utf8_lossy(&reply.stderr).into_owned();
    Err(tonic::Status::internal(format!(
        "the exec exited {}: {output}",
        reply.exit_code
    )))
}
