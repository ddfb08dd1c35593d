//! The pause that a host asks for: the header field `Retry-After`.
//!
//! Called by: [`super::error_response`]. Invariant: the node's own clock is not read; a date is taken against the date of the
//! same response. Pure. Not here: whether to wait that long.

use std::time::Duration;

use reqwest::header::{DATE, HeaderMap, HeaderName, RETRY_AFTER};

/// Months as HTTP writes them.
const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// The pause, if the fields of a response ask for one: in seconds, or until a date.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: HeaderName| headers.get(name)?.to_str().ok().map(str::trim);
    let asked = text(RETRY_AFTER)?;
    let seconds = match asked.parse::<u64>() {
        Ok(seconds) => seconds,
        Err(_) => seconds_of(asked)?.saturating_sub(seconds_of(text(DATE)?)?),
    };
    Some(Duration::from_secs(seconds))
}

/// A date such as `Sun, 06 Nov 1994 08:49:37 GMT` in seconds since 0000-03-01.
fn seconds_of(date: &str) -> Option<u64> {
    let mut fields = date.split_ascii_whitespace().skip(1);
    let day = fields.next()?.parse::<u64>().ok().filter(|day| *day < 32)?;
    let day = day.checked_sub(1)?;
    let month = fields.next()?;
    let month = MONTHS.iter().position(|name| *name == month)? as u64;
    let year = fields
        .next()?
        .parse::<u64>()
        .ok()
        .filter(|year| *year < 10_000)?;
    let mut time = fields.next()?.split(':').map(str::parse::<u64>);
    let mut part = |limit: u64| time.next()?.ok().filter(|part| *part < limit);
    let (hour, minute, second) = (part(24)?, part(60)?, part(61)?);
    // Years that begin in March end with the leap day.
    let (year, month) = match month {
        0 | 1 => (year.checked_sub(1)?, month + 10),
        _ => (year, month - 2),
    };
    let leap_days = year / 4 - year / 100 + year / 400;
    let days = year * 365 + leap_days + (month * 153 + 2) / 5 + day;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::*;

    fn pause(fields: &[(HeaderName, &str)]) -> Option<u64> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.insert(name, value.parse().unwrap());
        }
        retry_after(&headers).map(|pause| pause.as_secs())
    }

    #[test]
    fn a_pause_is_a_number_of_seconds_or_until_a_date() {
        assert_eq!(pause(&[(RETRY_AFTER, "7")]), Some(7));
        assert_eq!(pause(&[]), None);
        assert_eq!(pause(&[(RETRY_AFTER, "soon")]), None);
        let from = (DATE, "Tue, 29 Feb 2028 23:59:50 GMT");
        for (until, seconds) in [
            ("Wed, 01 Mar 2028 00:00:05 GMT", 15),
            ("Tue, 29 Feb 2028 23:59:50 GMT", 0),
            ("Mon, 28 Feb 2028 00:00:00 GMT", 0),
            ("Thu, 01 Mar 2029 23:59:50 GMT", 366 * 86_400),
        ] {
            assert_eq!(
                pause(&[from.clone(), (RETRY_AFTER, until)]),
                Some(seconds),
                "{until}"
            );
            assert_eq!(
                pause(&[(RETRY_AFTER, until)]),
                None,
                "without a date to compare with"
            );
        }
        for odd in [
            "Tue, 00 Feb 2028 1:1:1 GMT",
            "Tue, 1 Fev 2028 1:1:1 GMT",
            "Tue, 1 Feb 2028 1:99:1 GMT",
            "x",
        ] {
            assert_eq!(pause(&[from.clone(), (RETRY_AFTER, odd)]), None, "{odd}");
        }
    }
}
