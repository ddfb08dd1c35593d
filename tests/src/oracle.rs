//! Compares what a container sees under two runtimes: facts of the probe, brought into a form that does not depend on
//! when and where it ran, and the differences that remain.
//!
//! Called by: the differential test. Flow: [`parse`] the probe's output, [`normalize`] it, [`differences`] of two,
//! [`unexplained`] against the committed list of [`Known`] ones.
//! Not here: running containers.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// What a probe said: fact to value.
pub type Facts = BTreeMap<String, String>;

/// Facts of the process's life, not of its confinement: pids, memory, counters.
const VOLATILE: [&str; 24] = [
    "status.Pid",
    "status.Tgid",
    "status.PPid",
    "status.NSpid",
    "status.NStgid",
    "status.NSpgid",
    "status.NSsid",
    "status.Vm",
    "status.Rss",
    "status.Hugetlb",
    "status.voluntary",
    "status.nonvoluntary",
    "status.SigQ",
    "status.State",
    "status.Name",
    "status.Ngid",
    "status.THP",
    "status.Mems_allowed",
    "status.Cpus_allowed",
    "status.FDSize",
    "status.x86_Thread",
    "status.Threads",
    "status.Kthread",
    "cgroup.",
];

/// One fact on which two runtimes disagree; an absent fact is `(absent)`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// The kind of container that was compared.
    pub variant: String,
    /// Which fact.
    pub fact: String,
    /// Coracle's value.
    pub ours: String,
    /// The other runtime's value.
    pub theirs: String,
}

/// A difference that is as it should be. Patterns may hold `*`, which stands for any text.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// The runtime compared with: `runc`, `crun`, or `*`.
    pub peer: &'static str,
    /// Pattern of the variant.
    pub variant: &'static str,
    /// Pattern of the fact.
    pub fact: &'static str,
    /// Pattern of Coracle's value.
    pub ours: &'static str,
    /// Pattern of the other's.
    pub theirs: &'static str,
    /// The sentence that justifies it.
    pub because: &'static str,
}

impl Known {
    fn explains(&self, peer: &str, difference: &Difference) -> bool {
        matches(self.peer, peer)
            && matches(self.variant, &difference.variant)
            && matches(self.fact, &difference.fact)
            && matches(self.ours, &difference.ours)
            && matches(self.theirs, &difference.theirs)
    }
}

/// Reads the probe's output, a JSON object a line. Errors: the first line that is none.
pub fn parse(text: &str) -> Result<Facts, String> {
    let mut facts = Facts::new();
    for line in text.lines().map(|line| line.trim_end_matches('\r')) {
        let value: Value = serde_json::from_str(line).map_err(|e| format!("{e}: {line}"))?;
        for (name, value) in value.as_object().into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_owned();
            facts.insert(name.clone(), value);
        }
    }
    Ok(facts)
}

/// Brings facts into a form in which two runs can be compared. `host` has the namespaces of the host, as the probe writes
/// them.
pub fn normalize(facts: &Facts, host: &Facts) -> Facts {
    let mut normal = Facts::new();
    for (name, value) in facts {
        if VOLATILE.iter().any(|volatile| name.starts_with(volatile)) {
            continue;
        }
        if name.starts_with("mount.") {
            let (target, mount) = normalize_mount(value);
            let mut key = format!("mount {target}");
            while normal.contains_key(&key) {
                key += " again";
            }
            normal.insert(key, mount);
        } else {
            normal.insert(name.clone(), normalize_value(name, value, host));
        }
    }
    normal
}

