//! The keeper process: an event loop over the daemon's connection, container processes, their reports and their logs.
//!
//! The spawner calls it in a new fork. It wakes only when a descriptor is ready or the deadline of a starting or
//! exiting container is near; an idle pod wakes nothing.
//! Invariant: nothing here blocks: sockets are non-blocking, log threads write log files, and exit records are written
//! to the state directory only. What a container makes without end is taken in turns with everything else.
//! It must not know how a container process is jailed.

mod connection;
mod start;

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};

use super::containers::Containers;
use super::execs::Execs;
use super::log;
use super::tokens::{CHILDREN, CONNECTION, FIRST_EXEC, FIRST_WATCH, LIFELINE, LISTENER, PAUSE};
use connection::Connection;
use coracle_control::frame::{PAGED_PROTOCOL, PROTOCOL};
use coracle_control::messages::{
    Answer, AttachStreams, FromKeeper, KeeperConfig, Request, ToKeeper,
};
use coracle_sandbox::{PodNamespaces, identity};
use coracle_spec::error::{Context as _, Error, Result};
use coracle_spec::id::ContainerId;
use coracle_sys as sys;
use coracle_wasm::Warm;

/// Most unclaimed children that are reaped in one turn: a container that shares a pid namespace can make siblings of its own
/// as fast as they are reaped.
const MAX_REAPED: usize = 64;

/// What a keeper inherits from the spawner.
pub struct Inherited<'a> {
    /// Its configuration.
    pub config: KeeperConfig,
    /// The control socket, to which the daemon connects.
    pub listener: OwnedFd,
    /// A pipe: the keeper exits when the daemon closes it before the pod is recorded.
    pub lifeline: OwnedFd,
    /// Namespaces of the pod.
    pub pod: PodNamespaces,
    /// Engine and linkers, shared with the spawner.
    pub warm: &'a Warm,
    /// The engine's hash.
    pub engine_hash: &'a str,
}

/// Runs the keeper until [`Request::Leave`] was received and no container runs.
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
        ends: sys::children::sigchld_fd().during(|| "watch for ended children".into())?,
        unclaimed: false,
        reaping: false,
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

/// An error of a fork, with its causes.
fn chain(error: Error) -> io::Error {
    io::Error::other(error.chain())
}

#[derive(PartialEq, Eq)]
enum Outcome {
    Done,
    /// The daemon was gone before the pod was recorded.
    Abandoned,
}

