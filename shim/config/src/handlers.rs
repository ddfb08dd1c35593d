//! `[handlers.*]`: what each RuntimeClass handler runs, and what its pods may do.
//!
//! Called by: [`super::file`], which contains [`HandlersFile`], and [`super::check`], which calls [`check`]; the CRI
//! layer applies the resulting policies to each new pod.
//! Invariants: a pod never has more than the operator configured here; a namespace pattern that can never match is
//! refused.
//! Must not know: annotations of pods, how a list is enforced.

use coracle_cri::policy::{Egress, HandlerPolicy, NamespacePolicy, Policies, fits};
use coracle_spec::HttpLimits;
use coracle_spec::egress::Rule;
use serde::{Deserialize, Serialize};

use super::egress::EgressFile;
use super::http;
use super::values::{Invalid, invalid};

/// Most entries of one egress list, and most annotation or namespace patterns of a handler.
const MAX_ENTRIES: usize = 256;
/// Longest namespace. Source: RFC 1123 labels, as Kubernetes names namespaces.
const MAX_NAMESPACE_BYTES: usize = 63;
/// Longest key of an annotation: a DNS name, a slash, a name. Source: k8s.io/apimachinery, `IsQualifiedName`.
const MAX_ANNOTATION_BYTES: usize = 253 + 1 + 63;

/// `[handlers.*]`. The names are fixed; another name is an unknown key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HandlersFile {
    /// `""` and `coracle`: the image chooses.
    pub coracle: HandlerFile,
    /// `coracle-wasm`: WebAssembly only.
    #[serde(rename = "coracle-wasm")]
    pub wasm: HandlerFile,
    /// `coracle-strict`: WebAssembly only, own address-space layout, no egress unless listed.
    #[serde(rename = "coracle-strict")]
    pub strict: HandlerFile,
}

impl Default for HandlersFile {
    fn default() -> Self {
        let of = |spawn, egress, annotations: &[&str]| HandlerFile {
            spawn: Some(spawn),
            egress: Some(egress),
            annotations: Some(annotations.iter().map(|&key| key.to_owned()).collect()),
            namespaces: Vec::new(),
            http: HttpLimits::default(),
            wasi_p3: false,
        };
        Self {
            coracle: of(Spawn::Fork, EgressFile::Any, &["cdi.k8s.io/*"]),
            wasm: of(Spawn::Fork, EgressFile::Any, &[]),
            strict: of(Spawn::Exec, EgressFile::None, &[]),
        }
    }
}

impl HandlersFile {
    /// Sets every key that is left out, to the default of its handler.
    pub(super) fn fill(&mut self) {
        let usual = Self::default();
        for (own, usual) in [
            (&mut self.coracle, usual.coracle),
            (&mut self.wasm, usual.wasm),
            (&mut self.strict, usual.strict),
        ] {
            own.spawn = own.spawn.or(usual.spawn);
            own.egress = own.egress.take().or(usual.egress);
            own.annotations = own.annotations.take().or(usual.annotations);
        }
    }
}

/// `[handlers.NAME]`. A key that is left out takes the default of that handler, not one common to all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HandlerFile {
    /// How a container's first process is created.
    pub spawn: Option<Spawn>,
    /// The destinations that its pods may reach.
    pub egress: Option<EgressFile>,
    /// Annotations of pods that are honoured although they grant something: whole keys, or a prefix and `*`.
    pub annotations: Option<Vec<String>>,
    /// Whether components of WASI 0.3 run.
    pub wasi_p3: bool,
    /// Exceptions for pods of some namespaces.
    pub namespaces: Vec<NamespaceFile>,
    /// The limits of its HTTP servers.
    pub http: HttpLimits,
}

/// One entry of `handlers.NAME.namespaces`. Where a key is left out, the handler's applies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamespaceFile {
    /// A namespace, or a prefix and `*`.
    pub namespace: String,
    /// The destinations that their pods may reach.
    #[serde(default)]
    pub egress: Option<EgressFile>,
    /// As [`HandlerFile::annotations`].
    #[serde(default)]
    pub annotations: Option<Vec<String>>,
}

/// The kinds of containers that a handler runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepts {
    /// WebAssembly or Linux, depending on the image.
    ByImage,
    /// WebAssembly; a Linux image is refused.
    WasmOnly,
}

