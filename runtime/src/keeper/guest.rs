//! A guest process: forked by the keeper, jails itself, runs its payload, ends.
//!
//! Descriptors of a guest, in this order: 0 to 2 standard streams, 3 report pipe, 4 spec, 5 compiled code, 6 and 7
//! seccomp filters, 8 and on the pod's namespaces in the order net, ipc, uts, and the one with its id map.
//! Invariants: the spec is read only here, after the fork; the payload runs on a thread born after the fork, so that
//! no per-thread state of keeper or spawner (hash keys, generators) is shared between guests.
//! Not here: the steps of the jail.

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd, RawFd};
use std::time::Duration;

use super::log::LogThread;
use crate::control::messages::Report;
use crate::control::read_all;
use crate::error::{Context as _, Error, Kind, Result};
use crate::failpoint;
use crate::id::ContainerId;
use crate::sandbox::{self, PodNamespaces};
use crate::spec::{ContainerSpec, Spawn};
use crate::sys;
use crate::sys::fork::Forked;
use crate::wasm::Warm;
use crate::wasm::run::{self, End, Payload, TRAP_CODE};

/// Largest spec, bytes: arguments and environment are bounded by CRI's message size.
const MAX_SPEC: usize = 20 << 20;
/// Stack of the thread that runs the payload; wasm has a stack of its own.
const THREAD_STACK: usize = 512 * 1024;
/// Exit code of a guest that could not start.
const CANNOT_START: i32 = 128;
/// How long a stopped payload may take to come back by itself.
const STOP_PATIENCE: Duration = Duration::from_millis(100);
const REPORT_FD: RawFd = 3;
const SPEC_FD: RawFd = 4;

/// What came with the request to start a guest.
pub(super) struct Parts {
    /// Spec, code, two filters, the cgroup if `into_cgroup`, and the log file if `log`.
    pub(super) fds: Vec<OwnedFd>,
    /// Whether a cgroup to be born into came along.
    pub(super) into_cgroup: bool,
    /// Whether a log file came along.
    pub(super) log: bool,
    /// Whether standard input is a pipe.
    pub(super) stdin: bool,
}

/// The keeper's side of a guest that was just forked.
pub(super) struct ForkedGuest {
    pub(super) pidfd: OwnedFd,
    pub(super) report: OwnedFd,
    pub(super) log: Option<LogThread>,
    pub(super) stdin: Option<OwnedFd>,
}

/// Forks a guest. Errors: the request is incomplete, or the node is exhausted; then nothing was left behind.
pub(super) fn fork(
    container: &ContainerId,
    parts: Parts,
    pod: &PodNamespaces,
    warm: &Warm,
) -> Result<ForkedGuest> {
    let what = || format!("fork the guest of container {container}");
    let mut fds = parts.fds;
    if fds.len() != 4 + usize::from(parts.log) + usize::from(parts.into_cgroup) {
        return Err(Error::new(
            Kind::Bug,
            format!("{}: {} descriptors came along", what(), fds.len()),
        ));
    }
    let log_file = if parts.log {
        fds.pop().map(File::from)
    } else {
        None
    };
    let cgroup = if parts.into_cgroup { fds.pop() } else { None };
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).during(what);
    let (out, out_in) = pipe()?;
    let (err, err_in) = pipe()?;
    let (report, report_in) = pipe()?;
    let stdin = if parts.stdin { Some(pipe()?) } else { None };
    rustix::io::ioctl_fionbio(&report, true).during(what)?;
    failpoint::hit("keeper.fork").during(what)?;
    let flags = (libc::CLONE_NEWPID | libc::CLONE_NEWNS) as u64;
    match sys::fork::fork(flags, cgroup.as_ref().map(OwnedFd::as_fd)).during(what)? {
        Forked::Child => {
            let input = stdin.as_ref().map_or(0, |(read, _)| read.as_raw_fd());
            let mut table = vec![
                input,
                out_in.as_raw_fd(),
                err_in.as_raw_fd(),
                report_in.as_raw_fd(),
            ];
            table.extend(fds.iter().map(|fd| fd.as_raw_fd()));
            let spaces = [&pod.net, &pod.ipc, &pod.uts, &pod.ids];
            table.extend(
                spaces
                    .iter()
                    .filter_map(|s| s.as_ref().map(|fd| fd.as_raw_fd())),
            );
            let has = spaces.map(Option::is_some);
            match sys::fork::keep_only(&table) {
                Ok(()) => live(container, has, Some(warm)),
                Err(_) => sys::fork::leave(CANNOT_START),
            }
        }
        Forked::Parent { pidfd } => {
            drop((out_in, err_in, report_in));
            let log = start_log(out, err, log_file, &pidfd).during(what)?;
            Ok(ForkedGuest {
                pidfd,
                report,
                log: Some(log),
                stdin: stdin.map(|(_, write)| write),
            })
        }
    }
}

fn start_log(
    out: OwnedFd,
    err: OwnedFd,
    file: Option<File>,
    guest: &OwnedFd,
) -> io::Result<LogThread> {
    LogThread::start(out, err, file).inspect_err(|_| {
        let _ = rustix::process::pidfd_send_signal(guest, rustix::process::Signal::KILL);
        let _ = rustix::process::waitid(
            rustix::process::WaitId::PidFd(guest.as_fd()),
            rustix::process::WaitIdOptions::EXITED,
        );
    })
}

/// Entered by `coracle guest ID NAMESPACES FAILPOINTS` when a handler asks for an own address-space layout.
pub fn main(id: &str, namespaces: &str, failpoints: &str) -> ! {
    failpoint::arm(Some(failpoints.to_owned()));
    let has = ["n", "i", "u", "m"].map(|letter| namespaces.contains(letter));
    match id.parse() {
        Ok(id) => live(&id, has, None),
        Err(_) => sys::fork::leave(CANNOT_START),
    }
}

