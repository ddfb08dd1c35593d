//! `coracle demo`: starts a daemon and a registry in directories of its own, runs one pod, and checks that nothing is
//! left.
//!
//! Called by: the binary. Calls: `scratch` (directory and names), `process` and `registry` (what it starts), `steps` with
//! `timed_calls` and `log` (the pod's life), `leak_check` (what is left). The daemon is this very program, executed as
//! on a node; the demo uses only its socket.
//! Invariant: however the demo ends (normally, with an error, by Ctrl-C), every process that it started is ended;
//! anything that is left is named and makes the demo fail.
//! Must not know: the daemon's internals.

mod error;
mod http;
mod leak_check;
mod log;
mod process;
mod registry;
mod scratch;
mod steps;
#[cfg(test)]
#[path = "../../src/scratch.rs"]
mod test_scratch;
mod timed_calls;

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use coracle_proto::runtime::v1::VersionRequest;
use coracle_spec::error::chain;
use tokio::signal::unix::{Signal, SignalKind, signal};

use error::Error;
use leak_check::LeakCheck;
use process::Process;
use registry::Registry;
use scratch::Scratch;
use timed_calls::{Calls, print_line};

/// The module that is packed as an image.
const GUEST: &str = include_str!("guest.wat");
/// How long the daemon may take to answer.
const START: Duration = Duration::from_secs(10);
/// How long daemon and registry may take to end after SIGTERM.
const END: Duration = Duration::from_secs(10);
/// How long the removal of pods may take after a failed demo.
const UNDO_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the kernel may take to release objects: a veth outlives its namespace by some 60 ms.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs the demo; `keep`s its directories. Errors: the step that failed, what is left, or the signal that ended it.
pub fn main(keep: bool) -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(run(keep))?)
}

/// The processes that the demo started.
#[derive(Default)]
struct Started {
    daemon: Option<Process>,
    registry: Option<Registry>,
    /// All process groups that were started.
    groups: Vec<i32>,
}

async fn run(keep: bool) -> Result<(), Error> {
    let begun = Instant::now();
    let mut signals = Signals::listen()?;
    leak_check::adopt_orphans()?;
    let scratch = Scratch::take()?;
    let mut started = Started::default();
    let shown = tokio::select! {
        shown = show(&scratch, &mut started) => shown,
        name = signals.recv() => Err(Error::new(format!("ended by {name}"))),
    };
    if shown.is_err() {
        print_daemon_log(&started);
    }
    let clean = clean_up(&scratch, started, shown.is_err()).await;
    let removed = if keep {
        print_line(format_args!("kept {}", scratch.directory().display()))
    } else {
        scratch.remove()
    };
    match (shown, clean.and(removed)) {
        (Ok(()), Ok(())) => {
            let seconds = begun.elapsed().as_secs_f64();
            print_line(
                "nothing is left: no process, mount, network interface, namespace or cgroup of the demo",
            )?;
            print_line(format_args!("done in {seconds:.1} s"))
        }
        (Ok(()), Err(problem)) | (Err(problem), Ok(())) => Err(problem),
        (Err(problem), Err(also)) => {
            let _ = writeln!(std::io::stderr(), "coracle: clean up: {}", chain(&also));
            Err(problem)
        }
    }
}

async fn show(scratch: &Scratch, started: &mut Started) -> Result<(), Error> {
    let begun = Instant::now();
    let registry = started
        .registry
        .insert(Registry::start(&scratch.directory().join("registry"))?);
    started.groups.push(registry.group());
    let daemon = started.daemon.insert(start_daemon(scratch)?);
    started.groups.push(daemon.group());
    let calls = Calls::new(&scratch.socket());
    wait_for_daemon(&calls, daemon).await?;
    let milliseconds = begun.elapsed().as_secs_f64() * 1e3;
    print_line(format_args!(
        "daemon     answers after {milliseconds:.0} ms on {}",
        scratch.socket().display()
    ))?;
    registry.ready().await?;
    print_line(format_args!(
        "registry   docker-registry on {}",
        registry.host()
    ))?;
    let module =
        wat::parse_str(GUEST).map_err(|error| Error::because("assemble the guest", error))?;
    let image = registry.push("demo/greeter", "1", &module).await?;
    print_line(format_args!(
        "image      {image}, a Wasm module of {} bytes, packed and pushed\n",
        module.len()
    ))?;
    timed_calls::head()?;
    steps::run(scratch, &calls, &image).await
}

fn start_daemon(scratch: &Scratch) -> Result<Process, Error> {
    let config = scratch.write_config()?;
    // By the link, not by its path: this very build, even if the file was replaced meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("coracle")
        .arg("serve")
        .arg("--config")
        .arg(config);
    Process::start(
        "coracle serve",
        &mut command,
        &scratch.directory().join("daemon.log"),
    )
}

async fn wait_for_daemon(calls: &Calls, daemon: &mut Process) -> Result<(), Error> {
    let deadline = Instant::now() + START;
    loop {
        match calls.runtime().version(VersionRequest::default()).await {
            Ok(_) => return Ok(()),
            Err(status) if Instant::now() > deadline => {
                return Err(timed_calls::refused("Version", "", &status));
            }
            Err(_) => daemon.expect_running()?,
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Prints the end of the daemon's log to standard error.
fn print_daemon_log(started: &Started) {
    let tail = started
        .daemon
        .as_ref()
        .map(Process::log_tail)
        .unwrap_or_default();
    if !tail.is_empty() {
        let _ = writeln!(std::io::stderr(), "the daemon's log ends:\n{tail}");
    }
}

/// Ends all processes, looks for what is left, and removes that. Errors: something was left.
async fn clean_up(scratch: &Scratch, started: Started, is_broken: bool) -> Result<(), Error> {
    let leaks = LeakCheck::new(scratch, started.groups);
    let mut problems = Vec::new();
    if is_broken && started.daemon.is_some() {
        let calls = Calls::new(&scratch.socket());
        if tokio::time::timeout(UNDO_TIMEOUT, steps::undo(&calls))
            .await
            .is_err()
        {
            problems.push(format!(
                "the daemon did not remove the pod within {UNDO_TIMEOUT:?}"
            ));
        }
    }
    for process in [started.daemon, started.registry.map(Registry::into_process)]
        .into_iter()
        .flatten()
    {
        if let Err(error) = process.end(END).await {
            problems.push(error.to_string());
        }
    }
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    let mut left = leaks.find();
    while !left.is_empty() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
        left = leaks.find();
    }
    leaks.sweep();
    problems.extend(
        left.iter()
            .map(|line| format!("left behind, and removed now: {line}")),
    );
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Error::new(problems.join("\n    ")))
    }
}

/// The signals that end a demo early.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// From here on these signals no longer kill this process. Errors: the kernel's.
    fn listen() -> Result<Signals, Error> {
        let listen =
            |kind| signal(kind).map_err(|error| Error::because("listen for signals", error));
        Ok(Signals {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for a signal; returns its name.
    async fn recv(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}
