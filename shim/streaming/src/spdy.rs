//! A SPDY/3.1 session as moby/spdystream speaks it: streams that the client opens, over any bytes both ways.
//!
//! ```text
//! Wire --read_frames--> Feed --> Intake   \
//!                                          > Incoming, one a stream --> remote | forward
//! Wire <--write_frames-- Outbox <-- Sender /
//! ```
//! Invariants: no frame is held whole but control frames of at most 64 KiB; a client has at most 1,024 streams open;
//! windows and settings are ignored, as the other side never knew them: TCP alone pushes back; header blocks are read and
//! written by one task, in order.
//! Not here: what streams are for.

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

use super::inbox::{self, Feed, Holding, Intake};
use super::link::{Common, Connection, Link, Wire};
use super::outbox::{Framing, Item, Outflow};
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
const READ: usize = 64 << 10;
/// Small frames are put together up to this many bytes.
const WRITE: usize = 16 << 10;

/// A stream that the client opened.
pub struct Incoming {
    /// Its number.
    pub id: u32,
    /// What it is for.
    pub headers: Headers,
    /// What the client sends.
    pub intake: Intake,
    /// What it is sent.
    pub outflow: Arc<Outflow>,
}

/// Why a session ended though nobody closed it.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("read from the client")]
    Io(#[from] io::Error),
    #[error("a frame of SPDY version {0}, not 3")]
    Version(u16),
    #[error("a control frame of {0} bytes, more than {MAX_CONTROL}")]
    TooLong(usize),
    #[error(transparent)]
    Block(#[from] BadBlock),
}

/// Starts a session. Streams for which `wants` says no are refused, and all of them once the receiver is dropped.
pub fn start(
    connection: Connection,
    wants: fn(&Headers) -> bool,
) -> (Link, mpsc::Receiver<Incoming>) {
    let Connection { wire, peer, idle } = connection;
    let common = Common::new(peer);
    let (accept, accepted) = mpsc::channel(ACCEPTING);
    let (read, write) = tokio::io::split(wire);
    let reader = Reader {
        io: BufReader::with_capacity(READ, read),
        common: common.clone(),
        streams: HashMap::new(),
        holding: Arc::default(),
        inflater: Inflater::new(),
        deflater: Deflater::new(),
        last: 0,
        wants,
        accept,
    };
    let link = Link::start(
        common.clone(),
        idle,
        None,
        reader.run(),
        write_frames(write, common),
    );
    (link, accepted)
}

async fn write_frames(write: WriteHalf<Wire>, common: Common) {
    let mut io = BufWriter::with_capacity(WRITE, write);
    let work = async {
        while let Some(items) = common.outbox.take().await {
            for item in items {
                if let Item::Bytes(frame) = item {
                    io.write_all(&frame).await?;
                    common.activity.touch();
                }
            }
            io.flush().await?;
        }
        io::Result::Ok(())
    };
    if let Err(error) = work.await {
        tracing::debug!(%error, "a streaming client takes no more");
    }
}

/// One stream as the reader knows it.
struct Entry {
    feed: Feed,
    outflow: Arc<Outflow>,
}

impl Entry {
    fn is_over(&self) -> bool {
        self.feed.has_ended() && self.outflow.has_ended()
    }
}

struct Reader {
    io: BufReader<ReadHalf<Wire>>,
    common: Common,
    streams: HashMap<u32, Entry>,
    holding: Arc<Holding>,
    inflater: Inflater,
    deflater: Deflater,
    last: u32,
    wants: fn(&Headers) -> bool,
    accept: mpsc::Sender<Incoming>,
}

impl Reader {
    async fn run(mut self) {
        let Err(broken) = self.read_frames().await else {
            return;
        };
        tracing::debug!(error = super::chain(&broken), "a SPDY session broke");
        if !matches!(broken, Broken::Io(_)) {
            self.send(frame::go_away(self.last, true));
            self.common.outbox.sent().await;
        }
    }

    fn send(&self, frame: Vec<u8>) {
        self.common.outbox.push(Item::Bytes(frame));
    }

    async fn read_frames(&mut self) -> Result<(), Broken> {
        loop {
            self.common.outbox.calm().await;
            if self.io.fill_buf().await?.is_empty() {
                return Ok(());
            }
            let mut head = [0; HEAD];
            self.io.read_exact(&mut head).await?;
            self.common.activity.touch();
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
                Head::Foreign { version } => return Err(Broken::Version(version)),
                Head::Control { length, .. } if length > MAX_CONTROL => {
                    return Err(Broken::TooLong(length));
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

    /// Hands a DATA frame on, piece by piece; false when the client went while there was no room for it.
    async fn data(&mut self, stream: u32, fin: bool, mut length: usize) -> Result<bool, Broken> {
        let entry = self.streams.get(&stream);
        while length > 0 {
            if let Some(entry) = entry
                && !self.common.peer.room(&entry.feed).await
            {
                return Ok(false);
            }
            let piece = self.io.fill_buf().await?;
            if piece.is_empty() {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            let taken = piece.len().min(length);
            if let Some(entry) = entry {
                entry.feed.push(&piece[..taken]);
            }
            self.io.consume(taken);
            self.common.activity.touch();
            length -= taken;
        }
        if fin {
            self.finish(stream);
        }
        Ok(true)
    }

    /// The client has said all on a stream.
    fn finish(&mut self, stream: u32) {
        if let Some(entry) = self.streams.get(&stream) {
            entry.feed.finish();
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
    ) -> Result<(), Broken> {
        let stream = frame::stream_id(payload);
        match kind {
            Kind::SynStream => self.open(stream, fin, unidirectional, payload).await?,
            Kind::Reset => {
                if let Some(entry) = self.streams.remove(&stream) {
                    entry.feed.lose();
                    entry.outflow.cut();
                }
            }
            // Of ours there are none: what comes is the client's.
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
            // It closes by itself, once its streams are done.
            Kind::GoAway | Kind::Other => {}
        }
        Ok(())
    }

    /// Whether there may be another stream; those that are over are forgotten when it is needed.
    fn has_room(&mut self) -> bool {
        if self.streams.len() >= MAX_STREAMS {
            self.streams.retain(|_, entry| !entry.is_over());
        }
        self.streams.len() < MAX_STREAMS
    }

    /// Accepts a stream. `both_ways`: we may send on it, too.
    fn reply(&mut self, id: u32, headers: Headers, both_ways: bool) -> Incoming {
        let (feed, intake) = inbox::stream(&self.holding);
        let outbox = Arc::clone(&self.common.outbox);
        let outflow = Outflow::new(outbox, Framing::Spdy(id), both_ways);
        let block = self.deflater.write(&Headers::default());
        self.send(frame::syn_reply(id, &block));
        let entry = Entry {
            feed,
            outflow: Arc::clone(&outflow),
        };
        self.streams.insert(id, entry);
        Incoming {
            id,
            headers,
            intake,
            outflow,
        }
    }

    async fn open(
        &mut self,
        id: u32,
        fin: bool,
        unidirectional: bool,
        payload: &[u8],
    ) -> Result<(), Broken> {
        // Even of a stream that is refused: the next block builds on it.
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
        let incoming = self.reply(id, headers, !unidirectional);
        if fin && let Some(entry) = self.streams.get(&id) {
            entry.feed.finish();
        }
        if let Err(refused) = self.accept.send(incoming).await {
            refused.0.outflow.reset();
            self.streams.remove(&id);
        }
        Ok(())
    }
}
