//! Netlink attributes, written one behind another: length, type, value, padding to four bytes. Numbers of netfilter
//! are big-endian.
//! Invariant: [`Attributes::bytes`] returns complete attributes, nested ones included.
//! Not here: what the types mean.

const HEADER_BYTES: usize = 4;
const NLA_F_NESTED: u16 = 1 << 15;
/// All bits of a type but NLA_F_NESTED and NLA_F_NET_BYTEORDER.
const TYPE_MASK: u16 = (1 << 14) - 1;

/// Attributes, as they go into a message.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    /// Adds a value as it is. It is shorter than 64 KiB: the longest are some hundred elements of a set.
    pub(crate) fn value(mut self, kind: u16, value: &[u8]) -> Self {
        let length = HEADER_BYTES + value.len();
        debug_assert!(length <= usize::from(u16::MAX));
        self.0.extend((length as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Adds a string with its zero.
    pub(crate) fn text(self, kind: u16, text: &str) -> Self {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.value(kind, &value)
    }

    /// Adds a number.
    pub(crate) fn number(self, kind: u16, number: u32) -> Self {
        self.value(kind, &number.to_be_bytes())
    }

    /// Adds attributes as one.
    pub(crate) fn nest(self, kind: u16, inner: &Self) -> Self {
        self.value(kind | NLA_F_NESTED, &inner.0)
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The value of the first attribute of `kind`, if there is one.
pub(super) fn find(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let head = attributes.get(..HEADER_BYTES)?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let value = attributes.get(HEADER_BYTES..length)?;
        if u16::from_ne_bytes([head[2], head[3]]) & TYPE_MASK == kind {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}
