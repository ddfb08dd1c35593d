//! Frames of SPDY/3.1: the head of eight bytes, and the frames that a server sends.
//!
//! Called by: the session's reader ([`Head`], [`Syn`]) and all senders. Source: SPDY/3 draft, section 2.2.
//! Invariant: pure; the head tells how much follows.
//! Must not know: header blocks, which frame is allowed when.

/// Set in the first byte of a control frame.
const CONTROL: u8 = 0x80;
const VERSION: u8 = 3;
/// The sender's last frame on the stream.
const FLAG_FIN: u8 = 0x01;
/// The receiver may not send on the stream.
const FLAG_UNIDIRECTIONAL: u8 = 0x02;
/// Bytes of every frame's head.
pub const HEAD: usize = 8;

/// The type of a control frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Opens a stream.
    SynStream,
    /// Ends a stream at once, both ways.
    Reset,
    /// Asks for its own return.
    Ping,
    /// Announces that no stream will be opened any more.
    GoAway,
    /// More headers of a stream.
    Headers,
    /// Settings, windows, replies, types of later versions: a server of these protocols ignores them.
    Other,
}

/// The first eight bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// A data frame: `length` bytes of a stream follow.
    Data {
        /// Its stream.
        stream: u32,
        /// They are its last.
        fin: bool,
        /// How many, below 2^24.
        length: usize,
    },
    /// A control frame: `length` bytes follow.
    Control {
        /// Its type.
        kind: Kind,
        /// The stream's last frame.
        fin: bool,
        /// The stream goes one way only.
        unidirectional: bool,
        /// How many, below 2^24.
        length: usize,
    },
    /// Not SPDY/3.
    Foreign {
        /// The version that it names.
        version: u16,
    },
}

impl Head {
    /// Reads a head.
    pub fn parse(bytes: [u8; HEAD]) -> Head {
        let [a, b, c, d, flags, x, y, z] = bytes;
        let length = u32::from_be_bytes([0, x, y, z]) as usize;
        let fin = flags & FLAG_FIN != 0;
        if a & CONTROL == 0 {
            let stream = u32::from_be_bytes([a, b, c, d]);
            return Head::Data {
                stream,
                fin,
                length,
            };
        }
        let version = u16::from_be_bytes([a & !CONTROL, b]);
        if version != u16::from(VERSION) {
            return Head::Foreign { version };
        }
        let kind = match u16::from_be_bytes([c, d]) {
            1 => Kind::SynStream,
            3 => Kind::Reset,
            6 => Kind::Ping,
            7 => Kind::GoAway,
            8 => Kind::Headers,
            _ => Kind::Other,
        };
        let unidirectional = flags & FLAG_UNIDIRECTIONAL != 0;
        Head::Control {
            kind,
            fin,
            unidirectional,
            length,
        }
    }
}

/// The stream id in front of a control frame's payload; 0 where it is too short to have one.
pub fn stream_id(payload: &[u8]) -> u32 {
    let id = payload
        .first_chunk::<4>()
        .map(|bytes| u32::from_be_bytes(*bytes));
    id.unwrap_or(0) & 0x7fff_ffff
}

/// The header block of a SYN_STREAM (after stream, associated stream, priority and slot) or of a HEADERS frame.
pub fn block(kind: Kind, payload: &[u8]) -> &[u8] {
    let skipped = if kind == Kind::SynStream { 10 } else { 4 };
    payload.get(skipped..).unwrap_or_default()
}

/// Why a stream is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetCode {
    /// The frame was invalid.
    ProtocolError = 1,
    /// The stream was refused.
    Refused = 3,
    /// The stream is not needed any more.
    Cancel = 5,
}

fn control(kind: u8, payload: &[&[u8]]) -> Vec<u8> {
    let length = payload.iter().map(|part| part.len()).sum::<usize>();
    let mut frame = Vec::with_capacity(HEAD + length);
    frame.extend_from_slice(&[CONTROL, VERSION, 0, kind]);
    frame.extend_from_slice(&(length as u32).to_be_bytes());
    for part in payload {
        frame.extend_from_slice(part);
    }
    frame
}

/// A DATA frame; `bytes` are fewer than 2^24.
pub fn data(stream: u32, bytes: &[u8], fin: bool) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEAD + bytes.len());
    frame.extend_from_slice(&stream.to_be_bytes());
    let flags = if fin { FLAG_FIN } else { 0 };
    frame.extend_from_slice(&(u32::from(flags) << 24 | bytes.len() as u32).to_be_bytes());
    frame.extend_from_slice(bytes);
    frame
}

/// A SYN_REPLY frame around a header block.
pub fn syn_reply(stream: u32, block: &[u8]) -> Vec<u8> {
    control(2, &[&stream.to_be_bytes(), block])
}

/// A RST_STREAM frame.
pub fn reset(stream: u32, code: ResetCode) -> Vec<u8> {
    control(3, &[&stream.to_be_bytes(), &(code as u32).to_be_bytes()])
}

/// A PING frame: the client's, sent back.
pub fn ping(id: [u8; 4]) -> Vec<u8> {
    control(6, &[&id])
}

/// A GOAWAY frame: streams after `last` were not looked at; a protocol error if `broken`.
pub fn go_away(last: u32, broken: bool) -> Vec<u8> {
    control(7, &[&last.to_be_bytes(), &u32::from(broken).to_be_bytes()])
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn head(frame: &[u8]) -> Head {
        Head::parse(*frame.first_chunk().unwrap())
    }

    #[test]
    fn sent_frames_are_read_as_they_were_meant() {
        let last = data(7, b"bye", true);
        assert_eq!(
            head(&last),
            Head::Data {
                stream: 7,
                fin: true,
                length: 3
            }
        );
        assert_eq!(last, [0, 0, 0, 7, 1, 0, 0, 3, b'b', b'y', b'e']);
        assert_eq!(
            head(&data(1, &[0; 70_000], false)),
            Head::Data {
                stream: 1,
                fin: false,
                length: 70_000
            }
        );
        for (frame, kind, length) in [
            (ping([0, 0, 0, 9]), Kind::Ping, 4),
            (reset(3, ResetCode::Refused), Kind::Reset, 8),
            (go_away(5, false), Kind::GoAway, 8),
            (syn_reply(3, b"block"), Kind::Other, 9),
        ] {
            let want = Head::Control {
                kind,
                fin: false,
                unidirectional: false,
                length,
            };
            assert_eq!(head(&frame), want);
            assert_eq!(frame.len(), HEAD + length);
        }
    }

    /// The first bytes of a SYN_STREAM of moby/spdystream v0.5.1.
    #[test]
    fn a_syn_of_the_go_client_is_read() {
        let syn = [
            0x80, 3, 0, 1, 0, 0, 0, 0x29, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x78,
        ];
        let want = Head::Control {
            kind: Kind::SynStream,
            fin: false,
            unidirectional: false,
            length: 0x29,
        };
        assert_eq!(head(&syn), want);
        assert_eq!(
            (stream_id(&syn[8..]), block(Kind::SynStream, &syn[8..])),
            (1, &[0x78][..])
        );
    }

    #[test]
    fn other_versions_and_short_payloads_are_recognised() {
        assert_eq!(
            head(&[0x80, 2, 0, 1, 0, 0, 0, 0]),
            Head::Foreign { version: 2 }
        );
        assert_eq!(stream_id(&[1, 2]), 0);
        assert_eq!(block(Kind::SynStream, &[1, 2]), b"");
    }
}
