//! What runs in the machine: a daemon on the surviving disk. It is compared with what a client saw before the cut; then pods
//! are created and removed until the next cut.
//!
//! Called by: `power guest ORDER`. Writes each result to standard output, one line each, with the time.
//! Invariant: a result is written only after the daemon has returned it.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;
use cri::ContainerState::{ContainerExited, ContainerUnknown};

use super::MARK;
use super::churn::{Addresses, Worker};
use crate::Outcome;
use crate::builds::binary;
use crate::client::{self, Cri};

/// Where the disk is mounted, and what lies there.
const DISK: &str = "/power";
const ROOT: &str = "/power/root";
/// Each job adds a line to its file here, synced, whenever it runs.
const RUNS: &str = "/power/runs";
const RUN: &str = "/run/power";
const LOG: &str = "/run/power.log";
/// Pods at a time.
pub(super) const WORKERS: usize = 3;
/// How often the guest prints the time.
const BEAT: Duration = Duration::from_millis(50);

/// What the host has written for this boot.
#[derive(Default)]
pub(super) struct Order {
    pub(super) cut: String,
    last: bool,
    registry: (String, String),
    pub(super) offers: Vec<String>,
    exited: Vec<(String, i32, String)>,
    images: Vec<String>,
    gone: Vec<String>,
}

impl Order {
    fn read(path: &Path) -> Outcome<Self> {
        let mut order = Self::default();
        for line in fs::read_to_string(path)?.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            match fields[..] {
                ["cut", number] => order.cut = number.to_owned(),
                ["last"] => order.last = true,
                ["registry", host, storage] => order.registry = (host.into(), storage.into()),
                ["offer", image] => order.offers.push(image.to_owned()),
                ["exited", container, code, job] => {
                    let exit = (container.to_owned(), code.parse()?, job.to_owned());
                    order.exited.push(exit);
                }
                ["image", image] => order.images.push(image.to_owned()),
                ["gone", pod] => order.gone.push(pod.to_owned()),
                _ => return Err(format!("unknown line in the order: {line}").into()),
            }
        }
        Ok(order)
    }
}

/// Writes lines to the console, which the host reads.
#[derive(Clone, Copy)]
pub(super) struct Voice(Instant);

impl Voice {
    pub(super) fn say(self, text: &str) {
        let line = format!("{MARK}{} {text}\n", self.0.elapsed().as_millis());
        // One write, so that lines of several threads do not mix.
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
    }
}

impl Voice {
    /// Writes what is about to be done, and waits until the host has read it.
    pub(super) async fn announce(self, text: &str) {
        self.say(text);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Carries out the order until the power goes, or, the last time, to the end.
pub fn main(order: &Path) -> Outcome<()> {
    let voice = Voice(Instant::now());
    let order = Order::read(order)?;
    std::thread::spawn(move || {
        loop {
            voice.say("now");
            std::thread::sleep(BEAT);
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    if let Err(why) = local.block_on(&runtime, act(voice, order)) {
        let log = fs::read_to_string(LOG).unwrap_or_default();
        for line in log.lines().rev().take(40).collect::<Vec<_>>().iter().rev() {
            println_raw(line);
        }
        voice.say(&format!("broken {}", why.to_string().replace('\n', "; ")));
    }
    Ok(())
}

fn println_raw(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

async fn act(voice: Voice, order: Order) -> Outcome<()> {
    fs::create_dir_all(DISK)?;
    run("busybox", &["mount", "-t", "ext4", "/dev/vdc", DISK])?;
    fs::create_dir_all(RUNS)?;
    let mut registry = registry(&order)?;
    voice.say("starting");
    let mut daemon = daemon()?;
    let cri = Cri::new(Path::new("/run/power/coracle.sock"));
    cri.wait_ready(Duration::from_secs(120)).await?;
    let order = Arc::new(order);
    verify(&cri, &order).await?;
    voice.say(&format!(
        "verified {} {} {}",
        order.exited.len(),
        order.images.len(),
        order.gone.len()
    ));
    voice.announce("clearing").await;
    clear(&cri).await?;
    if order.last {
        stop(&mut daemon)?;
        let _ = registry.kill();
        let _ = registry.wait();
        run("busybox", &["umount", DISK])?;
        run("e2fsck", &["-fn", "/dev/vdc"])?;
        voice.say("done");
        return Ok(());
    }
    voice.say("churning");
    churn(&cri, voice, &order).await
}

/// Runs and removes pods until the power goes.
async fn churn(cri: &Cri, voice: Voice, order: &Arc<Order>) -> Outcome<()> {
    let addresses = Addresses::default();
    let mut workers = tokio::task::JoinSet::new();
    for number in 0..WORKERS {
        let worker = Worker {
            cri: cri.clone(),
            voice,
            order: Arc::clone(order),
            addresses: addresses.clone(),
            number,
        };
        workers.spawn_local(worker.churn());
    }
    while let Some(ended) = workers.join_next().await {
        ended?.map_err(|why| format!("churn: {why}"))?;
    }
    Ok(())
}

fn run(program: &str, arguments: &[&str]) -> Outcome<()> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        let printed = String::from_utf8_lossy(&output.stdout);
        let complaint = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{program} {arguments:?}: {printed}{complaint}").into());
    }
    Ok(())
}

/// A registry that reads the content of the host's.
fn registry(order: &Order) -> Outcome<Child> {
    let (host, storage) = &order.registry;
    let config = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: /host{storage}}}, \
         maintenance: {{readonly: {{enabled: true}}}}}}\nhttp: {{addr: {host}}}\n"
    );
    fs::write("/run/registry.yml", config)?;
    let mut command = Command::new("docker-registry");
    command.args(["serve", "/run/registry.yml"]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    Ok(command.stderr(Stdio::null()).spawn()?)
}

