//! `[handlers.NAME.http]`: the limits of the HTTP servers in front of components.
//!
//! Place in the flow: [`super::handlers`] has one for each handler and calls [`check`]; the plan of a container reads it.
//! Invariant: the unit of a number is the end of its key; 0 is no limit only where it says so.
//! Not here: what a pod's annotations say, serving.

use coracle_spec::HttpLimits;

use super::values::{Invalid, invalid};

/// Checks one handler's; `table` is its name with the tables around it.
pub(super) fn check(table: &str, file: &HttpLimits) -> Result<HttpLimits, Invalid> {
    let within = [
        ("deadline_s", file.deadline_s, 1..=86_400),
        ("max_requests", file.max_requests, 1..=4_096),
        ("max_connections", file.max_connections, 1..=65_536),
        ("max_header_bytes", file.max_header_bytes, 8_192..=1 << 20),
        ("header_timeout_s", file.header_timeout_s, 1..=3_600),
        (
            "max_instance_requests",
            file.max_instance_requests,
            1..=1_000_000,
        ),
        ("instance_idle_s", file.instance_idle_s, 0..=3_600),
        ("idle_s", file.idle_s, 0..=86_400),
    ];
    for (name, value, range) in within {
        if !range.contains(&value) {
            let (least, most) = (range.start(), range.end());
            let why = format!("is {value}, must be {least} to {most}");
            return invalid(format!("{table}.{name}"), why);
        }
    }
    Ok(file.clone())
}
