//! What a container's process does from its fork to the end of its payload.
//!
//! ```text
//! Wasm:   spec -> jail -> what `wasm` does in it
//! Linux:  spec -> prepare -> [join user or shared pid namespace, fork] -> finish -> execute
//! ```
//! Invariant: a Linux container's process is undumpable until its program replaces it.
//! The steps of the jail are in coracle-sandbox.

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::exit::run_to_the_end;
use super::{CANNOT_START, Layout, idle};
use crate::native::{self, Credentials, Label, NotExecuted};
use coracle_control::messages::Report;
use coracle_sandbox::{self as sandbox, PodNamespaces, linux};
use coracle_spec::error::{Context as _, Error, Kind, Result};
use coracle_spec::failpoint;
use coracle_spec::id::ContainerId;
use coracle_spec::{ContainerSpec, LinuxSpec, PidNamespaceMode, Spawn, WasmSpec, Workload};
use coracle_sys as sys;
use coracle_sys::fork::Forked;
use coracle_sys::memfd::read_all;
use coracle_wasm::Warm;
use coracle_wasm::run::{ERROR_CODE, End, TRAP_CODE};

/// Largest spec, in bytes: CRI's message size bounds arguments and environment.
const MAX_SPEC: usize = 20 << 20;
const REPORT_FD: RawFd = 3;
pub(super) const SPEC_FD: RawFd = 4;
/// How many descriptors a Wasm payload has of its own; a Linux one has fewer.
pub(super) const WASM_PAYLOAD: usize = 3;
/// The first descriptor of the payload.
pub(super) const PAYLOAD_FD: RawFd = 5;

/// The letter of an exec's process.
pub(super) const EXEC_LETTER: &str = "x";

/// Runs a container's process; its descriptors are in place.
pub(super) fn enter(container: &ContainerId, layout: Layout, warm: Option<&Warm>) -> ! {
    run_to_the_end(|| set_up(container, layout, warm).map(|never| match never {}))
}

/// Exits with the result of the payload. Any thread may call it.
pub(super) fn conclude(ended: Result<End>) -> ! {
    let code = match ended {
        Ok(End::Code(code)) => code & 0xff,
        Ok(End::Explained(code, text)) => {
            report(&Report::Message(text));
            code & 0xff
        }
        Ok(End::Failed(text)) => {
            print(&text);
            report(&Report::Message(text));
            ERROR_CODE
        }
        Ok(End::Trapped(text)) => {
            print(&text);
            report(&Report::Trap(text));
            TRAP_CODE
        }
        Ok(End::Idle(probes)) => idle::sleep_code(probes),
        Err(e) => {
            report(&Report::Failed(e.chain()));
            CANNOT_START
        }
    };
    sys::fork::leave(code)
}

/// Says on standard error why a payload ended.
fn print(text: &str) {
    let _ = rustix::io::write(sys::standard(2), format!("{text}\n").as_bytes());
}

fn set_up(container: &ContainerId, layout: Layout, warm: Option<&Warm>) -> Result<Infallible> {
    // Other processes must not reach the node through this one while it still belongs to the node.
    sys::dump::forbid().during(|| "become undumpable".into())?;
    sys::signals::reset();
    sys::fork::set_title(&format!("coracle guest {container}"));
    let spec = read_spec()?;
    match &spec.workload {
        Workload::Wasm(_) if needs_own_layout(&spec, warm) => Err(reexec(container, layout, false)),
        Workload::Wasm(_) => with_engine(warm, |warm| wasm(&spec, layout, warm)),
        Workload::Linux(linux) => linux_program(&spec, linux, layout),
    }
}

/// Calls `run` with the inherited engine, or with a new one in a process that was executed again.
pub(super) fn with_engine<T>(
    warm: Option<&Warm>,
    run: impl FnOnce(&Warm) -> Result<T>,
) -> Result<T> {
    match warm {
        Some(warm) => run(warm),
        None => run(&Warm::new()?),
    }
}

