//! Finds the processes of one scratch, and the role of each.
//!
//! A process belongs to a scratch when its cgroup is below the scratch's, or, for one that has left it, when its
//! arguments or an open file name the scratch's directory. The only place that knows the names of Coracle's processes.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::scratch::Scratch;

/// What a process is for the daemon under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// `coracle serve`, or a peer's daemon.
    Daemon,
    /// `coracle spawner`.
    Spawner,
    /// `coracle keeper`: one a pod.
    Keeper,
    /// A container's process: a Wasm guest, or whatever a Linux image runs.
    Guest,
    /// `coracle compiler`: lives as long as one compile.
    Compiler,
    /// What a keeper has beside its guests: the first process of a shared pid namespace, holders of id maps.
    Helper,
}

/// One process, as it was when it was read.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its pid in the host's namespace.
    pub pid: i32,
    /// Its arguments, joined by blanks; the kernel's name in brackets when it has none.
    pub command: String,
    /// Its role, judged by [`Process::command`].
    pub role: Role,
}

/// Every process of the scratch but zombies, the oldest first. Pids do not tell that: they begin anew at the kernel's
/// maximum, which tests reach.
pub fn of_scratch(scratch: &Scratch) -> Vec<Process> {
    let mut found: Vec<Process> = all_pids()
        .filter(|pid| belongs(*pid, scratch))
        .filter_map(read)
        .collect();
    found.sort_by_key(|process| (begun(process.pid), process.pid));
    found
}

/// The processes of the scratch that have this role. A keeper is the first process of its title: for half a
/// millisecond after its pod is ready it has a child by the same title, which carries the pod's id map.
pub fn with_role(scratch: &Scratch, role: Role) -> Vec<Process> {
    let mut titles = std::collections::BTreeSet::new();
    of_scratch(scratch)
        .into_iter()
        .filter(|process| process.role == role)
        .filter(|process| role != Role::Keeper || titles.insert(process.command.clone()))
        .collect()
}

/// Sends SIGKILL; a process that is gone already is fine.
pub fn kill(pid: i32) {
    signal(pid, Signal::KILL);
}

/// Sends a signal; a process that is gone already is fine.
pub fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

/// Whether the process exists and is not a zombie.
pub fn is_alive(pid: i32) -> bool {
    state(pid).is_some_and(|state| state != 'Z' && state != 'X')
}

/// Returns when the daemon `pid` has written what it has logged so far: when the thread that writes it has slept twice in a
/// row, which it does in no write to a file. At once if it has no such thread; after 10 s in any case.
pub fn wait_until_logged(pid: i32) {
    let entries = fs::read_dir(format!("/proc/{pid}/task"));
    let mut threads = entries.into_iter().flatten().flatten().map(|e| e.path());
    let name = |path: &Path| fs::read_to_string(path.join("comm")).unwrap_or_default();
    let Some(thread) = threads.find(|path| name(path) == "coracle-log\n") else {
        return;
    };
    let sleeps = || {
        let stat = fs::read_to_string(thread.join("stat")).unwrap_or_default();
        !stat.contains(") R") && !stat.contains(") D")
    };
    for _ in 0..5_000 {
        let slept = sleeps();
        std::thread::sleep(Duration::from_millis(1));
        if slept && sleeps() {
            return;
        }
    }
}

/// All pids of the machine that this process can see, its own excepted.
fn all_pids() -> impl Iterator<Item = i32> {
    let own = std::process::id().cast_signed();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(move |pid| *pid != own)
}

/// The pids of all processes whose cgroup is `cgroup`, a path inside every hierarchy, or below it.
pub fn below(cgroup: &str) -> Vec<i32> {
    all_pids().filter(|pid| is_below(*pid, cgroup)).collect()
}

fn is_below(pid: i32, cgroup: &str) -> bool {
    let cgroup = format!("{cgroup}/");
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    cgroups
        .lines()
        .any(|line| format!("{line}/").contains(&cgroup))
}

fn belongs(pid: i32, scratch: &Scratch) -> bool {
    if !is_alive(pid) {
        return false;
    }
    if is_below(pid, &scratch.cgroup()) {
        return true;
    }
    let dir = format!("{}/", scratch.dir().display());
    let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    if !command.contains("coracle") {
        return false;
    }
    let fds = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten();
    let mut targets = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
    command.contains(&dir) || targets.any(|target| target.to_string_lossy().starts_with(&dir))
}

fn read(pid: i32) -> Option<Process> {
    let raw = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut command = String::from_utf8_lossy(&raw)
        .replace('\0', " ")
        .trim()
        .to_owned();
    if command.is_empty() {
        command = format!(
            "[{}]",
            fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim()
        );
    }
    let role = role_of(&command);
    Some(Process { pid, command, role })
}

fn role_of(command: &str) -> Role {
    let mut fields = command.split(' ');
    let program = fields
        .next()
        .unwrap_or_default()
        .rsplit('/')
        .next()
        .unwrap_or_default();
    let verb = fields.next().unwrap_or_default();
    let ours = program.starts_with("coracle") || program == "exe";
    match (program, verb) {
        ("containerd", _) => Role::Daemon,
        ("containerd-shim-runc-v2", _) => Role::Keeper,
        (_, "serve") if ours => Role::Daemon,
        (_, "spawner") if ours => Role::Spawner,
        (_, "keeper") if ours => Role::Keeper,
        (_, "compiler") if ours => Role::Compiler,
        (_, "idmap" | "helper" | "pause") if ours => Role::Helper,
        _ => Role::Guest,
    }
}

fn state(pid: i32) -> Option<char> {
    stat(pid, 0)?.chars().next()
}

/// When a process began, in ticks of the kernel's clock since the boot.
fn begun(pid: i32) -> Option<u64> {
    stat(pid, 19)?.parse().ok()
}

/// A field of what the kernel says of a process, counted from its state on. Source: proc_pid_stat(5).
fn stat(pid: i32, field: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(field).map(str::to_owned)
}
