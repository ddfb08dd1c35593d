//! Extended headers of a tar: what does not fit into the fields of a header, and attributes.
//!
//! Called by: the packing of layers. Pure but for reading attributes of an open file. Invariant: only attributes that belong to
//! the image are read, the same ones that the unpacker sets. Source: POSIX pax, and SCHILY.xattr of star.
//! Not here: entries, files' content.

use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;

/// The largest list of names, and the largest value, of attributes that the kernel gives. Bytes.
const ATTRIBUTE_BYTES: usize = 64 << 10;
/// Bytes of a name in a header; longer ones go into an extended header.
const NAME_BYTES: usize = 100;

/// Puts a name into its field, and a long one also into the extended header.
pub(super) fn put_name(
    field: &mut [u8; NAME_BYTES],
    key: &[u8],
    name: &[u8],
    extended: &mut Vec<u8>,
) {
    let count = name.len().min(NAME_BYTES);
    field[..count].copy_from_slice(&name[..count]);
    if name.len() > NAME_BYTES {
        put_record(extended, key, name);
    }
}

/// Adds a record to an extended header: its own length in decimal, a blank, `key=value` and a newline. Source: POSIX pax.
pub(super) fn put_record(extended: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    extended.extend_from_slice(format!("{length} ").as_bytes());
    for part in [key, b"=", value, b"\n"] {
        extended.extend_from_slice(part);
    }
}

/// A time as PAX writes it. Nanoseconds count forward, also from a negative second.
pub(super) fn time(seconds: i64, nanoseconds: u64) -> String {
    match (seconds, nanoseconds) {
        (_, 0) => seconds.to_string(),
        (0.., _) => format!("{seconds}.{nanoseconds:09}"),
        _ => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds),
    }
}

/// Those attributes of a file that belong to the image, as records of an extended header, by name.
pub(super) fn attributes(file: impl AsFd) -> io::Result<Vec<u8>> {
    let mut list = vec![0; ATTRIBUTE_BYTES];
    let count = match rustix::fs::flistxattr(&file, &mut list[..]) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        count => count?,
    };
    let mut names: Vec<&[u8]> = list[..count].split(|byte| *byte == 0).collect();
    names.sort_unstable();
    let mut records = Vec::new();
    for name in names {
        let is_user = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
        if name != b"security.capability" && !is_user {
            continue;
        }
        if let Some(value) = value(&file, name)? {
            put_record(&mut records, &[b"SCHILY.xattr.", name].concat(), &value);
        }
    }
    Ok(records)
}

/// The value of an attribute; `None` if the file has no such one.
pub(super) fn value(file: impl AsFd, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0; ATTRIBUTE_BYTES];
    match rustix::fs::fgetxattr(file, name, &mut value[..]) {
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno.into()),
        Ok(count) => {
            value.truncate(count);
            Ok(Some(value))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test panics to fail")]
mod tests;
