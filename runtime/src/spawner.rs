//! The spawner process: loads the engine, then forks keepers until the daemon is gone.
//!
//! The daemon execs it as `coracle spawner ENGINE_HASH FAILPOINTS LOG_COUNTS`, with its socket as descriptor 3; the last is the
//! path of a page, or empty.
//! Invariants: it has one thread, no tokio runtime and no secrets; it draws nothing random before a fork.
//! It must not know about containers.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};

use crate::{keeper, own_log};
use coracle_control::frame::{Frame, Reader, Writer};
use coracle_control::log_counts::LogCounts;
use coracle_control::messages::{FromSpawner, KeeperConfig, ToSpawner};
use coracle_sandbox as sandbox;
use coracle_sandbox::PodNamespaces;
use coracle_spec::error::{Context as _, Error, Kind, Result};
use coracle_spec::failpoint;
use coracle_sys as sys;
use coracle_sys::fork::Forked;
use coracle_sys::pages::Held;
use coracle_wasm::Warm;

/// Runs the spawner until the daemon closes the socket.
///
/// Errors: the engine cannot be made, or the daemon broke the protocol.
pub fn main(engine_hash: &str, failpoints: &str, log_counts: &str) -> Result<()> {
    failpoint::arm(Some(failpoints.to_owned()));
    sys::fork::keep_only(&[0, 1, 2, 3]).during(|| "take over the spawner's descriptors".into())?;
    let socket = sys::fork::adopt(3);
    sys::signals::reset();
    // Also finds, once for all forks, where the title is in memory.
    sys::fork::set_title("coracle spawner");
    sys::memory::limit_arenas(1);
    // The children are keepers. The daemon watches them by pidfd; nobody waits for them here.
    sys::signals::ignore_children();
    share_log_counts(log_counts);
    let warm = Warm::new()?;
    let empty = sys::empty::namespace().during(|| "make an empty mount namespace".into())?;
    // Nothing depends on it but the kernel's work on a node with many pods.
    let held = sys::pages::hold().during(|| "hold the pages that keepers share".into());
    let mut held = held.inspect_err(log_error).ok();
    let parts = Parts {
        warm: &warm,
        empty: empty.as_fd(),
        engine_hash,
    };
    let mut connection = Connection {
        socket,
        reader: Reader::default(),
    };
    connection.send(
        &FromSpawner::Ready {
            engine_hash: engine_hash.to_owned(),
        },
        Vec::new(),
    )?;
    serve(&mut connection, parts, held.as_mut())
}

/// Maps the page in which keepers count what they write to logs. Without it they write all the same.
fn share_log_counts(path: &str) {
    if path.is_empty() {
        return;
    }
    let page = LogCounts::open(Path::new(path));
    match page.during(|| format!("map {path}, in which the logs of containers are counted")) {
        Ok(page) => keeper::count_in(page),
        Err(e) => log_error(&e),
    }
}

/// Forks a keeper for each request until the daemon closes the socket.
fn serve(connection: &mut Connection, parts: Parts<'_>, mut held: Option<&mut Held>) -> Result<()> {
    while let Some(frame) = connection.next()? {
        let ToSpawner::Keeper(config) = frame
            .message()
            .during(|| "read the daemon's request".into())?;
        let request = config.request;
        match fork(config, frame.fds, parts, held.as_deref_mut()) {
            Ok(pidfd) => connection.send(&FromSpawner::Forked { request }, vec![pidfd])?,
            Err(e) => {
                let failed = FromSpawner::Failed {
                    request,
                    message: e.to_string(),
                    errno: e.raw_os_error(),
                };
                connection.send(&failed, Vec::new())?;
            }
        }
    }
    Ok(())
}

/// What every keeper inherits from the spawner.
#[derive(Clone, Copy)]
struct Parts<'a> {
    warm: &'a Warm,
    /// A mount namespace with an empty root.
    empty: BorrowedFd<'a>,
    engine_hash: &'a str,
}

