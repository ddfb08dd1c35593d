//! Reads container logs in the CRI format: `<RFC3339Nano> <stdout|stderr> <P|F> <bytes>`, one record a line.

use std::path::Path;
use std::time::{Duration, Instant};

/// One record of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The time as written, to be compared as text within one second's digits.
    pub time: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Whether the record ends a line (`F`) or is a piece of one (`P`).
    pub full: bool,
    /// The bytes, without the record's newline.
    pub bytes: Vec<u8>,
}

/// Reads a whole log. Errors: the first record that is not in the format, by its number and text.
pub fn parse(bytes: &[u8]) -> Result<Vec<Record>, String> {
    let mut lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    match lines.pop() {
        Some(rest) if !rest.is_empty() => {
            return Err(format!(
                "the log ends inside a record: {}",
                String::from_utf8_lossy(rest)
            ));
        }
        _ => {}
    }
    let record = |(number, line): (usize, &&[u8])| {
        parse_record(line).ok_or_else(|| {
            format!(
                "record {number} is malformed: {}",
                String::from_utf8_lossy(line)
            )
        })
    };
    lines.iter().enumerate().map(record).collect()
}

fn parse_record(line: &[u8]) -> Option<Record> {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let mut text = || std::str::from_utf8(fields.next()?).ok();
    let (time, stream, tag) = (text()?.to_owned(), text()?.to_owned(), text()?.to_owned());
    let bytes = fields.next()?.to_vec();
    let known = matches!(stream.as_str(), "stdout" | "stderr") && matches!(tag.as_str(), "P" | "F");
    (known && is_rfc3339_nano(&time)).then_some(Record {
        time,
        stream,
        full: tag == "F",
        bytes,
    })
}

/// `2006-01-02T15:04:05.999999999Z07:00`, fraction optional, as kubelet's parser takes it.
fn is_rfc3339_nano(text: &str) -> bool {
    let Some((date, rest)) = text.split_at_checked(19) else {
        return false;
    };
    let shape = b"0000-00-00T00:00:00";
    let like = |(got, want): (u8, &u8)| {
        if *want == b'0' {
            got.is_ascii_digit()
        } else {
            got == *want
        }
    };
    let fraction = rest.strip_prefix('.').map_or(rest, |rest| {
        rest.trim_start_matches(|c: char| c.is_ascii_digit())
    });
    let zone = fraction == "Z" || (fraction.len() == 6 && fraction.starts_with(['+', '-']));
    date.bytes().zip(shape).all(like) && zone
}

/// The bytes a container wrote to one stream, put together from a log's records.
pub fn text(records: &[Record], stream: &str) -> String {
    let mut bytes = Vec::new();
    for record in records.iter().filter(|record| record.stream == stream) {
        bytes.extend_from_slice(&record.bytes);
        if record.full {
            bytes.push(b'\n');
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The records of a log file. An absent file is an empty log. Errors: a malformed record, also one that still has no end
/// after a second: what is written at this moment is seen in parts.
pub fn read(path: &Path) -> Result<Vec<Record>, String> {
    let end = Instant::now() + Duration::from_secs(1);
    loop {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(format!("{}: {e}", path.display())),
        };
        let is_whole = bytes.last().is_none_or(|last| *last == b'\n');
        if is_whole || Instant::now() > end {
            return parse(&bytes).map_err(|e| format!("{}: {e}", path.display()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until the file holds `needle` and says whether it did within the deadline. Polls every millisecond.
pub async fn wait_for(path: &Path, needle: &str, deadline: Duration) -> bool {
    let end = Instant::now() + deadline;
    loop {
        let bytes = std::fs::read(path).unwrap_or_default();
        if bytes
            .windows(needle.len())
            .any(|window| window == needle.as_bytes())
        {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_and_put_together() {
        let raw =
            b"2026-01-02T03:04:05.123456789Z stdout P one \n2026-01-02T03:04:05.2Z stdout F line\n\
                    2026-01-02T03:04:05+01:00 stderr F \n";
        let records = parse(raw).unwrap();
        assert_eq!(
            (text(&records, "stdout"), text(&records, "stderr")),
            ("one line\n".into(), "\n".into())
        );
    }

    #[test]
    fn what_is_not_the_format_is_refused() {
        for bad in [
            &b"x\n"[..],
            b"2026-01-02T03:04:05Z stdout F no end",
            b"2026-01-02 03:04:05Z stdout F a\n",
            b"2026-01-02T03:04:05Z stdin F a\n",
            b"2026-01-02T03:04:05Z stdout X a\n",
        ] {
            assert!(parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
