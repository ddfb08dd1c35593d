//! Annotations of a request: returned in every status, never interpreted again.
//!
//! Made by: `cri/convert/annotations`, the only code that knows which annotation may do what. Stored in records.
//! Invariant: nothing here returns the value of one annotation, so no later step can act on an annotation that the
//! pod's handler does not honour.
//! Must not know: what an annotation means.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The annotations of a request, byte for byte.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Annotations(BTreeMap<String, String>);

impl Annotations {
    /// Stores the annotations of a request.
    pub fn new(annotations: BTreeMap<String, String>) -> Self {
        Self(annotations)
    }

    /// All of them, for a reply.
    pub fn echo(&self) -> BTreeMap<String, String> {
        self.0.clone()
    }
}

/// The annotations that are honoured although they grant something: keys, or a prefix and `*`. Decided when the pod was
/// created, from its handler and namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Grants(Vec<String>);

impl Grants {
    /// The patterns from the configuration, which has checked them.
    pub fn new(patterns: &[String]) -> Self {
        Self(patterns.to_vec())
    }

    /// Whether the annotation `key` is honoured.
    pub fn allow(&self, key: &str) -> bool {
        self.0
            .iter()
            .any(|pattern| match pattern.strip_suffix('*') {
                Some(beginning) => key.starts_with(beginning),
                None => pattern == key,
            })
    }
}

impl Default for Grants {
    /// The grants of a pod whose record has none because an older build wrote it: what that build honoured.
    fn default() -> Self {
        Self(vec!["cdi.k8s.io/*".to_owned()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_allows_a_key_or_a_prefix() {
        let grants = Grants::new(&["a.example/x".to_owned(), "b.example/*".to_owned()]);
        for (key, want) in [
            ("a.example/x", true),
            ("a.example/xy", false),
            ("a.example/", false),
            ("b.example/", true),
            ("b.example/anything", true),
            ("b.example.com/x", false),
            ("c.b.example/x", false),
        ] {
            assert_eq!(grants.allow(key), want, "{key}");
        }
    }
}
