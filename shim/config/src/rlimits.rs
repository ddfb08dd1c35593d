//! `handlers.NAME.rlimits`: resource limits of Linux programs.
//!
//! Called by: [`super::handlers`]. Source: getrlimit(2), `asm-generic/resource.h`. Must not know: who sets them.

use std::collections::BTreeMap;

use super::values::{Invalid, invalid};

/// The resources by the name of their constant without `RLIMIT_`, at their number.
const NAMES: [&str; 16] = [
    "cpu",
    "fsize",
    "data",
    "stack",
    "core",
    "rss",
    "nproc",
    "nofile",
    "memlock",
    "as",
    "locks",
    "sigpending",
    "msgqueue",
    "nice",
    "rtprio",
    "rttime",
];

/// One limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rlimit {
    /// The number of the resource.
    pub resource: u32,
    /// `u64::MAX` is none.
    pub soft: u64,
    /// `u64::MAX` is none.
    pub hard: u64,
}

/// Checks the limits of one handler, each `"N"`, `"SOFT:HARD"`, or with `unlimited` for a number; `key` is their table.
pub(super) fn check(key: &str, file: &BTreeMap<String, String>) -> Result<Vec<Rlimit>, Invalid> {
    file.iter()
        .map(|(name, text)| one(key, name, text))
        .collect()
}

fn one(key: &str, name: &str, text: &str) -> Result<Rlimit, Invalid> {
    let mut numbers = (0..).zip(NAMES);
    let Some((resource, _)) = numbers.find(|(_, known)| *known == name) else {
        let why = format!("has {name:?}, must be among {}", NAMES.join(", "));
        return invalid(key.to_owned(), why);
    };
    let (soft, hard) = text.split_once(':').unwrap_or((text, text));
    match (number(soft), number(hard)) {
        (Some(soft), Some(hard)) if soft <= hard => Ok(Rlimit {
            resource,
            soft,
            hard,
        }),
        _ => {
            let why = format!(
                "is {text:?}, must be \"N\" or \"SOFT:HARD\", of numbers or \"unlimited\", and SOFT not above HARD"
            );
            invalid(format!("{key}.{name}"), why)
        }
    }
}

fn number(text: &str) -> Option<u64> {
    match text {
        "unlimited" => Some(u64::MAX),
        text => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, text: &str) -> Result<Vec<Rlimit>, String> {
        let file = BTreeMap::from([(name.to_owned(), text.to_owned())]);
        check("t", &file).map_err(|invalid| format!("{} {}", invalid.key, invalid.why))
    }

    #[test]
    fn numbers_are_those_of_the_kernel() {
        let limit = |resource, soft, hard| {
            Ok(vec![Rlimit {
                resource,
                soft,
                hard,
            }])
        };
        assert_eq!(
            of("nofile", "1024:4096"),
            limit(libc::RLIMIT_NOFILE, 1024, 4096)
        );
        assert_eq!(of("core", "0"), limit(libc::RLIMIT_CORE, 0, 0));
        assert_eq!(
            of("as", "unlimited"),
            limit(libc::RLIMIT_AS, u64::MAX, u64::MAX)
        );
        assert_eq!(
            of("rttime", "1:unlimited"),
            limit(libc::RLIMIT_RTTIME, 1, u64::MAX)
        );
        assert_eq!(of("memlock", "5"), limit(libc::RLIMIT_MEMLOCK, 5, 5));
    }

    #[test]
    fn other_texts_are_refused_by_key() {
        assert!(of("files", "1").is_err_and(|why| why.starts_with("t has \"files\"")));
        for text in ["", ":", "2:1", "-1", "x", "1:2:3", "unlimited:1"] {
            let refused = of("nofile", text);
            assert!(
                refused
                    .as_ref()
                    .is_err_and(|why| why.starts_with("t.nofile is")),
                "{refused:?}"
            );
        }
    }
}
