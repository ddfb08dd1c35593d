//! Scale: what a pod costs while many others live, on one daemon, from none to thousands and back.
//!
//! Called by: `make bench-scale`. Drives the same pods as [`crate::bench`], with figures that a busy machine moves little
//! (processor time by process, [`cpu`]) beside those that a kubelet feels.
//! Not here: peers. None of them holds so many pods on a machine of this size.

pub mod cpu;
pub mod report;
pub mod scrape;

use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;

use self::cpu::Cpu;
use crate::Outcome;
use crate::bench::measure::{Maker, Pod};
use crate::bench::memory;
use crate::client::Cri;
use crate::daemon::{Daemon, Options};
use crate::vitals::Vitals;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Pods that are alive at the most.
    pub pods: usize,
    /// The first of them, whose rate and cost are what the others are held to.
    pub first: usize,
    /// How many are started and removed at a time.
    pub in_flight: usize,
    /// Pods that are started and removed one after the other, at none and at all alive.
    pub cycles: usize,
    /// How often each list and each statistic is asked for.
    pub calls: usize,
    /// How long to wait for the kernel before memory is read.
    pub settle: Duration,
}

impl Plan {
    /// The plan of `make bench-scale`, for this many pods.
    pub fn of(pods: usize) -> Self {
        Self {
            pods,
            first: pods.min(100),
            in_flight: 8,
            cycles: 60,
            calls: 20,
            settle: Duration::from_secs(5),
        }
    }
}

/// Times of one pod at a time, ms: RunPodSandbox, CreateContainer, StartContainer to the first line, and the way back.
#[derive(Clone, Debug, Default)]
pub struct Cycles {
    /// The three calls and the removal.
    pub steps: [Vec<f64>; 4],
    /// The three calls together.
    pub whole: Vec<f64>,
}

/// What was measured.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// How many pods were alive at the most.
    pub pods: usize,
    /// One at a time beside none.
    pub at_none: Cycles,
    /// One at a time beside all.
    pub at_all: Cycles,
    /// Pods started in a second: the first of them, and all.
    pub pods_per_s: [f64; 2],
    /// Processor time of the machine for each pod: the first of them, and all.
    pub cpu: [Cpu; 2],
    /// What MemAvailable lost for each pod, KiB.
    pub memavailable_kib_per_pod: f64,
    /// The daemon's resident memory without pods, with all, and after them, KiB.
    pub daemon_rss_kib: [u64; 3],
    /// ListPodSandbox and ListContainers, ms.
    pub lists_ms: Vec<f64>,
    /// ListContainerStats, ms.
    pub container_stats_ms: Vec<f64>,
    /// ListPodSandboxStats, ms.
    pub sandbox_stats_ms: Vec<f64>,
    /// A scrape of all.
    pub scrape: scrape::Scrape,
    /// From the start of a daemon after kill -9 until it answers, ms.
    pub restart_ms: f64,
    /// Until all pods were stopped and removed, s.
    pub remove_all_s: f64,
}

/// Measures a daemon of its own. Errors: a call was refused, or a container never printed its line.
pub async fn measure(image: &str, plan: Plan) -> Outcome<Figures> {
    let mut daemon = daemon(image).await?;
    let maker = Maker::new(daemon.cri(), image, "", daemon.scratch());
    let mut figures = Figures {
        pods: plan.pods,
        at_none: cycles(&maker, plan).await?,
        ..Figures::default()
    };
    tokio::time::sleep(plan.settle).await;
    figures.daemon_rss_kib[0] = Vitals::of(daemon.pid())?.rss_kib;
    let available = memory::available_kib();
    let pods = start(&daemon, &maker, plan, &mut figures).await?;
    tokio::time::sleep(plan.settle).await;
    figures.daemon_rss_kib[1] = Vitals::of(daemon.pid())?.rss_kib;
    let lost = available.saturating_sub(memory::available_kib());
    figures.memavailable_kib_per_pod = lost as f64 / plan.pods as f64;
    figures.at_all = cycles(&maker, plan).await?;
    ask(&daemon.cri(), plan, &mut figures).await?;
    figures.scrape = scrape::measure(&daemon).await?;
    daemon.kill();
    let begun = Instant::now();
    daemon.restart().await?;
    figures.restart_ms = ms(begun.elapsed());
    let begun = Instant::now();
    maker.remove_many(pods, plan.in_flight).await?;
    figures.remove_all_s = begun.elapsed().as_secs_f64();
    tokio::time::sleep(2 * plan.settle).await;
    figures.daemon_rss_kib[2] = Vitals::of(daemon.pid())?.rss_kib;
    daemon.finish().await?;
    Ok(figures)
}

