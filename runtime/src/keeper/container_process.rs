//! A container's process: the keeper forks it, it jails itself and runs its payload. This file is the keeper's side.
//!
//! Its descriptors, in this order: 0 to 2 standard streams, 3 report socket, 4 spec, then its payload's (Wasm:
//! compiled code and two seccomp filters; Linux: a filter if it has one), then those of the pod that it needs (net,
//! ipc, uts, the namespace with its id map; for Linux user namespace, shared memory; an empty mount namespace; a process to
//! share pids with).
//! Invariant: nothing but these descriptors crosses the fork, and the spec is read only after it.
//! What the process does is in [`init`], [`wasm`] and [`idle`]; the steps of the jail are in coracle-sandbox.

mod exec;
mod exit;
mod idle;
mod init;
mod wasm;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd, RawFd};

use super::log::LogThread;
use super::pid::PidNamespace;
use coracle_control::messages::{LinuxStart, StartMessage};
use coracle_sandbox::PodNamespaces;
use coracle_spec::error::{Context as _, Error, Kind, Result};
use coracle_spec::failpoint;
use coracle_sys as sys;
use coracle_sys::fork::Forked;
use coracle_wasm::Warm;

pub(super) use exec::fork as fork_exec;

/// Exit code of a process that could not start.
const CANNOT_START: i32 = 128;

/// Runs `coracle guest ID LETTERS FAILPOINTS`, which a container's process executes if its handler wants an own
/// address-space layout; with the letter `init::EXEC_LETTER` it is an exec's process.
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

/// The keeper's side of a container process that was just forked.
pub(super) struct ForkedContainer {
    pub(super) pidfd: OwnedFd,
    pub(super) report: OwnedFd,
    pub(super) log: Option<LogThread>,
    /// The log file, until the process has opened its terminal.
    pub(super) log_file: Option<File>,
    pub(super) stdin: Option<OwnedFd>,
    /// The controlling side of a Wasm container's terminal.
    pub(super) terminal: Option<OwnedFd>,
}

/// How a container process's descriptors are laid out.
#[derive(Clone, Copy)]
struct Layout {
    /// How many are the payload's own.
    payload: usize,
    /// Which of the pod's are present: net, ipc, uts, ids, user, shm, empty, pids.
    pod: [bool; 8],
}

impl Layout {
    const LETTERS: [&str; 8] = ["n", "i", "u", "m", "U", "s", "e", "p"];
}

/// The streams of a container process, and their other ends.
struct Streams {
    stdin: Option<(OwnedFd, OwnedFd)>,
    out: Option<[(OwnedFd, OwnedFd); 2]>,
    /// Controlling side and other side.
    terminal: Option<(OwnedFd, OwnedFd)>,
    report: (OwnedFd, OwnedFd),
}

impl Streams {
    /// `tty`: a Wasm container gets a terminal; a Linux container opens its own.
    fn make(stdin: bool, tty: bool, linux: Option<&LinuxStart>) -> io::Result<Self> {
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
        let terminal = match tty && linux.is_none() {
            true => Some(sys::terminal::pair()?),
            false => None,
        };
        let tty = terminal.is_some() || linux.is_some_and(|linux| linux.tty);
        let stdin = if stdin && !tty { Some(pipe()?) } else { None };
        if let Some((_, write)) = &stdin {
            // A client must not block on a program that does not read.
            rustix::io::ioctl_fionbio(write, true)?;
        }
        let out = if tty { None } else { Some([pipe()?, pipe()?]) };
        Ok(Self {
            stdin,
            out,
            terminal,
            report: reports(linux.is_some())?,
        })
    }

    /// Numbers of a process's first four descriptors. Where it has no pipe, it gets the keeper's null device.
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

/// A stream of reports: the keeper's end, which is non-blocking, and the process's. A Wasm container keeps its end
/// while it runs and sends no descriptors; a Linux one sends some.
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

/// Forks a container process. Errors: the request is incomplete, or the node is out of resources. On error nothing is
/// left behind.
pub(super) fn fork(
    start: &StartMessage,
    mut fds: Vec<OwnedFd>,
    pod: &PodNamespaces,
    pid_ns: PidNamespace<'_>,
    warm: &Warm,
) -> Result<ForkedContainer> {
    let what = || format!("fork the process of container {}", start.container);
    let linux = start.linux.as_ref();
    let payload = payload_fds(linux);
    if fds.len() != 1 + payload + usize::from(start.log) + usize::from(start.into_cgroup) {
        let text = format!("{}: got {} descriptors", what(), fds.len());
        return Err(Error::new(Kind::Bug, text));
    }
    let log_file = if start.log {
        fds.pop().map(File::from)
    } else {
        None
    };
    let cgroup = if start.into_cgroup { fds.pop() } else { None };
    let streams = Streams::make(start.stdin, start.tty, linux).during(what)?;
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
            layout.pod[7] = pids.is_some();
            match sys::fork::keep_only(&table) {
                Ok(()) => init::enter(&start.container, layout, Some(warm)),
                Err(_) => sys::fork::leave(CANNOT_START),
            }
        }
        Forked::Parent { pidfd } => forked_container(streams, pidfd, log_file).during(what),
    }
}

/// How many descriptors are the payload's own: compiled code and two filters for Wasm, a filter or none for Linux.
fn payload_fds(linux: Option<&LinuxStart>) -> usize {
    linux.map_or(3, |linux| usize::from(linux.filter))
}

/// Numbers of the pod's descriptors that a container process gets, and their layout.
fn pod_descriptors(pod: &PodNamespaces, payload: usize, linux: bool) -> (Vec<RawFd>, Layout) {
    let (wasm_only, linux_only) = (!linux, linux);
    let all = [
        (&pod.net, true),
        (&pod.ipc, true),
        (&pod.uts, true),
        (&pod.ids, wasm_only),
        (&pod.user, linux_only),
        (&pod.shm, linux_only),
        (&pod.empty, true),
        (&pod.pids, linux_only),
    ];
    let given = all.map(|(fd, wanted)| fd.as_ref().filter(|_| wanted));
    let numbers = given.iter().flatten().map(|fd| fd.as_raw_fd()).collect();
    let pod = given.map(|fd| fd.is_some());
    (numbers, Layout { payload, pod })
}

/// What the keeper keeps of a forked process.
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

/// Starts a log thread; kills the process if that fails.
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
