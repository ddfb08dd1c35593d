//! Drives one contender: pods one at a time for the times of each call, then many at once for rate and memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::contender::Contender;
use super::memory;
use crate::client::{self, Cri};
use crate::scratch::Scratch;
use crate::{Outcome, cni, log};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Pods that are started and removed one after the other, after a warm-up of a tenth as many.
    pub cycles: usize,
    /// Pods that are alive together.
    pub pods: usize,
    /// How many of them are started at a time.
    pub in_flight: usize,
    /// How long the idle pods are watched.
    pub idle: Duration,
}

impl Plan {
    /// The plan of `make bench`.
    pub const FULL: Self = Self {
        cycles: 60,
        pods: 100,
        in_flight: 8,
        idle: Duration::from_secs(10),
    };
    /// A few pods, to see that everything works.
    pub const QUICK: Self = Self {
        cycles: 5,
        pods: 10,
        in_flight: 4,
        idle: Duration::from_secs(1),
    };
}

/// Everything that is known of one contender afterwards.
#[derive(Clone, Debug)]
pub struct Outcomes {
    /// The contender's name.
    pub name: &'static str,
    /// Times of each step, ms, in the order measured. Keys are those of [`STEPS`].
    pub times_ms: BTreeMap<&'static str, Vec<f64>>,
    /// Where plugins connect pods: how long they take by themselves, ms, ADD and DEL, between the same pods.
    pub plugins_ms: Vec<(f64, f64)>,
    /// Pods started in a second with several in flight.
    pub pods_per_s: f64,
    /// Proportional memory of all processes but the daemon, a pod, KiB.
    pub pss_kib_per_pod: f64,
    /// What the machine's MemAvailable lost, a pod, KiB.
    pub memavailable_kib_per_pod: f64,
    /// Processor time of all processes of the runtime while its pods idle, percent of one core.
    pub idle_cpu_percent: f64,
    /// The daemon's resident memory before the pods, KiB.
    pub daemon_rss_idle_kib: f64,
    /// The daemon's resident memory under the pods, KiB.
    pub daemon_rss_pods_kib: f64,
}

/// The steps whose times are kept: three calls, their sum up to the first log line, and the way back.
pub const STEPS: [&str; 5] = [
    "RunPodSandbox",
    "CreateContainer",
    "StartContainer to first line",
    "whole start",
    "stop and remove",
];

/// One pod as the benchmark makes it.
pub struct Pod {
    sandbox: String,
    container: String,
    times: [Duration; 3],
}

/// What is needed to make pods, shared by those in flight; a clone is the same one.
#[derive(Clone)]
pub struct Maker(Arc<Parts>);

struct Parts {
    cri: Cri,
    image: String,
    handler: &'static str,
    logs: PathBuf,
    cgroup: String,
    made: AtomicUsize,
}

/// Measures a contender. Errors: a call was refused, or a container never printed its line.
pub async fn measure(contender: &dyn Contender, plan: Plan) -> Outcome<Outcomes> {
    let maker = Maker::new(
        contender.cri(),
        contender.image(),
        contender.handler(),
        contender.scratch(),
    );
    let (times_ms, plugins_ms) = measure_calls(contender, &maker, plan).await?;
    settle(plan).await;
    let idle = memory::read(contender.scratch(), contender.daemon_pid());
    let begun = Instant::now();
    let pods = maker.start_many(plan.pods, plan.in_flight).await?;
    let took = begun.elapsed();
    settle(plan).await;
    let full = memory::read(contender.scratch(), contender.daemon_pid());
    let watched = Instant::now();
    tokio::time::sleep(plan.idle).await;
    let later = memory::read(contender.scratch(), contender.daemon_pid());
    let watched = watched.elapsed();
    maker.remove_many(pods, plan.in_flight).await?;
    let a_pod = |before: u64, after: u64| (after as f64 - before as f64) / plan.pods as f64;
    Ok(Outcomes {
        name: contender.name(),
        times_ms,
        plugins_ms,
        pods_per_s: plan.pods as f64 / took.as_secs_f64(),
        pss_kib_per_pod: a_pod(idle.others_pss_kib, full.others_pss_kib),
        memavailable_kib_per_pod: a_pod(full.available_kib, idle.available_kib),
        idle_cpu_percent: later.cpu_ns_since(&full) as f64 / watched.as_nanos() as f64 * 100.0,
        daemon_rss_idle_kib: idle.daemon_rss_kib as f64,
        daemon_rss_pods_kib: full.daemon_rss_kib as f64,
    })
}

