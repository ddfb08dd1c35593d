//! Forks container processes and execs, and makes what the first container of a pod needs.
//!
//! Called by the event loop on a request of the daemon. It must not know what a process does after its fork.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};

use super::EventLoop;
use crate::keeper::container_process::{self, ForkedContainer};
use crate::keeper::containers::Watch;
use crate::keeper::execs::{self, Exec, Tree};
use crate::keeper::log;
use crate::keeper::pid::{self, PidNamespace};
use crate::keeper::tokens::{FIRST_EXEC, FIRST_WATCH, PAUSE};
use coracle_control::messages::{ExecMessage, LinuxStart, StartMessage};
use coracle_sandbox::linux::pod_shared_memory;
use coracle_spec::PidNamespaceMode;
use coracle_spec::error::{Context as _, Error, Kind, Result};

impl EventLoop<'_> {
    pub(super) fn start(
        &mut self,
        request: u64,
        start: StartMessage,
        fds: Vec<OwnedFd>,
    ) -> Result<()> {
        if self.leaving {
            return Err(Error::new(Kind::WrongPhase, "the pod is being stopped"));
        }
        log::await_begun();
        let forked = self.fork(&start, fds)?;
        let epoll = &self.epoll;
        let watch = |watch: Watch, fd: BorrowedFd<'_>| {
            epoll::add(
                epoll,
                fd,
                EventData::new_u64(FIRST_WATCH + watch.token()),
                EventFlags::IN,
            )
        };
        self.containers.add(start.container, request, forked, watch);
        Ok(())
    }

    pub(super) fn exec(
        &mut self,
        request: u64,
        exec: ExecMessage,
        fds: Vec<OwnedFd>,
    ) -> Result<()> {
        let absent = || {
            Error::new(
                Kind::WrongPhase,
                format!("container {} does not run", exec.container),
            )
        };
        let first = self.containers.process(&exec.container);
        let first = first.ok_or_else(absent)?;
        let first = first
            .try_clone_to_owned()
            .during(|| "share a pidfd".into())?;
        log::await_begun();
        let forked = container_process::fork_exec(&exec, fds, &first, self.inherited.warm)?;
        let tree = Tree {
            files: exec.kill,
            list: exec.kill_list,
        };
        let exec = Exec::new(request, exec.container, forked, tree);
        let slot = self.execs.add(exec);
        self.watch_exec(slot)
            .inspect_err(|_| self.execs.abandon(slot))
    }

    fn watch_exec(&self, slot: usize) -> Result<()> {
        for (what, fd) in self.execs.watched(slot) {
            self.watch(FIRST_EXEC + execs::token(slot, what), fd, EventFlags::IN)?;
        }
        Ok(())
    }

    /// Forks a container process, after making what it is the first of its pod to need.
    fn fork(&mut self, start: &StartMessage, fds: Vec<OwnedFd>) -> Result<ForkedContainer> {
        if let Some(linux) = &start.linux {
            self.prepare(linux)?;
        }
        let pid_ns = match start.linux.as_ref().map(|linux| &linux.pid) {
            None | Some(PidNamespaceMode::Own) => PidNamespace::New,
            Some(PidNamespaceMode::Node) if self.inherited.config.host_pid => PidNamespace::Node,
            Some(PidNamespaceMode::Node) => {
                let text = "the container wants the node's pid namespace, but its sandbox was created without";
                return Err(Error::new(Kind::Invalid, text));
            }
            Some(PidNamespaceMode::Pod) => match &self.pause {
                Some(pause) => PidNamespace::Join(pause.as_fd()),
                None => PidNamespace::New,
            },
            Some(PidNamespaceMode::Target(target)) => match self.containers.process(target) {
                Some(process) => PidNamespace::Join(process),
                None => {
                    let text = format!("target container {target} does not run in this pod");
                    return Err(Error::new(Kind::Invalid, text));
                }
            },
        };
        container_process::fork(start, fds, &self.inherited.pod, pid_ns, self.inherited.warm)
    }

    /// Makes the pod's shared memory and shared pid namespace if `linux` is the first to need them.
    fn prepare(&mut self, linux: &LinuxStart) -> Result<()> {
        let owner = match &self.inherited.pod.user {
            Some(_) => self.inherited.config.range.base,
            None => 0,
        };
        if self.inherited.pod.shm.is_none() && self.inherited.pod.ipc.is_some() {
            let label = linux.shm_label.as_deref();
            let made =
                pod_shared_memory(linux.shm_bytes, owner, label, &self.inherited.config.exits);
            self.inherited.pod.shm = Some(made.during(|| "make the pod's shared memory".into())?);
        }
        if linux.pid == PidNamespaceMode::Pod && self.pause.is_none() {
            let id = self.inherited.config.pod.as_str();
            let pause = pid::share(id, &self.inherited.pod)?;
            self.watch(PAUSE, pause.as_fd(), EventFlags::IN)?;
            self.pause = Some(pause);
        }
        Ok(())
    }

    /// The shared pid namespace has ended with everything in it; the next container that needs one gets a new one.
    pub(super) fn reap_pause(&mut self) {
        if let Some(pause) = self.pause.take() {
            let _ = epoll::delete(&self.epoll, &pause);
            let _ = rustix::process::waitid(
                rustix::process::WaitId::PidFd(pause.as_fd()),
                rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOHANG,
            );
        }
    }
}
