//! Forking: guests, processes inside running containers, and what the first of them needs of its pod.
//!
//! Called by the event loop when the daemon asks. Not here: what becomes of a process once it is forked.

use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::event::epoll::{self, EventData, EventFlags};

use super::EventLoop;
use crate::control::messages::{Answer, LinuxStart};
use crate::keeper::container_process::{self, ExecParts, ForkedContainer, Parts};
use crate::keeper::containers::Watch;
use crate::keeper::execs::{self, Exec, Tree};
use crate::keeper::pid::{self, PidNamespace};
use crate::keeper::tokens::{FIRST_EXEC, FIRST_WATCH, PAUSE};
use coracle_sandbox::linux::pod_shared_memory;
use coracle_spec::PidSpace;
use coracle_spec::error::{Context as _, Error, Kind, Result};
use coracle_spec::id::ContainerId;

impl EventLoop<'_> {
    pub(super) fn start(
        &mut self,
        request: u64,
        container: ContainerId,
        parts: Parts,
    ) -> Option<Answer> {
        if self.leaving {
            return Some(Answer::Failed {
                start_failed: false,
                message: "the pod is being stopped".into(),
            });
        }
        match self.fork(&container, parts) {
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
                self.containers.add(container, request, forked, watch);
                None
            }
            Err(e) => Some(Answer::Failed {
                start_failed: false,
                message: e.chain(),
            }),
        }
    }

    pub(super) fn exec(
        &mut self,
        request: u64,
        container: ContainerId,
        parts: ExecParts,
        tree: Tree,
    ) -> Result<()> {
        let absent = || {
            Error::new(
                Kind::WrongPhase,
                format!("container {container} does not run"),
            )
        };
        let first = self.containers.process(&container).ok_or_else(absent)?;
        let first = first
            .try_clone_to_owned()
            .during(|| "share a pidfd".into())?;
        let (pod, warm) = (&self.inherited.pod, self.inherited.warm);
        let forked = container_process::fork_exec(&container, parts, &first, pod, warm)?;
        let exec = Exec::new(request, container, forked, tree);
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

    /// Forks a guest, after what it is the first of its pod to need.
    fn fork(&mut self, container: &ContainerId, parts: Parts) -> Result<ForkedContainer> {
        if let Some(linux) = &parts.linux {
            self.prepare(linux)?;
        }
        let pid_ns = match parts.linux.as_ref().map(|linux| &linux.pid) {
            None | Some(PidSpace::Own) => PidNamespace::New,
            Some(PidSpace::Node) if self.inherited.config.host_pid => PidNamespace::Node,
            Some(PidSpace::Node) => {
                let text =
                    "the node's processes are asked for, and the sandbox was made without them";
                return Err(Error::new(Kind::Invalid, text));
            }
            Some(PidSpace::Pod) => match &self.pause {
                Some(pause) => PidNamespace::Join(pause.as_fd()),
                None => PidNamespace::New,
            },
            Some(PidSpace::Target(target)) => match self.containers.process(target) {
                Some(process) => PidNamespace::Join(process),
                None => {
                    let text = format!("target container {target} does not run in this pod");
                    return Err(Error::new(Kind::Invalid, text));
                }
            },
        };
        container_process::fork(
            container,
            parts,
            &self.inherited.pod,
            pid_ns,
            self.inherited.warm,
        )
    }

    /// Makes the pod's shared memory and shared pid namespace, once they are needed.
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
        if linux.pid == PidSpace::Pod && self.pause.is_none() {
            let pod = self.inherited.config.pod.as_str();
            let (user, empty) = (
                self.inherited.pod.user.as_ref(),
                self.inherited.empty.as_fd(),
            );
            let pause = pid::share(pod, user, empty)
                .during(|| "make the pod's shared pid namespace".into())?;
            self.watch(PAUSE, pause.as_fd(), EventFlags::IN)?;
            self.pause = Some(pause);
        }
        Ok(())
    }

    /// The shared pid namespace has ended, and everything in it; the next container to need one gets a new one.
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
