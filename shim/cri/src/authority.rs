//! Lets any `:authority` pass: on a unix socket it names nobody, and no call looks at it.
//!
//! Clients built on the gRPC core (Python, C++, Ruby) send the percent-encoded path of the socket, which the HTTP library
//! takes for a malformed host name and answers with RST_STREAM. So [`AnyAuthority`] reads along what a client sends, and
//! replaces each byte of an authority that no host name has by a dash, in place.
//!
//! Place in the flow: around every connection that [`super::socket`] accepts. Sources: RFC 9113 (frames), RFC 7541
//! (header blocks).
//! Invariants: lengths never change, so that frames and the peer's header table stay as they are; what is not understood
//! is passed on as it came, and so is the rest of that connection.
//! Must not know: gRPC, header tables. Values in Huffman's code stay as they are; clients that use it send host names.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

use super::crowd::Place;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const NAME: &[u8] = b":authority";
/// Its number in the static table.
const NAME_INDEX: u32 = 1;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;
/// Bytes of a stream's priority in front of a header block.
const PRIORITY_BYTES: u8 = 5;
const FRAME_HEAD: usize = 9;

/// A connection whose requests may have any authority.
#[derive(Debug)]
pub(super) struct AnyAuthority<C> {
    connection: C,
    filter: Filter,
    /// Among all connections.
    _place: Place,
}

impl<C> AnyAuthority<C> {
    /// It has `place` as long as it lives.
    pub(super) fn new(connection: C, place: Place) -> Self {
        Self {
            connection,
            filter: Filter::default(),
            _place: place,
        }
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for AnyAuthority<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.connection).poll_read(context, buffer);
        self.filter.pass(&mut buffer.filled_mut()[before..]);
        read
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for AnyAuthority<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(context)
    }
}

impl<C: Connected> Connected for AnyAuthority<C> {
    type ConnectInfo = C::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.connection.connect_info()
    }
}

/// Where in a client's bytes the next one is.
#[derive(Debug, Default)]
struct Filter {
    at: At,
    block: Block,
}

#[derive(Debug)]
enum At {
    /// So many bytes into the preface.
    Preface(usize),
    /// So many bytes into a frame's head.
    Head([u8; FRAME_HEAD], usize),
    /// So many bytes before the end of a frame without headers.
    Other(usize),
    Headers(Fragment),
    /// This is no HTTP/2, or none that is understood.
    Lost,
}

impl Default for At {
    fn default() -> Self {
        Self::Preface(0)
    }
}

/// A frame with a part of a header block.
#[derive(Debug)]
struct Fragment {
    /// Bytes before its end.
    left: usize,
    /// Whether the length of its padding comes next.
    padded: bool,
    /// Padding at its end.
    padding: usize,
    /// Bytes in front of the block that do not belong to it.
    front: u8,
    /// Whether the block ends with it.
    last: bool,
}

impl Filter {
    /// Reads along `bytes`, the next ones of the client.
    fn pass(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let taken = match &mut self.at {
                At::Lost => return,
                At::Other(left) => {
                    let taken = bytes.len().min(*left);
                    *left -= taken;
                    if *left == 0 {
                        self.at = At::Head([0; FRAME_HEAD], 0);
                    }
                    taken
                }
                _ => {
                    self.byte(&mut bytes[0]);
                    1
                }
            };
            bytes = &mut bytes[taken..];
        }
    }

    fn byte(&mut self, byte: &mut u8) {
        match &mut self.at {
            At::Preface(seen) if PREFACE[*seen] == *byte => {
                *seen += 1;
                if *seen == PREFACE.len() {
                    self.at = At::Head([0; FRAME_HEAD], 0);
                }
            }
            At::Head(head, seen) => {
                head[*seen] = *byte;
                *seen += 1;
                if *seen == FRAME_HEAD {
                    self.at = frame(head);
                }
            }
            At::Headers(fragment) => {
                let is_whole = self.block.fragment(fragment, byte);
                if !is_whole {
                    self.at = At::Lost;
                } else if fragment.left == 0 {
                    if fragment.last {
                        self.block = Block::Field;
                    }
                    self.at = At::Head([0; FRAME_HEAD], 0);
                }
            }
            At::Preface(_) | At::Other(_) | At::Lost => self.at = At::Lost,
        }
    }
}