/// The life of a guest process; its descriptors are in place.
fn live(container: &ContainerId, has: [bool; 4], warm: Option<&Warm>) -> ! {
    let failed = match exist(container, has, warm) {
        Ok(never) => match never {},
        Err(e) => e,
    };
    conclude(Err(failed))
}

/// Ends the guest process the way its payload ended, from whichever thread.
fn conclude(ended: Result<End>) -> ! {
    let code = match ended {
        Ok(End::Code(code)) => code & 0xff,
        Ok(End::Trapped(text)) => {
            let _ = rustix::io::write(sys::standard(2), format!("{text}\n").as_bytes());
            report(&Report::Trap(text));
            TRAP_CODE
        }
        Err(e) => {
            report(&Report::Failed(e.chain()));
            CANNOT_START
        }
    };
    sys::fork::leave(code)
}

fn exist(container: &ContainerId, has: [bool; 4], warm: Option<&Warm>) -> Result<Infallible> {
    sys::signals::reset();
    sys::fork::set_title(&format!("coracle guest {container}"));
    let spec = read_spec()?;
    if spec.spawn == Spawn::Exec && warm.is_some() {
        return Err(again(container, has));
    }
    let own;
    let warm = match warm {
        Some(warm) => warm,
        None => {
            own = Warm::new()?;
            &own
        }
    };
    drop(sys::fork::adopt(SPEC_FD));
    let code = sys::fork::adopt(5);
    let (first, second) = (sys::fork::adopt(6), sys::fork::adopt(7));
    let pod = pod_namespaces(has);
    let flags =
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let fd_dir = rustix::fs::open("/proc/self/fd", flags, rustix::fs::Mode::empty())
        .during(|| "open /proc/self/fd".into())?;
    sandbox::build(&spec, &pod)?;
    drop(pod);
    let stop = run::arm_stop(warm)?;
    sandbox::install(first.as_fd())?;
    drop(first);
    let wake = stop
        .try_clone()
        .during(|| "share the stop eventfd".into())?;
    let payload = Payload {
        warm,
        spec: &spec,
        code,
        fd_dir,
    };
    let work = || {
        run::run(payload, stop, || {
            sandbox::install(second.as_fd())?;
            drop(second);
            report(&Report::Ready);
            Ok(())
        })
    };
    on_a_new_thread(work, wake)
}

fn pod_namespaces(has: [bool; 4]) -> PodNamespaces {
    let mut next = 8;
    let mut namespace = |there: bool| {
        there.then(|| {
            next += 1;
            sys::fork::adopt(next - 1)
        })
    };
    PodNamespaces {
        net: namespace(has[0]),
        ipc: namespace(has[1]),
        uts: namespace(has[2]),
        ids: namespace(has[3]),
    }
}

/// Runs `work` on a thread born now, whose thread-local state is drawn afresh, and ends the process with it.
///
/// This thread stays behind for a stop signal: a payload that is inside a host call that blocks (a long sleep of
/// preview 1, a write to a full pipe) hears of no epoch, so after [`STOP_PATIENCE`] it is not asked any more.
fn on_a_new_thread(work: impl FnOnce() -> Result<End> + Send, stop: OwnedFd) -> Result<Infallible> {
    std::thread::scope(|scope| {
        let body =
            move || {
                let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
                conclude(caught.unwrap_or_else(|_| {
                    Err(Error::new(Kind::Bug, "the payload's thread panicked"))
                }))
            };
        let thread = std::thread::Builder::new()
            .stack_size(THREAD_STACK)
            .spawn_scoped(scope, body);
        let _: std::thread::ScopedJoinHandle<'_, Infallible> =
            thread.during(|| "start the payload's thread".into())?;
        let signal = run::await_stop(stop.as_fd());
        std::thread::sleep(STOP_PATIENCE);
        sys::fork::leave(128 + signal)
    })
}

fn read_spec() -> Result<ContainerSpec> {
    let spec = sys::fork::adopt(SPEC_FD);
    let bytes = read_all(spec.as_fd(), MAX_SPEC).during(|| "read the container's spec".into())?;
    // Needed again after an exec; whoever stays closes it.
    std::mem::forget(spec);
    serde_json::from_slice(&bytes)
        .map_err(|e| Error::with(Kind::Bug, "understand the container's spec", e))
}

/// Executes this very binary again, as `coracle guest`; returns only if that failed.
fn again(container: &ContainerId, has: [bool; 4]) -> Error {
    use std::os::unix::process::CommandExt as _;
    let letters: String = ["n", "i", "u", "m"]
        .iter()
        .zip(has)
        .filter(|(_, there)| *there)
        .map(|(l, _)| *l)
        .collect();
    let mut command = std::process::Command::new("/proc/self/exe");
    command
        .arg0("coracle")
        .args(["guest", container.as_str(), &format!("-{letters}")]);
    command
        .arg(failpoint::armed().unwrap_or_default())
        .env_clear();
    Error::with(
        Kind::StartFailed,
        "execute the guest's own process",
        command.exec(),
    )
}

fn report(report: &Report) {
    let Ok(mut line) = serde_json::to_vec(report) else {
        return;
    };
    line.push(b'\n');
    // SAFETY: descriptor 3 is the report pipe for the whole life of a guest.
    #[allow(unsafe_code, reason = "the number is part of a guest's fixed table")]
    let pipe = unsafe { std::os::fd::BorrowedFd::borrow_raw(REPORT_FD) };
    let _ = rustix::io::write(pipe, &line);
}
