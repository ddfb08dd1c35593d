//! The process of a function that may sleep: it holds the listening socket, and forks the process that serves.
//!
//! ```text
//! fork --> [server] loads, locks itself, serves, exits with a code for sleep when nobody has called for long
//!  ^           |
//!  |           v
//!  +- a connection waits <- poll the socket
//!
//! fork --> [doorman] answers probes, exits with a code for sleep; with somebody who wants the guest it is the server
//! ```
//! The second way is taken for a function whose handler wants it, once its guests have answered probes well.
//! Called by [`super::wasm`], in the jail. To keeper and daemon this process is the container: its end is the container's,
//! its pidfd is signalled, its namespaces are joined. So it ends as its server ends, unless that has gone to sleep.
//! Invariants: it runs no guest code and never reads from a connection; it has one thread, so that its forks find every
//! lock free; without a server it waits in poll(2) without a timeout. The socket listens without a pause from the first
//! server on: what connects while none is there is queued by the kernel until there is one. A server never outlives it.
//! It loads nothing either: an engine with its linkers and the pool's mappings would be three quarters of the memory that
//! a sleeping function takes, and each fork would copy them.
//! Not here: when a server is idle, how it serves.

mod turn;

use std::convert::Infallible;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use coracle_spec::error::{Context as _, Error, Kind, Result};
use coracle_spec::{ContainerSpec, HttpServer, Wakes, Workload};
use coracle_sys as sys;
use coracle_sys::fork::Forked;
use coracle_wasm::run::{Payload, Probes};
use coracle_wasm::stop;
use turn::{Turn, serve};

/// Exit codes of a server that has gone to sleep, by what it has told probes. Only this module sees them.
const SLEEP_CODES: [(i32, Probes); 3] = [
    (96, Probes::None),
    (97, Probes::Succeeded),
    (98, Probes::Failed),
];
/// How often, and how far apart, a fork is tried while the container has as many processes as it may, or the node is out
/// of memory.
const TRIES: u32 = 100;
const APART: Duration = Duration::from_millis(50);

/// The process that serves, as far as this one knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Server {
    /// None: it sleeps, or there has been none yet.
    Absent,
    Running,
    /// Otherwise than by going to sleep, with an exit code as in CRI: 128 + signal for a signal.
    Ended(i32),
}

/// What has been asked of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    No,
    /// A stop signal has come.
    Asked,
    /// The running server has it, too.
    PassedOn,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Wait,
    Fork,
    PassOn,
    Leave(i32),
}

/// The next step; `waits`: somebody has connected whom no server has accepted.
fn next(server: Server, stop: Stop, waits: bool) -> Step {
    match (server, stop) {
        // Who could connect is served, also when that was at the last moment.
        (Server::Absent, _) if waits => Step::Fork,
        (Server::Absent, Stop::No) => Step::Wait,
        (Server::Absent, _) => Step::Leave(0),
        (Server::Ended(code), _) => Step::Leave(code),
        (Server::Running, Stop::Asked) => Step::PassOn,
        (Server::Running, _) => Step::Wait,
    }
}

/// What this process knows of its servers.
struct Holder<'a> {
    spec: &'a ContainerSpec,
    stop: OwnedFd,
    /// The pidfd of the running server.
    running: Option<OwnedFd>,
    /// Where it says that it serves, until it has.
    starting: Option<OwnedFd>,
    /// Servers that were forked because somebody called, and have begun to serve.
    wakes: u64,
    /// How long the last of them took from the call to its first accept, in microseconds.
    latency_us: u64,
    /// How long all of them took.
    all_latencies_us: u64,
    /// The guests' last answers to probes were good.
    is_well: bool,
}

/// Serves by forked processes until one ends otherwise than by going to sleep, or a stop signal comes. Returns in none.
///
/// Errors: no process can be forked, for 5 s.
pub(super) fn hold(payload: Payload<'_>, stop: OwnedFd, second: OwnedFd) -> Result<Infallible> {
    let mut holder = Holder::new(payload.spec, stop);
    let mut asked = Stop::No;
    let mut is_first = true;
    loop {
        let server = holder.server()?;
        if stop::signal() != 0 && asked == Stop::No {
            asked = Stop::Asked;
        }
        let Some(listener) = payload.listener.as_ref().map(OwnedFd::as_fd) else {
            return Err(Error::new(Kind::Bug, "a server came without its listener"));
        };
        let waits = is_first || (server != Server::Running && is_readable(listener));
        match next(server, asked, waits) {
            Step::Wait => holder.wait(listener),
            Step::Fork => {
                let turn = Turn::new(is_first, holder.has_doorman())?;
                let Some(pidfd) = fork()? else {
                    return serve(payload, second, turn, holder.stop);
                };
                holder.started(pidfd, turn);
                is_first = false;
                if asked == Stop::Asked {
                    // The server has inherited it.
                    asked = Stop::PassedOn;
                }
            }
            Step::PassOn => {
                asked = Stop::PassedOn;
                holder.signal(stop::signal());
            }
            Step::Leave(code) => sys::fork::leave(code),
        }
    }
}

/// Forks; gives the pidfd in the parent. Errors: as of [`hold`].
fn fork() -> Result<Option<OwnedFd>> {
    let mut tries = 0;
    loop {
        tries += 1;
        match sys::fork::fork_by_clone() {
            Ok(Forked::Child) => return Ok(None),
            Ok(Forked::Parent { pidfd }) => return Ok(Some(pidfd)),
            Err(_) if tries < TRIES && stop::signal() == 0 => std::thread::sleep(APART),
            Err(e) => {
                return Err(e).during(|| {
                    "fork the process that serves: the container's limit of processes, or the node's memory".into()
                });
            }
        }
    }
}

