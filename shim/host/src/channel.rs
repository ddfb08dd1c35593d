//! One end of a pipe or a terminal, read and written without blocking, and the copying to and from a client.
//!
//! Called by: streamed execs and attach. Invariants: at most [`PIECE`] bytes are held in each direction; a client that
//! does not read slows down its own program, and nobody else.
//! Must not know: what runs at the other end.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use coracle_control::terminal;
use coracle_lifecycle::Error;
use coracle_streaming::Size;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::watch;

use super::io_error;

/// Bytes moved at a time.
const PIECE: usize = 32 * 1024;
/// Most bytes that are read after a program has ended, because a process that it left behind may go on writing.
const REST: usize = 1 << 20;
/// The character that ends a terminal's input. Source: termios(3), VEOF.
const END_OF_INPUT: &[u8] = &[4];

/// One end of a pipe, or the controlling side of a terminal.
pub(super) struct Channel(AsyncFd<OwnedFd>);

/// The source of a client's bytes.
pub(super) type ClientReader = Box<dyn AsyncRead + Send + Unpin>;
/// The sink for a client's bytes.
pub(super) type ClientWriter = Box<dyn AsyncWrite + Send + Unpin>;

impl Channel {
    /// Watches a descriptor. Errors: the kernel cannot watch it.
    #[allow(
        deprecated,
        reason = "its successor is unsafe for descriptors that may be closed under it; this one is owned"
    )]
    pub(super) fn new(fd: OwnedFd) -> Result<Self, Error> {
        let made = rustix::io::ioctl_fionbio(&fd, true).map_err(io::Error::from);
        let made = made.and_then(|()| AsyncFd::new(fd));
        made.map(Self)
            .map_err(|error| io_error("watch a stream of a container", error))
    }

    /// Reads what is there; 0 at the end, which a terminal reports as an error.
    fn take(&self, piece: &mut [u8]) -> io::Result<usize> {
        match rustix::io::read(&self.0, piece) {
            Err(rustix::io::Errno::IO) => Ok(0),
            got => Ok(got?),
        }
    }

    async fn put(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            match ready.try_io(|fd| Ok(rustix::io::write(fd, bytes)?)) {
                Ok(Ok(written)) => bytes = &bytes[written..],
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Copies output to `client` until its end; does not wait for a client that is gone. Once `ended` is true, copies
    /// only what is already there.
    pub(super) async fn pump_out(
        &self,
        mut client: Option<ClientWriter>,
        mut ended: watch::Receiver<bool>,
    ) {
        let mut piece = vec![0; PIECE];
        let mut rest = REST;
        while rest > 0 {
            // Read directly: the reactor may not know of the last bytes yet.
            match self.take(&mut piece) {
                Ok(0) => break,
                Ok(got) => {
                    // Without a client there is nothing else to wait for here.
                    tokio::task::consume_budget().await;
                    if *ended.borrow() {
                        rest = rest.saturating_sub(got);
                    }
                    if let Some(writer) = &mut client
                        && writer.write_all(&piece[..got]).await.is_err()
                    {
                        client = None;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => break,
                Err(_) if *ended.borrow() => break,
                Err(_) if self.wait_for_more(&mut ended).await.is_err() => break,
                Err(_) => {}
            }
        }
        if let Some(mut writer) = client {
            let _ = writer.shutdown().await;
        }
    }

    /// Waits until there may be more to read, or `ended` changes. Errors: the reactor failed.
    async fn wait_for_more(&self, ended: &mut watch::Receiver<bool>) -> io::Result<()> {
        tokio::select! {
            ready = self.0.readable() => ready?.clear_ready(),
            _ = ended.changed() => {}
        }
        Ok(())
    }

    /// Copies the client's input until its end. Bytes without a reader are dropped, so that they do not hold up the
    /// client's other streams.
    pub(super) async fn pump_in(&self, client: &mut ClientReader) {
        let mut piece = vec![0; PIECE];
        let mut has_reader = true;
        loop {
            match client.read(&mut piece).await {
                Ok(0) | Err(_) => return,
                Ok(got) if has_reader => has_reader = self.put(&piece[..got]).await.is_ok(),
                Ok(_) => {}
            }
        }
    }

    /// Sends a terminal its end of input.
    pub(super) async fn end_input(&self) {
        let _ = self.put(END_OF_INPUT).await;
    }

    /// Keeps a terminal at the size of the client's.
    pub(super) async fn follow_size(&self, mut size: watch::Receiver<Option<Size>>) {
        loop {
            let newest = *size.borrow_and_update();
            if let Some(Size { width, height }) = newest
                && let Err(error) = terminal::resize(self.0.get_ref().as_fd(), width, height)
            {
                tracing::debug!(error = %error, "a terminal was not resized");
            }
            if size.changed().await.is_err() {
                return;
            }
        }
    }
}
