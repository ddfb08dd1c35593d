//! `coracle demo`: a daemon, a registry and directories of its own, one pod's whole life, and nothing left of it.
//!
//! Called by: `main`. Calls: `place` (where), `process` and `registry` (who), `story` over `calls` and `log` (what), `leftovers`
//! (what remains). The daemon is this very program, exec'd as a node runs it; the demo knows it only by its socket.
//! Invariant: however the demo ends, by itself, by an error or by Ctrl-C, everything it started is ended, and what would
//! remain is named and makes it fail.
//! Not here: anything of the daemon's insides.

mod calls;
mod error;
mod http;
mod leftovers;
mod log;
mod place;
mod process;
mod registry;
mod story;

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use coracle_proto::runtime::v1::VersionRequest;
use tokio::signal::unix::{Signal, SignalKind, signal};

use calls::{Calls, say};
use error::Error;
use leftovers::Traces;
use place::Place;
use process::Process;
use registry::Registry;

use crate::cli::DemoArgs;

/// The program that is packed as an image.
const GUEST: &str = include_str!("demo/guest.wat");
/// How long the daemon may take to answer.
const START: Duration = Duration::from_secs(10);
/// How long daemon and registry may take to end once told.
const END: Duration = Duration::from_secs(10);
/// How long the removal of a broken-off demo's pods may take.
const UNDO: Duration = Duration::from_secs(10);
/// How long the kernel may take to let go: a veth outlives its namespace by some 60 ms.
const SETTLE: Duration = Duration::from_secs(2);

/// Shows a pod's life. Errors: what did not go as it should, what remains, or the signal that ended it.
pub fn main(arguments: &DemoArgs) -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(run(arguments.keep))?)
}

/// Who plays: the processes that run now.
#[derive(Default)]
struct Cast {
    daemon: Option<Process>,
    registry: Option<Registry>,
    /// Every process group that was started.
    groups: Vec<i32>,
}

async fn run(keep: bool) -> Result<(), Error> {
    let begun = Instant::now();
    let mut told = Told::listen()?;
    let place = Place::take()?;
    let mut cast = Cast::default();
    let shown = tokio::select! {
        shown = show(&place, &mut cast) => shown,
        name = told.by() => Err(Error::new(format!("ended by {name}"))),
    };
    if shown.is_err() {
        complain(&cast);
    }
    let clean = clean_up(&place, cast, shown.is_err()).await;
    let removed = if keep {
        say(format_args!("kept {}", place.directory().display()))
    } else {
        place.remove()
    };
    match (shown, clean.and(removed)) {
        (Ok(()), Ok(())) => {
            let seconds = begun.elapsed().as_secs_f64();
            say(
                "nothing is left: no process, mount, network interface, namespace or cgroup of the demo",
            )?;
            say(format_args!("done in {seconds:.1} s"))
        }
        (Ok(()), Err(problem)) | (Err(problem), Ok(())) => Err(problem),
        (Err(problem), Err(also)) => {
            let _ = writeln!(
                std::io::stderr(),
                "coracle: clean up: {}",
                crate::chain(&also)
            );
            Err(problem)
        }
    }
}

async fn show(place: &Place, cast: &mut Cast) -> Result<(), Error> {
    let begun = Instant::now();
    let registry = cast
        .registry
        .insert(Registry::start(&place.directory().join("registry"))?);
    cast.groups.push(registry.group());
    let daemon = cast.daemon.insert(start_daemon(place)?);
    cast.groups.push(daemon.group());
    let calls = Calls::new(&place.socket());
    wait_for_daemon(&calls, daemon).await?;
    let milliseconds = begun.elapsed().as_secs_f64() * 1e3;
    say(format_args!(
        "daemon     answers after {milliseconds:.0} ms on {}",
        place.socket().display()
    ))?;
    registry.ready().await?;
    say(format_args!(
        "registry   docker-registry on {}",
        registry.host()
    ))?;
    let module =
        wat::parse_str(GUEST).map_err(|error| Error::because("assemble the guest", error))?;
    let image = registry.push("demo/greeter", "1", &module).await?;
    say(format_args!(
        "image      {image}, a Wasm module of {} bytes, packed and pushed\n",
        module.len()
    ))?;
    calls::head()?;
    story::tell(place, &calls, &image).await
}

fn start_daemon(place: &Place) -> Result<Process, Error> {
    let config = place.write_config()?;
    // By the link, not by its name: this very build, even if the file was replaced meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("coracle")
        .arg("serve")
        .arg("--config")
        .arg(config);
    Process::start(
        "coracle serve",
        &mut command,
        &place.directory().join("daemon.log"),
    )
}

async fn wait_for_daemon(calls: &Calls, daemon: &mut Process) -> Result<(), Error> {
    let deadline = Instant::now() + START;
    loop {
        match calls.runtime().version(VersionRequest::default()).await {
            Ok(_) => return Ok(()),
            Err(status) if Instant::now() > deadline => {
                return Err(calls::refused("Version", "", &status));
            }
            Err(_) => daemon.expect_running()?,
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Shows the end of the daemon's log on standard error.
fn complain(cast: &Cast) {
    let tail = cast
        .daemon
        .as_ref()
        .map(Process::log_tail)
        .unwrap_or_default();
    if !tail.is_empty() {
        let _ = writeln!(std::io::stderr(), "the daemon's log ends:\n{tail}");
    }
}

/// Ends all that runs, looks for what is left, and takes that away. Errors: there was something.
async fn clean_up(place: &Place, cast: Cast, is_broken: bool) -> Result<(), Error> {
    let traces = Traces::new(place, cast.groups);
    let mut problems = Vec::new();
    if is_broken && cast.daemon.is_some() {
        let calls = Calls::new(&place.socket());
        if tokio::time::timeout(UNDO, story::undo(&calls))
            .await
            .is_err()
        {
            problems.push(format!("the daemon did not remove the pod within {UNDO:?}"));
        }
    }
    for process in [cast.daemon, cast.registry.map(Registry::into_process)]
        .into_iter()
        .flatten()
    {
        if let Err(error) = process.end(END).await {
            problems.push(error.to_string());
        }
    }
    let deadline = Instant::now() + SETTLE;
    let mut left = traces.find();
    while !left.is_empty() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
        left = traces.find();
    }
    traces.sweep();
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
struct Told {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Told {
    /// From now on these signals no longer kill this process. Errors: the kernel's.
    fn listen() -> Result<Told, Error> {
        let listen =
            |kind| signal(kind).map_err(|error| Error::because("listen for signals", error));
        Ok(Told {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for one. Gives its name.
    async fn by(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}
