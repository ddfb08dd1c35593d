use super::*;

/// The wait status of a process that exited with 128, as one does that could not go on.
#[allow(clippy::zombie_processes, reason = "waitid(2) reaps it")]
fn exited() -> WaitIdStatus {
    let child = {
        let _forking = crate::keeper::forking::held();
        std::process::Command::new("sh")
            .args(["-c", "exit 128"])
            .spawn()
            .unwrap()
    };
    let pid = rustix::process::Pid::from_child(&child);
    waitid(WaitId::Pid(pid), WaitIdOptions::EXITED)
        .unwrap()
        .unwrap()
}

/// What each kind of last report makes of an exit with 128: before the program ran, and after.
#[test]
fn only_a_process_that_never_ran_failed_to_start() {
    let text = || "why".to_owned();
    let failed = || Cause::StartFailed(text());
    let not_executed = Report::NotExecuted {
        code: 127,
        text: text(),
    };
    let trap = (TRAP_CODE, Cause::Trap(text()), "");
    for (report, before, after) in [
        (
            Report::Failed(text()),
            (128, failed()),
            (128, Cause::Ended, "why"),
        ),
        (not_executed, (127, failed()), (128, Cause::Ended, "why")),
        (Report::Trap(text()), (128, failed()), trap),
    ] {
        for (ran, expected) in [(false, (before.0, before.1, "")), (true, after)] {
            let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
            rustix::io::ioctl_fionbio(&read, true).unwrap();
            let mut line = serde_json::to_vec(&report).unwrap();
            line.push(b'\n');
            rustix::io::write(&write, &line).unwrap();
            let poll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
            let mut reports = Reports::new(read);
            assert!(reports.read_events(&poll).is_empty());
            let (code, cause) = reports.exit_status(&exited(), ran);
            assert_eq!(
                (code, cause, reports.message().as_str()),
                expected,
                "{report:?}, ran: {ran}"
            );
        }
    }
}

/// A process that has broken out keeps the writing end of its reports.
#[test]
fn reports_without_end_hold_nobody() {
    for line in [&b"{}"[..], b"\n\n\n", b"\"Ready\"\n"] {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        rustix::io::ioctl_fionbio(&read, true).unwrap();
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        assert!(watch(&poll, 1, read.as_fd()));
        let flood = line.repeat(64 * 1024 / line.len());
        let writer = std::thread::spawn(move || while rustix::io::write(&write, &flood).is_ok() {});
        let mut reports = Reports::new(read);
        let (done, waiter) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            while reports.fd().is_some() {
                reports.read_events(&poll);
            }
            done.send(reports.bytes.len()).unwrap();
        });
        // The pipe is closed then, and the writer ends.
        let left = waiter.recv_timeout(std::time::Duration::from_secs(120));
        assert!(left.is_ok_and(|left| left <= MAX_REPORT + 4096), "{left:?}");
        writer.join().unwrap();
    }
}
