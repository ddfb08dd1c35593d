//! One server's turn: what is made for it before its fork, and how it begins in its own process.
//!
//! Called by [`super::hold`]: [`Turn::new`] before the fork, [`serve`] in the child.
//! Invariants: a server ends with the process that forked it; where there is a doorman, nothing is loaded until
//! somebody wants the guest.
//! Not here: when a server is forked, what its end means.

use std::convert::Infallible;
use std::net::TcpStream;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{Pid, getpid, getppid};

use super::super::wasm::{allow_heaps, lock, on_a_new_thread};
use super::{show, sleep_code};
use coracle_spec::error::{Context as _, Result};
use coracle_sys as sys;
use coracle_wasm::run::{self, Begin, Payload, Probes};
use coracle_wasm::server::doorman;
use coracle_wasm::stop;

/// One server: what both sides of its fork know.
pub(super) struct Turn {
    /// When somebody called; none for the first server.
    pub(super) since: Option<Instant>,
    /// An eventfd by which the server says that it serves: microseconds since the call.
    pub(super) serving: OwnedFd,
    /// The process that forks it.
    holder: Pid,
    /// It is the doorman at first.
    pub(super) as_doorman: bool,
}

/// Serves, in a process that was just forked. `holders_stop` would wake the process that holds the socket.
pub(super) fn serve(
    payload: Payload<'_>,
    second: OwnedFd,
    turn: Turn,
    holders_stop: OwnedFd,
) -> Result<Infallible> {
    sys::signals::die_with_parent()
        .during(|| "end with the process that holds the socket".into())?;
    if getppid() != Some(turn.holder) {
        sys::fork::leave(128 + libc::SIGKILL);
    }
    let stop = stop::rearm_stop()?;
    drop(holders_stop);
    let wake = stop
        .try_clone()
        .during(|| "share the stop eventfd".into())?;
    let (callers, turn) = turn.past_the_door(&payload, &stop)?;
    let is_again = turn.since.is_some();
    let begin = Begin {
        ready: move || lock(&second, !is_again),
        serving: move || turn.serves(),
        callers,
        is_again,
    };
    on_a_new_thread(move || run::run(payload, stop, begin), wake, None)
}

impl Turn {
    /// A turn that begins now.
    pub(super) fn new(is_first: bool, has_doorman: bool) -> Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let serving = eventfd(0, flags).during(|| "make an eventfd for the server".into())?;
        Ok(Self {
            since: (!is_first).then(Instant::now),
            serving,
            holder: getpid(),
            as_doorman: has_doorman && !is_first,
        })
    }

    /// Is the doorman, if there is one, until somebody wants the guest: those to begin with, and the turn of a server.
    /// Where nobody does, the process ends.
    fn past_the_door(
        self,
        payload: &Payload<'_>,
        stop: &OwnedFd,
    ) -> Result<(Vec<TcpStream>, Self)> {
        let mut callers = Vec::new();
        let mut since = self.since;
        if let Some(listener) = payload.listener.as_ref().filter(|_| self.as_doorman) {
            show(payload.spec, "doorman");
            callers = doorman::receive(listener.as_fd(), stop.as_fd())?;
            if callers.is_empty() {
                sys::fork::leave(sleep_code(Probes::None));
            }
            // How long a client takes to say what it wants is no latency of the function's.
            since = Some(Instant::now());
        }
        show(payload.spec, "server");
        allow_heaps(payload.spec);
        Ok((callers, Self { since, ..self }))
    }

    /// Says, in the server, that it serves.
    fn serves(self) {
        if let Some(since) = self.since {
            let micros = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX - 1);
            // Only a figure for operators is lost without it.
            let _ = rustix::io::write(&self.serving, &micros.max(1).to_ne_bytes());
        }
    }
}
