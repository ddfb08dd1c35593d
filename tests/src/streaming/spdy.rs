//! The client's side of SPDY/3.1, as moby/spdystream speaks it.
//!
//! Invariant: one task reads, and stops while a stream has a few unread frames. Not here: the meaning of streams.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::{TIMEOUT, Url, upgrade};
use crate::Outcome;

/// Frames of a stream that are read ahead.
const AHEAD: usize = 4;

/// What the reader has found for a stream.
#[derive(Debug)]
enum Event {
    Bytes(Vec<u8>),
    Reset,
}

struct Entry {
    reply: Option<oneshot::Sender<bool>>,
    events: Option<mpsc::Sender<Event>>,
}

struct Shared {
    writer: tokio::sync::Mutex<Writer>,
    streams: Mutex<HashMap<u32, Entry>>,
    pings: Mutex<Vec<u32>>,
    gone: AtomicU32,
}

struct Writer {
    io: Box<dyn AsyncWrite + Send + Unpin>,
    deflate: Compress,
    next: u32,
}

/// A session; dropping it closes the connection.
pub struct Session {
    shared: Arc<Shared>,
    _reader: JoinSet<()>,
}

/// A stream that the server has accepted.
pub struct Stream {
    outgoing: Outgoing,
    incoming: Incoming,
}

/// What the client sends on a stream.
pub struct Outgoing {
    shared: Arc<Shared>,
    /// Its number.
    pub id: u32,
}

/// What the server sends on it.
pub struct Incoming {
    events: mpsc::Receiver<Event>,
    /// It ended by a reset.
    pub was_reset: bool,
}

impl Session {
    /// Opens a session that speaks `protocol`. Errors: the server refuses, with its answer.
    pub async fn open(url: &Url, protocol: &str) -> Outcome<Session> {
        let headers = [
            ("Connection", "Upgrade"),
            ("Upgrade", "SPDY/3.1"),
            ("X-Stream-Protocol-Version", protocol),
            ("Content-Length", "0"),
        ];
        let answer = upgrade(url, "POST", &headers).await?;
        if answer.status != 101 || answer.header("X-Stream-Protocol-Version") != Some(protocol) {
            return Err(answer.head.into());
        }
        Ok(Self::over(answer.socket))
    }

    /// Speaks over an open connection.
    pub fn over(io: impl AsyncRead + AsyncWrite + Send + 'static) -> Session {
        let (read, write) = tokio::io::split(io);
        let mut deflate = Compress::new(Compression::best(), true);
        deflate
            .set_dictionary(&dictionary())
            .expect("a fresh deflate stream takes a dictionary");
        let writer = Writer {
            io: Box::new(write),
            deflate,
            next: 1,
        };
        let shared = Arc::new(Shared {
            writer: tokio::sync::Mutex::new(writer),
            streams: Mutex::default(),
            pings: Mutex::default(),
            gone: AtomicU32::new(0),
        });
        let mut reader = JoinSet::new();
        let known = Arc::clone(&shared);
        reader.spawn(async move {
            let _ = read_frames(BufReader::with_capacity(64 << 10, read), &known).await;
            known.streams().clear();
            known.gone.store(1, Ordering::Release);
        });
        Session {
            shared,
            _reader: reader,
        }
    }

    /// Opens a stream. Errors: the server resets it, or is gone.
    pub async fn stream(&self, headers: &[(&str, &str)]) -> Outcome<Stream> {
        let (reply, replied) = oneshot::channel();
        let (events, received) = mpsc::channel(AHEAD);
        let id = {
            let mut writer = self.shared.writer.lock().await;
            let id = writer.next;
            writer.next += 2;
            let entry = Entry {
                reply: Some(reply),
                events: Some(events),
            };
            self.shared.streams().insert(id, entry);
            let block = writer.block(headers);
            let mut payload = id.to_be_bytes().to_vec();
            payload.extend([0; 6]);
            payload.extend(block);
            writer.io.write_all(&control(1, &payload)).await?;
            writer.io.flush().await?;
            id
        };
        let accepted = tokio::time::timeout(TIMEOUT, replied).await?;
        if accepted != Ok(true) {
            return Err(format!("stream {id} {headers:?} was refused").into());
        }
        let shared = Arc::clone(&self.shared);
        Ok(Stream {
            outgoing: Outgoing { shared, id },
            incoming: Incoming {
                events: received,
                was_reset: false,
            },
        })
    }

    /// Sends these bytes as they are.
    pub async fn raw(&self, bytes: &[u8]) -> Outcome<()> {
        let mut writer = self.shared.writer.lock().await;
        writer.io.write_all(bytes).await?;
        Ok(writer.io.flush().await?)
    }

    /// Sends a ping; its number must come back. Errors: it does not.
    pub async fn ping(&self, id: u32) -> Outcome<()> {
        self.raw(&control(6, &id.to_be_bytes())).await?;
        let seen = async {
            while !self
                .shared
                .pings
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .contains(&id)
            {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        };
        Ok(tokio::time::timeout(TIMEOUT, seen).await?)
    }

    /// Whether the server has closed.
    pub fn is_gone(&self) -> bool {
        self.shared.gone.load(Ordering::Acquire) != 0
    }
}

impl Shared {
    fn streams(&self) -> std::sync::MutexGuard<'_, HashMap<u32, Entry>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    fn block(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut block = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.extend((text.len() as u32).to_be_bytes());
            block.extend(text.as_bytes());
        }
        let mut deflated = Vec::with_capacity(block.len() + 4096);
        self.deflate
            .compress_vec(&block, &mut deflated, FlushCompress::Sync)
            .expect("deflate of bytes in memory cannot fail");
        deflated
    }
}

