//! Repairs a table of ours when another program changes it: a thread sleeps until the kernel reports a
//! change to nftables, and ends with the [`Watch`].
//!
//! ```text
//! nft flush ruleset -> event from the kernel -> is it about our table? -> mend -> pause, in case it happens again
//! ```
//! Invariants: the thread sleeps while nftables do not change; it runs in the network namespace of its creator;
//! dropping the [`Watch`] does not wait for it, so that the caller may hold a lock that `mend` takes.
//! Not here: how the table is repaired.

use std::os::fd::{AsFd as _, OwnedFd};
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::super::error::Error;
use super::super::nft::Events;

/// Pause after a repair, and before a failed one is tried again.
const PAUSE: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};
const STACK_BYTES: usize = 256 << 10;

/// The thread; dropping this stops it.
#[derive(Debug)]
pub(crate) struct Watch {
    /// Closing it is the signal.
    _stop: OwnedFd,
}

impl Watch {
    /// Calls `mend` after every change to `table` from now on. `mend` returns whether it changed anything, and is
    /// called again soon if it fails.
    /// Errors: the kernel reports no changes, or a thread cannot be started.
    pub(crate) fn start(
        table: &str,
        mend: impl Fn() -> Result<bool, Error> + Send + 'static,
    ) -> Result<Self, Error> {
        let events = Events::open(table)?;
        let (stopped, stop) = pipe_with(PipeFlags::CLOEXEC)
            .map_err(|error| Error::io("make a pipe to stop the watch over", table, error))?;
        thread::Builder::new()
            .name("nftables".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || run(&events, &stopped, mend))
            .map_err(|error| Error::io("start a thread to watch", table, error))?;
        Ok(Self { _stop: stop })
    }
}

fn run(events: &Events, stopped: &OwnedFd, mend: impl Fn() -> Result<bool, Error>) {
    let mut is_due = false;
    loop {
        if !is_due && !is_changed(events, stopped) {
            return;
        }
        let done = events.drain().and_then(|is_ours| match is_ours || is_due {
            true => mend(),
            false => Ok(false),
        });
        is_due = done.is_err();
        match done {
            Ok(false) => continue,
            Ok(true) => {}
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(error = %error, cause, "cannot repair our nftables table; trying again");
            }
        }
        if is_over(stopped) {
            return;
        }
    }
}

/// Waits for a change; false when the watch is stopped.
fn is_changed(events: &Events, stopped: &OwnedFd) -> bool {
    let mut fds = [
        PollFd::new(stopped, PollFlags::empty()),
        PollFd::from_borrowed_fd(events.as_fd(), PollFlags::IN),
    ];
    match poll(&mut fds, None) {
        Ok(_) | Err(Errno::INTR) => fds[0].revents().is_empty(),
        Err(_) => false,
    }
}

/// Waits for the pause; true when the watch is stopped meanwhile.
fn is_over(stopped: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(stopped, PollFlags::empty())];
    !matches!(poll(&mut fds, Some(&PAUSE)), Ok(0) | Err(Errno::INTR))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::sync::mpsc::{RecvTimeoutError, channel};
    use std::time::Duration;

    use super::super::super::netlink::inside;
    use super::super::super::nft::{Batch, Nft};
    use super::super::super::{NamespaceConfig, create_namespaces};
    use super::*;

    #[test]
    fn only_changes_of_the_table_wake_it_and_a_failure_is_tried_again() {
        let config = NamespaceConfig {
            net: true,
            ..NamespaceConfig::default()
        };
        let netns = create_namespaces(config, None).unwrap().net.unwrap();
        let nft = Nft::open_in(netns.as_fd()).unwrap();
        let add = |name: &str| {
            let mut batch = Batch::new(name);
            batch.add_table();
            nft.commit(batch).unwrap();
        };
        let (sender, calls) = channel();
        let results = std::sync::Mutex::new(vec![Ok(false), Err(())]);
        let mend = move || {
            sender.send(()).unwrap();
            let next = results.lock().unwrap().pop().unwrap_or(Ok(false));
            next.map_err(|()| Error::io("fail", "once", Errno::AGAIN))
        };
        let watch = inside(netns.as_fd(), || Watch::start("ours", mend)).unwrap();
        let short = Duration::from_millis(300);
        add("other");
        assert_eq!(calls.recv_timeout(short), Err(RecvTimeoutError::Timeout));
        add("ours");
        let long = Duration::from_secs(60);
        assert_eq!(calls.recv_timeout(long), Ok(()));
        assert_eq!(calls.recv_timeout(long), Ok(()), "it failed");
        assert_eq!(calls.recv_timeout(short), Err(RecvTimeoutError::Timeout));
        // The thread ends, and `mend` with it.
        drop(watch);
        assert_eq!(
            calls.recv_timeout(long),
            Err(RecvTimeoutError::Disconnected)
        );
    }
}
