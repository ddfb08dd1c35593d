//! A process that is forked into a running container: its namespaces are joined, its jail is entered, not built.
//!
//! A Wasm process keeps to a pid namespace of its own, a Linux one goes on in the container's.
//! Descriptors: 0 to 2 what the daemon gave or a pipe without a writer, 3 report socket, 4 spec, the payload's own, then a pidfd of
//! the container's first process.
//! Invariant: credentials, filter and limits are set by the very code that sets them for a container's first process.
//! Not here: who reads the streams.

use std::convert::Infallible;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};

use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::init::{self, PAYLOAD_FD, SPEC_FD, conclude};
use super::{CANNOT_START, Layout};
use crate::control::messages::{LinuxStart, Report};
use crate::native::{self, Label};
use coracle_sandbox::{self as sandbox, PodNamespaces};
use coracle_spec::error::{Context as _, Error, Kind, Result};
use coracle_spec::id::ContainerId;
use coracle_spec::{ContainerSpec, LinuxSpec, PidSpace, Workload};
use coracle_sys as sys;
use coracle_sys::fork::Forked;
use coracle_wasm::Warm;

/// What came with the request.
pub(in crate::keeper) struct ExecParts {
    /// Spec, the payload's own, the cgroup if `into_cgroup`, standard input if `stdin`, output, error.
    pub(in crate::keeper) fds: Vec<OwnedFd>,
    pub(in crate::keeper) stdin: bool,
    pub(in crate::keeper) into_cgroup: bool,
    pub(in crate::keeper) linux: Option<LinuxStart>,
}

/// The keeper's side: forks it. Returns its pidfd and the socket of its reports.
///
/// Errors: the request is incomplete, the container has ended, or the node is exhausted.
pub(in crate::keeper) fn fork(
    container: &ContainerId,
    parts: ExecParts,
    first: &OwnedFd,
    pod: &PodNamespaces,
    warm: &Warm,
) -> Result<(OwnedFd, OwnedFd)> {
    let what = || format!("fork into container {container}");
    let ExecParts {
        mut fds,
        stdin,
        into_cgroup,
        linux,
    } = parts;
    let payload = linux.as_ref().map_or(3, |linux| usize::from(linux.filter));
    // What makes itself a terminal brings no streams.
    let own_terminal = linux.as_ref().is_some_and(|linux| linux.tty);
    let stdin = stdin && !own_terminal;
    let given = usize::from(stdin) + if own_terminal { 0 } else { 2 };
    if fds.len() != 1 + payload + usize::from(into_cgroup) + given {
        let text = format!("{}: {} descriptors came along", what(), fds.len());
        return Err(Error::new(Kind::Bug, text));
    }
    let streams = fds.split_off(fds.len() - given);
    let cgroup = if into_cgroup { fds.pop() } else { None };
    let (ours, theirs) = super::reports(linux.is_some()).during(what)?;
    // Nothing to read; the node's null device would be a way to change that device.
    let (nothing, writer) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).during(what)?;
    drop(writer);
    let pids = match linux {
        // It goes on in the container's pid namespace once nothing of the node can be reached through it.
        Some(_) => 0,
        // It sees no processes, and whoever looks into the container's must not see it while it is half-built.
        None => libc::CLONE_NEWPID as u64,
    };
    match sys::fork::fork(pids, cgroup.as_ref().map(OwnedFd::as_fd)).during(what)? {
        Forked::Child => {
            let mut table: Vec<RawFd> = Vec::new();
            if !stdin {
                table.push(nothing.as_raw_fd());
            }
            table.extend(streams.iter().map(|fd| fd.as_raw_fd()));
            // Until it has its terminal.
            table.resize(3, nothing.as_raw_fd());
            table.push(theirs.as_raw_fd());
            table.extend(fds.iter().map(|fd| fd.as_raw_fd()));
            table.push(first.as_raw_fd());
            // What a Wasm identity needs; the rest of the pod is reached through the first process.
            let ids = pod.ids.as_ref().filter(|_| linux.is_none());
            table.extend(ids.map(|fd| fd.as_raw_fd()));
            let pod = [false, false, false, ids.is_some(), false, false, false];
            match sys::fork::keep_only(&table) {
                Ok(()) => enter(container, Layout { payload, pod }, Some(warm)),
                Err(_) => sys::fork::leave(CANNOT_START),
            }
        }
        Forked::Parent { pidfd } => Ok((pidfd, ours)),
    }
}