fn wasm(spec: &ContainerSpec, layout: Layout, warm: &Warm) -> Result<Infallible> {
    drop(sys::fork::adopt(SPEC_FD));
    if let Workload::Wasm(wasm) = &spec.workload {
        lead_session(wasm)?;
    }
    let pod = pod_namespaces(layout);
    let procfs = procfs()?;
    sandbox::build(spec, &pod)?;
    drop(pod);
    super::wasm::run(spec, warm, procfs)
}

/// Makes the payload's terminal its controlling terminal, so that Ctrl-C interrupts it.
pub(super) fn lead_session(wasm: &WasmSpec) -> Result<()> {
    let what = || "lead the session of its terminal".to_owned();
    if wasm.tty {
        rustix::process::setsid().during(what)?;
        sys::terminal::become_controlled_by(sys::standard(0)).during(what)?;
    }
    Ok(())
}

/// Opens `/proc`, because the finished jail has none. Whoever runs guest code closes it before.
pub(super) fn procfs() -> Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open("/proc", flags, Mode::empty()).during(|| "open /proc".into())
}

/// Runs a program of a Linux image: in this process, or in a new one inside the pod's namespaces.
fn linux_program(spec: &ContainerSpec, linux: &LinuxSpec, layout: Layout) -> Result<Infallible> {
    drop(sys::fork::adopt(SPEC_FD));
    let filter = (layout.payload > 0).then(|| sys::fork::adopt(PAYLOAD_FD));
    let pod = pod_namespaces(layout);
    native::give_streams(host_uid(spec, linux.userns));
    sandbox::own_session_keyring()?;
    // Opened while there is a /proc: what is prepared leaves the node's mounts.
    let mut label = Label::open(linux)?;
    let prepared = linux::prepare(spec, linux, &pod)?;
    let user = pod.user.as_ref().filter(|_| linux.userns);
    if user.is_some() || pod.pids.is_some() {
        // Applied before the fork: the label survives it, and the open file belongs to this process.
        label.take().map_or(Ok(()), Label::apply)?;
        prepared.make_stage_root()?;
        join_pod(&pod, user, linux)?;
    }
    rustix::process::setsid().during(|| "lead a session".into())?;
    let terminal = linux::finish(spec, linux, prepared, &pod)?;
    drop(pod);
    if let Some(terminal) = terminal {
        report_with(&Report::Terminal, terminal.as_fd());
    }
    become_program(spec, linux, filter, label)
}

/// The last step: executes the program of a Linux image, or reports why it cannot.
pub(super) fn become_program(
    spec: &ContainerSpec,
    linux: &LinuxSpec,
    filter: Option<OwnedFd>,
    label: Option<Label>,
) -> ! {
    let who = Credentials {
        identity: spec.identity.clone(),
        filter,
        label,
    };
    let failed = native::execute(linux, who, || report(&Report::Executing));
    let Err(NotExecuted { code, error }) = failed;
    report(&Report::NotExecuted {
        code,
        text: error.chain(),
    });
    sys::fork::leave(code)
}

/// The payload's user on the host.
pub(super) fn host_uid(spec: &ContainerSpec, userns: bool) -> u32 {
    let who = &spec.identity;
    match userns {
        true => who.range.base.saturating_add(who.uid),
        false => who.uid,
    }
}

/// Joins the shared pid namespace and the pod's `user` namespace and continues in a new process there; this one exits.
/// Only a process that was forked inside them owns its mount and pid namespaces.
fn join_pod(pod: &PodNamespaces, user: Option<&OwnedFd>, linux: &LinuxSpec) -> Result<()> {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    if let Some(process) = &pod.pids {
        let which = ThreadNameSpaceType::PROCESS_ID;
        move_into_thread_name_spaces(process.as_fd(), which)
            .during(|| "join a shared pid namespace, whose process may have ended".into())?;
    }
    let mut flags = 0;
    let what = || "enter the pod's user namespace".to_owned();
    if let Some(user) = user {
        move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User)).during(what)?;
        flags |= libc::CLONE_NEWNS;
    }
    if linux.jail.pid == PidNamespaceMode::Own {
        flags |= libc::CLONE_NEWPID;
    }
    fork_and_continue(flags as u64).during(|| "fork into the pod's namespaces".into())?;
    match user {
        Some(_) => sys::ids::become_user(0, 0, &[]).during(what),
        None => Ok(()),
    }
}

