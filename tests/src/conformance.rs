//! Runs critest, the CRI's own conformance suite, against a daemon, with images made here instead of downloaded.
//!
//! ```text
//! images -> registry <-hosts.toml- daemon (Coracle, or containerd to prove the harness) <-CRI- critest -> report
//! ```
//! Called by: the program `conformance`. [`images`] makes the images, [`runtime`] starts the runtime, [`suite`] runs
//! critest and cleans up after it, [`report`] reads its report, [`wasm`] lists what WebAssembly cannot do.
//! Invariants: everything lies in a scratch or in a directory of the run's own, and goes when the run ends, mounts that
//! failed specs forgot first; one run at a time, because specs use fixed host ports.
//! Not here: what critest checks.

pub mod images;
pub mod report;
pub mod runtime;
pub mod suite;
pub mod wasm;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::registry::Registry;
use crate::{Outcome, builds, tools};
use report::Report;
use runtime::Runtime;

/// Held while critest runs: specs listen on fixed ports of the host.
const LOCK: &str = "/tmp/coracle-conformance.lock";

/// The protocol of exec, attach and port-forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// SPDY/3.1.
    Spdy,
    /// WebSocket.
    WebSocket,
}

impl Transport {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Spdy, Self::WebSocket];

    /// For messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Spdy => "SPDY",
            Self::WebSocket => "WebSocket",
        }
    }
}

/// What to run, and against which runtime.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Only specs whose full name matches; a regular expression of Go.
    pub focus: Option<String>,
    /// Not these; regular expressions of Go.
    pub skip: Vec<String>,
    /// How to stream: critest runs once for each.
    pub transports: Vec<Transport>,
    /// Test containerd and runc instead of Coracle.
    pub peer: bool,
    /// The RuntimeClass handler of pods; the default one unless set.
    pub handler: Option<String>,
}

impl Plan {
    /// Whether the images are to hold WebAssembly.
    pub fn is_wasm(&self) -> bool {
        self.handler
            .as_deref()
            .is_some_and(|handler| handler != "coracle")
    }
}

/// Builds, starts, runs once for each transport and cleans up; a report each, what is left in the last.
/// Errors: a part is missing or does not start; failed specs are in the reports.
pub async fn run(plan: &Plan) -> Outcome<Vec<Report>> {
    let lock = File::create(LOCK)?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let out = builds::target_dir()?.join("conformance");
    fs::create_dir_all(&out)?;
    say("building critest and the images")?;
    let critest = tools::build("critest.sh", &[&images::known_digest()?])?;
    let registry = Registry::start()?;
    if plan.is_wasm() {
        images::push_all(registry.host(), images::Look::Wasm)?;
    } else {
        let busybox = tools::build("busybox.sh", &[])?;
        images::push_all(registry.host(), images::Look::Linux(&busybox))?;
    }
    let work = suite::Work::new()?;
    write_mirrors(&work.mirrors(), registry.host())?;
    let runtime = Runtime::start(plan.peer, registry.host(), &work.mirrors()).await?;
    say(&format!(
        "running critest against {}; its output: {}",
        runtime.name(),
        out.display()
    ))?;
    let place = suite::Place {
        critest: &critest,
        socket: &runtime.socket(),
        work: &work,
        out: &out,
    };
    let reports = run_all(plan, &place).await;
    let log = runtime.log();
    let end = runtime.finish().await;
    fs::write(out.join("daemon.log"), log)?;
    let left = work.clean_up();
    let mut reports = reports?;
    let aftermath = end.err().into_iter().chain(left.err());
    if let Some(last) = reports.last_mut() {
        last.aftermath = aftermath.map(|error| error.to_string()).collect();
    }
    Ok(reports)
}

/// Runs critest once for each transport; stops at the first run that fails to give a report.
async fn run_all(plan: &Plan, place: &suite::Place<'_>) -> Outcome<Vec<Report>> {
    let mut reports = Vec::new();
    for transport in &plan.transports {
        reports.push(place.run(plan, *transport).await?);
    }
    Ok(reports)
}

/// One file a host, all for the one registry that stands in for them.
fn write_mirrors(dir: &Path, registry: &str) -> Outcome<()> {
    for host in images::HOSTS {
        fs::create_dir_all(dir.join(host))?;
        let text = format!(
            "server = \"https://{host}\"\n\n[host.\"http://{registry}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
        );
        fs::write(dir.join(host).join("hosts.toml"), text)?;
    }
    Ok(())
}

fn say(args: &str) -> Outcome<()> {
    Ok(writeln!(std::io::stderr(), "{args}")?)
}
