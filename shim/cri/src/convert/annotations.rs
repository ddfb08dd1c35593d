//! The only code that reads annotations: which ones have an effect, and which need the operator's permission.
//!
//! Called by `sandbox` and `container`, which pass the values on to the module that parses them.
//! Invariants: a value is read through a constant whose type says what the annotation can do, so that a new annotation
//! cannot be read without that decision; one that grants something is refused unless the pod's handler honours it.
//! Must not know: what a value means; image annotations, which choose how an image is run and grant nothing.
//!
//! | kind | means | without the operator's permission |
//! |---|---|---|
//! | [`Narrows`] | can only take something from the pod | honoured |
//! | [`Bounded`] | can do both | honoured as far as it narrows what the handler allows |
//! | [`Opens`], [`OpensAll`] | grants the pod something | refused |

use std::collections::BTreeMap;

use coracle_lifecycle::{Annotations, Grants, WasmVariant};
use coracle_proto::runtime::v1 as cri;

use super::{BadRequest, check};
use crate::policy::Allowance;

/// An annotation that only takes something from the pod.
pub(super) struct Narrows(pub(super) &'static str);

/// An annotation that narrows or grants, depending on its value.
pub(super) struct Bounded(pub(super) &'static str);

/// An annotation that grants something.
pub(super) struct Opens(pub(super) &'static str);

/// All annotations with this prefix, each of which grants something.
pub(super) struct OpensAll(pub(super) &'static str);

/// The annotations of one request, and the handler that may honour them.
pub(super) struct Reader {
    annotations: BTreeMap<String, String>,
    grants: Grants,
    /// The handler, for messages: `handler "coracle"`.
    decider: String,
    /// The setting that would honour more annotations.
    setting: String,
}

/// The value of a [`Bounded`] annotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim<'a> {
    /// The value.
    pub(super) text: &'a str,
    /// Whether it is honoured whatever it grants.
    pub(super) is_granted: bool,
}

impl Reader {
    /// Takes the annotations out of a pod's configuration. Errors: there are too many.
    pub(super) fn of_pod(
        config: &mut cri::PodSandboxConfig,
        allowance: &Allowance<'_>,
    ) -> Result<Self, BadRequest> {
        Ok(Self {
            annotations: taken(&mut config.annotations)?,
            grants: Grants::new(allowance.annotations),
            decider: decider(allowance),
            setting: setting(allowance, "annotations"),
        })
    }

    /// Takes the annotations out of a container's configuration. `grants` were decided when its pod was created,
    /// `handler` is the pod's. Errors: there are too many.
    pub(super) fn of_container(
        config: &mut cri::ContainerConfig,
        grants: &Grants,
        handler: &str,
    ) -> Result<Self, BadRequest> {
        let name = if handler.is_empty() {
            "coracle"
        } else {
            handler
        };
        Ok(Self {
            annotations: taken(&mut config.annotations)?,
            grants: grants.clone(),
            decider: format!("handler {name:?}"),
            setting: format!("handlers.{name}.annotations"),
        })
    }

    /// The value of an annotation that needs no permission.
    pub(super) fn narrowing(&self, key: &Narrows) -> Option<&str> {
        self.annotations.get(key.0).map(String::as_str)
    }

    /// The value of an annotation that may grant something, and whether it is honoured then.
    pub(super) fn bounded(&self, key: &Bounded) -> Option<Claim<'_>> {
        let text = self.annotations.get(key.0)?;
        Some(Claim {
            text,
            is_granted: self.grants.allow(key.0),
        })
    }

    /// The value of an annotation that grants something. Errors: it is present, and not honoured.
    pub(super) fn opening(&self, key: &Opens) -> Result<Option<&str>, BadRequest> {
        let Some(value) = self.annotations.get(key.0) else {
            return Ok(None);
        };
        self.honours(key.0).map(|()| Some(value.as_str()))
    }

    /// The keys and values of annotations that grant something. Errors: one is present, and not honoured.
    pub(super) fn all_opening(&self, keys: &OpensAll) -> Result<Vec<(&str, &str)>, BadRequest> {
        let begin_so = self
            .annotations
            .iter()
            .filter(|(key, _)| key.starts_with(keys.0));
        begin_so
            .map(|(key, value)| self.honours(key).map(|()| (key.as_str(), value.as_str())))
            .collect()
    }

    /// How programs are chosen. No value lets a container do more.
    pub(super) fn wasm_variant(&self) -> WasmVariant {
        let variant = |key: &&str| WasmVariant::of(key, self.annotations.get(*key)?);
        let mut variants = WasmVariant::KEYS.iter().filter_map(variant);
        variants.next().unwrap_or_default()
    }

    /// The annotations to return in every status, and those that are honoured.
    pub(super) fn into_parts(self) -> (Annotations, Grants) {
        (Annotations::new(self.annotations), self.grants)
    }

    fn honours(&self, key: &str) -> Result<(), BadRequest> {
        if self.grants.allow(key) {
            return Ok(());
        }
        let problem = format!(
            "is not honoured by {}; the operator of this node can list it in {}",
            self.decider, self.setting
        );
        Err(BadRequest::invalid(field(key), problem))
    }
}

fn taken(from: &mut BTreeMap<String, String>) -> Result<BTreeMap<String, String>, BadRequest> {
    check::entries("config.annotations", from)?;
    Ok(std::mem::take(from))
}

/// The name of an annotation in messages.
pub(super) fn field(key: &str) -> String {
    let shown: String = key.chars().filter(|c| !c.is_control()).take(128).collect();
    format!("config.annotations[{shown:?}]")
}

/// The handler that decides about a pod: `handler "coracle-strict" for namespaces "team-*"`.
pub(super) fn decider(allowance: &Allowance<'_>) -> String {
    match allowance.namespace {
        None => format!("handler {:?}", allowance.handler),
        Some(pattern) => format!("handler {:?} for namespaces {pattern:?}", allowance.handler),
    }
}

/// The setting that decides about a pod: `handlers.coracle-strict.egress`.
pub(super) fn setting(allowance: &Allowance<'_>, key: &str) -> String {
    match allowance.namespace {
        None => format!("handlers.{}.{key}", allowance.handler),
        Some(pattern) => format!(
            "{key} of {pattern:?} in handlers.{}.namespaces",
            allowance.handler
        ),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
pub(super) mod tests {
    use super::*;
    use crate::policy::tests::usual;

    /// A reader of these annotations for a pod of the default handler that honours `grants`.
    pub(in crate::convert) fn reader(annotations: &[(&str, &str)], grants: &[&str]) -> Reader {
        let pairs = annotations.iter();
        let mut config = cri::PodSandboxConfig {
            annotations: pairs
                .map(|(key, value)| (key.to_string(), value.to_string()))
                .collect(),
            ..Default::default()
        };
        let handlers = usual();
        let patterns: Vec<String> = grants.iter().map(ToString::to_string).collect();
        let mut allowance = handlers.find("").unwrap().allowance("default");
        allowance.annotations = &patterns;
        Reader::of_pod(&mut config, &allowance).unwrap()
    }

    #[test]
    fn what_opens_something_is_refused_unless_the_handler_honours_it() {
        let annotations = [("d.example/one", "1"), ("d.example/two", "2")];
        let closed = reader(&annotations, &[]);
        assert_eq!(closed.narrowing(&Narrows("d.example/one")), Some("1"));
        assert_eq!(closed.narrowing(&Narrows("d.example/three")), None);
        let claim = closed.bounded(&Bounded("d.example/one")).unwrap();
        assert_eq!((claim.text, claim.is_granted), ("1", false));
        assert_eq!(closed.opening(&Opens("d.example/three")), Ok(None));
        assert_eq!(closed.all_opening(&OpensAll("e.example/")), Ok(Vec::new()));
        let refused = closed.opening(&Opens("d.example/one")).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "config.annotations[\"d.example/one\"] is not honoured by handler \"coracle\"; the operator of this node \
             can list it in handlers.coracle.annotations"
        );
        assert!(closed.all_opening(&OpensAll("d.example/")).is_err());
        let half = reader(&annotations, &["d.example/one"]);
        assert_eq!(half.opening(&Opens("d.example/one")), Ok(Some("1")));
        assert!(half.bounded(&Bounded("d.example/one")).unwrap().is_granted);
        let refused = half.all_opening(&OpensAll("d.example/")).unwrap_err();
        assert!(refused.to_string().contains("d.example/two"), "{refused}");
        let open = reader(&annotations, &["d.example/*"]);
        assert_eq!(open.all_opening(&OpensAll("d.example/")).unwrap().len(), 2);
    }

    /// The types keep later steps from reading annotations; this keeps the other converters from it.
    #[test]
    fn no_other_converter_reads_annotations() {
        // Nobody else sees messages; policies, which have patterns of annotations, do not either.
        let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let policies = here.join("policy.rs");
        let mut read = 0;
        let mut open = vec![here];
        while let Some(path) = open.pop() {
            if path.is_dir() {
                open.extend(
                    std::fs::read_dir(&path)
                        .unwrap()
                        .map(|entry| entry.unwrap().path()),
                );
                continue;
            }
            let is_source = path.extension().is_some_and(|kind| kind == "rs");
            // Shortens messages that are rendered already.
            let is_cut = path.ends_with("src/convert/fit.rs");
            let is_here = path.ends_with("src/convert/annotations.rs");
            if !is_source || path == policies || is_here || is_cut {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            // Tests fill messages and look at what became of them.
            let code = text.split("#[cfg(test)]").next().unwrap();
            for (at, _) in code.match_indices(".annotations") {
                let is_echo = code[at..].starts_with(".annotations.echo()");
                assert!(is_echo, "{} reads annotations", path.display());
                read += 1;
            }
        }
        assert!(
            read >= 6,
            "only {read} places echo annotations: is this still what is looked for?"
        );
    }
}
