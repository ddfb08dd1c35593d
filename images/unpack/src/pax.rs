//! The text of PAX extended headers: records, numbers, times; and the error for what is no such text.
//!
//! Called by `archive` and `sparse`. Pure. Invariant: whatever is malformed is refused. Source: POSIX.1, pax.
//! Not here: which records mean something.

use std::io;

use crate::time::Time;

/// Takes one record, `LENGTH KEY=VALUE\n`, from the front of an extended header: key, value. The length alone says where it
/// ends: values of attributes have any bytes, line feeds included.
pub(crate) fn record<'a>(data: &mut &'a [u8]) -> io::Result<(&'a [u8], &'a [u8])> {
    let malformed = || bad("a PAX record is malformed");
    let digits = data.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let length = number(&data[..digits]).ok();
    let length = length.and_then(|length| usize::try_from(length).ok());
    let record = length.and_then(|length| data.get(..length));
    let (record, length) = record.zip(length).ok_or_else(malformed)?;
    let record = record
        .get(digits..)
        .and_then(|rest| rest.strip_prefix(b" "));
    let record = record.and_then(|rest| rest.strip_suffix(b"\n"));
    let record = record.ok_or_else(malformed)?;
    let equals = record.iter().position(|byte| *byte == b'=');
    let equals = equals.filter(|at| *at > 0).ok_or_else(malformed)?;
    *data = &data[length..];
    Ok((&record[..equals], &record[equals + 1..]))
}

/// A decimal number.
pub(crate) fn number(value: &[u8]) -> io::Result<u64> {
    let text = std::str::from_utf8(value).ok();
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| bad("a PAX number is not a number"))
}

/// A time, with a fraction if it has one.
pub(crate) fn time(value: &[u8]) -> io::Result<Time> {
    Time::from_pax(value).ok_or_else(|| bad("a PAX time is not a number"))
}

/// The error for an archive that is wrong.
pub(crate) fn bad(problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem.to_owned())
}
