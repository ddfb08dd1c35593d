//! The wire of plugins: ttrpc messages in the chunks of a multiplexed stream.
//!
//! ```text
//! chunk:   connection u32 | length u32 | part of a connection's bytes     (big endian)
//! message: length u32 | stream u32 | type u8 | flags u8 | payload          (big endian), 4 MiB at most
//! ```
//! Called by: [`super::session`]. Source: NRI 0.12 `pkg/net/multiplex`, ttrpc's PROTOCOL.md.
//! Invariants: nothing is allocated for a length that was only announced; a message never has more than
//! [`MAX_MESSAGE`] bytes; what is written can be read by Go's side, see [`encode`].
//! Must not know: what a message says.

use tokio::io::{AsyncRead, AsyncReadExt as _, BufReader};

/// The connection on which the plugin serves us.
pub const PLUGIN: u32 = 1;
/// The connection on which we serve the plugin.
pub const RUNTIME: u32 = 2;
/// Most bytes of a message without its header.
pub const MAX_MESSAGE: usize = 4 << 20;
/// The type of a request.
pub const REQUEST: u8 = 1;
/// The type of a response.
pub const RESPONSE: u8 = 2;

/// Bytes of a message's header.
const HEADER: usize = 10;
/// Bytes of the first chunk of a message. Go's side reads the head of a message into a buffer of this size and fails on
/// a larger chunk; the rest of the message it reads at once.
const FIRST_CHUNK: usize = 4096;

/// One message.
#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    /// [`PLUGIN`] or [`RUNTIME`].
    pub connection: u32,
    /// Which request it is or answers.
    pub stream: u32,
    /// [`REQUEST`] or [`RESPONSE`].
    pub kind: u8,
    /// Protobuf.
    pub payload: Vec<u8>,
}

/// What is wrong with what a plugin sent.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// It has closed its end, or reading failed.
    #[error("the connection ended")]
    Ended(#[source] Option<std::io::Error>),
    /// There is no such connection.
    #[error("it sent {length} bytes for connection {connection}, which does not exist")]
    UnknownConnection {
        /// The connection.
        connection: u32,
        /// The bytes.
        length: u32,
    },
    /// A chunk or a message is too long.
    #[error("it announced {length} bytes, {MAX_MESSAGE} are allowed for a message")]
    TooLong {
        /// The announced length.
        length: u32,
    },
}

/// A message as bytes: at most two chunks, as Go's side queues few.
pub fn encode(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + message.payload.len());
    let length = u32::try_from(message.payload.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&message.stream.to_be_bytes());
    bytes.extend_from_slice(&[message.kind, 0]);
    bytes.extend_from_slice(&message.payload);
    let (first, rest) = bytes.split_at(bytes.len().min(FIRST_CHUNK));
    let mut chunks = Vec::with_capacity(bytes.len() + 16);
    for part in [first, rest].into_iter().filter(|part| !part.is_empty()) {
        let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
        chunks.extend_from_slice(&message.connection.to_be_bytes());
        chunks.extend_from_slice(&length.to_be_bytes());
        chunks.extend_from_slice(part);
    }
    chunks
}

/// Reads messages.
pub struct Reader<R> {
    inner: BufReader<R>,
    /// What was read of each connection and is no whole message yet.
    parts: [Vec<u8>; 2],
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// A reader of `inner`.
    pub fn new(inner: R) -> Self {
        Reader {
            inner: BufReader::new(inner),
            parts: [Vec::new(), Vec::new()],
        }
    }

    /// The next message. Errors: the end, or a break of the protocol; nothing can be read after either.
    pub async fn next(&mut self) -> Result<Message, WireError> {
        loop {
            for connection in [PLUGIN, RUNTIME] {
                let part = &mut self.parts[(connection - PLUGIN) as usize];
                if let Some(message) = take(connection, part)? {
                    return Ok(message);
                }
            }
            self.chunk().await?;
        }
    }

