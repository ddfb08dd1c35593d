//! Channels of a WebSocket: the first byte of each message says which.
//!
//! Used by: [`super`]. Source: cri.md section 5; the codecs are those of k8s.io/apimachinery's wsstream.
//! Invariants: an empty message, one for a channel that is not read and one that is no base64 are dropped; in v5 a message
//! `[255, channel]` ends that channel, and a client that is silent for a minute, pings and all, is gone.
//! Not here: what a channel is for.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, Message};

use super::super::base64;
use super::super::inbox::{self, Feed, Holding, Intake};
use super::super::link::{Common, Link, Peer, Wire};
use super::super::outbox::{Framing, Item, Outflow};

/// The channel number of a v5 message that ends another channel.
const CLOSE: u8 = 255;
/// After so long a silence a v5 client is asked whether it is there.
const SILENCE: Duration = Duration::from_secs(20);
/// How often it is asked in vain.
const ASKED: u32 = 3;

/// How messages carry bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// The channel's number, then the bytes.
    Binary,
    /// The channel's digit, then the bytes in base64.
    Base64,
}

impl Codec {
    /// How a channel's own messages are framed.
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
    feeds: Vec<Option<Feed>>,
    holding: Arc<Holding>,
}

/// Makes the sending side of a channel.
pub struct Writers {
    common: Common,
    codec: Codec,
}

impl Writers {
    /// Of this channel, below 255; below 10 in base64.
    pub fn channel(&self, channel: usize) -> Arc<Outflow> {
        let framing = self.codec.framing(channel as u8);
        Outflow::new(Arc::clone(&self.common.outbox), framing, true)
    }
}

impl Channels {
    /// None is read yet.
    pub fn new(codec: Codec, closes: bool) -> Channels {
        Channels {
            codec,
            closes,
            feeds: Vec::new(),
            holding: Arc::default(),
        }
    }

    /// The receiving side of a channel.
    pub fn read(&mut self, channel: usize) -> Intake {
        let (feed, intake) = inbox::stream(&self.holding);
        if self.feeds.len() <= channel {
            self.feeds.resize_with(channel + 1, || None);
        }
        self.feeds[channel] = Some(feed);
        intake
    }

    /// Starts to read and write; `idle` is how long nothing need be carried.
    pub fn start(
        self,
        socket: WebSocketStream<Wire>,
        peer: Peer,
        idle: Duration,
    ) -> (Link, Writers) {
        let common = Common::new(peer);
        let writers = Writers {
            common: common.clone(),
            codec: self.codec,
        };
        let (sink, stream) = socket.split();
        let reader = self.take(stream, common.clone());
        let writer = send(sink, common.clone());
        (
            Link::start(common, idle, Some(Item::Close), reader, writer),
            writers,
        )
    }

    async fn take(self, mut stream: SplitStream<WebSocketStream<Wire>>, common: Common) {
        let mut silent = 0;
        loop {
            common.outbox.calm().await;
            let message = tokio::select! {
                message = stream.next() => message,
                () = tokio::time::sleep(SILENCE), if self.closes => {
                    silent += 1;
                    if silent > ASKED || !common.outbox.push(Item::Ping) {
                        return;
                    }
                    continue;
                }
            };
            silent = 0;
            common.activity.touch();
            let going = match message {
                Some(Ok(Message::Binary(bytes))) => self.message(&bytes, &common).await,
                Some(Ok(Message::Text(text))) => self.message(text.as_bytes(), &common).await,
                // The library answers pings and closes as it is read.
                Some(Ok(_)) => true,
                Some(Err(_)) | None => false,
            };
            if !going {
                return;
            }
        }
    }

    /// Hands a message on; false when the client went while there was no room for it.
    async fn message(&self, message: &[u8], common: &Common) -> bool {
        let Some((first, bytes)) = message.split_first() else {
            return true;
        };
        let feed = |channel: u8| {
            self.feeds
                .get(usize::from(channel))
                .and_then(Option::as_ref)
        };
        if self.closes && *first == CLOSE {
            if let Some(feed) = bytes.first().and_then(|channel| feed(*channel)) {
                feed.finish();
            }
            return true;
        }
        let channel = match self.codec {
            Codec::Binary => *first,
            Codec::Base64 => first.wrapping_sub(b'0'),
        };
        let Some(feed) = feed(channel) else {
            return true;
        };
        if !common.peer.room(feed).await {
            return false;
        }
        match self.codec {
            Codec::Binary => feed.push(bytes),
            Codec::Base64 => feed.push(&base64::decode(bytes).unwrap_or_default()),
        }
        true
    }
}

async fn send(mut sink: SplitSink<WebSocketStream<Wire>, Message>, common: Common) {
    let work = async {
        while let Some(items) = common.outbox.take().await {
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
                common.activity.touch();
            }
            sink.flush().await?;
        }
        Ok::<(), tungstenite::Error>(())
    };
    match work.await {
        // After the client's own close nothing can be sent; it is being read to its end.
        Err(tungstenite::Error::ConnectionClosed | tungstenite::Error::Protocol(_)) => {
            std::future::pending().await
        }
        Err(error) => tracing::debug!(%error, "a streaming client takes no more"),
        Ok(()) => {}
    }
}
