//! Formats modes, sizes, times and errors as text.
//!
//! Called by the tools. Invariant: it never fails, whatever a file system reports.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

/// Ten letters, as `ls -l` has them.
pub(super) fn mode(metadata: &Metadata) -> String {
    let kind = metadata.file_type();
    let first = match kind {
        _ if kind.is_dir() => 'd',
        _ if kind.is_symlink() => 'l',
        _ if kind.is_fifo() => 'p',
        _ if kind.is_socket() => 's',
        _ if kind.is_char_device() => 'c',
        _ if kind.is_block_device() => 'b',
        _ => '-',
    };
    let mode = metadata.mode();
    let mut text = String::from(first);
    for (shift, set, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & set != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// What kind of file it is.
pub(super) fn kind(metadata: &Metadata) -> &'static str {
    match mode(metadata).as_bytes()[0] {
        b'd' => "directory",
        b'l' => "symbolic link",
        b'p' => "fifo",
        b's' => "socket",
        b'c' => "character special file",
        b'b' => "block special file",
        _ if metadata.len() == 0 => "regular empty file",
        _ => "regular file",
    }
}

/// At most four characters, rounded up: `0`, `1023`, `1.5K`, `12M`.
pub(super) fn human(bytes: u64) -> String {
    if bytes < 1024 {
        return bytes.to_string();
    }
    let mut unit = 0;
    let mut tenths = bytes.saturating_mul(10).div_ceil(1024);
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths = tenths.div_ceil(1024);
        unit += 1;
    }
    match tenths {
        0..100 => format!("{}.{}{}", tenths / 10, tenths % 10, UNITS[unit]),
        _ => format!("{}{}", tenths.div_ceil(10), UNITS[unit]),
    }
}

const UNITS: [char; 5] = ['K', 'M', 'G', 'T', 'P'];

/// Seconds since 1970 as `2026-11-21 08:31:04`, UTC; the number itself beyond the years -9999 to 9999.
pub(super) fn time(seconds: i64) -> String {
    match jiff::Timestamp::from_second(seconds) {
        Ok(time) => time.strftime("%F %T").to_string(),
        Err(_) => seconds.to_string(),
    }
}

/// The C library's text for an error, without the number.
pub(super) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}