    async fn chunk(&mut self) -> Result<(), WireError> {
        let ended = |error| WireError::Ended(Some(error));
        let connection = self.inner.read_u32().await.map_err(ended)?;
        let length = self.inner.read_u32().await.map_err(ended)?;
        if length as usize > MAX_MESSAGE + HEADER {
            return Err(WireError::TooLong { length });
        }
        if ![PLUGIN, RUNTIME].contains(&connection) {
            return Err(WireError::UnknownConnection { connection, length });
        }
        let part = &mut self.parts[(connection - PLUGIN) as usize];
        let mut chunk = (&mut self.inner).take(u64::from(length));
        let read = chunk.read_to_end(part).await.map_err(ended)?;
        if read < length as usize {
            return Err(WireError::Ended(None));
        }
        Ok(())
    }
}

/// Takes the first message out of `part`, if it is whole.
fn take(connection: u32, part: &mut Vec<u8>) -> Result<Option<Message>, WireError> {
    let Some((header, _)) = part.split_at_checked(HEADER) else {
        return Ok(None);
    };
    let word = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|byte| header[at + byte]));
    let (length, stream, kind) = (word(0), word(4), header[8]);
    let whole = HEADER + length as usize;
    if length as usize > MAX_MESSAGE {
        return Err(WireError::TooLong { length });
    }
    if part.len() < whole {
        return Ok(None);
    }
    let rest = part.split_off(whole);
    let payload = std::mem::replace(part, rest).split_off(HEADER);
    Ok(Some(Message {
        connection,
        stream,
        kind,
        payload,
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn message(bytes: usize) -> Message {
        Message {
            connection: RUNTIME,
            stream: 3,
            kind: REQUEST,
            payload: (0..bytes).map(|at| at as u8).collect(),
        }
    }

    /// The lengths of the chunks of an encoded message.
    fn chunks(mut bytes: &[u8]) -> Vec<usize> {
        let mut lengths = Vec::new();
        while !bytes.is_empty() {
            let length = u32::from_be_bytes(bytes[4..8].try_into().unwrap()) as usize;
            lengths.push(length);
            bytes = &bytes[8 + length..];
        }
        lengths
    }

    #[tokio::test]
    async fn messages_are_read_as_they_were_written_in_chunks_that_go_can_read() {
        for (bytes, lengths) in [
            (0, vec![10]),
            (4086, vec![4096]),
            (4087, vec![4096, 1]),
            (MAX_MESSAGE, vec![4096, MAX_MESSAGE + 10 - 4096]),
        ] {
            let encoded = encode(&message(bytes));
            assert_eq!(chunks(&encoded), lengths);
            let both = [encoded.clone(), encoded].concat();
            let mut reader = Reader::new(both.as_slice());
            assert!(reader.next().await.unwrap() == message(bytes), "{bytes}");
            assert!(reader.next().await.unwrap() == message(bytes), "{bytes}");
            assert!(matches!(reader.next().await, Err(WireError::Ended(_))));
        }
    }

    #[tokio::test]
    async fn messages_may_come_in_many_chunks_of_both_connections() {
        let whole = encode(&message(5));
        let mut bytes = Vec::new();
        for byte in &whole[8..] {
            bytes.extend_from_slice(&[0, 0, 0, 2, 0, 0, 0, 1, *byte]);
            bytes.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0]);
        }
        let mut reader = Reader::new(bytes.as_slice());
        assert_eq!(reader.next().await.unwrap(), message(5));
    }

    #[tokio::test]
    async fn lies_about_lengths_and_connections_end_the_reading_before_memory_is_taken() {
        let lies: [&[u8]; 6] = [
            &[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff],
            &[0, 0, 0, 1, 0, 0x40, 0, 11],
            &[0, 0, 0, 0, 0, 0, 0, 1, 0],
            &[0, 0, 0, 3, 0, 0, 0, 1, 0],
            &[0, 0, 0, 1, 0, 0, 0, 10, 0, 0x40, 0, 1, 0, 0, 0, 1, 1, 0],
            &[0, 0, 0, 1, 0, 0, 0, 10, 0],
        ];
        for lie in lies {
            let mut reader = Reader::new(lie);
            assert!(reader.next().await.is_err(), "{lie:?}");
            let held: usize = reader.parts.iter().map(Vec::capacity).sum();
            assert!(held < 1024, "{lie:?}: {held}");
        }
    }
}
