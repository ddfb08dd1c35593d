//! Finds what a demo has left on the machine, by looking at the kernel instead of asking the daemon.
//!
//! Called by: the demo when everything has ended. Looks for processes of its process groups and cgroups and for what descends from
//! it, for mounts, network interfaces and cgroups. Invariant: of other processes it reads no more than whose children they are,
//! their group and their cgroup: command lines may have secrets, and are read where a process that hangs can hold the reader.
//! Must not know: files, which are in one directory that the demo removes itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use super::error::Error;
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
        let all = processes();
        let ours = all.iter().filter(|(pid, facts)| {
            **pid != own
                && facts.is_alive
                && (self.owns(**pid, facts) || descends(**pid, own, &all))
        });
        ours.map(|(pid, _)| (*pid, format!("process {pid} {}", command(*pid))))
            .collect()
    }

    fn owns(&self, pid: i32, facts: &Facts) -> bool {
        let cgroups = fs::read(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let own = format!("{}/", self.scratch.cgroup());
        self.groups.contains(&facts.group) || String::from_utf8_lossy(&cgroups).contains(&own)
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

/// Has the orphans of what this process starts become its own children, by which [`LeakCheck`] knows them. Errors: the kernel's.
pub fn adopt_orphans() -> Result<(), Error> {
    let own = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(own))
        .map_err(|error| Error::because("adopt the orphans of what the demo starts", error))
}

/// What the kernel says of a process without its memory.
struct Facts {
    is_alive: bool,
    parent: i32,
    group: i32,
}

fn processes() -> BTreeMap<i32, Facts> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, facts(pid)?))).collect()
}

fn facts(pid: i32) -> Option<Facts> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    // The fields after the command's name, which may contain anything.
    let mut fields = stat.rsplit(") ").next()?.split(' ');
    Some(Facts {
        is_alive: !["Z", "X"].contains(&fields.next()?),
        parent: fields.next()?.parse().ok()?,
        group: fields.next()?.parse().ok()?,
    })
}

/// Whether `ancestor` is among the ancestors of `pid`.
fn descends(pid: i32, ancestor: i32, all: &BTreeMap<i32, Facts>) -> bool {
    let parent = |pid: &i32| all.get(pid).map(|facts| facts.parent);
    // Bounded: numbers that were taken again may make a circle.
    std::iter::successors(parent(&pid), parent)
        .take(all.len())
        .any(|pid| pid == ancestor)
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Command, Stdio};

    use rustix::process::kill_process_group;

    use super::*;

    /// A process without a parent of ours, in a session of its own, with `argument` on its command line. Returns its pid.
    fn orphan(argument: &str) -> i32 {
        // The last command keeps the inner shell from becoming `sleep`.
        let script = "setsid sh -c 'echo $$; exec >&-; sleep 300; :' sh \"$0\" &";
        let mut shell = Command::new("sh")
            .args(["-c", script, argument])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let output = shell.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        shell.wait().unwrap();
        line.trim().parse().unwrap()
    }

    #[test]
    fn orphans_of_the_demo_are_found_and_a_stranger_that_names_its_directory_is_none() {
        let scratch = Scratch::take().unwrap();
        let named = format!("{}/x", scratch.directory().display());
        let stranger = orphan(&named);
        adopt_orphans().unwrap();
        let ours = orphan("");
        let left = LeakCheck::new(&scratch, Vec::new()).processes();
        for pid in [stranger, ours] {
            let _ = kill_process_group(Pid::from_raw(pid).unwrap(), Signal::KILL);
        }
        let _ =
            rustix::process::waitpid(Pid::from_raw(ours), rustix::process::WaitOptions::empty());
        scratch.remove().unwrap();
        let pids: Vec<i32> = left.iter().map(|(pid, _)| *pid).collect();
        assert!(pids.contains(&ours), "{left:?}");
        assert!(!pids.contains(&stranger), "{left:?}");
    }
}
