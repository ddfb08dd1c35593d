//! An exec's process: it is forked by the keeper, joins a running container's namespaces and enters its jail.
//!
//! A Wasm process has its own pid namespace; a Linux one joins the container's.
//! Descriptors: 0 to 2 what the daemon gave or a pipe without a writer, 3 report socket, 4 spec, the payload's own,
//! then a pidfd of the container's first process.
//! Invariant: the same code sets credentials, filter and limits as for a container's first process.
//! It must not know who reads the streams.

use std::convert::Infallible;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};

use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::exit::run_to_the_end;
use super::init::{self, PAYLOAD_FD, SPEC_FD};
use super::{CANNOT_START, Layout};
use crate::native::{self, Label};
use coracle_control::messages::{ExecMessage, Report};
use coracle_sandbox as sandbox;
use coracle_spec::error::{Context as _, Error, Kind, Result};
use coracle_spec::id::ContainerId;
use coracle_spec::{ContainerSpec, LinuxSpec, PidNamespaceMode, Workload};
use coracle_sys as sys;
use coracle_sys::fork::Forked;
use coracle_wasm::Warm;

/// Forks it, in the keeper. Returns its pidfd and the socket of its reports.
///
/// Errors: the request is incomplete, the container has ended, or the node is out of resources.
pub(in crate::keeper) fn fork(
    exec: &ExecMessage,
    fds: Vec<OwnedFd>,
    first: &OwnedFd,
    warm: &Warm,
) -> Result<(OwnedFd, OwnedFd)> {
    let what = || format!("fork into container {}", exec.container);
    let fds = ExecFds::of(exec, fds).map_err(|e| Error::with(Kind::Bug, what(), e))?;
    let (ours, theirs) = super::reports(exec.linux.is_some()).during(what)?;
    // A pipe without a writer reads as ended. Through the node's null device a container could change that device.
    let (empty, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).during(what)?;
    drop(writer);
    let pids = match exec.linux {
        // It joins the container's pid namespace later, when nothing of the node can be reached through it.
        Some(_) => 0,
        // It sees no processes, and processes of the container must not see it while it is half-built.
        None => libc::CLONE_NEWPID as u64,
    };
    match sys::fork::fork(pids, fds.cgroup.as_ref().map(OwnedFd::as_fd)).during(what)? {
        Forked::Child => {
            let mut table = fds.table(&empty, &theirs);
            // Everything of the pod is joined through the first process.
            table.push(first.as_raw_fd());
            begin(exec, &table, warm)
        }
        Forked::Parent { pidfd } => Ok((pidfd, ours)),
    }
}

/// Runs the forked process with just the descriptors in `table`.
fn begin(exec: &ExecMessage, table: &[RawFd], warm: &Warm) -> ! {
    let layout = Layout {
        payload: super::payload_fds(exec.linux.as_ref()),
        pod: [false; 8],
    };
    match sys::fork::keep_only(table) {
        Ok(()) => enter(&exec.container, layout, Some(warm)),
        Err(_) => sys::fork::leave(CANNOT_START),
    }
}

/// The descriptors of a request, by their use.
struct ExecFds {
    /// Spec and the payload's own.
    payload: Vec<OwnedFd>,
    cgroup: Option<OwnedFd>,
    /// Standard input if there is one, output, error; empty for a process that makes its own terminal.
    streams: Vec<OwnedFd>,
    has_stdin: bool,
}

impl ExecFds {
    /// Errors: `fds` are not as many as `exec` says.
    fn of(exec: &ExecMessage, mut fds: Vec<OwnedFd>) -> Result<Self> {
        let linux = exec.linux.as_ref();
        let own_terminal = linux.is_some_and(|linux| linux.tty);
        let has_stdin = exec.stdin && !own_terminal;
        let streams = usize::from(has_stdin) + if own_terminal { 0 } else { 2 };
        let own = 1 + super::payload_fds(linux) + usize::from(exec.into_cgroup);
        if fds.len() != own + streams {
            let text = format!("got {} descriptors instead of {}", fds.len(), own + streams);
            return Err(Error::new(Kind::Bug, text));
        }
        let streams = fds.split_off(own);
        let cgroup = if exec.into_cgroup { fds.pop() } else { None };
        Ok(Self {
            payload: fds,
            cgroup,
            streams,
            has_stdin,
        })
    }

    /// Numbers of the process's first descriptors: standard streams, report socket, spec, the payload's own.
    fn table(&self, empty: &OwnedFd, report: &OwnedFd) -> Vec<RawFd> {
        let mut table: Vec<RawFd> = Vec::new();
        if !self.has_stdin {
            table.push(empty.as_raw_fd());
        }
        table.extend(self.streams.iter().map(|fd| fd.as_raw_fd()));
        // A process that makes its own terminal has empty streams until then.
        table.resize(3, empty.as_raw_fd());
        table.push(report.as_raw_fd());
        table.extend(self.payload.iter().map(|fd| fd.as_raw_fd()));
        table
    }
}

/// Runs the forked process; its descriptors are in place. Without `warm` it was executed for its own address space.
pub(super) fn enter(container: &ContainerId, layout: Layout, warm: Option<&Warm>) -> ! {
    run_to_the_end(|| set_up(container, layout, warm).map(|never| match never {}))
}

fn set_up(container: &ContainerId, layout: Layout, warm: Option<&Warm>) -> Result<Infallible> {
    // The container's processes must not reach the node through this one while it still belongs to the node.
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
        Workload::Wasm(_) => init::with_engine(warm, |warm| wasm(&spec, layout, warm)),
        Workload::Linux(linux) => program(&spec, linux, layout),
    }
}

/// Takes the pidfd of the container's first process, which follows the payload's descriptors.
fn first_process(layout: Layout) -> OwnedFd {
    sys::fork::adopt(PAYLOAD_FD + layout.payload as RawFd)
}

fn wasm(spec: &ContainerSpec, layout: Layout, warm: &Warm) -> Result<Infallible> {
    let first = first_process(layout);
    if let Workload::Wasm(wasm) = &spec.workload {
        init::lead_session(wasm)?;
    }
    let procfs = init::procfs()?;
    let what = || "look whose the container's process is; it may have ended".to_owned();
    let user = sys::ids::user_of(first.as_fd()).during(what)?;
    sandbox::enter(spec, user, || join(first, all_but_user()))?;
    super::wasm::run(spec, warm, procfs)
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
    let other_pids = linux.jail.pid != PidNamespaceMode::Node;
    which.set(ThreadNameSpaceType::PROCESS_ID, other_pids);
    join(first, which)?;
    if userns {
        sys::ids::become_user(0, 0, &[]).during(|| "become the user namespace's root".into())?;
    }
    // Applied before the fork: the label survives it, and the open file belongs to this process.
    label.map_or(Ok(()), Label::apply)?;
    if other_pids {
        // The container can see the exec's processes from here on.
        init::fork_and_continue(0).during(|| "fork into the container's pid namespace".into())?;
    }
    rustix::process::setsid().during(|| "lead a session".into())?;
    if linux.jail.tty {
        let terminal = sandbox::linux::join_terminal(spec.identity.uid)?;
        init::report_with(&Report::Terminal, terminal.as_fd());
    }
    init::become_program(spec, linux, filter, None)
}
