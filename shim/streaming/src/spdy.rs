//! A SPDY/3.1 session as moby/spdystream speaks it: streams that the client opens, over any bytes both ways.
//!
//! ```text
//! BoxedIo --read_frames--> RecvSink --> RecvStream   \
//!                                          > NewStream, one a stream --> remote | forward
//! BoxedIo <--write_frames-- SendQueue <-- SendStreamWriter /
//! ```
//! Invariants: only control frames, of at most 64 KiB, are held as a whole; a client has at most 1,024 streams open;
//! windows and settings are ignored, as by other servers: TCP alone slows a client down; header blocks are read and
//! written by one task, in order.
//! Must not know: what streams are for.

mod dictionary;
pub mod frame;
pub mod headers;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use tokio::io::{
    AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, BufWriter, ReadHalf,
    WriteHalf,
};
use tokio::sync::mpsc;

use super::connection::{BoxedIo, Connection, Shared, Upgraded};
use super::receive::{self, RecvBudget, RecvSink, RecvStream};
use super::send::{Framing, Item, SendStream};
use frame::{HEAD, Head, Kind, ResetCode};
use headers::{BadBlock, Deflater, Inflater};

pub use headers::Headers;

/// Longest control frame, bytes.
const MAX_CONTROL: usize = 64 << 10;
/// Most streams that a client has open at a time.
const MAX_STREAMS: usize = 1024;
/// New streams that wait for their session.
const ACCEPTING: usize = 16;
/// Bytes read from the connection at once.
const READ: usize = receive::PIECE;
/// Small frames are collected up to this many bytes.
const WRITE: usize = 16 << 10;

/// A stream that the client opened.
pub struct NewStream {
    /// Its number.
    pub id: u32,
    /// Its headers.
    pub headers: Headers,
    /// Data from the client.
    pub recv_stream: RecvStream,
    /// Data to the client.
    pub send_stream: Arc<SendStream>,
}