/// Continues in a new process, a child of the keeper like this one, in the new namespaces of `flags` and in the pid
/// namespace that was joined, if any. Reports it to the keeper; this process exits.
pub(super) fn fork_and_continue(flags: u64) -> std::io::Result<()> {
    match sys::fork::fork_sibling(flags)? {
        Forked::Parent { pidfd } => {
            report_with(&Report::Moved, pidfd.as_fd());
            // Leave nothing to find in a process that is about to exit.
            let _ = sys::fork::keep_only(&[]);
            sys::fork::leave(0)
        }
        Forked::Child => Ok(()),
    }
}

fn pod_namespaces(layout: Layout) -> PodNamespaces {
    let mut next = PAYLOAD_FD + layout.payload as RawFd;
    let mut namespace = |there: bool| {
        there.then(|| {
            next += 1;
            sys::fork::adopt(next - 1)
        })
    };
    let [net, ipc, uts, ids, user, shm, empty, pids] = layout.pod.map(&mut namespace);
    PodNamespaces {
        net,
        ipc,
        uts,
        ids,
        user,
        shm,
        pids,
        empty,
    }
}

pub(super) fn read_spec() -> Result<ContainerSpec> {
    let spec = sys::fork::adopt(SPEC_FD);
    let bytes = read_all(spec.as_fd(), MAX_SPEC).during(|| "read the container's spec".into())?;
    // Needed again after an exec; the process that does not exec closes it.
    std::mem::forget(spec);
    serde_json::from_slice(&bytes)
        .map_err(|e| Error::with(Kind::Bug, "understand the container's spec", e))
}

/// Whether this process, forked with a `warm` engine, must exec itself to get its own address-space layout.
pub(super) fn needs_own_layout(spec: &ContainerSpec, warm: Option<&Warm>) -> bool {
    let is_wasm = matches!(spec.workload, Workload::Wasm(_));
    is_wasm && spec.spawn == Spawn::Exec && warm.is_some()
}

/// Executes this binary again, as `coracle guest`. Returns only on failure.
pub(super) fn reexec(container: &ContainerId, layout: Layout, joins: bool) -> Error {
    use std::os::unix::process::CommandExt as _;
    let pods = Layout::LETTERS.iter().zip(layout.pod);
    let pods = pods.filter(|(_, there)| *there).map(|(letter, _)| *letter);
    let letters: String = pods.chain(joins.then_some(EXEC_LETTER)).collect();
    // Room for the title of a function that may sleep.
    let room = "-".repeat(96);
    let mut command = std::process::Command::new("/proc/self/exe");
    command
        .arg0("coracle")
        .args(["guest", container.as_str(), &format!("-{letters}{room}")]);
    command
        .arg(failpoint::armed().unwrap_or_default())
        .env_clear();
    Error::with(
        Kind::StartFailed,
        "execute the container's process again",
        command.exec(),
    )
}

pub(super) fn report(report: &Report) {
    if let Some((pipe, line)) = packed(report) {
        let _ = rustix::io::write(pipe, &line);
    }
}

/// Reports with a descriptor. Exits on failure, because the keeper would wait for it forever.
pub(super) fn report_with(report: &Report, fd: std::os::fd::BorrowedFd<'_>) {
    let sent = packed(report)
        .is_some_and(|(socket, line)| coracle_control::frame::send_one(socket, &line, fd).is_ok());
    if !sent {
        sys::fork::leave(CANNOT_START);
    }
}

fn packed(report: &Report) -> Option<(std::os::fd::BorrowedFd<'static>, Vec<u8>)> {
    let mut line = serde_json::to_vec(report).ok()?;
    line.push(b'\n');
    // SAFETY: descriptor 3 is the report socket for the whole life of the process.
    #[allow(unsafe_code, reason = "the number is in a fixed table")]
    let socket = unsafe { std::os::fd::BorrowedFd::borrow_raw(REPORT_FD) };
    Some((socket, line))
}
