//! Checks of single values that many fields share: present, printable, in range, a path, a name.
//!
//! Called by the other parts of `convert`. Each takes the path of the field, so that a refusal names it, and never
//! shows a value that may be long or contain control characters.
//! Must not know: which field has which rule.

use std::collections::BTreeMap;

use super::BadRequest;

/// The longest name of a pod, namespace or container, in bytes: Kubernetes' own limit for most names.
const MAX_NAME_BYTES: usize = 253;

/// Most labels, or annotations, of one object. Each is stored in a record and repeated in every list.
const MAX_ENTRIES: usize = 4096;

/// Most bytes of all of them: eight times the limit of Kubernetes for annotations.
const MAX_ENTRIES_BYTES: usize = 2 << 20;

/// Labels or annotations: limits their number and their bytes.
pub(super) fn entries(field: &str, map: &BTreeMap<String, String>) -> Result<(), BadRequest> {
    if map.len() > MAX_ENTRIES {
        let problem = format!("has {} entries, the limit is {MAX_ENTRIES}", map.len());
        return Err(BadRequest::invalid(field, problem));
    }
    let bytes: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > MAX_ENTRIES_BYTES {
        let problem = format!("holds {bytes} bytes, the limit is {MAX_ENTRIES_BYTES}");
        return Err(BadRequest::invalid(field, problem));
    }
    Ok(())
}

/// Refuses an empty text.
pub(super) fn given<'a>(field: &str, text: &'a str) -> Result<&'a str, BadRequest> {
    if text.is_empty() {
        return Err(BadRequest::invalid(field, "is empty"));
    }
    Ok(text)
}

/// The value of an optional field; refuses an absent one.
pub(super) fn present<T>(field: &str, value: Option<T>) -> Result<T, BadRequest> {
    value.ok_or_else(|| BadRequest::invalid(field, "is missing"))
}

/// Refuses NUL, newlines and other control characters.
pub(super) fn printable(field: &str, text: &str) -> Result<(), BadRequest> {
    if text.chars().any(char::is_control) {
        return Err(BadRequest::invalid(field, "holds a control character"));
    }
    Ok(())
}

/// A name for messages, records and cgroup attributes: present, bounded, printable, not a path.
pub(super) fn name(field: &str, text: &str) -> Result<String, BadRequest> {
    given(field, text)?;
    if text.len() > MAX_NAME_BYTES {
        let problem = format!(
            "is {} bytes long, the limit is {MAX_NAME_BYTES}",
            text.len()
        );
        return Err(BadRequest::invalid(field, problem));
    }
    printable(field, text)?;
    if text.contains('/') || text == "." || text == ".." {
        return Err(BadRequest::invalid(field, "is a path, not a name"));
    }
    Ok(text.to_owned())
}

/// A token of a resolver or hosts file: bounded, printable, no blanks.
pub(super) fn token(field: &str, text: &str, max_bytes: usize) -> Result<(), BadRequest> {
    given(field, text)?;
    if text.len() > max_bytes {
        let problem = format!("is {} bytes long, the limit is {max_bytes}", text.len());
        return Err(BadRequest::invalid(field, problem));
    }
    if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(BadRequest::invalid(
            field,
            "holds a blank or a control character",
        ));
    }
    Ok(())
}

/// A path without `..` and control characters.
pub(super) fn path(field: &str, text: &str) -> Result<(), BadRequest> {
    printable(field, text)?;
    if text.split('/').any(|part| part == "..") {
        return Err(BadRequest::invalid(field, "holds `..`"));
    }
    Ok(())
}

/// An empty text or an absolute path.
pub(super) fn absolute_or_empty(field: &str, text: &str) -> Result<(), BadRequest> {
    if !text.is_empty() && !text.starts_with('/') {
        return Err(BadRequest::invalid(field, "is not an absolute path"));
    }
    path(field, text)
}

/// A number within `low..=high`.
pub(super) fn within(field: &str, value: i64, low: i64, high: i64) -> Result<(), BadRequest> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(BadRequest::invalid(
        field,
        format!("is {value}, not within {low} to {high}"),
    ))
}

/// A user or group id: 0 to 2^31 - 1, as in Kubernetes.
pub(super) fn id(field: &str, value: i64) -> Result<(), BadRequest> {
    within(field, value, 0, i64::from(i32::MAX))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn entries_are_bounded_in_number_and_size() {
        let many = |count: usize, bytes: usize| -> BTreeMap<String, String> {
            let entry = |n: usize| (format!("{n:08}"), "v".repeat(bytes));
            (0..count).map(entry).collect()
        };
        for (count, bytes) in [(0, 0), (4096, 0), (1, 1 << 20)] {
            entries("f", &many(count, bytes)).unwrap();
        }
        for (count, bytes) in [(4097, 0), (4096, 512), (1, 2 << 20)] {
            entries("f", &many(count, bytes)).unwrap_err();
        }
    }

    #[test]
    fn names_are_bounded_and_not_paths() {
        for good in ["web-0", "kube-system", "A_b.c", "naïve", &"x".repeat(253)] {
            assert_eq!(name("f", good).unwrap(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "../x",
            "a\0b",
            "a\nb",
            &"x".repeat(254),
        ] {
            assert!(name("f", bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn paths_do_not_climb() {
        for good in ["", "/var/log/pods", "/a..b/c"] {
            absolute_or_empty("f", good).unwrap();
        }
        for bad in ["relative", "/a/../b", "/..", "/a\nb"] {
            assert!(absolute_or_empty("f", bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn refusals_name_the_field_and_both_facts() {
        assert_eq!(
            id("run_as_user.value", -1).unwrap_err().to_string(),
            "run_as_user.value is -1, not within 0 to 2147483647"
        );
        assert_eq!(given("a.b", "").unwrap_err().to_string(), "a.b is empty");
    }
}
