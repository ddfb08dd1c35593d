//! Finds what a demo has left on the machine, by looking at the kernel instead of asking the daemon.
//!
//! Called by: the demo when everything has ended. Looks for processes of its process groups, cgroups and directory, for
//! mounts, network interfaces and cgroups. Must not know: files, which are in one directory that the demo removes
//! itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use super::scratch::Scratch;

/// How long killed processes may take to be gone, so that their cgroups and mounts can be removed.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);

/// Where to look.
pub struct LeakCheck<'a> {
    scratch: &'a Scratch,
    /// Process groups that the demo created.
    groups: Vec<i32>,
}

impl<'a> LeakCheck<'a> {
    /// A check for a demo in `scratch` that started these process groups.
    pub fn new(scratch: &'a Scratch, groups: Vec<i32>) -> LeakCheck<'a> {
        LeakCheck { scratch, groups }
    }

    /// Everything that is left, one line each. Removes cgroups without processes.
    pub fn find(&self) -> Vec<String> {
        let mut found: Vec<String> = self.processes().into_iter().map(|(_, line)| line).collect();
        found.extend(self.mounts().iter().map(|mount| format!("mount {mount}")));
        found.extend(
            self.interfaces()
                .iter()
                .map(|name| format!("interface {name}")),
        );
        for parent in self.cgroups() {
            found.extend(
                below(&parent)
                    .iter()
                    .map(|path| format!("cgroup {}", path.display())),
            );
            // The parent of the pods' cgroups is the demo's own to remove, as it is the kubelet's on a node.
            if fs::remove_dir(&parent).is_err() && parent.exists() {
                found.push(format!("cgroup {}", parent.display()));
            }
        }
        found
    }

    /// Removes by force what [`LeakCheck::find`] finds, as far as possible.
    pub fn sweep(&self) {
        for (pid, _) in self.processes() {
            if let Some(pid) = Pid::from_raw(pid) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        let deadline = Instant::now() + EXIT_TIMEOUT;
        while !self.processes().is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        for mount in self.mounts().iter().rev() {
            let _ = unmount(mount, UnmountFlags::DETACH);
        }
        for parent in self.cgroups() {
            for path in below(&parent).iter().rev() {
                let _ = fs::remove_dir(path);
            }
            let _ = fs::remove_dir(parent);
        }
    }

    fn processes(&self) -> Vec<(i32, String)> {
        let own = std::process::id().cast_signed();
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| *pid != own && self.owns(*pid))
            .map(|pid| (pid, format!("process {pid} {}", command(pid))))
            .collect()
    }

    fn owns(&self, pid: i32) -> bool {
        let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let stat = String::from_utf8_lossy(&read("stat")).into_owned();
        // The fields after the command's name, which may contain anything: state, parent, group.
        let fields: Vec<&str> = stat
            .rsplit(") ")
            .next()
            .unwrap_or_default()
            .split(' ')
            .collect();
        if matches!(fields.first(), None | Some(&("" | "Z" | "X"))) {
            return false;
        }
        let group = fields
            .get(2)
            .and_then(|group| group.parse().ok())
            .unwrap_or(0);
        let holds = |file: &str, text: &str| String::from_utf8_lossy(&read(file)).contains(text);
        self.groups.contains(&group)
            || holds("cgroup", &format!("{}/", self.scratch.cgroup()))
            || holds(
                "cmdline",
                &format!("{}/", self.scratch.directory().display()),
            )
    }

    fn mounts(&self) -> Vec<String> {
        let inside = format!("{}/", self.scratch.directory().display());
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        points
            .filter(|point| point.starts_with(&inside))
            .map(str::to_owned)
            .collect()
    }

    fn interfaces(&self) -> Vec<String> {
        let prefix = self.scratch.interface_prefix();
        let entries = fs::read_dir("/sys/class/net")
            .into_iter()
            .flatten()
            .flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name.starts_with(&prefix)).collect()
    }

    /// The demo's cgroup in each hierarchy where it exists.
    fn cgroups(&self) -> Vec<PathBuf> {
        let name = self.scratch.cgroup();
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let cgroup = |line: &&str| {
            line.split(" - ")
                .nth(1)
                .is_some_and(|rest| rest.starts_with("cgroup"))
        };
        let roots = table
            .lines()
            .filter(cgroup)
            .filter_map(|line| line.split(' ').nth(4));
        let paths = roots.map(|root| Path::new(root).join(name.trim_start_matches('/')));
        paths.filter(|path| path.is_dir()).collect()
    }
}

/// The directories below `directory`, parents before their children.
fn below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        found.push(entry.path());
        found.extend(below(&entry.path()));
    }
    found
}

fn command(pid: i32) -> String {
    let raw = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&raw)
        .replace('\0', " ")
        .trim()
        .to_owned()
}
