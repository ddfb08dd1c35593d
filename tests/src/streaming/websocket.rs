//! The client's side of WebSocket, from RFC 6455: channels in messages, or a stream of bytes in messages.
//!
//! Invariants: reading and writing do not wait for each other; every frame from the server is checked: not masked,
//! no reserved bits, control frames short and whole. Not here: the meaning of channels.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::{Answer, Url, upgrade};
use crate::Outcome;

/// A client's key and the one right answer to it. Source: RFC 6455, section 1.3.
const KEY: (&str, &str) = ("dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Asks for a WebSocket that speaks `protocol`, with further header lines.
pub async fn handshake(url: &Url, protocol: &str, more: &[(&str, &str)]) -> Outcome<Answer> {
    let mut headers = vec![
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", KEY.0),
    ];
    if !protocol.is_empty() {
        headers.push(("Sec-WebSocket-Protocol", protocol));
    }
    headers.extend(more);
    upgrade(url, "GET", &headers).await
}

/// What a connection saw beside its messages.
#[derive(Debug, Default)]
pub struct Seen {
    /// Pongs.
    pub pongs: AtomicUsize,
    /// The server's close frame.
    pub closed: AtomicBool,
}

/// An open WebSocket.
pub struct Socket {
    reader: BufReader<OwnedReadHalf>,
    writer: Arc<Mutex<OwnedWriteHalf>>,
    seen: Arc<Seen>,
    base64: bool,
    closes: bool,
}

/// Sends on one channel.
pub struct Channel {
    writer: Arc<Mutex<OwnedWriteHalf>>,
    number: u8,
    base64: bool,
    closes: bool,
}

impl Socket {
    /// Opens one. Errors: the server refuses, with its answer.
    pub async fn open(url: &Url, protocol: &str) -> Outcome<Socket> {
        let answer = handshake(url, protocol, &[]).await?;
        let agreed = answer.header("Sec-WebSocket-Protocol").unwrap_or_default() == protocol;
        if answer.status != 101 || !agreed || answer.header("Sec-WebSocket-Accept") != Some(KEY.1) {
            return Err(answer.head.into());
        }
        let (read, write) = answer.socket.into_split();
        Ok(Socket {
            reader: BufReader::with_capacity(64 << 10, read),
            writer: Arc::new(Mutex::new(write)),
            seen: Arc::default(),
            base64: protocol.contains("base64."),
            closes: protocol.starts_with("v5."),
        })
    }

    /// The sending side of a channel.
    pub fn channel(&self, number: u8) -> Channel {
        Channel {
            writer: Arc::clone(&self.writer),
            number,
            base64: self.base64,
            closes: self.closes,
        }
    }

    /// What comes beside messages, from now on.
    pub fn seen(&self) -> Arc<Seen> {
        Arc::clone(&self.seen)
    }

    /// Sends a ping.
    pub async fn ping(&self) -> Outcome<()> {
        send(&self.writer, PING, b"are you there").await
    }

    /// Reads in the background; `take` gets each channel's bytes and returns whether to go on. Dropping what this returns
    /// stops reading, and closes the connection once no channel is left.
    pub fn forward<F>(
        mut self,
        take: impl Fn(u8, Vec<u8>) -> F + Send + Sync + 'static,
    ) -> JoinSet<()>
    where
        F: Future<Output = bool> + Send,
    {
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Ok(Some(message)) = self.message().await {
                let Some((first, rest)) = message.split_first() else {
                    continue;
                };
                let (channel, bytes) = match self.base64 {
                    true => (
                        first.wrapping_sub(b'0'),
                        STANDARD.decode(rest).unwrap_or_default(),
                    ),
                    false => (*first, rest.to_vec()),
                };
                if !take(channel, bytes).await {
                    return;
                }
            }
        });
        tasks
    }

    /// The whole as a stream of bytes, as tunnelled protocols see it.
    pub fn tunnel(mut self) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let (mut from_user, mut to_user) = tokio::io::split(theirs);
        let writer = Arc::clone(&self.writer);
        tokio::spawn(async move {
            while let Ok(Some(message)) = self.message().await {
                if to_user.write_all(&message).await.is_err() {
                    return;
                }
            }
            let _ = to_user.shutdown().await;
        });
        tokio::spawn(async move {
            let mut buffer = vec![0; 20_000];
            while let Ok(count @ 1..) = from_user.read(&mut buffer).await {
                if send(&writer, BINARY, &buffer[..count]).await.is_err() {
                    return;
                }
            }
            let _ = writer.lock().await.shutdown().await;
        });
        ours
    }

    /// The next message; none once the server has closed.
    async fn message(&mut self) -> Outcome<Option<Vec<u8>>> {
        let mut message = Vec::new();
        loop {
            let (kind, last, payload) = self.frame().await?;
            match kind {
                PING => {
                    let writer = Arc::clone(&self.writer);
                    tokio::spawn(async move { send(&writer, PONG, &payload).await });
                }
                PONG => drop(self.seen.pongs.fetch_add(1, Ordering::AcqRel)),
                CLOSE => {
                    self.seen.closed.store(true, Ordering::Release);
                    // The server may have gone, having said all.
                    let _ = send(&self.writer, CLOSE, &payload).await;
                    return Ok(None);
                }
                _ => message.extend(payload),
            }
            if kind < CLOSE && last {
                return Ok(Some(message));
            }
        }
    }

    async fn frame(&mut self) -> Outcome<(u8, bool, Vec<u8>)> {
        let [first, second] = [self.reader.read_u8().await?, self.reader.read_u8().await?];
        let (kind, last) = (first & 0x0f, first & 0x80 != 0);
        if first & 0x70 != 0 || second & 0x80 != 0 || (kind >= CLOSE && (second > 125 || !last)) {
            return Err(format!("a frame that begins with {first:#x} {second:#x}").into());
        }
        let length = match second {
            126 => usize::from(self.reader.read_u16().await?),
            127 => self.reader.read_u64().await? as usize,
            short => usize::from(short),
        };
        let mut payload = vec![0; length];
        self.reader.read_exact(&mut payload).await?;
        Ok((kind, last, payload))
    }
}

impl Channel {
    /// Sends bytes, one message. Errors: the connection is gone.
    pub async fn send(&self, bytes: &[u8]) -> Outcome<()> {
        if self.base64 {
            let text = char::from(b'0' + self.number).to_string() + &STANDARD.encode(bytes);
            return send(&self.writer, TEXT, text.as_bytes()).await;
        }
        send(&self.writer, BINARY, &[&[self.number], bytes].concat()).await
    }

    /// Says that no more comes. Errors: the protocol cannot say it, or the connection is gone.
    pub async fn end(&self) -> Outcome<()> {
        if !self.closes {
            return Err("only v5 can end a channel".into());
        }
        send(&self.writer, BINARY, &[255, self.number]).await
    }
}

/// Sends one frame, masked as clients must.
async fn send(writer: &Mutex<OwnedWriteHalf>, kind: u8, payload: &[u8]) -> Outcome<()> {
    let mask = [0x5a, 0xc3, 0x0f, 0x99];
    let mut frame = vec![0x80 | kind];
    match payload.len() {
        short @ ..126 => frame.push(0x80 | short as u8),
        middle @ ..0x1_0000 => {
            frame.push(0x80 | 126);
            frame.extend((middle as u16).to_be_bytes());
        }
        long => {
            frame.push(0x80 | 127);
            frame.extend((long as u64).to_be_bytes());
        }
    }
    frame.extend(mask);
    frame.extend(
        payload
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    Ok(writer.lock().await.write_all(&frame).await?)
}
