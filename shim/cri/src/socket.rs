//! The unix socket of the daemon: created safely, refused when in use, removed at the end.
//!
//! Called by: `main`, which binds it before recovery and passes it to [`super::serve`].
//! Invariants: the mode of the file is never wider than 0660, not even for a moment; a directory created here is 0700;
//! a socket with a listener is never replaced; only the file created here is removed; a daemon without free descriptors
//! does not spin, and connections do not take them all.
//! Must not know: gRPC.

use std::fs::{self, DirBuilder, File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener as StdListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixListener;
use tokio_stream::Stream;
use tracing::{info, warn};

use super::authority::AnyAuthority;
use super::crowd::{Crowd, Place};

/// Permission bits of the socket: root and its group may connect.
const SOCKET_MODE: u32 = 0o660;

/// Permission bits of a directory created for the socket.
const DIRECTORY_MODE: u32 = 0o700;

/// Connections the kernel queues before they are accepted.
const BACKLOG: i32 = 1024;

/// Why the socket could not be bound; every variant names the path.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process accepts connections there.
    #[error(
        "socket {path} is in use: another process accepts connections on it; stop that one or choose another path"
    )]
    Taken {
        /// The socket's path.
        path: PathBuf,
    },
    /// The path holds something else than a socket.
    #[error("socket path {path} holds {found}, not a socket; remove it or choose another path")]
    NotASocket {
        /// The socket's path.
        path: PathBuf,
        /// What it holds.
        found: &'static str,
    },
    /// A system call failed.
    #[error("{operation} {path}")]
    Io {
        /// The operation.
        operation: &'static str,
        /// The path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// A bound, listening socket. Dropping it closes it but leaves the file, which the next start replaces.
pub struct Socket {
    pub(super) listener: UnixListener,
    pub(super) name: Name,
}

/// The file of a bound socket, identified so that only this one is removed.
pub(super) struct Name {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Socket {
    /// Binds `path`, mode 0660, in a directory that is created with 0700 when absent, and listens. A socket file
    /// without a listener is replaced. Must be called inside a tokio runtime.
    ///
    /// Errors: `BindError`. Two daemons that start at the same moment cannot both win: check and bind happen under a
    /// lock of the directory.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let failed = |operation| {
            let path = path.to_owned();
            move |source: io::Error| BindError::Io {
                operation,
                path,
                source,
            }
        };
        let directory = path
            .parent()
            .filter(|d| !d.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(directory)
            .map_err(failed("make the directory of socket"))?;
        let lock = File::open(directory).map_err(failed("open the directory of socket"))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)
            .map_err(|e| failed("lock the directory of socket")(e.into()))?;
        clear(path)?;
        let listener = listen(path).map_err(failed("bind socket"))?;
        let made = fs::symlink_metadata(path).map_err(failed("look at the bound socket"))?;
        let listener = UnixListener::from_std(listener).map_err(failed("watch socket"))?;
        let name = Name {
            path: path.to_owned(),
            device: made.dev(),
            inode: made.ino(),
        };
        Ok(Self { listener, name })
    }

    /// The path that it is bound to.
    pub fn path(&self) -> &Path {
        &self.name.path
    }
}

/// Pause after a failed accept, the first and the longest: descriptors come back when other connections end.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// How long nothing more is logged about connections that are too many.
const QUIET: Duration = Duration::from_secs(60);

/// The connections of `listener`. One that is too many is closed at once. After a failed accept, most likely for lack of
/// descriptors, it pauses, each time longer, and then tries again.
pub(super) fn incoming(
    listener: UnixListener,
) -> impl Stream<Item = io::Result<AnyAuthority<tokio::net::UnixStream>>> {
    let accepting = Accepting {
        listener,
        crowd: Crowd::default(),
        pause: BACKOFF.0,
        warned: None,
    };
    futures_util::stream::unfold(accepting, |mut accepting| async move {
        let connection = accepting.next().await;
        Some((Ok(connection), accepting))
    })
}

struct Accepting {
    listener: UnixListener,
    crowd: Crowd,
    /// After the next accept that fails.
    pause: Duration,
    /// When it was last logged that there are too many.
    warned: Option<Instant>,
}

impl Accepting {
    async fn next(&mut self) -> AnyAuthority<tokio::net::UnixStream> {
        loop {
            match self.listener.accept().await {
                Ok((connection, _)) => {
                    // Where descriptors come back one by one, warning at once would repeat for each.
                    self.pause = (self.pause / 2).max(BACKOFF.0);
                    if let Some(place) = self.place(&connection) {
                        return AnyAuthority::new(connection, place);
                    }
                    // Others have a turn, however fast somebody connects.
                    tokio::task::yield_now().await;
                }
                Err(error) => {
                    if self.pause == BACKOFF.0 {
                        warn!(%error, "no connection can be accepted; trying again until one can");
                    }
                    tokio::time::sleep(self.pause).await;
                    self.pause = (self.pause * 2).min(BACKOFF.1);
                }
            }
        }
    }

