//! `[handlers.*]`: what each RuntimeClass handler runs, and what its pods may do.
//!
//! Called by: [`super::check`], which calls [`check`]; the CRI layer applies the resulting policies to each new pod.
//! Invariants: a pod never has more than the operator configured here; a namespace pattern that can never match is
//! refused.
//! Must not know: annotations of pods, how a list is enforced.

mod file;

use std::collections::BTreeMap;

use coracle_cri::policy::{Base, Egress, HandlerPolicy, NamespacePolicy, Policies, fits};
use coracle_spec::egress::Rule;
use coracle_spec::{HttpLimits, PIDS_LIMIT};

use self::file::{BUILT_IN, HandlerFile, Kind, NamespaceFile};
use super::egress::EgressFile;
use super::http;
use super::rlimits::{self, Rlimit};
use super::values::{Invalid, invalid};

pub use self::file::{HandlersFile, Spawn};

/// Most entries of one egress list, and most annotation or namespace patterns of a handler.
const MAX_ENTRIES: usize = 256;
/// Longest namespace. Source: RFC 1123 labels, as Kubernetes names namespaces.
const MAX_NAMESPACE_BYTES: usize = 63;
/// Longest key of an annotation: a DNS name, a slash, a name. Source: k8s.io/apimachinery, `IsQualifiedName`.
const MAX_ANNOTATION_BYTES: usize = 253 + 1 + 63;
/// Most processes of a node. Source: `PID_MAX_LIMIT` of linux/threads.h, 64-bit.
const MAX_PIDS: u64 = 1 << 22;

/// One RuntimeClass handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handler {
    /// The name in CRI; `coracle` is also the empty name.
    pub name: String,
    /// How a container's first process is created.
    pub spawn: Spawn,
    /// What its pods may do, and its other names.
    pub policy: HandlerPolicy,
    /// The limits of its HTTP servers.
    pub http: HttpLimits,
    /// Whether components of WASI 0.3 run.
    pub wasi_p3: bool,
    /// Most processes and threads of a Linux container; 0 is no limit.
    pub pids_limit: u64,
    /// Limits of Linux programs.
    pub rlimits: Vec<Rlimit>,
    /// Whether Linux programs without CAP_SYS_ADMIN may make user namespaces.
    pub user_namespaces: bool,
    /// AppArmor profiles, names or a prefix and `*`, that containers may have in whatever mode they are.
    pub apparmor_profiles: Vec<String>,
}

/// The handlers of a node: the built-in ones first, then the operator's by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handlers(Vec<Handler>);

impl Handlers {
    /// The handler that CRI's `runtime_handler` names, by its name or an alias; the empty name is `coracle`.
    pub fn find(&self, name: &str) -> Option<&Handler> {
        let name = if name.is_empty() { "coracle" } else { name };
        let mut handlers = self.0.iter();
        handlers.find(|handler| handler.names().any(|own| own == name))
    }

    /// All of them.
    pub fn all(&self) -> &[Handler] {
        &self.0
    }

    /// The policies of all handlers.
    pub fn policies(&self) -> Policies {
        Policies::new(self.0.iter().map(|handler| handler.policy.clone()))
    }
}

impl Handler {
    /// Its name and its aliases.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let names = std::iter::once(&self.name).chain(&self.policy.aliases);
        names.map(String::as_str)
    }
}

/// A handler and its table, for messages.
struct Table<'a> {
    name: &'a str,
    path: String,
}

impl Table<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.path)
    }
}

/// Checks all handlers; every key is set.
pub(super) fn check(file: &HandlersFile) -> Result<Handlers, Invalid> {
    if file.0.len() > MAX_ENTRIES {
        let why = format!("has {} handlers, at most {MAX_ENTRIES}", file.0.len());
        return invalid("handlers", why);
    }
    let built_in = BUILT_IN.each_ref().map(|built_in| built_in.base.as_str());
    let mut names: Vec<&str> = file.0.keys().map(String::as_str).collect();
    // A stable sort: the operator's stay sorted by name.
    names.sort_by_key(|name| {
        built_in
            .iter()
            .position(|one| one == name)
            .unwrap_or(usize::MAX)
    });
    let handlers = names.into_iter().map(|name| handler(name, &file.0[name]));
    let handlers = handlers.collect::<Result<Vec<_>, _>>()?;
    distinct(&handlers)?;
    Ok(Handlers(handlers))
}

/// Refuses a name that two handlers have.
fn distinct(handlers: &[Handler]) -> Result<(), Invalid> {
    let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
    for handler in handlers {
        seen.insert(&handler.name, &handler.name);
    }
    for handler in handlers {
        for alias in &handler.policy.aliases {
            if let Some(other) = seen.insert(alias, &handler.name) {
                let why = format!("has {alias:?}, which is a name of handler {other:?} already");
                return invalid(format!("handlers.{}.aliases", handler.name), why);
            }
        }
    }
    Ok(())
}

