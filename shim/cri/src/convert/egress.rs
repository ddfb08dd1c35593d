//! The destinations that a pod may reach: what its handler allows, narrowed by the pod's annotation or, where the
//! operator permits it, decided by the annotation.
//!
//! Called by `sandbox`. Invariants: a list with an invalid entry is refused as a whole; an annotation that is not
//! honoured may only narrow what the handler allows, entry by entry, and is refused otherwise, so that no pod starts
//! with less than it requests.
//! Must not know: what a rule allows, who enforces it.

use coracle_spec::egress::{BadRule, Denied, Internal, List, Rule};

use super::BadRequest;
use super::annotations::{Bounded, Claim, Reader, decider, field, setting};
use crate::policy::{Allowance, Egress};

/// The pod annotation: entries separated by commas, blanks around them ignored; an empty value is an empty list.
const ANNOTATION: Bounded = Bounded("egress.coracle.dev/allow");

/// Most entries of a list.
const MAX_ENTRIES: usize = 256;

/// The decision about one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Decided {
    /// The destinations that it may reach; all if `None`. The caller adds the node's own addresses.
    pub(super) list: Option<List>,
    /// Its WebAssembly instances cannot create sockets.
    pub(super) is_off: bool,
    /// The list is the operator's, at most narrowed by the pod.
    pub(super) is_imposed: bool,
}

/// Decides what a pod may reach. Errors: the first entry that is invalid, or that the handler does not allow.
pub(super) fn egress(reader: &Reader, allowance: &Allowance<'_>) -> Result<Decided, BadRequest> {
    let Some(claim) = reader.bounded(&ANNOTATION) else {
        return Ok(match allowance.egress {
            Egress::Any => Decided::default(),
            Egress::None => Decided {
                list: Some(list(Vec::new())),
                is_off: true,
                is_imposed: true,
            },
            Egress::Listed(rules) => Decided {
                list: Some(list(rules.clone())),
                is_off: false,
                is_imposed: true,
            },
        });
    };
    let rules = rules(claim)?;
    if !claim.is_granted {
        narrows(&rules, allowance)?;
    }
    Ok(Decided {
        list: Some(list(rules)),
        is_off: *allowance.egress == Egress::None && !claim.is_granted,
        is_imposed: *allowance.egress != Egress::Any && !claim.is_granted,
    })
}

fn rules(claim: Claim<'_>) -> Result<Vec<Rule>, BadRequest> {
    let field = field(ANNOTATION.0);
    let entries: Vec<&str> = match claim.text.trim() {
        "" => Vec::new(),
        listed => listed.split(',').map(str::trim).collect(),
    };
    if entries.len() > MAX_ENTRIES {
        let problem = format!("lists {} targets, at most {MAX_ENTRIES}", entries.len());
        return Err(BadRequest::invalid(field, problem));
    }
    let rules: Result<Vec<Rule>, BadRule> = entries.iter().map(|entry| entry.parse()).collect();
    rules.map_err(|bad| BadRequest::invalid(&field, format!("is not a list: {bad}")))
}

/// Refuses the first of `rules` that the handler does not allow.
fn narrows(rules: &[Rule], allowance: &Allowance<'_>) -> Result<(), BadRequest> {
    let (allowed, refusal) = match allowance.egress {
        Egress::Any => return Ok(()),
        Egress::None => (&[][..], "allows nothing"),
        Egress::Listed(allowed) => (&allowed[..], "does not allow all of it"),
    };
    let Some(wider) = rules.iter().find(|rule| !rule.is_covered_by(allowed)) else {
        return Ok(());
    };
    let problem = format!(
        "lists \"{wider}\", and {} {refusal}; the operator of this node can add it to {}, or honour the annotation by {}",
        decider(allowance),
        setting(allowance, "egress"),
        setting(allowance, "annotations"),
    );
    Err(BadRequest::invalid(field(ANNOTATION.0), problem))
}

