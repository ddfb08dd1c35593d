//! What one daemon holds on the machine, as a list of lines, so that before and after can be compared.
//!
//! Called by: [`crate::daemon::Daemon::finish`] and the fault tests. Counts what must be as before once the pods are
//! gone: processes by role, mounts, host interfaces, tables of nftables, cgroups, and the files of the daemon's root and
//! run directories.
//! Not here: images and compiled modules, which are kept on purpose, and logs, which belong to the kubelet.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::procs::{self, Role};
use crate::scratch::Scratch;

/// How long the kernel and the daemon may take to let go. A veth lives up to 60 ms after its namespace; the rest is for a
/// machine that has other things to do, too.
const SETTLE: Duration = Duration::from_secs(30);
/// Parts of the daemon's directories that grow with images, not with pods.
const KEPT: [&str; 3] = ["root/images", "root/compiled", "root/network-mode"];
/// What is half-made within those; nothing of it may stay.
const UNFINISHED: &str = "root/images/tmp/";

/// Everything of one scratch that a pod may leave behind; `kind thing`, each with how often it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot(BTreeMap<String, usize>);

impl Snapshot {
    /// Looks at the machine now.
    pub fn take(scratch: &Scratch) -> Self {
        let mut lines = Vec::new();
        for process in procs::of_scratch(scratch) {
            let named = matches!(process.role, Role::Guest | Role::Keeper);
            let name = if named {
                format!(" {}", process.command)
            } else {
                String::new()
            };
            lines.push(format!("process {:?}{name}", process.role));
        }
        lines.extend(
            scratch
                .mounts()
                .into_iter()
                .map(|mount| format!("mount {mount}")),
        );
        lines.extend(
            interfaces(&scratch.interface_prefix())
                .into_iter()
                .map(|name| format!("interface {name}")),
        );
        for name in scratch.tables_of_some_pods() {
            lines.extend(tables(&name));
        }
        for cgroup in scratch.cgroup_dirs("") {
            walk(&cgroup, &mut |path, is_dir| {
                if is_dir {
                    lines.push(format!("cgroup {}", path.display()));
                }
            });
        }
        lines.extend(files(scratch.dir()));
        let mut counted = BTreeMap::new();
        for line in lines {
            *counted.entry(line).or_insert(0) += 1;
        }
        Self(counted)
    }

    /// What differs between an earlier snapshot and this one, a line each: `+` came, `-` went.
    pub fn since(&self, before: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        for (line, count) in &self.0 {
            let was = before.0.get(line).copied().unwrap_or(0);
            changes.extend((was..*count).map(|_| format!("+ {line}")));
        }
        // A spawner that was killed is started again when the next pod needs it, not before.
        let idle = format!("process {:?}", Role::Spawner);
        for (line, was) in before.0.iter().filter(|(line, _)| **line != idle) {
            let count = self.0.get(line).copied().unwrap_or(0);
            changes.extend((count..*was).map(|_| format!("- {line}")));
        }
        changes
    }
}

/// Waits until the machine looks as it did in `before`. Errors: what still differs after half a minute.
pub async fn expect_as(before: &Snapshot, scratch: &Scratch) -> Result<(), String> {
    let end = Instant::now() + SETTLE;
    loop {
        let changes = Snapshot::take(scratch).since(before);
        if changes.is_empty() {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(format!(
                "{} things differ from before:\n{}",
                changes.len(),
                changes.join("\n")
            ));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The host interfaces whose name begins with this prefix.
pub fn interfaces(prefix: &str) -> Vec<String> {
    let entries = fs::read_dir("/sys/class/net")
        .into_iter()
        .flatten()
        .flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(prefix)).collect()
}

/// The tables that are there while a daemon has had pods, those that are there still.
pub fn tables_of_pods(scratch: &Scratch) -> Vec<String> {
    let names = scratch.tables_of_pods();
    names.iter().flat_map(|name| tables(name)).collect()
}

/// The tables of nftables with this name. Empty where nft is not installed.
fn tables(name: &str) -> Vec<String> {
    let listed = Command::new("nft").args(["list", "tables"]).output();
    let listed = listed.map_or(Vec::new(), |output| output.stdout);
    let listed = String::from_utf8_lossy(&listed);
    let own = listed.lines().filter(|line| line.ends_with(name));
    own.map(str::to_owned).collect()
}

fn files(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    for part in ["root", "run"] {
        walk(&dir.join(part), &mut |path, _| {
            let inside = path.strip_prefix(dir).unwrap_or(path).display().to_string();
            let kept = KEPT.iter().any(|kept| inside.starts_with(kept));
            if !kept || inside.starts_with(UNFINISHED) {
                lines.push(format!("file {inside}"));
            }
        });
    }
    lines
}

/// How many files there are in the parts of the daemon's directories that grow with images.
pub fn kept_files(scratch: &Scratch) -> usize {
    let mut count = 0;
    for part in KEPT {
        walk(&scratch.dir().join(part), &mut |_, _| count += 1);
    }
    count
}

/// Visits everything below `dir` without following links or entering what cannot be read.
fn walk(dir: &Path, visit: &mut dyn FnMut(&Path, bool)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        visit(&entry.path(), is_dir);
        if is_dir {
            walk(&entry.path(), visit);
        }
    }
}