fn fork(
    config: KeeperConfig,
    mut fds: Vec<OwnedFd>,
    parts: Parts<'_>,
    mut held: Option<&mut Held>,
) -> std::io::Result<OwnedFd> {
    failpoint::hit("spawner.fork")?;
    let cgroup = (config.into_cgroup && fds.len() > 2).then(|| fds.remove(2));
    let own_pids = if config.host_pid {
        0
    } else {
        libc::CLONE_NEWPID
    };
    if let Some(held) = &mut held {
        held.find_written();
    }
    match sys::fork::fork(own_pids as u64, cgroup.as_ref().map(OwnedFd::as_fd))? {
        Forked::Parent { pidfd } => Ok(pidfd),
        Forked::Child => {
            if let Some(held) = held {
                held.own_written();
            }
            let code = match become_keeper(config, fds, parts) {
                Ok(()) => 0,
                Err(e) => {
                    log_error(&e);
                    1
                }
            };
            sys::fork::leave(code)
        }
    }
}

/// Sorts the inherited descriptors and runs the keeper.
fn become_keeper(config: KeeperConfig, fds: Vec<OwnedFd>, parts: Parts<'_>) -> Result<()> {
    let mut table = inherited(fds, parts.empty)?;
    let mut next = || {
        table.next().ok_or_else(|| {
            Error::new(
                Kind::Bug,
                "the daemon sent too few descriptors for a keeper",
            )
        })
    };
    let (empty, listener, lifeline) = (next()?, next()?, next()?);
    let mut namespace = |wanted: bool| if wanted { next().map(Some) } else { Ok(None) };
    let (net, ipc, uts, user) = (
        namespace(config.net)?,
        namespace(config.ipc)?,
        namespace(config.uts)?,
        namespace(config.user)?,
    );
    let pod = PodNamespaces {
        net,
        ipc,
        uts,
        user,
        empty: Some(empty),
        ..PodNamespaces::default()
    };
    sys::signals::reset();
    sys::fork::set_title(&format!("coracle keeper {}", config.pod));
    sandbox::set_oom_score(config.oom_score_adj)?;
    keeper::count_for(&config.pod)
        .during(|| "keep what is counted of logs from containers".into())?;
    failpoint::hit("keeper.born").during(|| "begin the keeper".into())?;
    keeper::process::main(keeper::process::Inherited {
        config,
        listener,
        lifeline,
        pod,
        warm: parts.warm,
        engine_hash: parts.engine_hash,
    })
}

/// Closes all descriptors but the standard streams, `empty` and `fds`; returns `empty` and `fds` in this order.
fn inherited(fds: Vec<OwnedFd>, empty: BorrowedFd<'_>) -> Result<impl Iterator<Item = OwnedFd>> {
    let mut numbers = vec![0, 1, 2, empty.as_raw_fd()];
    numbers.extend(fds.iter().map(|fd| fd.as_raw_fd()));
    sys::fork::keep_only(&numbers).during(|| "take over the keeper's descriptors".into())?;
    let count = fds.len();
    // The old numbers are closed; their owners must not close them again.
    std::mem::forget(fds);
    Ok((3..4 + count).map(|n| sys::fork::adopt(n as i32)))
}

/// Writes an error as one line to the inherited standard error: the daemon may be gone.
pub(crate) fn log_error(error: &Error) {
    own_log::say(&error.chain());
}

struct Connection {
    socket: OwnedFd,
    reader: Reader,
}

impl Connection {
    fn next(&mut self) -> Result<Option<Frame>> {
        loop {
            match self.reader.read(self.socket.as_fd()) {
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                    wait(self.socket.as_fd(), PollFlags::IN)?
                }
                // A daemon that died with unread answers resets the connection; treat it as closed.
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return Ok(None),
                other => return other.during(|| "read the daemon's request".into()),
            }
        }
    }

    fn send(&self, message: &FromSpawner, fds: Vec<OwnedFd>) -> Result<()> {
        let what = || "answer the daemon".to_owned();
        let mut writer = Writer::default();
        writer.push(Frame::pack(message, fds).during(what)?);
        loop {
            match writer.flush(self.socket.as_fd()) {
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                    wait(self.socket.as_fd(), PollFlags::OUT)?
                }
                other => return other.during(what),
            }
        }
    }
}

fn wait(fd: BorrowedFd<'_>, flags: PollFlags) -> Result<()> {
    match poll(&mut [PollFd::from_borrowed_fd(fd, flags)], None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(e).during(|| "wait for the daemon".into()),
    }
}
