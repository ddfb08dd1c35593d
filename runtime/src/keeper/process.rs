//! The keeper process: one event loop over the daemon's connection, guests, their reports and their logs.
//!
//! Entered in a fresh fork of the spawner. Wakes only when a descriptor is ready or a deadline of a starting or
//! ending guest is near; an idle pod costs no wake-up at all.
//! Invariant: nothing here blocks: sockets are non-blocking, log files belong to log threads, the exit record goes
//! to the state directory only.
//! Not here: how a guest is jailed.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};

use super::execs::{self, Exec, Execs, Heard};
use super::guest::{ExecParts, ForkedGuest, Parts};
use super::pid::{self, PidPlace};
use super::table::{Table, Watch};
use crate::control::messages::{Answer, Ask, Birth, FromKeeper, LinuxStart, ToKeeper};
use crate::control::{Frame, PROTOCOL, Reader, Writer};
use crate::error::{Context as _, Error, Kind, Result};
use crate::id::ContainerId;
use crate::sandbox::linux::pod_shared_memory;
use crate::sandbox::{PodNamespaces, identity};
use crate::spec::PidSpace;
use crate::wasm::Warm;

/// What a keeper has from birth.
pub struct Born<'a> {
    /// Facts about the pod.
    pub birth: Birth,
    /// Where the daemon connects.
    pub listener: OwnedFd,
    /// Ends the keeper when the daemon drops it before the pod is recorded.
    pub lifeline: OwnedFd,
    /// Namespaces of the pod.
    pub pod: PodNamespaces,
    /// Engine and linkers, shared with the spawner.
    pub warm: &'a Warm,
    /// The engine's hash.
    pub engine_hash: &'a str,
}

const LISTENER: u64 = 1;
const CONNECTION: u64 = 2;
const LIFELINE: u64 = 3;
const PAUSE: u64 = 4;
/// Watched things of containers count from here.
pub(super) const FIRST_WATCH: u64 = 16;
/// Watched things of execs count from here.
const FIRST_EXEC: u64 = 1 << 32;

/// Runs the keeper until it is told to leave and no container runs.
///
/// Errors: the node is out of descriptors, or the daemon died before the pod was recorded.
pub fn main(born: Born<'_>) -> Result<()> {
    let epoll =
        epoll::create(epoll::CreateFlags::CLOEXEC).during(|| "make the keeper's epoll".into())?;
    let mut keeper = Loop {
        table: Table::new(born.birth.exits.clone()),
        born,
        epoll,
        connection: None,
        pause: None,
        execs: Execs::default(),
        committed: false,
        settled: false,
        leaving: false,
    };
    keeper.watch(LISTENER, keeper.born.listener.as_fd(), EventFlags::IN)?;
    keeper.watch(LIFELINE, keeper.born.lifeline.as_fd(), EventFlags::IN)?;
    loop {
        if keeper.leaving && keeper.table.is_quiet() && keeper.execs.is_empty() {
            keeper.flush();
            return Ok(());
        }
        if keeper.turn()? == Turn::Abandoned {
            return Ok(());
        }
    }
}

#[derive(PartialEq, Eq)]
enum Turn {
    Done,
    /// The daemon is gone before the pod was recorded.
    Abandoned,
}

struct Loop<'a> {
    born: Born<'a>,
    table: Table,
    epoll: OwnedFd,
    connection: Option<Connection>,
    /// First process of the pid namespace that containers share.
    pause: Option<OwnedFd>,
    execs: Execs,
    committed: bool,
    settled: bool,
    leaving: bool,
}

struct Connection {
    socket: OwnedFd,
    reader: Reader,
    writer: Writer,
}