fn daemon() -> Outcome<Child> {
    let config = format!(
        "root = \"{ROOT}\"\nrun = \"{RUN}\"\nsocket = \"{RUN}/coracle.sock\"\n[log]\nlevel = \"info\"\n\
         [cgroup]\ndriver = \"cgroupfs\"\npod_parent = \"/power\"\n[sandbox]\npod_logs_dir = \"{DISK}/logs\"\n"
    );
    fs::create_dir_all("/power/logs")?;
    fs::write("/run/power.toml", config)?;
    let log = fs::File::create(LOG)?;
    let mut command = Command::new(binary()?);
    command.args(["serve", "--config", "/run/power.toml"]);
    command.stdin(Stdio::null()).stdout(log.try_clone()?);
    Ok(command.stderr(log).spawn()?)
}

/// Drains the daemon. Errors: it did not exit with success.
fn stop(daemon: &mut Child) -> Outcome<()> {
    let pid = rustix::process::Pid::from_child(daemon);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    let status = daemon.wait()?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("the daemon ended with {status}").into()),
    }
}

/// Everything that a client saw a second before the cut is there, and no record is damaged.
async fn verify(cri: &Cri, order: &Order) -> Outcome<()> {
    verify_files()?;
    verify_pods(cri, order).await?;
    for (container, code, job) in &order.exited {
        verify_exit(cri, container, *code, job).await?;
    }
    for image in &order.images {
        if cri.image(image).await?.is_none() {
            return Err(format!("image {image} was pulled and is gone").into());
        }
    }
    let Some(image) = order.images.last() else {
        return Ok(());
    };
    let name = format!("verify-{}", order.cut);
    let (pod, config) = sandbox(cri, &name).await?;
    let container = container(&name, image, "exit 3");
    let id = cri.create_started(&pod, &container, &config).await?;
    match cri.wait_exit(&id).await?.exit_code {
        3 => Ok(()),
        code => Err(format!("a container of image {image} exited {code}").into()),
    }
}

/// Nothing was set aside as damaged.
fn verify_files() -> Outcome<()> {
    for directory in ["quarantine", "images"] {
        let entries = fs::read_dir(Path::new(ROOT).join(directory));
        for entry in entries.into_iter().flatten() {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if directory == "quarantine" || name.contains("damaged") {
                return Err(format!("torn: {directory}/{name}").into());
            }
        }
    }
    Ok(())
}

/// All pods and containers can be read, and removed pods stay removed.
async fn verify_pods(cri: &Cri, order: &Order) -> Outcome<()> {
    for pod in &cri.list_pods(None).await? {
        if let Some(why) = pod.annotations.get("state.coracle.dev/unreadable") {
            return Err(format!("sandbox {} is not readable: {why}", pod.id).into());
        }
        if order.gone.contains(&pod.id) {
            return Err(format!("sandbox {} was removed and is back", pod.id).into());
        }
    }
    for container in cri.list(None).await? {
        if container.state() == ContainerUnknown {
            return Err(format!("container {} is not readable", container.id).into());
        }
    }
    Ok(())
}

/// A finished job has its exit code and ran once.
async fn verify_exit(cri: &Cri, container: &str, code: i32, job: &str) -> Outcome<()> {
    let status = cri.status(container).await;
    let status = status.map_err(|error| format!("job {job} ({container}): {error}"))?;
    let is = (status.state(), status.exit_code);
    if is != (ContainerExited, code) {
        return Err(format!("job {job} ({container}) exited {code}, is {is:?}").into());
    }
    let runs = fs::read_to_string(Path::new(RUNS).join(job)).unwrap_or_default();
    if runs != "run\n" {
        return Err(format!("job {job} ran like this: {runs:?}").into());
    }
    Ok(())
}

/// Removes all pods; nothing of them is left.
async fn clear(cri: &Cri) -> Outcome<()> {
    cri.remove_all_pods().await?;
    let places = [
        "/power/root/pods",
        "/power/root/trash",
        "/run/power/pods",
        "/run/power/netns",
    ];
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let mut left = Vec::new();
        for place in places {
            for entry in fs::read_dir(place).into_iter().flatten() {
                left.push(entry?.path().display().to_string());
            }
        }
        for entry in fs::read_dir("/run/power/leases").into_iter().flatten() {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if !name.starts_with('.') {
                left.push(format!("lease {name}"));
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("left after everything was removed: {left:?}").into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(super) async fn sandbox(cri: &Cri, name: &str) -> Outcome<(String, cri::PodSandboxConfig)> {
    let logs = Path::new("/power/logs").join(name);
    fs::create_dir_all(&logs)?;
    let config = client::pod(name, &logs, "");
    Ok((cri.run_pod(&config).await?, config))
}

pub(super) fn container(name: &str, image: &str, script: &str) -> cri::ContainerConfig {
    let mut container = client::container(name, image, &["sh", "-c", script]);
    container.mounts.push(cri::Mount {
        container_path: "/runs".into(),
        host_path: RUNS.into(),
        ..Default::default()
    });
    container
}