async fn daemon(image: &str) -> Outcome<Daemon> {
    let daemon = Daemon::start_with(Options {
        quiet: true,
        many_pods: true,
        // The log says at which port it listens.
        config: "[metrics]\naddress = \"127.0.0.1:0\"\n\
                 [log.targets]\n\"coracle::metrics\" = \"info\"\n"
            .into(),
        ..Options::default()
    })
    .await?;
    daemon.cri().pull(image).await?;
    Ok(daemon)
}

/// Starts all pods, several at a time.
async fn start(
    daemon: &Daemon,
    maker: &Maker,
    plan: Plan,
    figures: &mut Figures,
) -> Outcome<Vec<Pod>> {
    let before = cpu::Reading::now(daemon);
    let begun = Instant::now();
    let mut pods = maker.start_many(plan.first, plan.in_flight).await?;
    let (took, first) = (begun.elapsed(), cpu::Reading::now(daemon));
    figures.pods_per_s[0] = plan.first as f64 / took.as_secs_f64();
    figures.cpu[0] = first.since(&before, plan.first);
    let begun = Instant::now();
    let others = plan.pods - plan.first;
    pods.extend(maker.start_many(others, plan.in_flight).await?);
    let took = took + begun.elapsed();
    figures.pods_per_s[1] = plan.pods as f64 / took.as_secs_f64();
    figures.cpu[1] = cpu::Reading::now(daemon).since(&before, plan.pods);
    Ok(pods)
}

async fn cycles(maker: &Maker, plan: Plan) -> Outcome<Cycles> {
    let mut cycles = Cycles::default();
    let unmeasured = plan.cycles.div_ceil(10);
    for round in 0..plan.cycles + unmeasured {
        let [run, create, start, whole, removed] = maker.cycle().await?;
        if round < unmeasured {
            continue;
        }
        for (all, one) in cycles.steps.iter_mut().zip([run, create, start, removed]) {
            all.push(ms(one));
        }
        cycles.whole.push(ms(whole));
    }
    Ok(cycles)
}

/// Asks for everything that a kubelet asks for all pods at once.
async fn ask(cri: &Cri, plan: Plan, figures: &mut Figures) -> Outcome<()> {
    for _ in 0..plan.calls {
        let begun = Instant::now();
        cri.list_pods(None).await?;
        figures.lists_ms.push(ms(begun.elapsed()));
        let begun = Instant::now();
        cri.list(None).await?;
        figures.lists_ms.push(ms(begun.elapsed()));
    }
    // Each of these is far apart enough that it cannot be the answer to the one before.
    for _ in 0..plan.calls.div_ceil(4) {
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        let begun = Instant::now();
        let request = cri::ListContainerStatsRequest::default();
        cri.runtime.clone().list_container_stats(request).await?;
        figures.container_stats_ms.push(ms(begun.elapsed()));
        let begun = Instant::now();
        let request = cri::ListPodSandboxStatsRequest::default();
        cri.runtime.clone().list_pod_sandbox_stats(request).await?;
        figures.sandbox_stats_ms.push(ms(begun.elapsed()));
    }
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