impl Loop<'_> {
    fn watch(&self, token: u64, fd: BorrowedFd<'_>, flags: EventFlags) -> Result<()> {
        epoll::add(&self.epoll, fd, EventData::new_u64(token), flags)
            .during(|| "watch a descriptor".into())
    }

    fn turn(&mut self) -> Result<Turn> {
        let timeout = self.table.next_deadline().map(|at| {
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
                LIFELINE if !self.committed => return Ok(Turn::Abandoned),
                LIFELINE => {
                    let _ = epoll::delete(&self.epoll, &self.born.lifeline);
                }
                CONNECTION => self.hear(),
                PAUSE => self.reap_pause(),
                token if token >= FIRST_EXEC => self.execs.ready(token - FIRST_EXEC, &self.epoll),
                token => self.table.ready(token - FIRST_WATCH, &self.epoll),
            }
        }
        self.table.expire(Instant::now());
        self.report();
        self.flush();
        if self.committed && !self.settled {
            self.settle_in()?;
        }
        Ok(Turn::Done)
    }

    /// What a keeper needs, but nobody waits for: its own cgroups, and the id map of its guests' mounts.
    fn settle_in(&mut self) -> Result<()> {
        self.settled = true;
        for file in &self.born.birth.cgroup_procs {
            std::fs::write(file, "0")
                .during(|| format!("enter the keeper's cgroup {}", file.display()))?;
        }
        // A node without user namespaces says so when a guest needs the map.
        self.born.pod.ids = identity::usual_map(self.born.birth.range).ok();
        Ok(())
    }

    /// Takes the newest daemon; an older connection is dropped.
    fn accept(&mut self) {
        let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
        let Ok(socket) = rustix::net::accept_with(&self.born.listener, flags) else {
            return;
        };
        let is_root = crate::sys::peer_uid(socket.as_fd()).is_ok_and(|uid| uid == 0);
        if !is_root {
            return;
        }
        self.hang_up();
        if self
            .watch(CONNECTION, socket.as_fd(), EventFlags::IN)
            .is_ok()
        {
            self.connection = Some(Connection {
                socket,
                reader: Reader::default(),
                writer: Writer::default(),
            });
        }
    }

    fn hang_up(&mut self) {
        if let Some(old) = self.connection.take() {
            let _ = epoll::delete(&self.epoll, &old.socket);
        }
        self.table.forget_asker();
        self.execs.kill_all();
    }

    fn hear(&mut self) {
        loop {
            let Some(connection) = &mut self.connection else {
                return;
            };
            match connection.reader.read(connection.socket.as_fd()) {
                Ok(Some(frame)) => match frame.message::<ToKeeper>() {
                    Ok(asked) => self.answer(asked, frame.fds),
                    Err(_) => return self.hang_up(),
                },
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Ok(None) | Err(_) => return self.hang_up(),
            }
        }
    }

    fn answer(&mut self, asked: ToKeeper, fds: Vec<OwnedFd>) {
        let request = asked.request;
        let done = |result: io::Result<()>| match result {
            Ok(()) => Some(Answer::Done),
            Err(e) => Some(Answer::Failed {
                start_failed: false,
                message: e.to_string(),
            }),
        };
        let answer = match asked.ask {
            Ask::Hello => return self.greet(request),
            Ask::Commit => {
                self.committed = true;
                Some(Answer::Done)
            }
            Ask::Start {
                container,
                stdin,
                log,
                into_cgroup,
                linux,
            } => self.start(
                request,
                container,
                Parts {
                    fds,
                    log,
                    stdin,
                    into_cgroup,
                    linux,
                },
            ),
            Ask::Exec {
                container,
                stdin,
                into_cgroup,
                linux,
                kill,
            } => {
                let parts = ExecParts {
                    fds,
                    stdin,
                    into_cgroup,
                    linux,
                };
                match self.exec(request, container, parts, kill) {
                    // Answered when it runs.
                    Ok(()) => None,
                    Err(e) => done(Err(io::Error::other(e.chain()))),
                }
            }
            Ask::ReopenLog { container } => match self.table.reopen(&container, request, fds) {
                // Answered when the log thread has taken the file.
                Ok(()) => None,
                Err(e) => done(Err(e)),
            },
            Ask::Forget { container } => done(self.table.forget(&container)),
            Ask::Leave => {
                self.leaving = true;
                Some(Answer::Done)
            }
        };
        if let Some(answer) = answer {
            self.say(&FromKeeper::Answer { request, answer }, Vec::new());
        }
    }

    fn start(&mut self, request: u64, container: ContainerId, guest: Parts) -> Option<Answer> {
        if self.leaving {
            return Some(Answer::Failed {
                start_failed: false,
                message: "the pod is being stopped".into(),
            });
        }
        match self.fork(&container, guest) {
            Ok(forked) => {
                let epoll = &self.epoll;
                let watch = |watch: Watch, fd: BorrowedFd<'_>| {
                    epoll::add(
                        epoll,
                        fd,
                        EventData::new_u64(FIRST_WATCH + watch.token()),
                        EventFlags::IN,
                    )
                };
                self.table.begin(container, request, forked, watch);
                None
            }
            Err(e) => Some(Answer::Failed {
                start_failed: false,
                message: e.chain(),
            }),
        }
    }

    fn exec(
        &mut self,
        request: u64,
        container: ContainerId,
        parts: ExecParts,
        kill: Vec<PathBuf>,
    ) -> Result<()> {
        let absent = || {
            Error::new(
                Kind::WrongPhase,
                format!("container {container} does not run"),
            )
        };
        let first = self.table.process(&container).ok_or_else(absent)?;
        let first = first
            .try_clone_to_owned()
            .during(|| "share a pidfd".into())?;
        let place = match parts.linux.as_ref().map(|linux| &linux.pid) {
            Some(PidSpace::Node) => PidPlace::Keepers,
            _ => PidPlace::Of(first.as_fd()),
        };
        let with = (place, self.born.warm);
        let (pidfd, report) =
            super::guest::fork_exec(&container, parts, &first, &self.born.pod, with)?;
        let exec = Exec {
            request,
            container,
            pidfd,
            report: Some(report),
            kill,
            heard: Heard::default(),
        };
        let slot = self.execs.begin(exec);
        self.watch_exec(slot)
    }

    fn watch_exec(&self, slot: usize) -> Result<()> {
        for (what, fd) in self.execs.watched(slot) {
            self.watch(FIRST_EXEC + execs::token(slot, what), fd, EventFlags::IN)?;
        }
        Ok(())
    }

    /// Forks a guest, after what it is the first of its pod to need.
    fn fork(&mut self, container: &ContainerId, guest: Parts) -> Result<ForkedGuest> {
        if let Some(linux) = &guest.linux {
            self.prepare(linux)?;
        }
        let place = match guest.linux.as_ref().map(|linux| &linux.pid) {
            None | Some(PidSpace::Own) => PidPlace::New,
            Some(PidSpace::Node) if self.born.birth.host_pid => PidPlace::Keepers,
            Some(PidSpace::Node) => {
                let text =
                    "the node's processes are asked for, and the sandbox was made without them";
                return Err(Error::new(Kind::Invalid, text));
            }
            Some(PidSpace::Pod) => match &self.pause {
                Some(pause) => PidPlace::Of(pause.as_fd()),
                None => PidPlace::New,
            },
            Some(PidSpace::Target(target)) => match self.table.process(target) {
                Some(process) => PidPlace::Of(process),
                None => {
                    let text = format!("target container {target} does not run in this pod");
                    return Err(Error::new(Kind::Invalid, text));
                }
            },
        };
        super::guest::fork(container, guest, &self.born.pod, place, self.born.warm)
    }

    /// Makes the pod's shared memory and shared pid namespace, once they are needed.
    fn prepare(&mut self, linux: &LinuxStart) -> Result<()> {
        let owner = match &self.born.pod.user {
            Some(_) => self.born.birth.range.base,
            None => 0,
        };
        if self.born.pod.shm.is_none() && self.born.pod.ipc.is_some() {
            let made = pod_shared_memory(linux.shm_bytes, owner, &self.born.birth.exits);
            self.born.pod.shm = Some(made.during(|| "make the pod's shared memory".into())?);
        }
        if linux.pid == PidSpace::Pod && self.pause.is_none() {
            let pod = self.born.birth.pod.as_str();
            let pause = pid::share(pod, self.born.pod.user.as_ref())
                .during(|| "make the pod's shared pid namespace".into())?;
            self.watch(PAUSE, pause.as_fd(), EventFlags::IN)?;
            self.pause = Some(pause);
        }
        Ok(())
    }

    /// The shared pid namespace has ended, and everything in it; the next container to need one gets a new one.
    fn reap_pause(&mut self) {
        if let Some(pause) = self.pause.take() {
            let _ = epoll::delete(&self.epoll, &pause);
            let _ = rustix::process::waitid(
                rustix::process::WaitId::PidFd(pause.as_fd()),
                rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOHANG,
            );
        }
    }

    fn greet(&mut self, request: u64) {
        let (containers, pidfds) = self.table.kept();
        let greeting = Answer::Greeting {
            protocol: PROTOCOL,
            engine_hash: self.born.engine_hash.to_owned(),
            pod: self.born.birth.pod.clone(),
            containers,
        };
        self.say(
            &FromKeeper::Answer {
                request,
                answer: greeting,
            },
            pidfds,
        );
    }

    /// Says what the table has to say since the last turn.
    fn report(&mut self) {
        let news = self.table.take_news().into_iter();
        for (message, fds) in news.chain(self.execs.take_news()) {
            if let FromKeeper::Exited { container, .. } = &message {
                self.execs.kill_in(container);
            }
            self.say(&message, fds);
        }
    }

    fn say(&mut self, message: &FromKeeper, fds: Vec<OwnedFd>) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        match Frame::pack(message, fds) {
            Ok(frame) => connection.writer.push(frame),
            Err(_) => self.hang_up(),
        }
    }

    fn flush(&mut self) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        let flags = match connection.writer.flush(connection.socket.as_fd()) {
            Ok(()) => EventFlags::IN,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => EventFlags::IN | EventFlags::OUT,
            Err(_) => return self.hang_up(),
        };
        let _ = epoll::modify(
            &self.epoll,
            &connection.socket,
            EventData::new_u64(CONNECTION),
            flags,
        );
    }
}
