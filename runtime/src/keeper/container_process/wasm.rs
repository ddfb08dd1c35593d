//! What a Wasm container's process does inside its finished jail.
//!
//! ```text
//! Landlock -> first filter -> a new thread: load, second filter, run
//! a server that may sleep:  Landlock -> first filter -> what `idle` does
//! ```
//! Called by a container's first process and by its execs. Invariant: guest code runs on a thread started after the fork,
//! so that guests do not share per-thread state of keeper or spawner (hash keys, generators).
//! It must not know how the jail is built.

use std::convert::Infallible;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use super::exit::run_to_the_end;
use super::idle;
use super::init::{PAYLOAD_FD, report};
use coracle_control::messages::Report;
use coracle_sandbox as sandbox;
use coracle_spec::error::{Context as _, Error, Kind, Result};
use coracle_spec::{ContainerSpec, HttpServer, Workload};
use coracle_sys as sys;
use coracle_wasm::run::{self, Begin, End, Payload};
use coracle_wasm::{Warm, server};

/// Stack of the thread that runs the payload; Wasm code has its own stack.
const THREAD_STACK: usize = 512 * 1024;
/// How long a payload may take to return after a stop signal.
const STOP_TIMEOUT: Duration = Duration::from_millis(100);

/// Runs the compiled code that is this process's payload.
pub(super) fn run(spec: &ContainerSpec, warm: &Warm, procfs: OwnedFd) -> Result<Infallible> {
    let Workload::Wasm(wasm) = &spec.workload else {
        return Err(Error::new(Kind::Bug, "a Linux payload came to the engine"));
    };
    let code = sys::fork::adopt(PAYLOAD_FD);
    let first = sys::fork::adopt(PAYLOAD_FD + 1);
    let second = sys::fork::adopt(PAYLOAD_FD + 2);
    let stop = warm.arm_stop()?;
    // While it may: a guest without a network serves, and makes no socket itself.
    let listener = wasm.serves().map(|settings| server::bind(settings.port));
    let listener = listener.transpose()?;
    sandbox::landlock::confine(spec, wasm, code.as_fd())?;
    sandbox::install(first.as_fd(), 0)?;
    drop(first);
    // A server has requests to answer, and ends by itself or by SIGKILL.
    let timeout = listener.is_none().then_some(STOP_TIMEOUT);
    let payload = Payload {
        warm,
        spec,
        code,
        procfs,
        listener,
    };
    if wasm.serves().is_some_and(HttpServer::may_sleep) {
        return idle::hold(payload, stop, second);
    }
    allow_heaps(spec);
    let wake = stop
        .try_clone()
        .during(|| "share the stop eventfd".into())?;
    let work = || {
        let begin = Begin {
            ready: || lock(&second, true),
            serving: || (),
            callers: Vec::new(),
            is_again: false,
        };
        run::run(payload, stop, begin)
    };
    on_a_new_thread(work, wake, timeout)
}

/// The last step before guest code runs: no new executable mappings, and, the first time, a report to the keeper.
pub(super) fn lock(second: &OwnedFd, is_first: bool) -> Result<()> {
    sandbox::install(second.as_fd(), 0)?;
    if is_first {
        report(&Report::Ready);
    }
    Ok(())
}

/// Gives the threads of a server a heap each: with the one that this process is born with, each would wait for the
/// others at every request. Called while there is one thread.
pub(super) fn allow_heaps(spec: &ContainerSpec) {
    let Workload::Wasm(wasm) = &spec.workload else {
        return;
    };
    if let Some(server) = wasm.serves().filter(|server| server.threads > 1) {
        let threads = u8::try_from(server.threads).unwrap_or(u8::MAX);
        sys::memory::limit_arenas(threads.saturating_add(1));
    }
}

/// Runs `work` on a new thread, which has fresh thread-local state, and exits with its result.
///
/// This thread waits for a stop signal: a payload inside a blocking host call (a long sleep of preview 1, a write to a
/// full pipe) does not see the epoch, so after `timeout` this thread exits the process. Without one, the payload exits by
/// itself or is killed.
pub(super) fn on_a_new_thread(
    work: impl FnOnce() -> Result<End> + Send,
    stop: OwnedFd,
    timeout: Option<Duration>,
) -> Result<Infallible> {
    std::thread::scope(|scope| {
        let body = move || run_to_the_end(work);
        let thread = std::thread::Builder::new()
            .stack_size(THREAD_STACK)
            .spawn_scoped(scope, body);
        let _: std::thread::ScopedJoinHandle<'_, Infallible> =
            thread.during(|| "start the payload's thread".into())?;
        let signal = coracle_wasm::stop::await_stop(stop.as_fd());
        let Some(timeout) = timeout else {
            loop {
                std::thread::park();
            }
        };
        std::thread::sleep(timeout);
        sys::fork::leave(128 + signal)
    })
}
