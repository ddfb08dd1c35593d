//! What a function costs before its first answer.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::Plan;
use super::load::PATH;
use super::server::{self, Started};
use crate::bench::memory;
use crate::client::Cri;
use crate::daemon::Daemon;
use crate::procs::{self, Process, Role};
use crate::registry::Registry;
use crate::{Outcome, guests};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long to wait before connecting again where nobody listens yet.
const PAUSE: Duration = Duration::from_micros(100);

/// Has a function sleep as soon as possible.
const IDLE: (&str, &str) = ("coracle.dev/idle-seconds", "1");

/// What was measured.
#[derive(Clone, Debug, Default)]
pub struct Cold {
    /// From RunPodSandbox to the end of the first answer, ms, pod by pod.
    pub pod_to_first_200_ms: Vec<f64>,
    /// How much of that was over when StartContainer had its answer, ms, pod by pod.
    pub pod_to_started_ms: Vec<f64>,
    /// From the connection to a sleeping function to the end of its answer, ms, function by function.
    pub wake_ms: Vec<f64>,
    /// The same of one function in Python, wake by wake.
    pub python_wake_ms: Vec<f64>,
    /// Proportional memory of all processes of a sleeping function's pod, KiB.
    pub idle_pss_kib: f64,
    /// How many functions slept for that.
    pub idle_functions: usize,
}

/// Measures everything that is cold. Errors: a call was refused, or no answer came.
pub async fn measure(registry: &Registry, plan: Plan) -> Outcome<Cold> {
    let image = server::function_image(registry)?;
    let daemon = server::daemon(&image).await?;
    let mut cold = Cold::default();
    let unmeasured = plan.first_answers.div_ceil(10);
    for round in 0..plan.first_answers + unmeasured {
        let (started, answered) = first_answer(&daemon, &image, round).await?;
        if round >= unmeasured {
            cold.pod_to_started_ms.push(started.as_secs_f64() * 1e3);
            cold.pod_to_first_200_ms.push(answered.as_secs_f64() * 1e3);
        }
    }
    sleep(&daemon, &image, plan, &mut cold).await?;
    python(registry, &daemon, plan, &mut cold).await?;
    Ok(cold)
}

/// Has many functions sleep, and wakes them one after the other.
async fn sleep(daemon: &Daemon, image: &str, plan: Plan, cold: &mut Cold) -> Outcome<()> {
    let mut functions = Vec::new();
    for number in 0..plan.idle_functions {
        let name = format!("idle-{number}");
        let (at, _) = server::run(daemon, image, &name, &[IDLE]).await?;
        functions.push(at);
    }
    until_all_sleep(daemon, functions.len()).await?;
    let pids = server::pod_pids(daemon.scratch());
    cold.idle_functions = functions.len();
    cold.idle_pss_kib = memory::pss_kib_of(&pids) as f64 / functions.len() as f64;
    for at in functions.into_iter().take(plan.wakes) {
        let begun = Instant::now();
        answered(at)?;
        cold.wake_ms.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    Ok(())
}

/// Has a function in Python sleep and wakes it, time after time.
async fn python(registry: &Registry, daemon: &Daemon, plan: Plan, cold: &mut Cold) -> Outcome<()> {
    let component = guests::python("function", "http-function")?;
    let image = server::image(registry, "bench/python", &component)?;
    daemon.cri().pull(&image).await?;
    let (at, _) = server::run(daemon, &image, "python", &[IDLE]).await?;
    for _ in 0..plan.python_wakes {
        until_all_sleep(daemon, cold.idle_functions + 1).await?;
        let begun = Instant::now();
        answered(at)?;
        cold.python_wake_ms
            .push(begun.elapsed().as_secs_f64() * 1e3);
    }
    Ok(())
}

async fn until_all_sleep(daemon: &Daemon, functions: usize) -> Outcome<()> {
    let end = Instant::now() + PATIENCE;
    while !all_sleep(daemon, functions) {
        if Instant::now() > end {
            return Err("some function never slept".into());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Whether that many functions have nothing left but the process that waits for a call. It says so in its title.
fn all_sleep(daemon: &Daemon, functions: usize) -> bool {
    let processes = procs::with_role(daemon.scratch(), Role::Guest);
    let sleeps = |process: &Process| process.command.contains(" asleep ");
    processes.len() == functions && processes.iter().all(sleeps)
}

/// How long it took until a function's container was started, and until it had answered.
async fn first_answer(daemon: &Daemon, image: &str, round: usize) -> Outcome<(Duration, Duration)> {
    let begun = Instant::now();
    let (at, made) = server::run(daemon, image, &format!("first-{round}"), &[]).await?;
    let started = begun.elapsed();
    answered(at)?;
    let took = begun.elapsed();
    remove(&daemon.cri(), &made).await?;
    Ok((started, took))
}

async fn remove(cri: &Cri, started: &Started) -> Outcome<()> {
    cri.stop(&started.container, 0).await?;
    cri.remove(&started.container).await?;
    cri.stop_pod(&started.pod).await?;
    cri.remove_pod(&started.pod).await?;
    Ok(())
}

/// One request on a connection of its own, made again until somebody listens. Errors: no 200 comes.
fn answered(at: SocketAddr) -> Outcome<()> {
    let end = Instant::now() + PATIENCE;
    let mut stream = loop {
        match TcpStream::connect(at) {
            Ok(stream) => break stream,
            Err(e) if Instant::now() > end => return Err(format!("connect {at}: {e}").into()),
            Err(_) => std::thread::sleep(PAUSE),
        }
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let request = format!("GET {PATH} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    match answer.starts_with(b"HTTP/1.1 200 ") {
        true => Ok(()),
        false => Err(format!("{at} answered {}", String::from_utf8_lossy(&answer)).into()),
    }
}
