//! The part of the D-Bus encoding that calls to systemd need: little-endian messages, and the fields we read.
//!
//! Called by `bus`. Pure over bytes. Source: D-Bus Specification 0.38, "Marshaling" and "Message Format".
//! Invariant: received lengths are checked; a short or malformed message is `None`, never a panic.
//! Not here: sockets, which methods there are.

/// Largest message that is accepted. Bytes; systemd's own signals stay below a few KiB.
pub(super) const MAX_BYTES: usize = 1 << 20;
/// Bytes before the array of header fields ends its length: enough to know how long the message is.
pub(super) const PREFIX_BYTES: usize = 16;

const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

const FIELD_PATH: u8 = 1;
const FIELD_INTERFACE: u8 = 2;
const FIELD_MEMBER: u8 = 3;
const FIELD_ERROR_NAME: u8 = 4;
const FIELD_REPLY_SERIAL: u8 = 5;
const FIELD_DESTINATION: u8 = 6;
const FIELD_SIGNATURE: u8 = 8;

/// Arguments of a call under construction, with their signature.
#[derive(Debug, Default)]
pub(super) struct Body {
    bytes: Vec<u8>,
    signature: String,
}

/// The value of one property of a unit; only the types that `systemd` needs.
#[derive(Debug)]
pub(super) enum Value<'a> {
    /// `s`
    Text(&'a str),
    /// `b`
    Bool(bool),
    /// `t`
    U64(u64),
    /// `au`
    U32s(&'a [u32]),
}

/// A message that was received.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// The return of the call with this serial.
    Return { reply_to: u32 },
    /// The error of the call with this serial: its name and its text.
    Error {
        reply_to: u32,
        name: String,
        text: String,
    },
    /// The end of a job: its unit and result. Signal `JobRemoved(u id, o job, s unit, s result)`.
    JobRemoved { unit: String, result: String },
    /// Everything else: other signals, and calls, which are not answered.
    Other,
}

