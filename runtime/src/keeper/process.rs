//! The keeper process: one event loop over the daemon's connection, guests, their reports and their logs.
//!
//! Entered in a fresh fork of the spawner. Wakes only when a descriptor is ready or a deadline of a starting or
//! ending guest is near; an idle pod costs no wake-up at all.
//! Invariant: nothing here blocks: sockets are non-blocking, log files belong to log threads, the exit record goes
//! to the state directory only.
//! Not here: how a guest is jailed.

mod connection;
mod start;

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};

use super::container_process::{ExecParts, Parts};
use super::containers::Containers;
use super::execs::{Execs, Tree};
use super::tokens::{CHILDREN, CONNECTION, FIRST_EXEC, FIRST_WATCH, LIFELINE, LISTENER, PAUSE};
use crate::control::messages::{Answer, FromKeeper, KeeperConfig, Request, ToKeeper};
use crate::control::{PAGED_PROTOCOL, PROTOCOL};
use connection::Connection;
use coracle_sandbox::{PodNamespaces, identity};
use coracle_spec::error::{Context as _, Result};
use coracle_sys as sys;
use coracle_wasm::Warm;

/// What a keeper has from birth.
pub struct Inherited<'a> {
    /// Facts about the pod.
    pub config: KeeperConfig,
    /// Where the daemon connects.
    pub listener: OwnedFd,
    /// Ends the keeper when the daemon drops it before the pod is recorded.
    pub lifeline: OwnedFd,
    /// Namespaces of the pod.
    pub pod: PodNamespaces,
    /// A mount namespace with an empty root, for processes that need no files.
    pub empty: OwnedFd,
    /// Engine and linkers, shared with the spawner.
    pub warm: &'a Warm,
    /// The engine's hash.
    pub engine_hash: &'a str,
}

/// Runs the keeper until it is told to leave and no container runs.
///
/// Errors: the node is out of descriptors, or the daemon died before the pod was recorded.
pub fn main(inherited: Inherited<'_>) -> Result<()> {
    let epoll =
        epoll::create(epoll::CreateFlags::CLOEXEC).during(|| "make the keeper's epoll".into())?;
    let mut keeper = EventLoop {
        containers: Containers::new(inherited.config.exits.clone()),
        inherited,
        epoll,
        connection: None,
        pause: None,
        ends: sys::children::sigchld_fd().during(|| "hear of ended children".into())?,
        unclaimed: false,
        execs: Execs::default(),
        committed: false,
        is_set_up: false,
        leaving: false,
    };
    keeper.watch(LISTENER, keeper.inherited.listener.as_fd(), EventFlags::IN)?;
    keeper.watch(CHILDREN, keeper.ends.as_fd(), EventFlags::IN)?;
    keeper.watch(LIFELINE, keeper.inherited.lifeline.as_fd(), EventFlags::IN)?;
    loop {
        if keeper.leaving && keeper.containers.all_exited() && keeper.execs.is_empty() {
            keeper.flush();
            return Ok(());
        }
        if keeper.run_once()? == Outcome::Abandoned {
            return Ok(());
        }
    }
}

#[derive(PartialEq, Eq)]
enum Outcome {
    Done,
    /// The daemon is gone before the pod was recorded.
    Abandoned,
}

struct EventLoop<'a> {
    inherited: Inherited<'a>,
    containers: Containers,
    epoll: OwnedFd,
    connection: Option<Connection>,
    /// First process of the pid namespace that containers share.
    pause: Option<OwnedFd>,
    /// Readable when a child has ended.
    ends: OwnedFd,
    /// A child has ended since the last look for those that nobody follows.
    unclaimed: bool,
    execs: Execs,
    committed: bool,
    is_set_up: bool,
    leaving: bool,
}