struct EventLoop<'a> {
    inherited: Inherited<'a>,
    containers: Containers,
    epoll: OwnedFd,
    connection: Option<Connection>,
    /// The first process of the pid namespace that containers share.
    pause: Option<OwnedFd>,
    /// Readable when a child has ended.
    ends: OwnedFd,
    /// A child has ended since the last [`Self::reap_unclaimed`].
    unclaimed: bool,
    /// There may be more of them than one turn reaps.
    reaping: bool,
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
        let mut events = Vec::with_capacity(16);
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            self.timeout().as_ref(),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e).during(|| "wait for events".into()),
        }
        for event in events {
            if self.dispatch(event.data.u64()) == Outcome::Abandoned {
                return Ok(Outcome::Abandoned);
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

    /// Time until the next deadline; `None` without one.
    fn timeout(&self) -> Option<rustix::event::Timespec> {
        if self.reaping {
            return Some(rustix::event::Timespec::default());
        }
        self.containers.next_deadline().map(|at| {
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            rustix::event::Timespec {
                tv_sec: left.as_secs().cast_signed(),
                tv_nsec: left.subsec_nanos().into(),
            }
        })
    }

    /// Handles a ready descriptor.
    fn dispatch(&mut self, token: u64) -> Outcome {
        match token {
            LISTENER => self.accept(),
            LIFELINE if !self.committed => return Outcome::Abandoned,
            LIFELINE => {
                let _ = epoll::delete(&self.epoll, &self.inherited.lifeline);
            }
            CONNECTION => self.receive(),
            PAUSE => self.reap_pause(),
            CHILDREN => {
                // Once: whoever forks without end would be read without end.
                let _ = rustix::io::read(&self.ends, &mut [0; 1024]);
                self.containers.child_ended(&self.epoll);
                self.execs.child_ended(&self.epoll);
                self.unclaimed = true;
            }
            token if token >= FIRST_EXEC => self.execs.ready(token - FIRST_EXEC, &self.epoll),
            token => self.containers.ready(token - FIRST_WATCH, &self.epoll),
        }
        Outcome::Done
    }

    /// Does the setup that no request waits for: enters its own cgroups, and makes the id map of the pod's mounts.
    fn finish_setup(&mut self) -> Result<()> {
        self.is_set_up = true;
        for file in &self.inherited.config.cgroup_procs {
            std::fs::write(file, "0")
                .during(|| format!("enter the keeper's cgroup {}", file.display()))?;
        }
        // Making a map forks.
        log::await_begun();
        // On a node without user namespaces, the container that needs the map reports the error.
        self.inherited.pod.ids =
            identity::pod_id_map(self.inherited.config.range, self.inherited.pod.empty()?).ok();
        Ok(())
    }

    /// Reaps children that no container or exec watches: processes whose parent was killed before it could report them.
    /// An unreaped one would keep its whole pid namespace alive.
    fn reap_unclaimed(&mut self) {
        // A starting process may have reported a sibling in a report that was not read yet.
        let is_calm = !self.containers.is_starting() && !self.execs.is_starting();
        self.reaping = false;
        for _ in 0..MAX_REAPED {
            if !self.unclaimed || !is_calm {
                return;
            }
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
                // Its own event comes next; then this continues.
                return;
            }
            sys::children::reap(pid);
        }
        self.reaping = true;
    }

    /// Handles a request of a daemon that speaks protocol `version`.
    fn handle_request(&mut self, message: ToKeeper, version: u16, fds: Vec<OwnedFd>) {
        let request = message.request;
        // Answered already, or later by an event.
        let (done, later) = (|()| Some(Answer::Done), |()| None);
        let result = match message.body {
            Request::Hello => return self.greet(request, version),
            Request::ListContainers { from } => return self.list_containers(request, from),
            Request::Commit => {
                self.committed = true;
                Ok(done(()))
            }
            Request::Start(start) => self.start(request, start, fds).map(later).map_err(chain),
            Request::Exec(exec) => self.exec(request, exec, fds).map(later).map_err(chain),
            Request::Attach { container, streams } => {
                self.attach(request, &container, streams, fds)
            }
            Request::ReopenLog { container } => {
                self.containers.reopen(&container, request, fds).map(later)
            }
            Request::AwaitStart { container } => self.await_start(request, &container),
            Request::Forget { container } => self.containers.forget(&container).map(done),
            Request::Leave => {
                self.leaving = true;
                Ok(done(()))
            }
        };
        let answer = result.unwrap_or_else(|e| {
            Some(Answer::Failed {
                start_failed: false,
                message: e.to_string(),
            })
        });
        if let Some(answer) = answer {
            self.send(&FromKeeper::Answer { request, answer }, Vec::new());
        }
    }

    fn attach(
        &mut self,
        request: u64,
        container: &ContainerId,
        streams: AttachStreams,
        pipes: Vec<OwnedFd>,
    ) -> io::Result<Option<Answer>> {
        let attached = self.containers.attach(container, streams, pipes)?;
        let answer = Answer::Attached { tty: attached.tty };
        let fds = attached.input.into_iter().collect();
        self.send(&FromKeeper::Answer { request, answer }, fds);
        Ok(None)
    }

    fn await_start(&mut self, request: u64, container: &ContainerId) -> io::Result<Option<Answer>> {
        if let Some((message, fds)) = self.containers.await_start(container, request)? {
            self.send(&message, fds);
        }
        Ok(None)
    }

    /// Sends the greeting to a daemon that speaks protocol `version`.
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

    /// Sends the events that were queued since the last call.
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