/// The life of the process; its descriptors are in place. Without `warm` it was executed for its own address space.
pub(super) fn enter(container: &ContainerId, layout: Layout, warm: Option<&Warm>) -> ! {
    let failed = match set_up(container, layout, warm) {
        Ok(never) => match never {},
        Err(e) => e,
    };
    conclude(Err(failed))
}

fn set_up(container: &ContainerId, layout: Layout, warm: Option<&Warm>) -> Result<Infallible> {
    // Whoever is in the container must not reach the node through a process that is still half of the node.
    sys::dump::forbid().during(|| "become undumpable".into())?;
    sys::signals::reset();
    sys::fork::set_title(&format!("coracle exec {container}"));
    let spec = init::read_spec()?;
    if init::needs_own_layout(&spec, warm) {
        return Err(init::reexec(container, layout, true));
    }
    drop(sys::fork::adopt(SPEC_FD));
    sandbox::enter_cgroups(&spec)?;
    sandbox::set_oom_score(spec.oom_score_adj)?;
    match &spec.workload {
        Workload::Wasm(_) => wasm(&spec, layout, warm),
        Workload::Linux(linux) => program(&spec, linux, layout),
    }
}

/// Takes the pidfd of the container's first process, which lies behind the payload's descriptors.
fn first_process(layout: Layout) -> OwnedFd {
    sys::fork::adopt(PAYLOAD_FD + layout.payload as RawFd)
}

fn wasm(spec: &ContainerSpec, layout: Layout, warm: Option<&Warm>) -> Result<Infallible> {
    let own;
    let warm = match warm {
        Some(warm) => warm,
        None => {
            own = Warm::new()?;
            &own
        }
    };
    let first = first_process(layout);
    let ids = layout.pod[3].then(|| sys::fork::adopt(PAYLOAD_FD + layout.payload as RawFd + 1));
    let pod = PodNamespaces {
        ids,
        ..PodNamespaces::default()
    };
    if let Workload::Wasm(wasm) = &spec.workload {
        init::lead_session(wasm)?;
    }
    let fd_dir = init::own_descriptors()?;
    sandbox::enter(spec, &pod, || join(first, all_but_user()))?;
    drop(pod);
    init::run_wasm(spec, warm, fd_dir)
}

fn all_but_user() -> ThreadNameSpaceType {
    ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::CONTROL_GROUP
}

/// Joins namespaces of the container's first process.
fn join(first: OwnedFd, which: ThreadNameSpaceType) -> Result<()> {
    move_into_thread_name_spaces(first.as_fd(), which)
        .during(|| "join the container's namespaces; it may have ended".into())
}

fn program(spec: &ContainerSpec, linux: &LinuxSpec, layout: Layout) -> Result<Infallible> {
    let filter = (layout.payload > 0).then(|| sys::fork::adopt(PAYLOAD_FD));
    let first = first_process(layout);
    let userns = linux.userns;
    native::give_streams(init::host_uid(spec, userns));
    sandbox::own_session_keyring()?;
    let label = Label::open(linux)?;
    let mut which = all_but_user();
    which.set(ThreadNameSpaceType::USER, userns);
    let other_pids = linux.jail.pid != PidSpace::Node;
    which.set(ThreadNameSpaceType::PROCESS_ID, other_pids);
    join(first, which)?;
    if userns {
        sys::ids::become_user(0, 0, &[]).during(|| "become the user namespace's root".into())?;
    }
    // What is taken on for the next execve stays over a fork; the open file would not.
    label.map_or(Ok(()), Label::apply)?;
    if other_pids {
        // The first process that the container can see of the exec.
        init::fork_and_continue(0).during(|| "fork into the container's pid namespace".into())?;
    }
    rustix::process::setsid().during(|| "lead a session".into())?;
    if linux.jail.tty {
        let terminal = sandbox::linux::join_terminal(spec.identity.uid)?;
        init::report_with(&Report::Terminal, terminal.as_fd());
    }
    init::become_program(spec, linux, filter, None)
}