impl EventLoop<'_> {
    fn watch(&self, token: u64, fd: BorrowedFd<'_>, flags: EventFlags) -> Result<()> {
        epoll::add(&self.epoll, fd, EventData::new_u64(token), flags)
            .during(|| "watch a descriptor".into())
    }

    fn run_once(&mut self) -> Result<Outcome> {
        let timeout = self.containers.next_deadline().map(|at| {
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            rustix::event::Timespec {
                tv_sec: left.as_secs().cast_signed(),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        let mut events = Vec::with_capacity(16);
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            timeout.as_ref(),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e).during(|| "wait for events".into()),
        }
        for event in events {
            match event.data.u64() {
                LISTENER => self.accept(),
                LIFELINE if !self.committed => return Ok(Outcome::Abandoned),
                LIFELINE => {
                    let _ = epoll::delete(&self.epoll, &self.inherited.lifeline);
                }
                CONNECTION => self.receive(),
                PAUSE => self.reap_pause(),
                CHILDREN => {
                    let mut signals = [0; 1024];
                    while rustix::io::read(&self.ends, &mut signals).is_ok() {}
                    self.unclaimed = true;
                }
                token if token >= FIRST_EXEC => self.execs.ready(token - FIRST_EXEC, &self.epoll),
                token => self.containers.ready(token - FIRST_WATCH, &self.epoll),
            }
        }
        self.reap_unclaimed();
        self.containers.expire(Instant::now());
        self.report();
        self.flush();
        if self.committed && !self.is_set_up {
            self.finish_setup()?;
        }
        Ok(Outcome::Done)
    }

    /// What a keeper needs, but nobody waits for: its own cgroups, and the id map of its guests' mounts.
    fn finish_setup(&mut self) -> Result<()> {
        self.is_set_up = true;
        for file in &self.inherited.config.cgroup_procs {
            std::fs::write(file, "0")
                .during(|| format!("enter the keeper's cgroup {}", file.display()))?;
        }
        // A node without user namespaces says so when a guest needs the map.
        self.inherited.pod.ids =
            identity::pod_id_map(self.inherited.config.range, self.inherited.empty.as_fd()).ok();
        Ok(())
    }

    /// Reaps children that nobody follows: siblings of processes that were killed before they could tell of them. One
    /// left unreaped would keep its whole pid namespace from ending.
    fn reap_unclaimed(&mut self) {
        // Who is still on the way may have told of a sibling that was not heard of yet.
        let is_calm = !self.containers.is_starting() && !self.execs.is_starting();
        while self.unclaimed && is_calm {
            let Some(pid) = sys::children::peek() else {
                self.unclaimed = false;
                return;
            };
            let pause = self.pause.iter().map(|fd| fd.as_fd());
            let mut followed = self
                .containers
                .processes()
                .chain(self.execs.processes())
                .chain(pause);
            if followed.any(|pidfd| sys::children::peek_at(pidfd) == Some(pid)) {
                // Its own event is next; then this looks on.
                return;
            }
            sys::children::reap(pid);
        }
    }

    fn answer(&mut self, message: ToKeeper, version: u16, fds: Vec<OwnedFd>) {
        let request = message.request;
        let done = |result: io::Result<()>| match result {
            Ok(()) => Some(Answer::Done),
            Err(e) => Some(Answer::Failed {
                start_failed: false,
                message: e.to_string(),
            }),
        };
        let answer = match message.body {
            Request::Hello => return self.greet(request, version),
            Request::ListContainers { from } => return self.list_containers(request, from),
            Request::Commit => {
                self.committed = true;
                Some(Answer::Done)
            }
            Request::Start {
                container,
                stdin,
                log,
                into_cgroup,
                linux,
                tty,
            } => self.start(
                request,
                container,
                Parts {
                    fds,
                    log,
                    stdin,
                    into_cgroup,
                    linux,
                    tty,
                },
            ),
            Request::Exec {
                container,
                stdin,
                into_cgroup,
                linux,
                kill,
                kill_list,
            } => {
                let parts = ExecParts {
                    fds,
                    stdin,
                    into_cgroup,
                    linux,
                };
                let tree = Tree {
                    files: kill,
                    list: kill_list,
                };
                match self.exec(request, container, parts, tree) {
                    // Answered when it runs.
                    Ok(()) => None,
                    Err(e) => done(Err(io::Error::other(e.chain()))),
                }
            }
            Request::Attach { container, streams } => {
                match self.containers.attach(&container, streams, fds) {
                    Ok(attached) => {
                        let answer = Answer::Attached { tty: attached.tty };
                        let fds = attached.input.into_iter().collect();
                        return self.send(&FromKeeper::Answer { request, answer }, fds);
                    }
                    Err(e) => done(Err(e)),
                }
            }
            Request::ReopenLog { container } => {
                match self.containers.reopen(&container, request, fds) {
                    // Answered when the log thread has taken the file.
                    Ok(()) => None,
                    Err(e) => done(Err(e)),
                }
            }
            Request::AwaitStart { container } => {
                match self.containers.await_start(&container, request) {
                    Ok(Some(started)) => return self.send(&started.0, started.1),
                    // Answered when the start ends.
                    Ok(None) => None,
                    Err(e) => done(Err(e)),
                }
            }
            Request::Forget { container } => done(self.containers.forget(&container)),
            Request::Leave => {
                self.leaving = true;
                Some(Answer::Done)
            }
        };
        if let Some(answer) = answer {
            self.send(&FromKeeper::Answer { request, answer }, Vec::new());
        }
    }

    /// Says who this is, to a daemon that speaks protocol `version`.
    fn greet(&mut self, request: u64, version: u16) {
        let page = match version >= PAGED_PROTOCOL {
            true => self.containers.page(0),
            false => self.containers.only_page(),
        };
        let answer = Answer::Greeting {
            protocol: PROTOCOL,
            engine_hash: self.inherited.engine_hash.to_owned(),
            pod: self.inherited.config.pod.clone(),
            containers: page.containers,
            next: page.next,
        };
        self.send(&FromKeeper::Answer { request, answer }, page.pidfds);
    }

    fn list_containers(&mut self, request: u64, from: usize) {
        let page = self.containers.page(from);
        let answer = Answer::Containers {
            containers: page.containers,
            next: page.next,
        };
        self.send(&FromKeeper::Answer { request, answer }, page.pidfds);
    }

    /// Says what the table has to say since the last turn.
    fn report(&mut self) {
        let events = self.containers.take_events().into_iter();
        for (message, fds) in events.chain(self.execs.take_events()) {
            if let FromKeeper::Exited { container, .. } = &message {
                self.execs.kill_in(container);
            }
            self.send(&message, fds);
        }
    }
}