fn list(rules: Vec<Rule>) -> List {
    List {
        rules,
        denied: Denied {
            node: Vec::new(),
            ports: Denied::USUAL_PORTS.to_vec(),
            nat64: Vec::new(),
        },
        own_ports: Vec::new(),
        internal: Internal::default(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::super::annotations::tests::reader;
    use super::*;
    use crate::policy::tests::usual;

    /// The decision about a pod that lists `text`, if anything, under a handler that allows `base`.
    fn decide(text: Option<&str>, base: &Egress, grants: &[&str]) -> Result<Decided, String> {
        let handlers = usual();
        let mut allowance = handlers
            .find("coracle-strict")
            .unwrap()
            .allowance("default");
        allowance.egress = base;
        let listed = text.map(|text| (ANNOTATION.0, text));
        let reader = reader(listed.as_slice(), grants);
        egress(&reader, &allowance).map_err(|refusal| refusal.to_string())
    }

    fn texts(decided: Decided) -> Vec<String> {
        decided
            .list
            .unwrap()
            .rules
            .into_iter()
            .map(String::from)
            .collect()
    }

    fn base(entries: &[&str]) -> Egress {
        Egress::Listed(entries.iter().map(|entry| entry.parse().unwrap()).collect())
    }

    #[test]
    fn a_list_with_an_invalid_entry_is_refused_by_that_entry() {
        let any = Egress::Any;
        assert_eq!(texts(decide(Some(" "), &any, &[]).unwrap()), [""; 0]);
        let list = "db.default.svc:5432, 10.0.0.0/8:443 ,.example.com";
        assert_eq!(
            texts(decide(Some(list), &any, &[]).unwrap()),
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
            let text = decide(Some(bad), &any, &[]).unwrap_err();
            let is_named = text.contains(ANNOTATION.0) && text.contains(named);
            assert!(is_named, "{bad}: {text}");
        }
        let many = vec!["a"; MAX_ENTRIES + 1].join(",");
        assert!(decide(Some(&many), &any, &[]).unwrap_err().contains("257"));
    }

    #[test]
    fn without_an_annotation_a_pod_reaches_what_its_handler_allows() {
        assert_eq!(decide(None, &Egress::Any, &[]), Ok(Decided::default()));
        let none = decide(None, &Egress::None, &[]).unwrap();
        assert!(none.is_off && texts(none).is_empty());
        let listed = decide(None, &base(&["10.0.0.0/8", "a.example"]), &[]).unwrap();
        assert!(!listed.is_off && listed.is_imposed);
        assert_eq!(texts(listed), ["10.0.0.0/8", "a.example"]);
        let empty = decide(None, &base(&[]), &[]).unwrap();
        assert!(!empty.is_off && texts(empty).is_empty());
    }

    #[test]
    fn an_annotation_only_narrows_unless_it_is_honoured() {
        let allowed = base(&["10.0.0.0/8:443", ".example.com", "fd00::/64"]);
        for narrower in ["10.1.0.0/16:443", "api.example.com:8080,fd00::1", ""] {
            let decided = decide(Some(narrower), &allowed, &[]).unwrap();
            assert!(decided.is_imposed, "{narrower}");
            assert_eq!(texts(decided).join(","), narrower);
        }
        for (wider, named) in [
            ("10.1.0.0/16", "10.1.0.0/16"),
            ("10.0.0.1:443,10.0.0.1:80", "10.0.0.1:80"),
            ("0.0.0.0/0:443", "0.0.0.0/0:443"),
            ("example.com", "example.com"),
            ("api.example.org", "api.example.org"),
            ("::/0", "::/0"),
        ] {
            let text = decide(Some(wider), &allowed, &[]).unwrap_err();
            let want = format!(
                "config.annotations[\"egress.coracle.dev/allow\"] lists \"{named}\", and handler \"coracle-strict\" does \
                 not allow all of it; the operator of this node can add it to handlers.coracle-strict.egress, or honour \
                 the annotation by handlers.coracle-strict.annotations"
            );
            assert_eq!(text, want);
            let honoured = decide(Some(wider), &allowed, &["egress.coracle.dev/*"]).unwrap();
            assert!(!honoured.is_imposed, "{wider}");
            assert_eq!(texts(honoured).join(","), wider);
        }
        let text = decide(Some("10.0.0.1"), &Egress::None, &[]).unwrap_err();
        assert!(
            text.contains("\"10.0.0.1\"") && text.contains("allows nothing"),
            "{text}"
        );
    }

    #[test]
    fn a_handler_without_sockets_gives_none_to_an_empty_list() {
        assert!(decide(Some(""), &Egress::None, &[]).unwrap().is_off);
        let honoured = decide(Some(""), &Egress::None, &[ANNOTATION.0]).unwrap();
        assert!(!honoured.is_off && texts(honoured).is_empty());
    }
}