/// One RuntimeClass handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handler {
    /// The name in CRI; `coracle` is also the empty name.
    pub name: &'static str,
    /// The kinds of containers that it runs.
    pub accepts: Accepts,
    /// How a container's first process is created.
    pub spawn: Spawn,
    /// What its pods may do.
    pub policy: HandlerPolicy,
    /// The limits of its HTTP servers.
    pub http: HttpLimits,
    /// Whether components of WASI 0.3 run.
    pub wasi_p3: bool,
}

/// The three handlers of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handlers([Handler; 3]);

impl Handlers {
    /// The handler that CRI's `runtime_handler` names; the empty name is `coracle`.
    pub fn find(&self, name: &str) -> Option<&Handler> {
        let name = if name.is_empty() { "coracle" } else { name };
        self.0.iter().find(|handler| handler.name == name)
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

/// The keys of one handler, for messages.
struct Keys {
    name: &'static str,
    egress: &'static str,
    annotations: &'static str,
    namespaces: &'static str,
    http: &'static str,
}

macro_rules! keys {
    ($name:literal) => {
        Keys {
            name: $name,
            egress: concat!("handlers.", $name, ".egress"),
            annotations: concat!("handlers.", $name, ".annotations"),
            namespaces: concat!("handlers.", $name, ".namespaces"),
            http: concat!("handlers.", $name, ".http"),
        }
    };
}

/// Checks all handlers; every key is set.
pub(super) fn check(file: &HandlersFile) -> Result<Handlers, Invalid> {
    Ok(Handlers([
        handler(&keys!("coracle"), Accepts::ByImage, &file.coracle)?,
        handler(&keys!("coracle-wasm"), Accepts::WasmOnly, &file.wasm)?,
        handler(&keys!("coracle-strict"), Accepts::WasmOnly, &file.strict)?,
    ]))
}

fn handler(keys: &Keys, accepts: Accepts, file: &HandlerFile) -> Result<Handler, Invalid> {
    let given = file.egress.as_ref().unwrap_or(&EgressFile::None);
    let listed = file.annotations.as_deref().unwrap_or_default();
    Ok(Handler {
        name: keys.name,
        accepts,
        spawn: file.spawn.unwrap_or_default(),
        policy: HandlerPolicy {
            name: keys.name,
            egress: egress(keys, keys.egress, given)?,
            annotations: annotations(keys.annotations, listed)?,
            namespaces: namespaces(keys, &file.namespaces)?,
        },
        http: http::check(keys.http, &file.http)?,
        wasi_p3: file.wasi_p3,
    })
}

fn namespaces(keys: &Keys, entries: &[NamespaceFile]) -> Result<Vec<NamespacePolicy>, Invalid> {
    let key = keys.namespaces;
    if entries.len() > MAX_ENTRIES {
        let why = format!("has {} entries, at most {MAX_ENTRIES}", entries.len());
        return invalid(key, why);
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
            return invalid(key, why);
        }
        let listed = entry.annotations.as_deref();
        namespaces.push(NamespacePolicy {
            pattern: namespace(key, name)?,
            egress: entry
                .egress
                .as_ref()
                .map(|given| egress(keys, key, given))
                .transpose()?,
            annotations: listed.map(|listed| annotations(key, listed)).transpose()?,
        });
    }
    Ok(namespaces)
}

fn egress(keys: &Keys, key: &'static str, given: &EgressFile) -> Result<Egress, Invalid> {
    match given {
        EgressFile::Any if keys.name == "coracle-strict" => invalid(
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

fn annotations(key: &'static str, patterns: &[String]) -> Result<Vec<String>, Invalid> {
    if patterns.len() > MAX_ENTRIES {
        let why = format!("has {} entries, at most {MAX_ENTRIES}", patterns.len());
        return invalid(key, why);
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
            return invalid(key, why);
        }
    }
    Ok(patterns.to_vec())
}

fn namespace(key: &'static str, pattern: &str) -> Result<String, Invalid> {
    let text = pattern.strip_suffix('*').unwrap_or(pattern);
    let is_part = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    if pattern.is_empty() || pattern.len() > MAX_NAMESPACE_BYTES || !text.bytes().all(is_part) {
        let why = format!(
            "has {pattern:?}, must be namespaces, or their beginning and a *, as in team-*"
        );
        return invalid(key, why);
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

/// How a container's first process is created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Spawn {
    /// Forked from the keeper: fastest, but with the spawner's address-space layout.
    #[default]
    Fork,
    /// Executed anew inside the jail: its own layout, for about 3 ms and 2.5 MiB.
    Exec,
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
