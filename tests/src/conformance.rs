//! Runs critest, the CRI's own conformance suite, against a daemon, with images made here instead of downloaded.
//!
//! ```text
//! images -> registry <-hosts.toml- daemon (Coracle, or containerd to prove the harness) <-CRI- critest -> report
//! ```
//! Called by: the program `conformance`. [`images`] makes what is pulled, [`runtime`] starts who is judged, [`suite`]
//! runs critest and cleans up after it, [`report`] reads its verdict.
//! Invariants: everything lies in a scratch or in a directory of the run's own, and goes when the run ends, mounts that
//! failed specs forgot first; one run at a time, because specs use fixed host ports.
//! Not here: what critest checks.

pub mod images;
pub mod report;
pub mod runtime;
pub mod suite;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::registry::Registry;
use crate::{Outcome, builds, tools};
use report::Report;
use runtime::Judged;

/// Held while critest runs: specs listen on fixed ports of the host.
const LOCK: &str = "/tmp/coracle-conformance.lock";

/// What to run, and on whom.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Only specs whose full name matches; a regular expression of Go.
    pub focus: Option<String>,
    /// Not these; regular expressions of Go.
    pub skip: Vec<String>,
    /// Stream by WebSocket instead of SPDY.
    pub websocket: bool,
    /// Judge containerd and runc instead of Coracle.
    pub peer: bool,
    /// The RuntimeClass handler to ask for; the default one unless set.
    pub handler: Option<String>,
}

/// Builds, starts, runs and cleans up. Errors: a part is missing or does not start; failed specs are in the report.
pub async fn run(plan: &Plan) -> Outcome<Report> {
    let lock = File::create(LOCK)?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let out = builds::target_dir()?.join("conformance");
    fs::create_dir_all(&out)?;
    say("building critest and the images")?;
    let critest = tools::build("critest.sh", &[&images::known_digest()?])?;
    let busybox = tools::build("busybox.sh", &[])?;
    let registry = Registry::start()?;
    images::push_all(registry.host(), &busybox)?;
    let work = suite::Work::new()?;
    write_mirrors(&work.mirrors(), registry.host())?;
    let judged = Judged::start(plan.peer, registry.host(), &work.mirrors()).await?;
    say(&format!(
        "running critest against {}; its words: {}",
        judged.name(),
        out.display()
    ))?;
    let verdict = suite::run(&critest, plan, &judged.socket(), &work, &out).await;
    let log = judged.log();
    let end = judged.finish().await;
    fs::write(out.join("daemon.log"), log)?;
    let left = work.clean_up();
    let mut report = verdict?;
    report.aftermath = end
        .err()
        .into_iter()
        .chain(left.err())
        .map(|error| error.to_string())
        .collect();
    Ok(report)
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

fn say(words: &str) -> Outcome<()> {
    Ok(writeln!(std::io::stderr(), "{words}")?)
}