/// Times of each step and of plugins (`ADD`, `DEL`) for one pod at a time, milliseconds, after a tenth as many unmeasured pods.
async fn measure_calls(
    contender: &dyn Contender,
    maker: &Maker,
    plan: Plan,
) -> Outcome<(BTreeMap<&'static str, Vec<f64>>, Vec<(f64, f64)>)> {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let mut times_ms: BTreeMap<_, Vec<f64>> =
        STEPS.iter().map(|step| (*step, Vec::new())).collect();
    let mut plugins_ms = Vec::new();
    let unmeasured = plan.cycles.div_ceil(10);
    for round in 0..plan.cycles + unmeasured {
        let times = maker.cycle().await?;
        if round < unmeasured {
            continue;
        }
        if contender.has_plugins() {
            let (added, deleted) = cni::plugin_times(contender.scratch())?;
            plugins_ms.push((ms(added), ms(deleted)));
        }
        for (step, time) in STEPS.iter().zip(times) {
            times_ms.entry(step).or_default().push(ms(time));
        }
    }
    Ok((times_ms, plugins_ms))
}

/// Lets what was begun end before memory is read.
async fn settle(plan: Plan) {
    tokio::time::sleep(plan.idle.min(Duration::from_secs(5))).await;
}

impl Maker {
    /// Makes pods of `image` by `cri`, with their logs and cgroups in `scratch`.
    pub fn new(cri: Cri, image: &str, handler: &'static str, scratch: &Scratch) -> Self {
        Self(Arc::new(Parts {
            cri,
            image: image.to_owned(),
            handler,
            logs: scratch.dir().join("logs"),
            cgroup: format!("{}/pods", scratch.cgroup()),
            made: AtomicUsize::new(0),
        }))
    }

    /// Starts one pod, times each step up to the first log line and their sum, and removes it again.
    /// Errors: a call was refused, or the line never came.
    pub async fn cycle(&self) -> Outcome<[Duration; 5]> {
        let pod = self.start().await?;
        let begun = Instant::now();
        self.remove(&pod).await?;
        let [run, create, start] = pod.times;
        Ok([run, create, start, run + create + start, begun.elapsed()])
    }

    async fn start(&self) -> Outcome<Pod> {
        let own = &self.0;
        let name = format!("bench-{}", own.made.fetch_add(1, Ordering::Relaxed));
        let logs = own.logs.join(&name);
        std::fs::create_dir_all(&logs)?;
        let config = client::pod(&name, &logs, &own.cgroup);
        let workload = client::container("hello", &own.image, &[]);
        let begun = Instant::now();
        let sandbox = own.cri.run_pod_with(&config, own.handler).await?;
        let ran = begun.elapsed();
        let container = own.cri.create(&sandbox, &workload, &config).await?;
        let created = begun.elapsed();
        own.cri.start(&container).await?;
        first_line(&logs.join("hello.log")).await?;
        let times = [ran, created - ran, begun.elapsed() - created];
        Ok(Pod {
            sandbox,
            container,
            times,
        })
    }

    async fn remove(&self, pod: &Pod) -> Outcome<()> {
        let cri = &self.0.cri;
        cri.stop(&pod.container, 0).await?;
        cri.remove(&pod.container).await?;
        cri.stop_pod(&pod.sandbox).await?;
        cri.remove_pod(&pod.sandbox).await?;
        Ok(())
    }

    /// Starts `count` pods, `in_flight` at a time. Errors: as of [`Maker::cycle`].
    pub async fn start_many(&self, count: usize, in_flight: usize) -> Outcome<Vec<Pod>> {
        let left = Arc::new(AtomicUsize::new(count));
        let mut workers = Vec::new();
        for _ in 0..in_flight {
            let (maker, left) = (self.clone(), Arc::clone(&left));
            workers.push(tokio::spawn(async move {
                let mut pods = Vec::new();
                while left
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
                    .is_ok()
                {
                    pods.push(maker.start().await?);
                }
                Outcome::Ok(pods)
            }));
        }
        let mut pods = Vec::new();
        for worker in workers {
            pods.extend(worker.await??);
        }
        Ok(pods)
    }

    /// Stops and removes `pods`, `in_flight` at a time. Errors: a call was refused.
    pub async fn remove_many(&self, mut pods: Vec<Pod>, in_flight: usize) -> Outcome<()> {
        let mut workers = Vec::new();
        let share = pods.len().div_ceil(in_flight);
        while !pods.is_empty() {
            let share = pods.split_off(pods.len().saturating_sub(share));
            let maker = self.clone();
            workers.push(tokio::spawn(async move {
                for pod in share {
                    maker.remove(&pod).await?;
                }
                Outcome::Ok(())
            }));
        }
        for worker in workers {
            worker.await??;
        }
        Ok(())
    }
}

/// Waits for the workload's line. Looks every 50 us at first, since the answer is due within a millisecond.
async fn first_line(path: &Path) -> Outcome<()> {
    for _ in 0..20 {
        let text = std::fs::read(path).unwrap_or_default();
        if text.ends_with(b"hello\n") {
            return Ok(());
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    if log::wait_for(path, "hello\n", client::TIMEOUT).await {
        return Ok(());
    }
    Err(format!("{} never held the workload's line", path.display()).into())
}