fn align(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

fn put_u32(bytes: &mut Vec<u8>, value: u32) {
    align(bytes, 4);
    bytes.extend(value.to_le_bytes());
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    put_u32(bytes, length(text.len()));
    bytes.extend(text.as_bytes());
    bytes.push(0);
}

fn put_signature(bytes: &mut Vec<u8>, signature: &str) {
    // Signatures are written in this file; the longest has ten letters.
    bytes.push(signature.len() as u8);
    bytes.extend(signature.as_bytes());
    bytes.push(0);
}

/// Writes an array: its length, the padding before the first element, which does not count, and the elements.
fn put_array(bytes: &mut Vec<u8>, element_align: usize, fill: impl FnOnce(&mut Vec<u8>)) {
    put_u32(bytes, 0);
    let at = bytes.len() - 4;
    align(bytes, element_align);
    let start = bytes.len();
    fill(bytes);
    let written = length(bytes.len() - start);
    bytes[at..at + 4].copy_from_slice(&written.to_le_bytes());
}

/// D-Bus counts in 32 bits; our own messages are small.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

impl Body {
    /// Adds a string.
    pub(super) fn text(mut self, text: &str) -> Self {
        put_text(&mut self.bytes, text);
        self.signature.push('s');
        self
    }

    /// Adds `a(sv)`: properties of a unit.
    pub(super) fn properties(mut self, properties: &[(&str, Value<'_>)]) -> Self {
        put_array(&mut self.bytes, 8, |bytes| {
            for (name, value) in properties {
                align(bytes, 8);
                put_text(bytes, name);
                value.put(bytes);
            }
        });
        self.signature.push_str("a(sv)");
        self
    }

    /// Adds an empty `a(sa(sv))`: no auxiliary units.
    pub(super) fn no_auxiliary_units(mut self) -> Self {
        put_array(&mut self.bytes, 8, |_| {});
        self.signature.push_str("a(sa(sv))");
        self
    }

    /// The whole call of `member` of systemd's manager.
    pub(super) fn call(self, serial: u32, member: &str) -> Vec<u8> {
        let mut bytes = vec![b'l', METHOD_CALL, 0, 1];
        put_u32(&mut bytes, length(self.bytes.len()));
        put_u32(&mut bytes, serial);
        put_array(&mut bytes, 8, |bytes| {
            let fields = [
                (FIELD_PATH, "o", "/org/freedesktop/systemd1"),
                (FIELD_INTERFACE, "s", "org.freedesktop.systemd1.Manager"),
                (FIELD_MEMBER, "s", member),
                (FIELD_DESTINATION, "s", "org.freedesktop.systemd1"),
            ];
            for (code, kind, value) in fields {
                align(bytes, 8);
                bytes.push(code);
                put_signature(bytes, kind);
                put_text(bytes, value);
            }
            align(bytes, 8);
            bytes.push(FIELD_SIGNATURE);
            put_signature(bytes, "g");
            put_signature(bytes, &self.signature);
        });
        align(&mut bytes, 8);
        bytes.extend(self.bytes);
        bytes
    }
}

impl Value<'_> {
    fn put(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Text(text) => {
                put_signature(bytes, "s");
                put_text(bytes, text);
            }
            Self::Bool(flag) => {
                put_signature(bytes, "b");
                put_u32(bytes, u32::from(*flag));
            }
            Self::U64(number) => {
                put_signature(bytes, "t");
                align(bytes, 8);
                bytes.extend(number.to_le_bytes());
            }
            Self::U32s(numbers) => {
                put_signature(bytes, "au");
                put_array(bytes, 4, |bytes| {
                    for number in *numbers {
                        put_u32(bytes, *number);
                    }
                });
            }
        }
    }
}

/// The length of the message that begins with these [`PREFIX_BYTES`]; `None` if it is not supported.
pub(super) fn length_of(prefix: &[u8]) -> Option<usize> {
    let number = |at: usize| Some(u32::from_le_bytes(prefix.get(at..at + 4)?.try_into().ok()?));
    if prefix.first() != Some(&b'l') || prefix.get(3) != Some(&1) {
        return None;
    }
    let (body, fields) = (number(4)? as usize, number(12)? as usize);
    let header = (PREFIX_BYTES + fields.min(MAX_BYTES)).next_multiple_of(8);
    let whole = header.checked_add(body)?;
    (whole <= MAX_BYTES).then_some(whole)
}

/// Reads one whole message; `None` if it is malformed.
pub(super) fn read(message: &[u8]) -> Option<Message> {
    let mut reader = Reader { message, at: 12 };
    let end = PREFIX_BYTES + reader.u32()? as usize;
    let (mut member, mut error, mut reply_to) = (None, None, None);
    while reader.at < end {
        reader.align(8);
        let code = *message.get(reader.at)?;
        reader.at += 1;
        match (code, reader.signature()?) {
            (FIELD_MEMBER, "s") => member = Some(reader.text()?),
            (FIELD_ERROR_NAME, "s") => error = Some(reader.text()?),
            (FIELD_REPLY_SERIAL, "u") => reply_to = Some(reader.u32()?),
            (_, "s" | "o") => drop(reader.text()?),
            (_, "g") => drop(reader.signature()?),
            (_, "u") => drop(reader.u32()?),
            _ => return None,
        }
    }
    reader.at = end;
    reader.align(8);
    match (*message.get(1)?, member) {
        (METHOD_RETURN, _) => Some(Message::Return {
            reply_to: reply_to?,
        }),
        (ERROR, _) => Some(Message::Error {
            reply_to: reply_to?,
            name: error?.to_owned(),
            text: reader.text().unwrap_or_default().to_owned(),
        }),
        (SIGNAL, Some("JobRemoved")) => {
            reader.u32()?;
            reader.text()?;
            Some(Message::JobRemoved {
                unit: reader.text()?.to_owned(),
                result: reader.text()?.to_owned(),
            })
        }
        _ => Some(Message::Other),
    }
}

struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.message.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        self.align(4);
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<&'a str> {
        let count = self.u32()? as usize;
        let text = std::str::from_utf8(self.take(count)?).ok();
        self.take(1)?; // the closing zero
        text
    }

    fn signature(&mut self) -> Option<&'a str> {
        let count = usize::from(self.take(1)?[0]);
        let text = std::str::from_utf8(self.take(count)?).ok();
        self.take(1)?;
        text
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    /// `gdbus` and `busctl` write these bytes for the same call, but for the serial.
    #[test]
    fn a_call_is_laid_out_as_the_specification_says() {
        let call = Body::default()
            .text("a.scope")
            .text("replace")
            .call(7, "StopUnit");
        assert_eq!(call[..4], *b"l\x01\x00\x01");
        let body = 4 + 8 + 4 + 8; // "a.scope" and its zero end on a multiple of 4
        assert_eq!(call[4..8], u32::to_le_bytes(body));
        assert_eq!(call[8..12], 7_u32.to_le_bytes());
        assert_eq!(length_of(&call), Some(call.len()));
        assert_eq!(call[16..20], *b"\x01\x01o\x00");
        let tail = &call[call.len() - body as usize..];
        assert_eq!(tail, b"\x07\0\0\0a.scope\0\x07\0\0\0replace\0");
        assert!(call.windows(8).any(|bytes| bytes == b"\x08\x01g\0\x02ss\0"));
        assert_eq!(read(&call), Some(Message::Other));
    }

    #[test]
    fn properties_are_aligned_by_their_types() {
        let properties = [
            ("Slice", Value::Text("a.slice")),
            ("Delegate", Value::Bool(true)),
            ("TasksMax", Value::U64(u64::MAX)),
            ("PIDs", Value::U32s(&[7, 8])),
        ];
        let body = Body::default().properties(&properties).no_auxiliary_units();
        assert_eq!(body.signature, "a(sv)a(sa(sv))");
        let mut expected = vec![0, 0, 0, 0, 0, 0, 0, 0]; // the length, filled in below, and padding to 8
        expected.extend(b"\x05\0\0\0Slice\0\x01s\0\0\0\0\x07\0\0\0a.slice\0");
        expected.resize(expected.len().next_multiple_of(8), 0);
        expected.extend(b"\x08\0\0\0Delegate\0\x01b\0\x01\0\0\0");
        expected.resize(expected.len().next_multiple_of(8), 0);
        expected.extend(b"\x08\0\0\0TasksMax\0\x01t\0");
        expected.resize(expected.len().next_multiple_of(8), 0);
        expected.extend([0xff; 8]);
        expected.extend(b"\x04\0\0\0PIDs\0\x02au\0\0\0\0\x08\0\0\0\x07\0\0\0\x08\0\0\0");
        let length = u32::try_from(expected.len() - 8).unwrap();
        expected[..4].copy_from_slice(&length.to_le_bytes());
        expected.resize(expected.len().next_multiple_of(4), 0);
        expected.extend([0; 4]);
        expected.resize(expected.len().next_multiple_of(8), 0);
        assert_eq!(body.bytes, expected);
    }

    fn received(kind: u8, fields: &[(u8, &str, &str)], body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![b'l', kind, 0, 1];
        put_u32(&mut bytes, length(body.len()));
        put_u32(&mut bytes, 1);
        put_array(&mut bytes, 8, |bytes| {
            for (code, signature, value) in fields {
                align(bytes, 8);
                bytes.push(*code);
                put_signature(bytes, signature);
                match *signature {
                    "u" => put_u32(bytes, value.parse().unwrap()),
                    "g" => put_signature(bytes, value),
                    _ => put_text(bytes, value),
                }
            }
        });
        align(&mut bytes, 8);
        bytes.extend(body);
        bytes
    }

    fn job_removed() -> Vec<u8> {
        let mut body = Vec::new();
        put_u32(&mut body, 12);
        for text in ["/org/freedesktop/systemd1/job/12", "a.scope", "done"] {
            put_text(&mut body, text);
        }
        let fields = [
            (FIELD_MEMBER, "s", "JobRemoved"),
            (FIELD_SIGNATURE, "g", "uoss"),
        ];
        received(SIGNAL, &fields, &body)
    }

    #[test]
    fn replies_are_distinguished() {
        let answer = received(METHOD_RETURN, &[(FIELD_REPLY_SERIAL, "u", "3")], b"");
        assert_eq!(read(&answer), Some(Message::Return { reply_to: 3 }));
        let mut body = Vec::new();
        put_text(&mut body, "Unit a.scope already exists.");
        let name = "org.freedesktop.systemd1.UnitExists";
        let fields = [
            (FIELD_ERROR_NAME, "s", name),
            (FIELD_REPLY_SERIAL, "u", "4"),
        ];
        let refusal = Message::Error {
            reply_to: 4,
            name: name.into(),
            text: "Unit a.scope already exists.".into(),
        };
        assert_eq!(read(&received(ERROR, &fields, &body)), Some(refusal));
        let ended = Message::JobRemoved {
            unit: "a.scope".into(),
            result: "done".into(),
        };
        assert_eq!(read(&job_removed()), Some(ended));
    }

    #[test]
    fn a_message_cut_short_or_altered_is_refused_without_a_panic() {
        let whole = job_removed();
        for end in 0..whole.len() {
            assert!(read(&whole[..end]).is_none_or(|message| message == Message::Other));
        }
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut altered = whole.clone();
                altered[at] ^= 1 << bit;
                let _ = (read(&altered), length_of(&altered));
            }
        }
        assert_eq!(length_of(b"B\x01\0\x01\0\0\0\0\0\0\0\0\0\0\0\0"), None);
        let huge = b"l\x01\0\x01\xff\xff\xff\xff\0\0\0\0\xff\xff\xff\xff";
        assert_eq!(length_of(huge), None);
    }
}
