use std::os::unix::net::UnixStream;
use std::process::Command;

use rustix::event::epoll;

use super::*;

/// Follows an exec whose process sends `reports`, one a line, and exits with 128, until it has ended. Returns what was
/// queued for the daemon.
fn events_of(reports: &str) -> Vec<FromKeeper> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    events_from(reports, ours, theirs)
}

/// The same, by these two ends of a socket.
#[allow(clippy::zombie_processes, reason = "the execs reap it")]
fn events_from(reports: &str, ours: UnixStream, theirs: UnixStream) -> Vec<FromKeeper> {
    ours.set_nonblocking(true).unwrap();
    let child = {
        let _forking = crate::keeper::forking::held();
        Command::new("sh")
            .args(["-c", "printf '%s\n' \"$0\"; exit 128", reports])
            .stdout(OwnedFd::from(theirs))
            .spawn()
            .unwrap()
    };
    let pid = rustix::process::Pid::from_child(&child);
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    let tree = Tree {
        files: Vec::new(),
        list: None,
    };
    let id = "1".repeat(64).parse().unwrap();
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let mut execs = Execs::default();
    let slot = execs.add(Exec::new(7, id, (pidfd, ours.into()), tree));
    while !execs.is_empty() {
        execs.ready(token(slot, What::Report), &poll);
        execs.ready(token(slot, What::Process), &poll);
        std::thread::yield_now();
    }
    execs
        .take_events()
        .into_iter()
        .map(|(event, _)| event)
        .collect()
}

/// Whether these say that a process began, and that it ended.
fn has_run(events: &[FromKeeper]) -> bool {
    matches!(
        events,
        [
            FromKeeper::Answer {
                request: 7,
                answer: Answer::Started { .. }
            },
            FromKeeper::ExecEnded { request: 7, .. }
        ]
    )
}

/// A request that was answered with a start waits for the end, and one that was not waits for an answer.
#[test]
fn whatever_a_process_reports_its_request_gets_the_event_that_it_waits_for() {
    for last in [
        r#"{"Failed":"a bug"}"#,
        r#"{"Trap":"a trap"}"#,
        r#"{"Message":"a text"}"#,
        "{}",
        "",
    ] {
        let events = events_of(last);
        let answered = matches!(
            events.as_slice(),
            [FromKeeper::Answer {
                request: 7,
                answer: Answer::Failed { .. }
            }]
        );
        assert!(answered, "{last:?}: {events:?}");
        let events = events_of(&format!("\"Ready\"\n{last}"));
        assert!(has_run(&events), "Ready, then {last:?}: {events:?}");
    }
}

/// A process that has moved is killed, and may be alive for a moment longer than the one that it has moved to.
#[test]
fn a_process_that_executed_its_program_has_begun_whoever_else_holds_its_reports() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let held = theirs.try_clone().unwrap();
    let events = events_from("\"Executing\"", ours, theirs);
    assert!(has_run(&events), "{events:?}");
    drop(held);
}
