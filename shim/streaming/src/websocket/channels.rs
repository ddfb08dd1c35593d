//! Channels of a WebSocket: the first byte of each message is the channel's number.
//!
//! Called by: [`super`]. Source: cri.md section 5; the codecs are those of k8s.io/apimachinery's wsstream.
//! Invariants: empty messages, messages for a channel without a reader and invalid base64 are dropped; in v5 a message
//! `[255, channel]` ends that channel, and a client that sends nothing for a minute, not even pongs, is disconnected.
//! Must not know: what a channel is for.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, Message};

use super::super::base64;
use super::super::connection::{BoxedIo, Connection, Peer, Shared};
use super::super::receive::{self, RecvBudget, RecvSink, RecvStream};
use super::super::send::{Framing, Item, SendStream};

/// The channel number of a v5 message that ends another channel.
const CLOSE: u8 = 255;
/// A v5 client that sends nothing for this long is sent a ping.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// How many pings in a row may stay unanswered.
const MAX_UNANSWERED_PINGS: u32 = 3;

/// How messages carry bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// The channel's number, then the bytes.
    Binary,
    /// The channel's digit, then the bytes in base64.
    Base64,
}

impl Codec {
    /// How the messages of a channel are framed.
    fn framing(self, channel: u8) -> Framing {
        match self {
            Codec::Binary => Framing::Binary(channel),
            Codec::Base64 => Framing::Base64(channel),
        }
    }
}

/// What the client sends, by channel.
pub struct Channels {
    codec: Codec,
    /// Its messages can end a channel, and it answers pings.
    closes: bool,
    sinks: Vec<Option<RecvSink>>,
    budget: Arc<RecvBudget>,
}

/// Makes the sending side of a channel.
pub struct Writers {
    shared: Shared,
    codec: Codec,
}

impl Writers {
    /// Of this channel, below 255; below 10 in base64.
    pub fn channel(&self, channel: usize) -> Arc<SendStream> {
        let framing = self.codec.framing(channel as u8);
        SendStream::new(Arc::clone(&self.shared.send_queue), framing, true)
    }
}

impl Channels {
    /// No channels yet.
    pub fn new(codec: Codec, closes: bool, budget: &Arc<RecvBudget>) -> Channels {
        Channels {
            codec,
            closes,
            sinks: Vec::new(),
            budget: Arc::clone(budget),
        }
    }

    /// The receiving side of a channel.
    pub fn read(&mut self, channel: usize) -> RecvStream {
        let (sink, recv_stream) = receive::stream(&self.budget);
        if self.sinks.len() <= channel {
            self.sinks.resize_with(channel + 1, || None);
        }
        self.sinks[channel] = Some(sink);
        recv_stream
    }

    /// Starts to read and write; `idle` is how long the connection may be idle.
    pub fn start(
        self,
        socket: WebSocketStream<BoxedIo>,
        peer: Peer,
        idle: Duration,
    ) -> (Connection, Writers) {
        let shared = Shared::new(peer);
        let writers = Writers {
            shared: shared.clone(),
            codec: self.codec,
        };
        let (sink, stream) = socket.split();
        let reader = self.take(stream, shared.clone());
        let writer = send(sink, shared.clone());
        (
            Connection::start(shared, idle, Some(Item::Close), reader, writer),
            writers,
        )
    }

    async fn take(self, mut stream: SplitStream<WebSocketStream<BoxedIo>>, shared: Shared) {
        let mut silent = 0;
        loop {
            shared.send_queue.wait_below_read_pause().await;
            let message = tokio::select! {
                message = stream.next() => message,
                () = tokio::time::sleep(PING_INTERVAL), if self.closes => {
                    silent += 1;
                    if silent > MAX_UNANSWERED_PINGS || !shared.send_queue.push(Item::Ping) {
                        return;
                    }
                    continue;
                }
            };
            silent = 0;
            shared.activity.touch();
            let going = match message {
                Some(Ok(Message::Binary(bytes))) => self.message(&bytes, &shared).await,
                Some(Ok(Message::Text(text))) => self.message(text.as_bytes(), &shared).await,
                // The library answers pings and closes while it is read.
                Some(Ok(other)) => {
                    self.budget.take_from_message(on_the_wire(&other));
                    continue;
                }
                Some(Err(_)) | None => false,
            };
            if !going {
                return;
            }
            self.budget.end_message();
        }
    }

    /// Adds a message to its channel's buffer; false when the client closed the connection while the buffer was full.
    async fn message(&self, message: &[u8], shared: &Shared) -> bool {
        let Some((first, bytes)) = message.split_first() else {
            return true;
        };
        let sink = |channel: u8| {
            self.sinks
                .get(usize::from(channel))
                .and_then(Option::as_ref)
        };
        if self.closes && *first == CLOSE {
            if let Some(sink) = bytes.first().and_then(|channel| sink(*channel)) {
                sink.finish();
            }
            return true;
        }
        let channel = match self.codec {
            Codec::Binary => *first,
            Codec::Base64 => first.wrapping_sub(b'0'),
        };
        let Some(sink) = sink(channel) else {
            return true;
        };
        let decoded: Cow<'_, [u8]> = match self.codec {
            Codec::Binary => bytes.into(),
            Codec::Base64 => base64::decode(bytes).unwrap_or_default().into(),
        };
        for piece in decoded.chunks(receive::PIECE) {
            if !shared.peer.room(sink).await {
                return false;
            }
            self.budget.take_from_message(piece.len());
            sink.push(piece);
        }
        true
    }
}

/// About how many bytes a message was that is no data.
pub fn on_the_wire(message: &Message) -> usize {
    const HEAD: usize = 6;
    HEAD + message.len()
}

async fn send(mut sink: SplitSink<WebSocketStream<BoxedIo>, Message>, shared: Shared) {
    let work = async {
        while let Some(items) = shared.send_queue.take().await {
            for item in items {
                let message = match item {
                    Item::Bytes(bytes) => Message::Binary(bytes.into()),
                    Item::Text(text) => Message::Text(text.into()),
                    Item::Ping => Message::Ping(Default::default()),
                    Item::Close => Message::Close(Some(tungstenite::protocol::CloseFrame {
                        code: tungstenite::protocol::frame::coding::CloseCode::Normal,
                        reason: Default::default(),
                    })),
                };
                sink.feed(message).await?;
                shared.activity.touch();
            }
            sink.flush().await?;
        }
        Ok::<(), tungstenite::Error>(())
    };
    match work.await {
        // After the client's close nothing can be sent; it is read to its end.
        Err(tungstenite::Error::ConnectionClosed | tungstenite::Error::Protocol(_)) => {
            std::future::pending().await
        }
        Err(error) => tracing::debug!(%error, "sending to a streaming client failed"),
        Ok(()) => {}
    }
}