/// What follows a frame's head.
fn frame(head: &[u8; FRAME_HEAD]) -> At {
    let left = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    let (kind, flags) = (head[3], head[4]);
    let has = |flag| kind == HEADERS && flags & flag != 0;
    match (left, kind) {
        // An empty last fragment ends a block that has ended where it should.
        (0, _) => At::Head([0; FRAME_HEAD], 0),
        (_, HEADERS | CONTINUATION) => At::Headers(Fragment {
            left,
            padded: has(PADDED),
            padding: 0,
            front: if has(PRIORITY) { PRIORITY_BYTES } else { 0 },
            last: flags & END_HEADERS != 0,
        }),
        _ => At::Other(left),
    }
}

/// Where in a header block the next byte is.
#[derive(Debug, Default)]
enum Block {
    /// At the first byte of a field or of a change of the table's size.
    #[default]
    Field,
    /// Inside of a number that takes several bytes.
    Number { value: u32, shift: u32, then: Then },
    /// At the length of a field's name, or of its value.
    Length { then: Then },
    /// Inside of a name; whether it has been the one so far.
    Name { left: u32, seen: usize, same: bool },
    /// Inside of a value; whether it is to be made harmless.
    Value { left: u32, ours: bool },
}

/// What a number is for.
#[derive(Clone, Copy, Debug)]
enum Then {
    /// Nothing that matters here.
    NextField,
    /// The number of a field's name.
    NameIndex,
    /// The length of a name; whether it is written as it is.
    Name { plain: bool },
    /// The length of a value; whether that is an authority, and whether it is written as it is.
    Value { ours: bool, plain: bool },
}

impl Then {
    /// The same for a text that is `plain`, that is written as it is, or is not.
    fn of_text(self, plain: bool) -> Self {
        match self {
            Self::Value { ours, .. } => Self::Value { ours, plain },
            _ => Self::Name { plain },
        }
    }
}

impl Block {
    /// The next byte of `fragment`. `false`: this is no header block.
    fn fragment(&mut self, fragment: &mut Fragment, byte: &mut u8) -> bool {
        fragment.left -= 1;
        if fragment.padded {
            fragment.padded = false;
            fragment.padding = usize::from(*byte);
        } else if fragment.front > 0 {
            fragment.front -= 1;
        } else if fragment.left >= fragment.padding {
            return self.byte(byte);
        }
        true
    }

    fn byte(&mut self, byte: &mut u8) -> bool {
        match self {
            Self::Field => *self = field(*byte),
            Self::Number { value, shift, then } => {
                if *shift > 21 {
                    return false;
                }
                *value += u32::from(*byte & 0x7f) << *shift;
                *shift += 7;
                if *byte & 0x80 == 0 {
                    *self = after(*value, *then);
                }
            }
            Self::Length { then } => {
                *self = number(*byte, 7, then.of_text(*byte & 0x80 == 0));
            }
            Self::Name { left, seen, same } => {
                *same &= NAME.get(*seen) == Some(byte);
                (*left, *seen) = (*left - 1, *seen + 1);
                if *left == 0 {
                    let ours = *same && *seen == NAME.len();
                    *self = value_length(ours);
                }
            }
            Self::Value { left, ours } => {
                let is_harmless = byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
                if *ours && !is_harmless {
                    *byte = b'-';
                }
                *left -= 1;
                if *left == 0 {
                    *self = Self::Field;
                }
            }
        }
        true
    }
}

/// What the first byte of a field says.
fn field(byte: u8) -> Block {
    match byte {
        // A field of the table.
        0x80.. => number(byte, 7, Then::NextField),
        // A field that is to be put into the table.
        0x40.. => number(byte, 6, Then::NameIndex),
        // Another size of the table.
        0x20.. => number(byte, 5, Then::NextField),
        // Any other field.
        _ => number(byte, 4, Then::NameIndex),
    }
}

/// A number whose first bits are the last `bits` of `byte`.
fn number(byte: u8, bits: u32, then: Then) -> Block {
    let most = (1 << bits) - 1;
    match u32::from(byte) & most {
        value if value == most => Block::Number {
            value,
            shift: 0,
            then,
        },
        value => after(value, then),
    }
}

fn after(number: u32, then: Then) -> Block {
    match then {
        Then::NextField => Block::Field,
        Then::NameIndex if number == 0 => Block::Length {
            then: Then::Name { plain: true },
        },
        Then::NameIndex => value_length(number == NAME_INDEX),
        Then::Name { .. } if number == 0 => value_length(false),
        Then::Name { plain } => Block::Name {
            left: number,
            seen: 0,
            same: plain,
        },
        Then::Value { .. } if number == 0 => Block::Field,
        Then::Value { ours, plain } => Block::Value {
            left: number,
            ours: ours && plain,
        },
    }
}

fn value_length(ours: bool) -> Block {
    Block::Length {
        then: Then::Value { ours, plain: true },
    }
}

#[cfg(test)]
mod tests;
