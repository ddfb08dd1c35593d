//! The annotations that speak of the HTTP servers of a pod's components.
//!
//! Called by: [`super::sandbox`]. Pure. Invariant: what leaves here is a number again, never text of a user's; none of
//! them gives a pod anything that its handler does not, which the plan of a server holds them to.
//! Not here: what the handler allows, containers.

use std::ops::RangeInclusive;
use std::str::FromStr;

use coracle_lifecycle::HttpConfig;

use super::BadRequest;
use super::annotations::{Bounded, Narrows, Reader, field};

/// `true` or `false`: which of its component's exports is called.
const SERVE: Narrows = Narrows("http.coracle.dev/serve");
/// The TCP port. It opens nothing: a guest with sockets can listen where it likes, and one without is still reached
/// through the network policy of its pod alone.
const PORT: Narrows = Narrows("http.coracle.dev/port");
/// Seconds; at most the handler's.
const DEADLINE: Narrows = Narrows("http.coracle.dev/deadline-seconds");
/// At most the handler's.
const MAX_REQUESTS: Narrows = Narrows("http.coracle.dev/max-requests");
/// Requests that one instance answers: a pod gives up that its own requests are kept apart.
const MAX_INSTANCE_REQUESTS: Narrows = Narrows("http.coracle.dev/max-instance-requests");
/// At most the handler's, if that has a limit.
const REQUEST_MEMORY: Narrows = Narrows("http.coracle.dev/request-memory-bytes");
/// `true` or `false`; its own log.
const ACCESS_LOG: Narrows = Narrows("http.coracle.dev/access-log");
/// `true` or `false`; the lines of its own log.
const REQUEST_IDS: Narrows = Narrows("http.coracle.dev/request-ids");

/// Seconds. Sooner than the handler's takes a warm server from the pod; later, or 0 for never, has it keep one, which the
/// handler has to allow.
const IDLE: Bounded = Bounded("coracle.dev/idle-seconds");

/// What a pod says of its servers. Errors: [`BadRequest`] that names the annotation.
pub(super) fn http(reader: &Reader) -> Result<HttpConfig, BadRequest> {
    let idle = reader.bounded(&IDLE);
    Ok(HttpConfig {
        serve: flag(reader, &SERVE)?,
        port: number(reader, &PORT, 1..=u16::MAX)?,
        deadline_s: number(reader, &DEADLINE, 1..=86_400)?,
        max_requests: number(reader, &MAX_REQUESTS, 1..=65_536)?,
        max_instance_requests: number(reader, &MAX_INSTANCE_REQUESTS, 1..=1_000_000)?,
        request_memory_bytes: number(reader, &REQUEST_MEMORY, 65_536..=1 << 40)?,
        access_log: flag(reader, &ACCESS_LOG)?,
        request_ids: flag(reader, &REQUEST_IDS)?,
        idle_s: idle
            .map(|claim| parsed(IDLE.0, claim.text, 0..=86_400))
            .transpose()?,
        idle_is_granted: idle.is_some_and(|claim| claim.is_granted),
    })
}

fn number<T: FromStr + PartialOrd + std::fmt::Display>(
    reader: &Reader,
    key: &Narrows,
    range: RangeInclusive<T>,
) -> Result<Option<T>, BadRequest> {
    let text = reader.narrowing(key);
    text.map(|text| parsed(key.0, text, range)).transpose()
}

fn parsed<T: FromStr + PartialOrd + std::fmt::Display>(
    key: &str,
    text: &str,
    range: RangeInclusive<T>,
) -> Result<T, BadRequest> {
    match text.trim().parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => {
            let wanted = format!("must be a number from {} to {}", range.start(), range.end());
            Err(refused(key, text, &wanted))
        }
    }
}

fn flag(reader: &Reader, key: &Narrows) -> Result<Option<bool>, BadRequest> {
    match reader.narrowing(key).map(|text| (text, text.trim())) {
        None => Ok(None),
        Some((_, "true")) => Ok(Some(true)),
        Some((_, "false")) => Ok(Some(false)),
        Some((text, _)) => Err(refused(key.0, text, "must be true or false")),
    }
}

fn refused(key: &str, text: &str, wanted: &str) -> BadRequest {
    let shown: String = text.chars().take(64).collect();
    BadRequest::invalid(field(key), format!("is {shown:?}, {wanted}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::super::annotations::tests::reader;
    use super::*;

    #[test]
    fn numbers_are_read_and_anything_else_is_refused_by_name() {
        let said = [
            ("http.coracle.dev/port", "8081"),
            ("http.coracle.dev/max-instance-requests", " 100 "),
            ("http.coracle.dev/access-log", "true"),
            ("coracle.dev/idle-seconds", "0"),
        ];
        let found = http(&reader(&said, &[])).unwrap();
        assert_eq!((found.port, found.deadline_s), (Some(8081), None));
        assert_eq!(found.max_instance_requests, Some(100));
        assert_eq!(found.access_log, Some(true));
        assert_eq!((found.idle_s, found.idle_is_granted), (Some(0), false));
        let granted = http(&reader(&said, &["coracle.dev/*"])).unwrap();
        assert_eq!((granted.idle_s, granted.idle_is_granted), (Some(0), true));
        assert!(http(&reader(&[], &[])).unwrap().is_empty());
        for (key, text) in [
            ("http.coracle.dev/port", "0"),
            ("http.coracle.dev/port", "65536"),
            ("http.coracle.dev/port", "http"),
            ("http.coracle.dev/deadline-seconds", "-1"),
            ("http.coracle.dev/max-requests", ""),
            ("http.coracle.dev/request-memory-bytes", "64Mi"),
            ("http.coracle.dev/access-log", "yes"),
            ("http.coracle.dev/request-ids", "1"),
            ("coracle.dev/idle-seconds", "5m"),
            ("coracle.dev/idle-seconds", "86401"),
        ] {
            let refused = http(&reader(&[(key, text)], &[])).unwrap_err();
            assert!(refused.to_string().contains(key), "{refused}");
        }
    }
}
