//! Parses a profile: reads the JSON, then checks every value.
//!
//! Called by [`Profile::parse`]. The format is that of containers/common and moby `profiles/seccomp/default.json`;
//! `null` is the same as an absent field, as in Go's JSON decoder.
//! Invariant: every error names the entry, such as `syscalls[3] (mount)`, and the wrong value.
//! It must not know what the rules mean to a container.

use libseccomp::{ScmpAction, ScmpArch, ScmpCompareOp};
use serde::Deserialize;

use super::{
    Condition, FLAG_LOG, FLAG_SPEC_ALLOW, PROFILE_BYTES, Profile, Rule, RuleFilter, capability,
};
use coracle_spec::error::{Error, Kind, Result};

/// The most (name, rule) pairs of a profile: the kernel accepts 4,096 instructions, and a pair takes at least one.
const MOST_RULES: usize = 4096;

/// The largest errno of the kernel. Source: MAX_ERRNO, linux/err.h.
const MOST_ERRNO: u32 = 4095;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    default_action: String,
    default_errno_ret: Option<u32>,
    architectures: Option<Vec<String>>,
    arch_map: Option<Vec<ArchEntry>>,
    flags: Option<Vec<String>>,
    syscalls: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchEntry {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    name: Option<String>,
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u32>,
    args: Option<Vec<Argument>>,
    includes: Option<Conditions>,
    excludes: Option<Conditions>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u32,
    value: u64,
    value_two: Option<u64>,
    op: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Conditions {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

fn wrong(text: String) -> Error {
    Error::new(Kind::Invalid, format!("seccomp profile: {text}"))
}

/// See [`Profile::parse`].
pub(super) fn parse(json: &[u8]) -> Result<Profile> {
    if json.len() > PROFILE_BYTES {
        let got = json.len();
        return Err(wrong(format!(
            "it holds {got} bytes, at most {PROFILE_BYTES} are read"
        )));
    }
    let document: Document = serde_json::from_slice(json)
        .map_err(|e| Error::with(Kind::Invalid, "seccomp profile: read its JSON", e))?;
    let default = action(&document.default_action, document.default_errno_ret)
        .map_err(|why| wrong(format!("defaultAction {why}")))?;
    let arches = architectures(&document)?;
    let mut rules = Vec::new();
    for (at, entry) in document.syscalls.into_iter().flatten().enumerate() {
        rules.push(rule(at, entry)?);
    }
    let pairs: usize = (rules.iter())
        .map(|rule| rule.names.len() * rule.conditions.len().max(1))
        .sum();
    if pairs > MOST_RULES {
        return Err(wrong(format!(
            "it has {pairs} rules, at most {MOST_RULES} fit into a filter"
        )));
    }
    let mut profile = Profile::assemble(json, default, arches, rules);
    if let Some(named) = document.flags {
        profile.flags = flags(&named)?;
    }
    Ok(profile)
}

fn action(name: &str, errno: Option<u32>) -> Result<ScmpAction, String> {
    let number = errno.unwrap_or(libc::EPERM.unsigned_abs());
    if number > MOST_ERRNO {
        return Err(format!("{name}: errno {number} is above {MOST_ERRNO}"));
    }
    Ok(match name {
        "SCMP_ACT_ALLOW" => ScmpAction::Allow,
        "SCMP_ACT_ERRNO" => ScmpAction::Errno(number.cast_signed()),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => ScmpAction::KillThread,
        "SCMP_ACT_KILL_PROCESS" => ScmpAction::KillProcess,
        "SCMP_ACT_TRAP" => ScmpAction::Trap,
        "SCMP_ACT_LOG" => ScmpAction::Log,
        // MOST_ERRNO fits.
        "SCMP_ACT_TRACE" => ScmpAction::Trace(number as u16),
        "SCMP_ACT_NOTIFY" => {
            return Err("SCMP_ACT_NOTIFY needs a seccomp agent, and there is none".into());
        }
        other => return Err(format!("{other:?} is not an action")),
    })
}

fn architectures(document: &Document) -> Result<Vec<ScmpArch>> {
    let listed = document.architectures.as_deref().unwrap_or_default();
    let mapped = document.arch_map.as_deref().unwrap_or_default();
    if !listed.is_empty() && !mapped.is_empty() {
        return Err(wrong(
            "architectures and archMap are both given, only one may be".into(),
        ));
    }
    let mut arches = (listed.iter())
        .map(|name| architecture(name))
        .collect::<Result<Vec<_>>>()?;
    for entry in mapped {
        let own = architecture(&entry.architecture)?;
        let subs = (entry.sub_architectures.iter().flatten())
            .map(|name| architecture(name))
            .collect::<Result<Vec<_>>>()?;
        if own == ScmpArch::native() {
            arches.extend(subs);
        }
    }
    Ok(arches)
}

fn architecture(name: &str) -> Result<ScmpArch> {
    name.parse()
        .map_err(|_| wrong(format!("{name:?} is not an architecture")))
}

fn flags(named: &[String]) -> Result<u32> {
    named.iter().try_fold(0, |all, flag| match flag.as_str() {
        "SECCOMP_FILTER_FLAG_LOG" => Ok(all | FLAG_LOG),
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => Ok(all | FLAG_SPEC_ALLOW),
        // A payload starts with one thread, and every later one inherits the filter.
        "SECCOMP_FILTER_FLAG_TSYNC" => Ok(all),
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => Err(wrong(format!(
            "flag {flag} needs a seccomp agent, and there is none"
        ))),
        other => Err(wrong(format!("{other:?} is not a flag"))),
    })
}

fn rule(at: usize, entry: Entry) -> Result<Rule> {
    let listed = entry.names.unwrap_or_default();
    let first = entry.name.as_deref().or(listed.first().map(String::as_str));
    let path = format!("syscalls[{at}] ({})", first.unwrap_or("no name"));
    let here = |why: String| wrong(format!("{path}: {why}"));
    let names = match (entry.name, listed) {
        (Some(_), more) if !more.is_empty() => {
            return Err(here(
                "name and names are both given, only one may be".into(),
            ));
        }
        (Some(name), _) => vec![name],
        (None, names) => names,
    };
    if names.iter().any(|n| n.is_empty() || n.contains('\0')) {
        return Err(here("a name is empty or holds a zero byte".into()));
    }
    Ok(Rule {
        names,
        action: action(&entry.action, entry.errno_ret).map_err(here)?,
        conditions: (entry.args.iter().flatten())
            .map(condition)
            .collect::<Result<_, _>>()
            .map_err(here)?,
        includes: rule_filter(entry.includes).map_err(|why| here(format!("includes {why}")))?,
        excludes: rule_filter(entry.excludes).map_err(|why| here(format!("excludes {why}")))?,
    })
}

fn condition(argument: &Argument) -> Result<Condition, String> {
    if argument.index > 5 {
        return Err(format!(
            "argument index {} is above 5, the last one that a call has",
            argument.index
        ));
    }
    let mut value = argument.value;
    let op = match argument.op.as_str() {
        "SCMP_CMP_NE" => ScmpCompareOp::NotEqual,
        "SCMP_CMP_LT" => ScmpCompareOp::Less,
        "SCMP_CMP_LE" => ScmpCompareOp::LessOrEqual,
        "SCMP_CMP_EQ" => ScmpCompareOp::Equal,
        "SCMP_CMP_GE" => ScmpCompareOp::GreaterEqual,
        "SCMP_CMP_GT" => ScmpCompareOp::Greater,
        // Here `value` is the mask and `valueTwo` the expected value.
        "SCMP_CMP_MASKED_EQ" => {
            value = argument.value_two.unwrap_or(0);
            ScmpCompareOp::MaskedEqual(argument.value)
        }
        other => return Err(format!("{other:?} is not an operator")),
    };
    Ok(Condition {
        argument: argument.index,
        op,
        value,
    })
}

fn rule_filter(written: Option<Conditions>) -> Result<RuleFilter, String> {
    let Some(written) = written else {
        return Ok(RuleFilter::default());
    };
    let mut capabilities = 0;
    for name in written.caps.into_iter().flatten() {
        let number = capability(&name).ok_or_else(|| format!("{name:?} is not a capability"))?;
        capabilities |= 1 << number;
    }
    let min_kernel = (written.min_kernel.filter(|text| !text.is_empty()))
        .map(|text| kernel(&text).ok_or_else(|| format!("minKernel {text:?} is not like 4.8")))
        .transpose()?;
    Ok(RuleFilter {
        capabilities,
        arches: written.arches.unwrap_or_default(),
        min_kernel,
    })
}

fn kernel(text: &str) -> Option<(u32, u32)> {
    let (version, patch) = text.split_once('.')?;
    Some((version.parse().ok()?, patch.parse().ok()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn refusal(json: &str) -> String {
        let error = Profile::parse(json.as_bytes()).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{json}");
        error.chain()
    }

    #[test]
    fn every_error_names_the_entry_and_the_wrong_value() {
        let entry = |body: &str| {
            format!(
                r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":["mount"],{body}}}]}}"#
            )
        };
        let whole = |body: &str| format!(r#"{{"defaultAction":"SCMP_ACT_ERRNO",{body}}}"#);
        let allow = r#""action":"SCMP_ACT_ALLOW""#;
        let arg = |body: &str| entry(&format!(r#"{allow},"args":[{{{body}}}]"#));
        let path = "syscalls[0] (mount)";
        for (json, parts) in [
            ("{".into(), ["JSON", "EOF"]),
            ("[]".into(), ["JSON", ""]),
            ("{}".into(), ["missing field", "defaultAction"]),
            (
                r#"{"defaultAction":"SCMP_ACT_DENY"}"#.into(),
                ["defaultAction", "SCMP_ACT_DENY"],
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#.into(),
                ["defaultAction", "agent"],
            ),
            (
                whole(r#""defaultErrnoRet":4096"#),
                ["defaultAction", "4096"],
            ),
            (whole(r#""defaultErrnoRet":-1"#), ["JSON", "-1"]),
            (
                whole(r#""architectures":["SCMP_ARCH_VAX"]"#),
                ["SCMP_ARCH_VAX", "architecture"],
            ),
            (
                whole(r#""architectures":"SCMP_ARCH_X86""#),
                ["JSON", "SCMP_ARCH_X86"],
            ),
            (
                whole(
                    r#""archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["x"]}]"#,
                ),
                ["\"x\"", "architecture"],
            ),
            (
                whole(
                    r#""architectures":["SCMP_ARCH_X86"],"archMap":[{"architecture":"SCMP_ARCH_X86"}]"#,
                ),
                ["architectures and archMap", "both"],
            ),
            (
                whole(r#""flags":["SECCOMP_FILTER_FLAG_NEW"]"#),
                ["SECCOMP_FILTER_FLAG_NEW", "flag"],
            ),
            (
                whole(r#""flags":["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]"#),
                ["RECV", "agent"],
            ),
            (whole(r#""syscalls":{}"#), ["JSON", "map"]),
            (
                whole(r#""syscalls":[{"names":["a\u0000"],"action":"SCMP_ACT_LOG"}]"#),
                ["syscalls[0]", "zero byte"],
            ),
            (entry(r#""errnoRet":1"#), ["missing field", "action"]),
            (entry(r#""action":"SCMP_ACT_NOTIFY""#), [path, "agent"]),
            (entry(r#""action":"ALLOW""#), [path, "ALLOW"]),
            (
                entry(r#""action":"SCMP_ACT_ERRNO","errnoRet":70000"#),
                [path, "70000"],
            ),
            (
                entry(r#""name":"umount","action":"SCMP_ACT_ALLOW""#),
                ["syscalls[0]", "both"],
            ),
            (
                arg(r#""index":6,"value":0,"op":"SCMP_CMP_EQ""#),
                [path, "index 6"],
            ),
            (arg(r#""index":0,"value":0,"op":"==""#), [path, "operator"]),
            (
                arg(r#""index":0,"value":"1","op":"SCMP_CMP_EQ""#),
                ["JSON", "u64"],
            ),
            (
                entry(&format!(r#"{allow},"includes":{{"caps":["SYS_ADMIN"]}}"#)),
                [path, "SYS_ADMIN"],
            ),
            (
                entry(&format!(r#"{allow},"excludes":{{"minKernel":"new"}}"#)),
                [path, "minKernel"],
            ),
        ] {
            let text = refusal(&json);
            assert!(
                parts.iter().all(|part| text.contains(part)),
                "{json}: {text}"
            );
        }
    }

    #[test]
    fn a_profile_of_a_megabyte_is_read_and_one_byte_more_is_not() {
        let mut json = br#"{"defaultAction":"SCMP_ACT_ALLOW"}"#.to_vec();
        json.resize(PROFILE_BYTES, b' ');
        Profile::parse(&json).unwrap();
        json.push(b' ');
        let text = Profile::parse(&json).unwrap_err().chain();
        assert!(text.contains("1048577 bytes"), "{text}");
    }

    #[test]
    fn more_rules_than_a_filter_holds_are_refused() {
        let names = vec!["\"read\""; 4097].join(",");
        let text = refusal(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":[{names}],"action":"SCMP_ACT_LOG"}}]}}"#
        ));
        assert!(text.contains("4097 rules"), "{text}");
    }

    #[test]
    fn both_spellings_nulls_and_foreign_fields_are_read() {
        let profile = Profile::parse(
            br#"{"defaultAction":"SCMP_ACT_KILL_PROCESS","defaultErrnoRet":null,"listenerPath":"","x":1,
                 "flags":["SECCOMP_FILTER_FLAG_LOG"],"architectures":null,
                 "archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]},
                            {"architecture":"SCMP_ARCH_AARCH64","subArchitectures":null}],
                 "syscalls":[{"name":"read","action":"SCMP_ACT_ERRNO","args":null,"comment":"c"},
                             {"names":["a","b"],"action":"SCMP_ACT_TRACE","errnoRet":7,"includes":{},
                              "args":[{"index":1,"value":12,"valueTwo":4,"op":"SCMP_CMP_MASKED_EQ"}]}]}"#,
        )
        .unwrap();
        assert_eq!(profile.default, ScmpAction::KillProcess);
        assert_eq!(Profile::flags(Some(&profile)), FLAG_LOG);
        let subs: &[ScmpArch] = if cfg!(target_arch = "x86_64") {
            &[ScmpArch::X86]
        } else {
            &[]
        };
        assert_eq!(profile.arches, subs);
        assert_eq!(profile.rules[0].names, ["read"]);
        assert_eq!(profile.rules[0].action, ScmpAction::Errno(libc::EPERM));
        assert_eq!(profile.rules[1].names, ["a", "b"]);
        assert_eq!(profile.rules[1].action, ScmpAction::Trace(7));
        let only = profile.rules[1].conditions[0];
        assert_eq!((only.argument, only.value), (1, 4));
        assert!(matches!(only.op, ScmpCompareOp::MaskedEqual(12)));
    }

    #[test]
    fn without_flags_speculation_is_allowed_and_an_empty_list_means_none() {
        let flags = |json: &[u8]| Profile::flags(Some(&Profile::parse(json).unwrap()));
        assert_eq!(
            flags(br#"{"defaultAction":"SCMP_ACT_ALLOW"}"#),
            FLAG_SPEC_ALLOW
        );
        assert_eq!(
            flags(br#"{"defaultAction":"SCMP_ACT_ALLOW","flags":[]}"#),
            0
        );
    }
}