impl<'a> Holder<'a> {
    fn new(spec: &'a ContainerSpec, stop: OwnedFd) -> Self {
        Self {
            spec,
            stop,
            running: None,
            starting: None,
            wakes: 0,
            latency_us: 0,
            all_latencies_us: 0,
            is_well: false,
        }
    }

    /// What the server does; one that has ended is reaped, and absent from the next call on.
    fn server(&mut self) -> Result<Server> {
        let Some(pidfd) = &self.running else {
            return Ok(Server::Absent);
        };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = waitid(WaitId::PidFd(pidfd.as_fd()), options)
            .during(|| "wait for the process that serves".into())?;
        let Some(status) = status else {
            return Ok(Server::Running);
        };
        self.running = None;
        self.starting = None;
        self.show("asleep");
        let code = status.exit_status();
        let slept = SLEEP_CODES.iter().find(|(slept, _)| Some(*slept) == code);
        if let Some((_, probes)) = slept {
            match probes {
                Probes::None => {}
                Probes::Succeeded => self.is_well = true,
                Probes::Failed => self.is_well = false,
            }
            return Ok(Server::Absent);
        }
        let signal = status.terminating_signal().map(|signal| 128 + signal);
        Ok(Server::Ended(code.or(signal).unwrap_or(128)))
    }

    /// Whether somebody else may answer probes now.
    fn has_doorman(&self) -> bool {
        let Workload::Wasm(wasm) = &self.spec.workload else {
            return false;
        };
        self.is_well && wasm.serves().is_some_and(HttpServer::has_doorman)
    }

    fn started(&mut self, pidfd: OwnedFd, turn: Turn) {
        self.running = Some(pidfd);
        if turn.since.is_some() {
            self.starting = Some(turn.serving);
        }
        if !turn.as_doorman {
            self.show("awake");
        }
    }

    fn signal(&self, signal: i32) {
        if let Some(pidfd) = &self.running {
            // It may have ended meanwhile, which is seen next.
            let _ = match stop::grace() {
                Some(grace) => sys::signals::send_with_grace(pidfd.as_fd(), signal, grace),
                None => sys::signals::send_raw(pidfd.as_fd(), signal),
            };
        }
    }

    /// Sleeps until something has happened.
    fn wait(&mut self, listener: BorrowedFd<'_>) {
        let on = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut fds = vec![on(self.stop.as_fd())];
        match &self.running {
            None => fds.push(on(listener)),
            Some(pidfd) => {
                fds.push(on(pidfd.as_fd()));
                fds.extend(self.starting.iter().map(|fd| on(fd.as_fd())));
            }
        }
        // Interrupted or not, the caller looks at everything again.
        let _ = poll(&mut fds, None);
        // It only wakes; which signal has come is kept elsewhere.
        let _ = rustix::io::read(&self.stop, &mut [0; 8]);
        self.read_latency();
    }

    fn read_latency(&mut self) {
        let mut micros = [0; 8];
        let Some(fd) = &self.starting else {
            return;
        };
        if rustix::io::read(fd, &mut micros) == Ok(8) {
            self.wakes += 1;
            self.latency_us = u64::from_ne_bytes(micros);
            self.all_latencies_us = self.all_latencies_us.saturating_add(self.latency_us);
            self.starting = None;
            self.show("awake");
        }
    }

    /// Says in this process's title what its server does, and how often and how fast it was started again. The daemon's
    /// metrics have the counts from its name.
    fn show(&self, state: &str) {
        let (wakes, latency, all) = (self.wakes, self.latency_us, self.all_latencies_us);
        show(
            self.spec,
            &format!("{state} wakes={wakes} last_wake_us={latency} wakes_us={all}"),
        );
        sys::fork::set_name(
            &Wakes {
                count: wakes,
                took: Duration::from_micros(all),
            }
            .name(),
        );
    }
}

/// The exit code of a server that goes to sleep after it has told `probes` so.
pub(super) fn sleep_code(probes: Probes) -> i32 {
    let mut codes = SLEEP_CODES.iter();
    let own = codes.find(|(_, of)| *of == probes);
    own.map_or(SLEEP_CODES[0].0, |(code, _)| *code)
}

fn show(spec: &ContainerSpec, state: &str) {
    sys::fork::set_title(&format!("coracle guest {} {state}", spec.id));
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&now)), Ok(found) if found > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleeping_server_is_started_by_whoever_connects_and_by_nothing_else() {
        assert_eq!(next(Server::Absent, Stop::No, false), Step::Wait);
        assert_eq!(next(Server::Absent, Stop::No, true), Step::Fork);
        // A stop ends it, but whoever could connect has an answer.
        for stop in [Stop::Asked, Stop::PassedOn] {
            assert_eq!(next(Server::Absent, stop, false), Step::Leave(0));
            assert_eq!(next(Server::Absent, stop, true), Step::Fork);
        }
    }

    #[test]
    fn a_server_that_ends_otherwise_ends_the_container_as_it_ended() {
        for code in [0, 1, 128, 134, 137, 143] {
            for stop in [Stop::No, Stop::Asked, Stop::PassedOn] {
                for waits in [false, true] {
                    assert_eq!(next(Server::Ended(code), stop, waits), Step::Leave(code));
                }
            }
        }
    }

    #[test]
    fn a_running_server_gets_a_stop_signal_once() {
        for waits in [false, true] {
            assert_eq!(next(Server::Running, Stop::No, waits), Step::Wait);
            assert_eq!(next(Server::Running, Stop::Asked, waits), Step::PassOn);
            assert_eq!(next(Server::Running, Stop::PassedOn, waits), Step::Wait);
        }
    }
}
