//! Times of entries. Pure.
//!
//! Called by: `archive`, which reads them; `tree` gives them to files. Source: POSIX pax, `mtime`.
//! Not here: the clock.

/// A time: seconds since 1970, and nanoseconds that count forward from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Time {
    pub seconds: i64,
    pub nanoseconds: u32,
}

impl Time {
    /// Reads a PAX time, which may be negative and have a fraction. Digits beyond nanoseconds do not count.
    pub(crate) fn from_pax(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?;
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let seconds: i64 = whole.parse().ok()?;
        if !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
            return None;
        }
        let fraction = format!("{fraction:0<9}");
        let nanoseconds: u32 = fraction.get(..9)?.parse().ok()?;
        Some(match (whole.starts_with('-'), nanoseconds) {
            (true, 1..) => Self {
                seconds: seconds.checked_sub(1)?,
                nanoseconds: 1_000_000_000 - nanoseconds,
            },
            _ => Self {
                seconds,
                nanoseconds,
            },
        })
    }
}