fn handler(name: &str, file: &HandlerFile) -> Result<Handler, Invalid> {
    let table = Table {
        name,
        path: format!("handlers.{name}"),
    };
    let given = file.egress.as_ref().unwrap_or(&EgressFile::None);
    let listed = file.annotations.as_deref().unwrap_or_default();
    let policy = HandlerPolicy {
        name: handler_name(&table.path, name)?,
        aliases: aliases(&table.key("aliases"), &file.aliases)?,
        base: base(&table, file.kind)?,
        egress: egress(&table, "egress", given)?,
        annotations: annotations(&table.key("annotations"), listed)?,
        namespaces: namespaces(&table, &file.namespaces)?,
    };
    Ok(Handler {
        name: name.to_owned(),
        spawn: file.spawn.unwrap_or_default(),
        policy,
        http: http::check(&table.key("http"), &file.http)?,
        wasi_p3: file.wasi_p3,
        pids_limit: pids_limit(&table.key("pids_limit"), file.pids_limit)?,
        rlimits: rlimits::check(&table.key("rlimits"), &file.rlimits)?,
        user_namespaces: file.user_namespaces.unwrap_or_default(),
        apparmor_profiles: profiles(&table.key("apparmor_profiles"), &file.apparmor_profiles)?,
    })
}

/// Most processes and threads of a Linux container: 0, or what the kernel can count.
fn pids_limit(key: &str, limit: Option<u64>) -> Result<u64, Invalid> {
    match limit.unwrap_or(PIDS_LIMIT) {
        limit if limit <= MAX_PIDS => Ok(limit),
        limit => invalid(
            key.to_owned(),
            format!("is {limit}, must be 1 to {MAX_PIDS}, or 0 for no limit"),
        ),
    }
}

/// The built-in handler that a handler is, or that it is like.
fn base(table: &Table<'_>, kind: Option<Kind>) -> Result<Base, Invalid> {
    match (Base::parse(table.name), kind) {
        (Some(built_in), None) => Ok(built_in),
        (Some(_), Some(_)) => invalid(
            table.key("kind"),
            "is set, and a built-in handler has its own",
        ),
        (None, Some(Kind::Any)) => Ok(Base::Coracle),
        (None, Some(Kind::Wasm)) => Ok(Base::Wasm),
        (None, None) => invalid(
            table.key("kind"),
            "is missing, must be \"any\" or \"wasm\" for a handler that is not built in",
        ),
    }
}

/// A name that a RuntimeClass can have as its handler. Source: k8s.io/api/node/v1, `RuntimeClass.Handler`: a DNS label.
fn handler_name(key: &str, name: &str) -> Result<String, Invalid> {
    let is_part = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    let is_edge = |c: Option<&u8>| c.is_some_and(|c| *c != b'-');
    let bytes = name.as_bytes();
    let is_label =
        bytes.iter().all(|c| is_part(*c)) && is_edge(bytes.first()) && is_edge(bytes.last());
    if !is_label || bytes.len() > MAX_NAMESPACE_BYTES {
        let why = format!(
            "has the name {name:?}, must be at most {MAX_NAMESPACE_BYTES} of a-z, 0-9 and -, neither first nor last a -"
        );
        return invalid(key.to_owned(), why);
    }
    Ok(name.to_owned())
}

fn aliases(key: &str, names: &[String]) -> Result<Vec<String>, Invalid> {
    if names.len() > MAX_ENTRIES {
        let why = format!("has {} entries, at most {MAX_ENTRIES}", names.len());
        return invalid(key.to_owned(), why);
    }
    names.iter().map(|name| handler_name(key, name)).collect()
}

fn namespaces(
    table: &Table<'_>,
    entries: &[NamespaceFile],
) -> Result<Vec<NamespacePolicy>, Invalid> {
    let key = &table.key("namespaces");
    if entries.len() > MAX_ENTRIES {
        let why = format!("has {} entries, at most {MAX_ENTRIES}", entries.len());
        return invalid(key.clone(), why);
    }
    let mut namespaces: Vec<NamespacePolicy> = Vec::new();
    for entry in entries {
        let name = &entry.namespace;
        let mut before = namespaces.iter();
        if let Some(before) = before.find(|own| has_all_of(&own.pattern, name)) {
            let why = format!(
                "has {name:?} behind {:?}, which decides for all of it; put the narrower pattern first",
                before.pattern
            );
            return invalid(key.clone(), why);
        }
        let listed = entry.annotations.as_deref();
        namespaces.push(NamespacePolicy {
            pattern: namespace(key, name)?,
            egress: entry
                .egress
                .as_ref()
                .map(|given| egress(table, "namespaces", given))
                .transpose()?,
            annotations: listed.map(|listed| annotations(key, listed)).transpose()?,
        });
    }
    Ok(namespaces)
}

