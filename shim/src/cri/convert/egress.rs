//! The annotation that lists what a pod may reach, into checked rules.
//!
//! Called by `sandbox`. Invariant: a list that cannot be understood whole is refused; nothing of it is guessed.
//! Not here: what a rule allows, who enforces it.

use std::collections::BTreeMap;

use coracle_runtime::network::egress::{BadRule, Denied, List, Rule};

use super::BadRequest;

/// The pod annotation: entries apart by commas, blanks around them ignored; an empty value lists nothing.
pub(in crate::cri) const ANNOTATION: &str = "egress.coracle.dev/allow";

/// Most entries of a list.
const MAX_ENTRIES: usize = 256;

/// What the pod's annotation lists; `None` if it has none. The node's own addresses are to be added by who knows them.
/// Errors: the first entry that is none, by its place and text.
pub(super) fn egress(annotations: &BTreeMap<String, String>) -> Result<Option<List>, BadRequest> {
    let Some(text) = annotations.get(ANNOTATION) else {
        return Ok(None);
    };
    let field = format!("config.annotations[{ANNOTATION:?}]");
    let entries: Vec<&str> = match text.trim() {
        "" => Vec::new(),
        listed => listed.split(',').map(str::trim).collect(),
    };
    if entries.len() > MAX_ENTRIES {
        let problem = format!("lists {} targets, at most {MAX_ENTRIES}", entries.len());
        return Err(BadRequest::invalid(field, problem));
    }
    let rules: Result<Vec<Rule>, BadRule> = entries.iter().map(|entry| entry.parse()).collect();
    let rules = rules.map_err(|bad| BadRequest::invalid(&field, format!("is no list: {bad}")))?;
    Ok(Some(List {
        rules,
        denied: Denied {
            node: Vec::new(),
            ports: Denied::USUAL_PORTS.to_vec(),
        },
        own_ports: Vec::new(),
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Option<List>, BadRequest> {
        egress(&[(ANNOTATION.to_owned(), text.to_owned())].into())
    }

    #[test]
    fn a_list_is_read_whole_or_refused_by_name() {
        assert_eq!(egress(&BTreeMap::new()).unwrap(), None);
        assert_eq!(of(" ").unwrap().unwrap().rules, []);
        let list = of("db.default.svc:5432, 10.0.0.0/8:443 ,.example.com").unwrap();
        let texts: Vec<String> = list.unwrap().rules.into_iter().map(String::from).collect();
        assert_eq!(
            texts,
            ["db.default.svc:5432", "10.0.0.0/8:443", ".example.com"]
        );
        for (bad, named) in [
            ("a:b:c", "a:b:c"),
            ("ok.example,,x", "\"\""),
            ("10.0.0.1/8", "10.0.0.1/8"),
            ("host:0", "host:0"),
            ("http://x", "http://x"),
            ("*", "*"),
        ] {
            let text = of(bad).unwrap_err().to_string();
            assert!(
                text.contains(ANNOTATION) && text.contains(named),
                "{bad}: {text}"
            );
        }
        let many = vec!["a"; MAX_ENTRIES + 1].join(",");
        assert!(of(&many).unwrap_err().to_string().contains("257"));
    }
}
