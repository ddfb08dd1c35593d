//! Runs critest and takes away what its specs leave on the machine.
//!
//! Invariants: nothing is deleted below a directory in which something is still mounted, because a spec that failed may
//! have left the host's /etc there; shared memory and cgroups are removed only if this run made them.
//! Not here: the runtime's own leftovers, which its harness looks for.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};

use super::report::Report;
use super::{Plan, Transport};
use crate::{Outcome, scratch};

/// Critest gives up by itself after this; a run takes two minutes.
const DEADLINE: &str = "20m";
/// The cgroup in which critest puts pods when the runtime does not report its driver.
const CRITEST_CGROUP: &str = "test.slice";

/// The directory of one run, and the machine as it was before.
#[derive(Debug)]
pub struct Work {
    dir: PathBuf,
    segments: BTreeSet<String>,
    had_cgroup: bool,
}

impl Work {
    /// Makes the directory and looks at the machine.
    pub fn new() -> Outcome<Self> {
        let dir = PathBuf::from(format!("/tmp/coracle-conformance-{}", std::process::id()));
        fs::create_dir_all(dir.join("tmp"))?;
        fs::create_dir_all(dir.join("certs.d"))?;
        Ok(Self {
            dir,
            segments: memory_segments(),
            had_cgroup: critest_cgroups().next().is_some(),
        })
    }

    /// Where the `hosts.toml` files go.
    pub fn mirrors(&self) -> PathBuf {
        self.dir.join("certs.d")
    }

    /// Critest's TMPDIR.
    fn tmp(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    /// Removes everything. Errors: a mount stays, with where it is.
    pub fn clean_up(self) -> Outcome<()> {
        for segment in memory_segments().difference(&self.segments) {
            let _ = std::process::Command::new("ipcrm")
                .args(["-m", segment])
                .status();
        }
        if !self.had_cgroup {
            for dir in critest_cgroups() {
                scratch::remove_cgroups(&dir);
            }
        }
        for mount in self.mounts().iter().rev() {
            let _ = unmount(mount, UnmountFlags::DETACH);
        }
        let left = self.mounts();
        if !left.is_empty() {
            return Err(format!("still mounted, so {} stays: {left:?}", self.dir.display()).into());
        }
        Ok(fs::remove_dir_all(&self.dir)?)
    }

    /// Mount points below the directory, in mount order.
    fn mounts(&self) -> Vec<String> {
        scratch::mounts_below(&self.dir)
    }
}

/// What critest is run with.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The program.
    pub critest: &'a Path,
    /// The CRI socket of who is judged.
    pub socket: &'a Path,
    /// The run's directory.
    pub work: &'a Work,
    /// Where critest's words and its report go, in files named after the transport.
    pub out: &'a Path,
}

impl Place<'_> {
    /// Runs critest to its end. Errors: it wrote no report.
    pub async fn run(&self, plan: &Plan, transport: Transport) -> Outcome<Report> {
        let name = transport.name().to_lowercase();
        let json = self.out.join(format!("report-{name}.json"));
        let _ = fs::remove_file(&json);
        let log = File::create(self.out.join(format!("critest-{name}.log")))?;
        let mut child = tokio::process::Command::new(self.critest)
            .args(arguments(plan, transport, self.socket, &json))
            .current_dir(&self.work.dir)
            .env("TMPDIR", self.work.tmp())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        tokio::select! {
            status = child.wait() => {
                let text = fs::read(&json).map_err(|error| format!("critest ({}) wrote no report: {error}", match status {
                    Ok(status) => status.to_string(),
                    Err(error) => error.to_string(),
                }))?;
                Report::parse(&text)
            }
            _ = tokio::signal::ctrl_c() => {
                child.start_kill()?;
                tokio::time::timeout(Duration::from_secs(5), child.wait()).await??;
                Err("interrupted".into())
            }
        }
    }
}

fn arguments(plan: &Plan, transport: Transport, socket: &Path, json: &Path) -> Vec<String> {
    let endpoint = format!("unix://{}", socket.display());
    let mut args = vec![
        "-config=/nonexistent".to_owned(),
        format!("-runtime-endpoint={endpoint}"),
        format!("-image-endpoint={endpoint}"),
        format!("-ginkgo.json-report={}", json.display()),
        format!("-ginkgo.timeout={DEADLINE}"),
        "-ginkgo.no-color".to_owned(),
    ];
    args.extend(
        plan.focus
            .iter()
            .map(|focus| format!("-ginkgo.focus={focus}")),
    );
    args.extend(plan.skip.iter().map(|skip| format!("-ginkgo.skip={skip}")));
    args.extend(
        plan.handler
            .iter()
            .map(|handler| format!("-runtime-handler={handler}")),
    );
    if transport == Transport::WebSocket {
        let flags = ["exec", "attach", "portforward"];
        args.extend(flags.map(|name| format!("-websocket-{name}")));
    }
    args
}

/// Ids of the machine's System V shared memory segments that nobody has attached.
fn memory_segments() -> BTreeSet<String> {
    let table = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    let idle = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.get(6) == Some(&"0")).then(|| fields[1].to_owned())
    };
    table.lines().skip(1).filter_map(idle).collect()
}

/// The directories of critest's own cgroup, in every hierarchy that has it.
fn critest_cgroups() -> impl Iterator<Item = PathBuf> {
    scratch::hierarchies()
        .into_iter()
        .map(|root| root.join(CRITEST_CGROUP))
        .filter(|dir| dir.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_becomes_critests_own_flags() {
        let plan = Plan {
            focus: Some("Pod".into()),
            skip: vec!["a".into(), "b".into()],
            ..Plan::default()
        };
        let args = arguments(
            &plan,
            Transport::WebSocket,
            Path::new("/run/x.sock"),
            Path::new("/r.json"),
        );
        for arg in [
            "-runtime-endpoint=unix:///run/x.sock",
            "-image-endpoint=unix:///run/x.sock",
            "-ginkgo.json-report=/r.json",
            "-ginkgo.focus=Pod",
            "-ginkgo.skip=a",
            "-ginkgo.skip=b",
            "-websocket-attach",
        ] {
            assert!(
                args.iter().any(|given| given == arg),
                "{arg} is not in {args:?}"
            );
        }
        let plain = arguments(
            &Plan::default(),
            Transport::Spdy,
            Path::new("/x"),
            Path::new("/r"),
        );
        assert!(
            !plain
                .iter()
                .any(|arg| arg.contains("websocket") || arg.contains("focus"))
        );
    }
}
