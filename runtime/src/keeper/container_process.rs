//! A guest process: forked by the keeper, jails itself, runs its payload, ends. This file is the keeper's half.
//!
//! Descriptors of a guest, in this order: 0 to 2 standard streams, 3 report socket, 4 spec, then its payload's (Wasm:
//! compiled code and two seccomp filters; Linux: a filter if it has one), then those of the pod that it needs (net, ipc,
//! uts, the namespace with its id map; for Linux user namespace, shared memory and a process to share pids with).
//! Invariant: nothing but these descriptors crosses the fork, and the spec is read only after it.
//! Not here: what a guest does ([`life`]), the steps of the jail.

mod exec;
mod init;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd, RawFd};

use super::log::LogThread;
use super::pid::PidNamespace;
use crate::control::messages::LinuxStart;
use coracle_sandbox::PodNamespaces;
use coracle_spec::error::{Context as _, Error, Kind, Result};
use coracle_spec::failpoint;
use coracle_spec::id::ContainerId;
use coracle_sys as sys;
use coracle_sys::fork::Forked;
use coracle_wasm::Warm;

pub(super) use exec::{ExecParts, fork as fork_exec};

/// Exit code of a guest that could not start.
const CANNOT_START: i32 = 128;

/// Entered by `coracle forked ID LETTERS FAILPOINTS` when a handler asks for an own address-space layout: for a container
/// or, with the letter `init::EXEC_LETTER`, for a process in a running one.
pub fn main(id: &str, letters: &str, failpoints: &str) -> ! {
    failpoint::arm(Some(failpoints.to_owned()));
    let layout = Layout {
        payload: init::WASM_PAYLOAD,
        pod: Layout::LETTERS.map(|letter| letters.contains(letter)),
    };
    match id.parse() {
        Ok(id) if letters.contains(init::EXEC_LETTER) => exec::enter(&id, layout, None),
        Ok(id) => init::enter(&id, layout, None),
        Err(_) => sys::fork::leave(CANNOT_START),
    }
}

/// What came with the request to start a guest.
pub(super) struct Parts {
    /// Spec, the payload's own, the cgroup if `into_cgroup`, and the log file if `log`.
    pub(super) fds: Vec<OwnedFd>,
    /// Whether a cgroup to be born into came along.
    pub(super) into_cgroup: bool,
    /// Whether a log file came along.
    pub(super) log: bool,
    /// Whether standard input is a pipe.
    pub(super) stdin: bool,
    /// What is to be known of a Linux payload.
    pub(super) linux: Option<LinuxStart>,
    /// Whether a Wasm payload is to have a terminal.
    pub(super) tty: bool,
}

/// The keeper's side of a guest that was just forked.
pub(super) struct ForkedContainer {
    pub(super) pidfd: OwnedFd,
    pub(super) report: OwnedFd,
    pub(super) log: Option<LogThread>,
    /// The log file of a guest that has yet to make its terminal.
    pub(super) log_file: Option<File>,
    pub(super) stdin: Option<OwnedFd>,
    /// The controlling side of a Wasm guest's terminal.
    pub(super) terminal: Option<OwnedFd>,
}

/// How a guest's descriptors are laid out.
#[derive(Clone, Copy)]
struct Layout {
    /// How many are the payload's own.
    payload: usize,
    /// Which of the pod's are there: net, ipc, uts, ids, user, shm, pids.
    pod: [bool; 7],
}

impl Layout {
    const LETTERS: [&str; 7] = ["n", "i", "u", "m", "U", "s", "p"];
}

/// Descriptors that one guest is born with, and their other ends.
struct Streams {
    stdin: Option<(OwnedFd, OwnedFd)>,
    out: Option<[(OwnedFd, OwnedFd); 2]>,
    /// Controlling side and other side.
    terminal: Option<(OwnedFd, OwnedFd)>,
    report: (OwnedFd, OwnedFd),
}

impl Streams {
    /// `tty`: a Wasm guest is to have a terminal; a Linux guest makes its own.
    fn make(stdin: bool, tty: bool, linux: Option<&LinuxStart>) -> io::Result<Self> {
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
        let terminal = match tty && linux.is_none() {
            true => Some(sys::terminal::pair()?),
            false => None,
        };
        let tty = terminal.is_some() || linux.is_some_and(|linux| linux.tty);
        let stdin = if stdin && !tty { Some(pipe()?) } else { None };
        if let Some((_, write)) = &stdin {
            // A client that types must not wait for a guest that does not read.
            rustix::io::ioctl_fionbio(write, true)?;
        }
        Ok(Self {
            stdin,
            out: if tty { None } else { Some([pipe()?, pipe()?]) },
            terminal,
            report: reports(linux.is_some())?,
        })
    }

    /// Numbers of a guest's first four descriptors; what it has no pipe for is the keeper's own, the null device.
    fn numbers(&self) -> Vec<RawFd> {
        let report = self.report.1.as_raw_fd();
        if let Some((_, side)) = &self.terminal {
            let side = side.as_raw_fd();
            return vec![side, side, side, report];
        }
        let input = self.stdin.as_ref().map_or(0, |(read, _)| read.as_raw_fd());
        let [out, err] = match &self.out {
            Some([out, err]) => [out.1.as_raw_fd(), err.1.as_raw_fd()],
            None => [0, 0],
        };
        vec![input, out, err, report]
    }
}

