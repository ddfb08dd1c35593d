//! A container whose process ends while another process traces it.

use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use super::*;

/// A process that does nothing but trace another one.
struct Tracer(Pid);

impl Tracer {
    /// Errors: it is not allowed to.
    #[allow(unsafe_code, reason = "a tracer is a process of its own")]
    fn of(traced: Pid) -> Self {
        let (mut ready, done) = std::io::pipe().unwrap();
        // SAFETY: after the fork the child only makes system calls on memory that exists already.
        let pid = unsafe {
            let pid = libc::fork();
            if pid == 0 {
                let seized = libc::ptrace(libc::PTRACE_SEIZE, traced.as_raw_nonzero().get(), 0, 0);
                let told = [u8::from(seized == 0)];
                libc::write(
                    std::os::fd::AsRawFd::as_raw_fd(&done),
                    told.as_ptr().cast(),
                    1,
                );
                loop {
                    libc::pause();
                }
            }
            pid
        };
        drop(done);
        let mut told = [0];
        std::io::Read::read_exact(&mut ready, &mut told).unwrap();
        assert_eq!(told, [1], "PTRACE_SEIZE was refused");
        Self(Pid::from_raw(pid).unwrap())
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::KILL);
        let _ = rustix::process::waitpid(Some(self.0), rustix::process::WaitOptions::empty());
    }
}

struct Kept {
    containers: Containers,
    epoll: OwnedFd,
    child: Child,
    _exits: tempfile::TempDir,
}

impl Kept {
    /// A container that runs until it is killed.
    #[allow(clippy::zombie_processes, reason = "the keeper's code reaps it")]
    fn new() -> Self {
        let (report, theirs) = UnixStream::pair().unwrap();
        report.set_nonblocking(true).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo '\"Ready\"'; read never"]);
        command.stdin(Stdio::piped()).stdout(OwnedFd::from(theirs));
        let child = command.spawn().unwrap();
        drop(command);
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let temp = tempfile::tempdir().unwrap();
        let mut containers = Containers::new(temp.path().to_owned());
        let forked = ForkedContainer {
            pidfd,
            report: report.into(),
            log: None,
            log_file: None,
            stdin: None,
            terminal: None,
        };
        let watch = |watch: Watch, fd: BorrowedFd<'_>| {
            epoll::add(
                &epoll,
                fd,
                EventData::new_u64(watch.token()),
                EventFlags::IN,
            )
        };
        containers.add("1".repeat(64).parse().unwrap(), 7, forked, watch);
        Self {
            containers,
            epoll,
            child,
            _exits: temp,
        }
    }

    /// Handles what is ready within `limit`; how often something was, at most 1,000 times.
    fn turns(&mut self, limit: Duration) -> usize {
        let until = Instant::now() + limit;
        for turn in 0..1000 {
            let left = until.saturating_duration_since(Instant::now());
            let left = rustix::event::Timespec::try_from(left).unwrap();
            let mut events = Vec::with_capacity(16);
            let buffer = rustix::buffer::spare_capacity(&mut events);
            if epoll::wait(&self.epoll, buffer, Some(&left)).unwrap() == 0 {
                return turn;
            }
            for event in events {
                self.containers.ready(event.data.u64(), &self.epoll);
            }
        }
        1000
    }

    fn exit(&mut self) -> Option<Exit> {
        let events = self.containers.take_events();
        events.into_iter().find_map(|(event, _)| match event {
            FromKeeper::Exited { exit, .. } => Some(exit),
            _ => None,
        })
    }
}

#[test]
fn the_end_of_a_traced_process_is_waited_for_and_not_asked_for_without_pause() {
    let _forking = crate::keeper::forking::held();
    let mut kept = Kept::new();
    let pid = Pid::from_child(&kept.child);
    kept.turns(Duration::from_millis(300));
    assert!(
        kept.containers
            .process(&"1".repeat(64).parse().unwrap())
            .is_some()
    );
    let tracer = Tracer::of(pid);
    kill_process(pid, Signal::KILL).unwrap();
    let turns = kept.turns(Duration::from_millis(300));
    assert!((1..=4).contains(&turns), "{turns} turns");
    kept.containers.child_ended(&kept.epoll);
    assert!(kept.exit().is_none(), "its tracer still has it");
    drop(tracer);
    kept.containers.child_ended(&kept.epoll);
    let exit = kept.exit().unwrap();
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
}