fn normalize_value(name: &str, value: &str, host: &Facts) -> String {
    if let Some(kind) = name.strip_prefix("ns.") {
        let shared = host
            .get(&format!("ns.{kind}"))
            .is_some_and(|of_host| of_host == value);
        if shared { "the node's" } else { "its own" }.into()
    } else if name == "pid" && !value.starts_with("1 ") {
        // N parent N group N session N
        let fields: Vec<_> = value.split(' ').collect();
        let leads = [4, 6].iter().all(|at| fields.get(*at) == fields.first());
        if leads { "leads its session" } else { "is led" }.into()
    } else if name == "status.SigIgn" || name == "status.SigBlk" {
        // The C library uses signals 32 and 33; what it does to them in a runtime's parent is not the runtime's.
        let mask = u64::from_str_radix(value.trim(), 16).unwrap_or(u64::MAX);
        format!("{:016x}", mask & !0x1_8000_0000)
    } else if name == "keyring" {
        // keyring;uid;gid;permissions;name
        value.split(';').take(4).collect::<Vec<_>>().join(";")
    } else if name.starts_with("fd.") {
        let kind = value.split([':', ' ']).next().unwrap_or_default();
        let end = value.rsplit(' ').next().unwrap_or_default();
        format!("{kind} {end}")
    } else {
        value.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// A line of mountinfo as target and everything about it that does not name a place on the host.
fn normalize_mount(line: &str) -> (String, String) {
    let (before, after) = line.split_once(" - ").unwrap_or((line, ""));
    let before: Vec<&str> = before.split(' ').collect();
    let after: Vec<&str> = after.split(' ').collect();
    let target = before.get(4).copied().unwrap_or_default();
    let options = sorted(before.get(5).copied().unwrap_or_default(), &[]);
    let optional = before.get(6..).unwrap_or_default();
    let kind = |name: &str| optional.iter().any(|field| field.starts_with(name));
    let propagation = match (kind("shared:"), kind("master:")) {
        (true, _) => "shared",
        (false, true) => "slave",
        (false, false) => "private",
    };
    let fs = after.first().copied().unwrap_or_default();
    // Where it is stored and how large the node is are the node's matter.
    let places = [
        "lowerdir",
        "upperdir",
        "workdir",
        "nr_inodes",
        "uuid",
        "xino",
        "index",
        "inode64",
    ];
    let of_node = [
        "resv_strict",
        "resuid",
        "resgid",
        "discard",
        "size=12",
        "size=24",
    ];
    let dropped: Vec<&str> = places.into_iter().chain(of_node).collect();
    let own = sorted(after.get(2).copied().unwrap_or_default(), &dropped);
    (
        target.to_owned(),
        format!("{fs} {options} {propagation} {own}"),
    )
}

fn sorted(options: &str, dropped: &[&str]) -> String {
    let kept = options.split(',');
    let kept = kept.filter(|option| !dropped.iter().any(|prefix| option.starts_with(prefix)));
    let kept: BTreeSet<&str> = kept.collect();
    kept.into_iter().collect::<Vec<_>>().join(",")
}

/// Every fact on which the two disagree.
pub fn differences(variant: &str, ours: &Facts, theirs: &Facts) -> Vec<Difference> {
    let names: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    let value = |facts: &Facts, name: &String| {
        let found = facts.get(name).cloned();
        found.unwrap_or_else(|| "(absent)".into())
    };
    names
        .into_iter()
        .filter(|name| ours.get(*name) != theirs.get(*name))
        .map(|name| Difference {
            variant: variant.into(),
            fact: name.clone(),
            ours: value(ours, name),
            theirs: value(theirs, name),
        })
        .collect()
}

/// The differences from `peer` that no known one explains, and marks in `used` those that explained one.
pub fn unexplained<'a>(
    peer: &str,
    found: &'a [Difference],
    known: &[Known],
    used: &mut BTreeSet<usize>,
) -> Vec<&'a Difference> {
    let mut left = Vec::new();
    for difference in found {
        match known
            .iter()
            .position(|known| known.explains(peer, difference))
        {
            Some(index) => {
                used.insert(index);
            }
            None => left.push(difference),
        }
    }
    left
}

/// Whether `text` is of this pattern, in which `*` stands for any text.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]
mod tests {
    use super::*;

    #[test]
    fn patterns_stand_for_any_text() {
        for (pattern, text, yes) in [
            ("", "", true),
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "ab", true),
            ("*b", "ab", true),
            ("a*c*e", "abcde", true),
            ("a*c*e", "abde", false),
            ("a*a", "a", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, text), yes, "{pattern} {text}");
        }
    }

    #[test]
    fn only_what_differs_and_is_not_known_is_left() {
        let one = parse("{\"a\":\"1\"}\n{\"b\":\"2\"}\n{\"c\":\"3\"}\r\n").unwrap();
        let other = parse("{\"a\":\"1\"}\n{\"b\":\"9\"}\n").unwrap();
        let found = differences("v", &one, &other);
        let facts: Vec<_> = found
            .iter()
            .map(|d| (d.fact.as_str(), d.theirs.as_str()))
            .collect();
        assert_eq!(facts, [("b", "9"), ("c", "(absent)")]);
        let known = Known {
            peer: "*",
            variant: "*",
            fact: "b",
            ours: "2",
            theirs: "*",
            because: "it is so",
        };
        let mut used = BTreeSet::new();
        let left = unexplained("runc", &found, &[known], &mut used);
        assert_eq!((left.len(), used.len()), (1, 1));
        assert!(parse("no json").is_err());
    }

    #[test]
    fn a_mount_is_its_target_kind_options_and_propagation() {
        let line = "612 600 0:55 / /dev/shm rw,nosuid,nodev master:4 - tmpfs shm rw,size=65536k";
        let (target, mount) = normalize_mount(line);
        assert_eq!(target, "/dev/shm");
        assert_eq!(mount, "tmpfs nodev,nosuid,rw slave rw,size=65536k");
    }

    #[test]
    fn namespaces_are_compared_with_the_hosts() {
        let facts =
            parse("{\"ns.net\":\"net:[1]\"}\n{\"ns.ipc\":\"ipc:[2]\"}\n{\"status.Pid\":\"9\"}")
                .unwrap();
        let host = parse("{\"ns.net\":\"net:[1]\"}\n{\"ns.ipc\":\"ipc:[7]\"}").unwrap();
        let normal = normalize(&facts, &host);
        assert_eq!(normal["ns.net"], "the node's");
        assert_eq!(normal["ns.ipc"], "its own");
        assert_eq!(normal.len(), 2);
    }
}