impl Stream {
    /// Its two directions.
    pub fn split(self) -> (Outgoing, Incoming) {
        (self.outgoing, self.incoming)
    }
}

impl Outgoing {
    /// Sends bytes, 32 KiB a frame. Errors: the connection is gone.
    pub async fn send(&self, bytes: &[u8]) -> Outcome<()> {
        for piece in bytes.chunks(32 << 10) {
            self.frame(piece, 0).await?;
        }
        Ok(())
    }

    /// The last frame. Errors: the connection is gone.
    pub async fn end(&self) -> Outcome<()> {
        self.frame(b"", 1).await
    }

    /// Gives the stream up. Errors: the connection is gone.
    pub async fn reset(&self) -> Outcome<()> {
        let payload = [self.id.to_be_bytes(), 5_u32.to_be_bytes()].concat();
        let mut writer = self.shared.writer.lock().await;
        writer.io.write_all(&control(3, &payload)).await?;
        Ok(writer.io.flush().await?)
    }

    async fn frame(&self, bytes: &[u8], flags: u8) -> Outcome<()> {
        let mut writer = self.shared.writer.lock().await;
        let length = u32::from(flags) << 24 | bytes.len() as u32;
        let mut frame = [self.id.to_be_bytes(), length.to_be_bytes()].concat();
        frame.extend(bytes);
        writer.io.write_all(&frame).await?;
        Ok(writer.io.flush().await?)
    }
}

impl Incoming {
    /// The next bytes; none once the server has said all, reset the stream, or gone.
    pub async fn next(&mut self) -> Option<Vec<u8>> {
        match self.events.recv().await? {
            Event::Bytes(bytes) => Some(bytes),
            Event::Reset => {
                self.was_reset = true;
                None
            }
        }
    }

    /// Everything to the end.
    pub async fn rest(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(bytes) = self.next().await {
            all.extend(bytes);
        }
        all
    }
}

fn control(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80, 3, 0, kind];
    frame.extend((payload.len() as u32).to_be_bytes());
    frame.extend(payload);
    frame
}

async fn read_frames(mut io: impl AsyncRead + Unpin, shared: &Shared) -> Outcome<()> {
    let mut inflate = Decompress::new(true);
    loop {
        let mut head = [0; 8];
        io.read_exact(&mut head).await?;
        let [a, b, c, d, flags, x, y, z] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, x, y, z]) as usize];
        io.read_exact(&mut payload).await?;
        if a & 0x80 == 0 {
            let id = u32::from_be_bytes([a, b, c, d]);
            data(shared, id, payload, flags & 1 != 0).await;
            continue;
        }
        let id = payload
            .first_chunk()
            .map_or(0, |id| u32::from_be_bytes(*id));
        match (b, d) {
            (3, 2) => {
                headers(&mut inflate, &payload[4..])?;
                if let Some(entry) = shared.streams().get_mut(&id) {
                    let _ = entry.reply.take().map(|reply| reply.send(true));
                }
            }
            (3, 3) => {
                let entry = shared.streams().remove(&id);
                if let Some(events) = entry.and_then(|entry| entry.events) {
                    let _ = events.send(Event::Reset).await;
                }
            }
            (3, 6) => shared
                .pings
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(id),
            (3, 7) => {}
            _ => return Err(format!("a frame of version {b}, kind {d}").into()),
        }
    }
}

async fn data(shared: &Shared, id: u32, bytes: Vec<u8>, fin: bool) {
    let events = shared
        .streams()
        .get(&id)
        .and_then(|entry| entry.events.clone());
    if let Some(events) = events
        && !bytes.is_empty()
    {
        // Nobody may be left who reads it.
        let _ = events.send(Event::Bytes(bytes)).await;
    }
    if fin && let Some(entry) = shared.streams().get_mut(&id) {
        entry.events = None;
    }
}

/// Holds a reply's header block to the one that servers send: deflated with the dictionary, and empty.
fn headers(inflate: &mut Decompress, deflated: &[u8]) -> Outcome<()> {
    let mut block = [0; 64];
    let before = (inflate.total_in(), inflate.total_out());
    let mut step = inflate.decompress(deflated, &mut block, FlushDecompress::Sync);
    if step
        .as_ref()
        .is_err_and(|error| error.needs_dictionary().is_some())
    {
        inflate.set_dictionary(&dictionary())?;
        let taken = (inflate.total_in() - before.0) as usize;
        step = inflate.decompress(&deflated[taken..], &mut block, FlushDecompress::Sync);
    }
    step?;
    let made = (inflate.total_out() - before.1) as usize;
    let taken = (inflate.total_in() - before.0) as usize;
    if block[..made] != [0; 4] || taken != deflated.len() {
        return Err(format!("a reply with headers: {:?}", &block[..made]).into());
    }
    Ok(())
}

/// The preset dictionary. Source: SPDY/3 draft, section 2.6.10.1.
fn dictionary() -> Vec<u8> {
    let words = "options head post put delete trace accept accept-charset accept-encoding accept-language \
        accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
        content-length content-location content-md5 content-range content-type date etag expect expires from host \
        if-match if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards \
        pragma proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding \
        upgrade user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public \
        set-cookie keep-alive origin";
    let text = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
        203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized\
        403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr \
        May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,\
        image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=\
        gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";
    let mut bytes = Vec::new();
    for entry in words.split_whitespace() {
        let entry = entry.replace('_', " ");
        bytes.extend((entry.len() as u32).to_be_bytes());
        bytes.extend(entry.as_bytes());
    }
    bytes.extend(text.as_bytes());
    bytes
}
