//! What the operator lets pods do, by RuntimeClass handler and namespace.
//!
//! Made by: the configuration. Read by: `convert::sandbox`, for each new pod.
//! Invariants: a pod never has more than its handler allows here; of several matching namespace patterns the first
//! decides.
//! Must not know: annotations of pods, how a list is enforced, the syntax of the configuration.

pub use coracle_lifecycle::Handler as Base;
use coracle_lifecycle::Handler;
use coracle_spec::egress::Rule;

/// The destinations that pods may reach unless an annotation narrows them, or extends them and is honoured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Egress {
    /// All.
    Any,
    /// None; WebAssembly instances cannot create sockets at all, not even listening ones.
    None,
    /// Those on the list; replies to incoming connections are always allowed.
    Listed(Vec<Rule>),
}

/// What one pod may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance<'a> {
    /// The destinations that it may reach.
    pub egress: &'a Egress,
    /// Patterns of annotations that are honoured although they grant something.
    pub annotations: &'a [String],
    /// The handler's name in the configuration.
    pub handler: &'a str,
    /// The namespace pattern that matched, if one did.
    pub namespace: Option<&'a str>,
}

/// What pods of one handler may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandlerPolicy {
    /// The handler's name.
    pub name: String,
    /// Other names for it.
    pub aliases: Vec<String>,
    /// The built-in handler whose kinds of containers it runs.
    pub base: Handler,
    /// The destinations that its pods may reach.
    pub egress: Egress,
    /// Patterns of annotations that are honoured although they grant something.
    pub annotations: Vec<String>,
    /// Exceptions for pods of some namespaces.
    pub namespaces: Vec<NamespacePolicy>,
}

/// The exception for some namespaces. Where a field is `None`, the handler's applies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespacePolicy {
    /// A namespace, or a prefix and `*`.
    pub pattern: String,
    /// The destinations that their pods may reach.
    pub egress: Option<Egress>,
    /// As [`HandlerPolicy::annotations`].
    pub annotations: Option<Vec<String>>,
}

impl HandlerPolicy {
    /// What a pod of `namespace` may do.
    pub fn allowance(&self, namespace: &str) -> Allowance<'_> {
        let mut namespaces = self.namespaces.iter();
        let own = namespaces.find(|own| fits(&own.pattern, namespace));
        let egress = own.and_then(|own| own.egress.as_ref());
        let annotations = own.and_then(|own| own.annotations.as_ref());
        Allowance {
            egress: egress.unwrap_or(&self.egress),
            annotations: annotations.unwrap_or(&self.annotations),
            handler: &self.name,
            namespace: own.map(|own| own.pattern.as_str()),
        }
    }
}

/// The policies of all handlers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policies(Vec<HandlerPolicy>);

impl Policies {
    /// One policy for each handler.
    pub fn new(handlers: impl IntoIterator<Item = HandlerPolicy>) -> Policies {
        Policies(handlers.into_iter().collect())
    }

    /// The policy of the handler that CRI's `runtime_handler` names, by its name or an alias; the empty name is `coracle`.
    pub fn find(&self, name: &str) -> Option<&HandlerPolicy> {
        let name = if name.is_empty() { "coracle" } else { name };
        let mut handlers = self.0.iter();
        handlers.find(|handler| {
            handler.name == name || handler.aliases.iter().any(|alias| alias == name)
        })
    }

    /// Every name that `runtime_handler` may have, with the built-in handler that it is like; the empty one first.
    pub fn names(&self) -> impl Iterator<Item = (&str, Handler)> {
        let all = self.0.iter().flat_map(|handler| {
            let names = std::iter::once(&handler.name).chain(&handler.aliases);
            names.map(|name| (name.as_str(), handler.base))
        });
        std::iter::once(("", Handler::Default)).chain(all)
    }
}

/// Whether the pattern, a whole name or a prefix and `*`, matches `name`.
pub fn fits(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => pattern == name,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
pub(crate) mod tests {
    use super::*;

    /// The policies of the default configuration.
    pub(crate) fn usual() -> Policies {
        let of = |name: &str, egress, annotations: &[&str]| HandlerPolicy {
            name: name.to_owned(),
            aliases: Vec::new(),
            base: Handler::parse(name).unwrap(),
            egress,
            annotations: annotations.iter().map(ToString::to_string).collect(),
            namespaces: Vec::new(),
        };
        Policies::new([
            of("coracle", Egress::Any, &["cdi.k8s.io/*"]),
            of("coracle-wasm", Egress::Any, &[]),
            of("coracle-strict", Egress::None, &[]),
        ])
    }
}
