//! What the operator lets pods open, by RuntimeClass handler and namespace.
//!
//! Made by: the configuration. Asked by: `convert::sandbox`, for each new pod.
//! Invariants: a pod never has more than its handler says here; of several namespace patterns that fit a pod the first
//! decides. Not here: what a pod's annotations say, how a list is enforced, how the configuration is written.

use coracle_spec::egress::Rule;

/// What pods may reach unless an annotation narrows it, or opens more and is honoured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Egress {
    /// Everything.
    Any,
    /// Nothing; WebAssembly guests make no sockets at all, listening ones neither.
    None,
    /// What is listed; answering whoever calls is allowed, also if nothing is listed.
    Listed(Vec<Rule>),
}

/// What one pod is allowed to open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance<'a> {
    /// What it may reach.
    pub egress: &'a Egress,
    /// Patterns of annotations that are honoured although they open something.
    pub annotations: &'a [String],
    /// The handler's name.
    pub handler: &'static str,
    /// The namespace pattern that decided, if one did.
    pub namespace: Option<&'a str>,
}

/// What pods of one handler may open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandlerPolicy {
    /// The handler's name.
    pub name: &'static str,
    /// What its pods may reach.
    pub egress: Egress,
    /// Patterns of annotations that are honoured although they open something.
    pub annotations: Vec<String>,
    /// What is different for pods of some namespaces.
    pub namespaces: Vec<NamespacePolicy>,
}

/// What is different for some namespaces. What is `None` is the handler's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespacePolicy {
    /// A namespace, or the beginning of some and `*`.
    pub pattern: String,
    /// What their pods may reach.
    pub egress: Option<Egress>,
    /// As [`HandlerPolicy::annotations`].
    pub annotations: Option<Vec<String>>,
}

impl HandlerPolicy {
    /// What a pod of `namespace` may open.
    pub fn allowance(&self, namespace: &str) -> Allowance<'_> {
        let mut namespaces = self.namespaces.iter();
        let own = namespaces.find(|own| fits(&own.pattern, namespace));
        let egress = own.and_then(|own| own.egress.as_ref());
        let annotations = own.and_then(|own| own.annotations.as_ref());
        Allowance {
            egress: egress.unwrap_or(&self.egress),
            annotations: annotations.unwrap_or(&self.annotations),
            handler: self.name,
            namespace: own.map(|own| own.pattern.as_str()),
        }
    }
}

/// What pods may open, by handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policies(Vec<HandlerPolicy>);

impl Policies {
    /// One policy for each handler.
    pub fn new(handlers: impl IntoIterator<Item = HandlerPolicy>) -> Policies {
        Policies(handlers.into_iter().collect())
    }

    /// The policy of the handler that CRI's `runtime_handler` names; the empty name is `coracle`.
    pub fn find(&self, name: &str) -> Option<&HandlerPolicy> {
        let name = if name.is_empty() { "coracle" } else { name };
        self.0.iter().find(|handler| handler.name == name)
    }
}

/// Whether the pattern, a whole name or a beginning and `*`, fits `name`.
pub fn fits(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => pattern == name,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The policies of the default configuration.
    pub(crate) fn usual() -> Policies {
        let of = |name, egress, annotations: &[&str]| HandlerPolicy {
            name,
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