fn egress(table: &Table<'_>, key: &str, given: &EgressFile) -> Result<Egress, Invalid> {
    let key = table.key(key);
    match given {
        EgressFile::Any if table.name == Base::Strict.as_str() => invalid(
            key,
            "opens everything (\"any\"), and coracle-strict opens only what is listed; list it, or use coracle-wasm",
        ),
        EgressFile::Any => Ok(Egress::Any),
        EgressFile::None => Ok(Egress::None),
        EgressFile::Listed(entries) if entries.len() > MAX_ENTRIES => {
            let why = format!("lists {} targets, at most {MAX_ENTRIES}", entries.len());
            invalid(key, why)
        }
        EgressFile::Listed(entries) => {
            let rules: Result<Vec<Rule>, _> = entries.iter().map(|entry| entry.parse()).collect();
            match rules {
                Ok(rules) => Ok(Egress::Listed(rules)),
                Err(bad) => invalid(key, format!("is not a list: {bad}")),
            }
        }
    }
}

fn annotations(key: &str, patterns: &[String]) -> Result<Vec<String>, Invalid> {
    if patterns.len() > MAX_ENTRIES {
        let why = format!("has {} entries, at most {MAX_ENTRIES}", patterns.len());
        return invalid(key.to_owned(), why);
    }
    let is_part = |c: u8| c.is_ascii_alphanumeric() || b"-_./".contains(&c);
    for pattern in patterns {
        let text = pattern.strip_suffix('*').unwrap_or(pattern);
        // The domain is required: a bare `*` would honour all annotations, including those of later versions.
        let has_domain = text
            .split_once('/')
            .is_some_and(|(domain, _)| !domain.is_empty());
        if !has_domain || !text.bytes().all(is_part) || pattern.len() > MAX_ANNOTATION_BYTES {
            let why = format!(
                "has {pattern:?}, must be keys of annotations as DOMAIN/NAME, or their beginning with the domain and a *, as DOMAIN/*"
            );
            return invalid(key.to_owned(), why);
        }
    }
    Ok(patterns.to_vec())
}

/// Names of AppArmor profiles as the kernel lists them, or their beginnings.
fn profiles(key: &str, patterns: &[String]) -> Result<Vec<String>, Invalid> {
    if patterns.len() > MAX_ENTRIES {
        let why = format!("has {} entries, at most {MAX_ENTRIES}", patterns.len());
        return invalid(key.to_owned(), why);
    }
    let is_bad = |pattern: &&String| pattern.is_empty() || pattern.chars().any(char::is_control);
    if let Some(pattern) = patterns.iter().find(is_bad) {
        let why = format!(
            "has {pattern:?}, must be names of AppArmor profiles, or their beginning and a *, as in team-*"
        );
        return invalid(key.to_owned(), why);
    }
    Ok(patterns.to_vec())
}

fn namespace(key: &str, pattern: &str) -> Result<String, Invalid> {
    let text = pattern.strip_suffix('*').unwrap_or(pattern);
    let is_part = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    if pattern.is_empty() || pattern.len() > MAX_NAMESPACE_BYTES || !text.bytes().all(is_part) {
        let why = format!(
            "has {pattern:?}, must be namespaces, or their beginning and a *, as in team-*"
        );
        return invalid(key.to_owned(), why);
    }
    Ok(pattern.to_owned())
}

/// Whether `wide` matches every name that `narrow` matches.
fn has_all_of(wide: &str, narrow: &str) -> bool {
    match narrow.strip_suffix('*') {
        Some(beginning) => wide.ends_with('*') && fits(wide, beginning),
        None => fits(wide, narrow),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_names_with_its_prefix() {
        for (wide, narrow, want) in [
            ("team-*", "team-a", true),
            ("team-*", "team-*", true),
            ("team-*", "team-a*", true),
            ("team-a*", "team-*", false),
            ("team-a", "team-a*", false),
            ("*", "x", true),
            ("*", "*", true),
            ("team", "team", true),
            ("team", "team-a", false),
            ("team-*", "team", false),
        ] {
            assert_eq!(has_all_of(wide, narrow), want, "{wide} {narrow}");
        }
    }

    #[test]
    fn the_first_matching_namespace_decides_key_by_key() {
        let file: HandlersFile = toml::from_str(
            "[coracle-strict]\negress = [\"10.0.0.0/8\"]\nannotations = [\"a.example/x\"]\n\
             [[coracle-strict.namespaces]]\nnamespace = \"team-a\"\negress = \"none\"\n\
             [[coracle-strict.namespaces]]\nnamespace = \"team-*\"\nannotations = []\n",
        )
        .unwrap();
        let mut file = file;
        file.fill();
        let handlers = check(&file).unwrap();
        let strict = handlers.find("coracle-strict").unwrap().policy.clone();
        let listed = Egress::Listed(vec!["10.0.0.0/8".parse().unwrap()]);
        let both = ["a.example/x".to_owned()];
        for (namespace, egress, annotations, decided) in [
            ("default", &listed, &both[..], None),
            ("team-a", &Egress::None, &both[..], Some("team-a")),
            ("team-b", &listed, &[][..], Some("team-*")),
        ] {
            let found = strict.allowance(namespace);
            assert_eq!(
                (found.egress, found.annotations, found.namespace),
                (egress, annotations, decided),
                "{namespace}"
            );
        }
        let other = handlers.find("").unwrap().policy.allowance("team-a");
        assert_eq!((other.egress, other.handler), (&Egress::Any, "coracle"));
    }
}