/// A stream of reports: the keeper's end, which does not block, and the guest's. A Wasm guest keeps its end while it
/// runs and has nothing to hand over; a Linux one sends descriptors.
fn reports(linux: bool) -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    let (flags, kind) = (SocketFlags::CLOEXEC, SocketType::STREAM);
    let made = match linux {
        true => socketpair(AddressFamily::UNIX, kind, flags, None)?,
        false => rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?,
    };
    rustix::io::ioctl_fionbio(&made.0, true)?;
    Ok(made)
}

/// Forks a guest. Errors: the request is incomplete, or the node is exhausted; then nothing was left behind.
pub(super) fn fork(
    container: &ContainerId,
    parts: Parts,
    pod: &PodNamespaces,
    pid_ns: PidNamespace<'_>,
    warm: &Warm,
) -> Result<ForkedContainer> {
    let what = || format!("fork the guest of container {container}");
    let Parts {
        mut fds,
        into_cgroup,
        log,
        stdin,
        linux,
        tty,
    } = parts;
    let payload = linux.as_ref().map_or(3, |linux| usize::from(linux.filter));
    if fds.len() != 1 + payload + usize::from(log) + usize::from(into_cgroup) {
        let text = format!("{}: {} descriptors came along", what(), fds.len());
        return Err(Error::new(Kind::Bug, text));
    }
    let log_file = if log { fds.pop().map(File::from) } else { None };
    let cgroup = if into_cgroup { fds.pop() } else { None };
    let streams = Streams::make(stdin, tty, linux.as_ref()).during(what)?;
    failpoint::hit("keeper.fork").during(what)?;
    let pids = pid_ns.process().map(|process| process.as_raw_fd());
    let flags = pid_ns.flags(linux.is_some() && pod.user.is_some());
    match sys::fork::fork(flags, cgroup.as_ref().map(OwnedFd::as_fd)).during(what)? {
        Forked::Child => {
            let mut table = streams.numbers();
            table.extend(fds.iter().map(|fd| fd.as_raw_fd()));
            let (numbers, mut layout) = pod_descriptors(pod, payload, linux.is_some());
            table.extend(numbers);
            table.extend(pids);
            layout.pod[6] = pids.is_some();
            match sys::fork::keep_only(&table) {
                Ok(()) => init::enter(container, layout, Some(warm)),
                Err(_) => sys::fork::leave(CANNOT_START),
            }
        }
        Forked::Parent { pidfd } => forked_container(streams, pidfd, log_file).during(what),
    }
}

/// Numbers of the pod's descriptors that a guest is given, and their layout.
fn pod_descriptors(pod: &PodNamespaces, payload: usize, linux: bool) -> (Vec<RawFd>, Layout) {
    let (wasm_only, linux_only) = (!linux, linux);
    let all = [
        (&pod.net, true),
        (&pod.ipc, true),
        (&pod.uts, true),
        (&pod.ids, wasm_only),
        (&pod.user, linux_only),
        (&pod.shm, linux_only),
        (&pod.pids, linux_only),
    ];
    let given = all.map(|(fd, wanted)| fd.as_ref().filter(|_| wanted));
    let numbers = given.iter().flatten().map(|fd| fd.as_raw_fd()).collect();
    let pod = given.map(|fd| fd.is_some());
    (numbers, Layout { payload, pod })
}

/// What the keeper keeps of a guest that was forked.
fn forked_container(
    streams: Streams,
    pidfd: OwnedFd,
    log_file: Option<File>,
) -> io::Result<ForkedContainer> {
    let Streams {
        stdin,
        out,
        terminal,
        report,
    } = streams;
    let mut forked = ForkedContainer {
        pidfd,
        report: report.0,
        log: None,
        log_file: None,
        stdin: stdin.map(|(_, write)| write),
        terminal: None,
    };
    match (out, terminal) {
        (Some([(out, out_in), (err, err_in)]), _) => {
            drop((out_in, err_in));
            forked.log = Some(start_log(out, Some(err), log_file, &forked.pidfd)?);
        }
        (None, Some((control, side))) => {
            drop(side);
            rustix::io::ioctl_fionbio(&control, true)?;
            forked.log = Some(start_log(
                control.try_clone()?,
                None,
                log_file,
                &forked.pidfd,
            )?);
            forked.terminal = Some(control);
        }
        (None, None) => forked.log_file = log_file,
    }
    Ok(forked)
}

/// Starts a log thread, or ends the guest that would have written to it.
fn start_log(
    out: OwnedFd,
    err: Option<OwnedFd>,
    file: Option<File>,
    forked: &OwnedFd,
) -> io::Result<LogThread> {
    LogThread::start(out, err, file).inspect_err(|_| {
        let _ = rustix::process::pidfd_send_signal(forked, rustix::process::Signal::KILL);
        let _ = rustix::process::waitid(
            rustix::process::WaitId::PidFd(forked.as_fd()),
            rustix::process::WaitIdOptions::EXITED,
        );
    })
}
