//! Cuts events of the log that are too long.
//!
//! Called by: [`super::recent`], which writes all of them. Whoever logs a text of an image, a registry or a request may
//! have forgotten to bound it; a line of megabytes would push all others out of the journal.
//! Invariants: no event is longer than [`MAX_BYTES`]; one of JSON stays JSON.
//! Must not know: what events say.

use std::borrow::Cow;

use serde_json::Value;

/// The longest event. Bytes.
pub(super) const MAX_BYTES: usize = 16 << 10;
/// What replaces the rest.
const CUT: &str = " (cut)";
/// The longest text of an event of JSON that is too long. Bytes.
const MAX_TEXT_BYTES: usize = 2 << 10;

/// `event` as it is written.
pub(super) fn bounded(event: &[u8]) -> Cow<'_, [u8]> {
    if event.len() <= MAX_BYTES {
        return Cow::Borrowed(event);
    }
    let text = String::from_utf8_lossy(event);
    // In the journal its priority comes first.
    let start = text.find('{').filter(|at| *at <= "<7>".len());
    let json = start.and_then(|at| {
        let mut value: Value = serde_json::from_str(&text[at..]).ok()?;
        shorten(&mut value);
        let short = format!("{}{value}\n", &text[..at]);
        (short.len() <= MAX_BYTES).then_some(short)
    });
    let short = json.unwrap_or_else(|| {
        let room = MAX_BYTES - CUT.len() - 1;
        format!("{}{CUT}\n", &text[..text.floor_char_boundary(room)])
    });
    Cow::Owned(short.into_bytes())
}

fn shorten(value: &mut Value) {
    match value {
        Value::String(text) if text.len() > MAX_TEXT_BYTES => {
            text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
            text.push_str(CUT);
        }
        Value::Array(values) => values.iter_mut().for_each(shorten),
        Value::Object(fields) => fields.values_mut().for_each(shorten),
        _ => {}
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_long_event_is_cut_and_json_stays_json() {
        let short = "INFO image pulled\n";
        assert_eq!(bounded(short.as_bytes()), short.as_bytes());
        let long = format!("INFO call failed failure={}\n", "\u{e4}".repeat(1 << 20));
        let cut = String::from_utf8(bounded(long.as_bytes()).into_owned()).unwrap();
        assert!(
            cut.len() <= MAX_BYTES && cut.ends_with(" (cut)\n"),
            "{}",
            cut.len()
        );
        assert!(cut.starts_with("INFO call failed"));
        for prefix in ["", "<6>"] {
            let event = json!({"level": "INFO", "failure": "x".repeat(1 << 20), "span": {"name": "\"".repeat(1 << 20)}});
            let event = format!("{prefix}{event}\n");
            let cut = String::from_utf8(bounded(event.as_bytes()).into_owned()).unwrap();
            assert!(cut.len() <= MAX_BYTES && cut.ends_with('\n'));
            let read: Value = serde_json::from_str(cut.strip_prefix(prefix).unwrap()).unwrap();
            assert_eq!(read["level"], "INFO");
            assert!(read["failure"].as_str().unwrap().ends_with(" (cut)"));
        }
    }
}