    fn place(&mut self, connection: &tokio::net::UnixStream) -> Option<Place> {
        // The kernel knows no process only of another pid namespace: those are one.
        let peer = connection.peer_cred().ok().and_then(|peer| peer.pid());
        let place = self.crowd.place(peer.unwrap_or(0));
        if let Err(reason) = &place
            && self.warned.is_none_or(|at| at.elapsed() >= QUIET)
        {
            warn!(%reason, "a connection was closed at once, and so are others until some end");
            self.warned = Some(Instant::now());
        }
        place.ok()
    }
}

impl Name {
    /// Removes the socket's file, unless it was replaced by another one.
    pub(super) fn remove(&self) {
        let ours = |found: &Metadata| found.dev() == self.device && found.ino() == self.inode;
        match fs::symlink_metadata(&self.path) {
            Ok(found) if ours(&found) => {
                if let Err(error) = fs::remove_file(&self.path) {
                    warn!(socket = %self.path.display(), %error, "the socket file was not removed");
                }
            }
            _ => info!(socket = %self.path.display(), "the socket file is no longer ours"),
        }
    }
}

/// Makes `path` free: removes a stale socket, refuses anything else.
fn clear(path: &Path) -> Result<(), BindError> {
    let failed = |operation, source| BindError::Io {
        operation,
        path: path.to_owned(),
        source,
    };
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found.file_type(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed("look at socket", e)),
    };
    if !found.is_socket() {
        let found = match found {
            t if t.is_dir() => "a directory",
            t if t.is_symlink() => "a symbolic link",
            t if t.is_file() => "a regular file",
            _ => "a device or pipe",
        };
        return Err(BindError::NotASocket {
            path: path.to_owned(),
            found,
        });
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(BindError::Taken {
            path: path.to_owned(),
        }),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            info!(socket = %path.display(), "replacing a stale socket");
            fs::remove_file(path).map_err(|e| failed("remove the stale socket", e))
        }
        // A full backlog: somebody listens, only slowly.
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(BindError::Taken {
            path: path.to_owned(),
        }),
        Err(e) => Err(failed("probe socket", e)),
    }
}

/// Binds and listens. The mode is set on the socket before it has a name, because the file gets the socket's own mode
/// less the umask; after the bind the exact mode is set.
fn listen(path: &Path) -> io::Result<StdListener> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::fs::fchmod(socket.as_fd(), Mode::from_raw_mode(SOCKET_MODE))?;
    rustix::net::bind(&socket, &address)?;
    rustix::fs::chmod(path, Mode::from_raw_mode(SOCKET_MODE))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(StdListener::from(socket))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[tokio::test]
    async fn socket_is_0660_in_a_directory_made_0700() {
        let scratch = Scratch::new("socket-modes");
        let path = scratch.0.join("run/coracle/coracle.sock");
        let socket = Socket::bind(&path).unwrap();
        assert_eq!(mode(&path), 0o660);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        UnixStream::connect(&path).unwrap();
        socket.name.remove();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn stale_socket_is_replaced_and_a_live_one_refused() {
        let scratch = Scratch::new("socket-stale");
        let path = scratch.0.join("coracle.sock");
        drop(Socket::bind(&path).unwrap());
        assert!(path.exists(), "a dropped socket leaves its file");
        let live = Socket::bind(&path).unwrap();
        let refused = Socket::bind(&path).err().unwrap();
        assert!(matches!(refused, BindError::Taken { .. }));
        assert!(
            refused.to_string().contains(path.to_str().unwrap()),
            "{refused}"
        );
        UnixStream::connect(live.path()).unwrap();
    }

    #[tokio::test]
    async fn a_file_of_another_kind_stays_untouched() {
        let scratch = Scratch::new("socket-other");
        let path = scratch.0.join("coracle.sock");
        fs::write(&path, "precious").unwrap();
        let refused = Socket::bind(&path).err().unwrap().to_string();
        assert!(
            refused.contains("a regular file") && refused.contains("coracle.sock"),
            "{refused}"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn another_daemons_socket_is_not_removed() {
        let scratch = Scratch::new("socket-swap");
        let path = scratch.0.join("coracle.sock");
        let first = Socket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let second = Socket::bind(&path).unwrap();
        first.name.remove();
        UnixStream::connect(second.path()).unwrap();
    }

    #[tokio::test]
    async fn a_path_too_long_for_a_socket_is_named() {
        let scratch = Scratch::new("socket-long");
        let path = scratch.0.join("x".repeat(120));
        let refused = Socket::bind(&path).err().unwrap();
        assert!(
            matches!(
                refused,
                BindError::Io {
                    operation: "bind socket",
                    ..
                }
            ),
            "{refused}"
        );
    }
}