/// Why reading a session failed.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("read from the client")]
    Io(#[from] io::Error),
    #[error("a frame of SPDY version {0}, not 3")]
    Version(u16),
    #[error("a control frame of {0} bytes, more than {MAX_CONTROL}")]
    TooLong(usize),
    #[error(transparent)]
    Block(#[from] BadBlock),
}

/// Starts a session. Refuses streams for which `wants` returns false, and all once the receiver is dropped.
pub fn start(
    upgraded: Upgraded,
    wants: fn(&Headers) -> bool,
) -> (Connection, mpsc::Receiver<NewStream>) {
    let Upgraded {
        io,
        peer,
        idle,
        budget,
    } = upgraded;
    let shared = Shared::new(peer);
    let (accept, accepted) = mpsc::channel(ACCEPTING);
    let (read, write) = tokio::io::split(io);
    let reader = Reader {
        io: BufReader::with_capacity(READ, read),
        shared: shared.clone(),
        streams: HashMap::new(),
        budget,
        inflater: Inflater::new(),
        deflater: Deflater::new(),
        last: 0,
        wants,
        accept,
    };
    let connection = Connection::start(
        shared.clone(),
        idle,
        None,
        reader.run(),
        write_frames(write, shared),
    );
    (connection, accepted)
}

async fn write_frames(write: WriteHalf<BoxedIo>, shared: Shared) {
    let mut io = BufWriter::with_capacity(WRITE, write);
    let work = async {
        while let Some(items) = shared.send_queue.take().await {
            for item in items {
                if let Item::Bytes(frame) = item {
                    io.write_all(&frame).await?;
                    shared.activity.touch();
                }
            }
            io.flush().await?;
        }
        io::Result::Ok(())
    };
    if let Err(error) = work.await {
        tracing::debug!(%error, "sending to a streaming client failed");
    }
}

/// A stream, for the reader.
struct Entry {
    sink: RecvSink,
    send_stream: Arc<SendStream>,
}

impl Entry {
    fn is_over(&self) -> bool {
        self.sink.has_ended() && self.send_stream.has_ended()
    }
}

struct Reader {
    io: BufReader<ReadHalf<BoxedIo>>,
    shared: Shared,
    streams: HashMap<u32, Entry>,
    budget: Arc<RecvBudget>,
    inflater: Inflater,
    deflater: Deflater,
    last: u32,
    wants: fn(&Headers) -> bool,
    accept: mpsc::Sender<NewStream>,
}

impl Reader {
    async fn run(mut self) {
        let Err(error) = self.read_frames().await else {
            return;
        };
        tracing::debug!(
            error = super::chain(&error),
            "reading a SPDY session failed"
        );
        if !matches!(error, ReadError::Io(_)) {
            self.send(frame::go_away(self.last, true));
            self.shared.send_queue.sent().await;
        }
    }

    fn send(&self, frame: Vec<u8>) {
        self.shared.send_queue.push(Item::Bytes(frame));
    }

    async fn read_frames(&mut self) -> Result<(), ReadError> {
        loop {
            self.shared.send_queue.wait_below_read_pause().await;
            if self.io.fill_buf().await?.is_empty() {
                return Ok(());
            }
            let mut head = [0; HEAD];
            self.io.read_exact(&mut head).await?;
            self.shared.activity.touch();
            match Head::parse(head) {
                Head::Data {
                    stream,
                    fin,
                    length,
                } => {
                    if !self.data(stream, fin, length).await? {
                        return Ok(());
                    }
                }
                Head::Foreign { version } => return Err(ReadError::Version(version)),
                Head::Control { length, .. } if length > MAX_CONTROL => {
                    return Err(ReadError::TooLong(length));
                }
                Head::Control {
                    kind,
                    fin,
                    unidirectional,
                    length,
                } => {
                    let mut payload = vec![0; length];
                    self.io.read_exact(&mut payload).await?;
                    self.control(kind, fin, unidirectional, &payload).await?;
                }
            }
        }
    }

    /// Adds a DATA frame to its stream's buffer, in pieces; false when the client closed the connection while the
    /// buffer was full.
    async fn data(&mut self, stream: u32, fin: bool, mut length: usize) -> Result<bool, ReadError> {
        let entry = self.streams.get(&stream);
        while length > 0 {
            if let Some(entry) = entry
                && !self.shared.peer.room(&entry.sink).await
            {
                return Ok(false);
            }
            let piece = self.io.fill_buf().await?;
            if piece.is_empty() {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            let taken = piece.len().min(length);
            if let Some(entry) = entry {
                entry.sink.push(&piece[..taken]);
            }
            self.io.consume(taken);
            self.shared.activity.touch();
            length -= taken;
        }
        if fin {
            self.finish(stream);
        }
        Ok(true)
    }

    /// The client ended a stream.
    fn finish(&mut self, stream: u32) {
        if let Some(entry) = self.streams.get(&stream) {
            entry.sink.finish();
            if entry.is_over() {
                self.streams.remove(&stream);
            }
        }
    }

    async fn control(
        &mut self,
        kind: Kind,
        fin: bool,
        unidirectional: bool,
        payload: &[u8],
    ) -> Result<(), ReadError> {
        let stream = frame::stream_id(payload);
        match kind {
            Kind::SynStream => self.open(stream, fin, unidirectional, payload).await?,
            Kind::Reset => {
                if let Some(entry) = self.streams.remove(&stream) {
                    entry.sink.reset();
                    entry.send_stream.stop();
                }
            }
            // We send no pings, so every ping is the client's own.
            Kind::Ping => {
                if let Some(id) = payload.first_chunk() {
                    self.send(frame::ping(*id));
                }
            }
            Kind::Headers => {
                self.inflater.read(frame::block(kind, payload))?;
                if fin {
                    self.finish(stream);
                }
            }
            // The connection closes once its streams have ended.
            Kind::GoAway | Kind::Other => {}
        }
        Ok(())
    }

    /// Whether another stream may be opened; drops ended streams first, if there are too many.
    fn has_room(&mut self) -> bool {
        if self.streams.len() >= MAX_STREAMS {
            self.streams.retain(|_, entry| !entry.is_over());
        }
        self.streams.len() < MAX_STREAMS
    }

    /// Accepts a stream. `both_ways`: the server may send on it, too.
    fn reply(&mut self, id: u32, headers: Headers, both_ways: bool) -> NewStream {
        let (sink, recv_stream) = receive::stream(&self.budget);
        let send_queue = Arc::clone(&self.shared.send_queue);
        let send_stream = SendStream::new(send_queue, Framing::Spdy(id), both_ways);
        let block = self.deflater.write(&Headers::default());
        self.send(frame::syn_reply(id, &block));
        let entry = Entry {
            sink,
            send_stream: Arc::clone(&send_stream),
        };
        self.streams.insert(id, entry);
        NewStream {
            id,
            headers,
            recv_stream,
            send_stream,
        }
    }

    async fn open(
        &mut self,
        id: u32,
        fin: bool,
        unidirectional: bool,
        payload: &[u8],
    ) -> Result<(), ReadError> {
        // Needed for a refused stream, too: the next block depends on it.
        let headers = self.inflater.read(frame::block(Kind::SynStream, payload))?;
        if id <= self.last || id.is_multiple_of(2) {
            self.send(frame::reset(id, ResetCode::ProtocolError));
            return Ok(());
        }
        self.last = id;
        if !self.has_room() || self.accept.is_closed() || !(self.wants)(&headers) {
            self.send(frame::reset(id, ResetCode::Refused));
            return Ok(());
        }
        let stream = self.reply(id, headers, !unidirectional);
        if fin && let Some(entry) = self.streams.get(&id) {
            entry.sink.finish();
        }
        if let Err(refused) = self.accept.send(stream).await {
            refused.0.send_stream.reset();
            self.streams.remove(&id);
        }
        Ok(())
    }
}
