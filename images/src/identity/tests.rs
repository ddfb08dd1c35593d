use std::collections::BTreeSet;

use std::sync::Arc;

use super::*;

fn module(bytes: &[u8]) -> Program {
    Program::Module {
        digest: Digest::of(bytes),
    }
}

fn candidate(manifest: &str, program: Program) -> Candidate {
    let record = Record {
        id: ImageId::new(Digest::of(b"not settled")),
        tags: BTreeSet::from([format!("r.io/{manifest}:v1")]),
        digests: BTreeSet::from([format!(
            "r.io/{manifest}@{}",
            Digest::of(manifest.as_bytes())
        )]),
        size: 1,
        config: Arc::default(),
        program,
        blobs: BTreeSet::new(),
        chains: Vec::new(),
        annotations: Arc::default(),
        removed: false,
        pins: BTreeSet::new(),
        is_artifact: false,
        proven: BTreeMap::new(),
        verified: BTreeSet::new(),
        of_namespace: BTreeSet::new(),
        manifest: Some(Digest::of(manifest.as_bytes())),
        kept: None,
    };
    Candidate {
        record,
        manifest: Digest::of(manifest.as_bytes()),
        config: Digest::of(b"{}"),
        content: Vec::new(),
    }
}

/// Settles one after the other, as a store does.
fn settle_all(candidates: Vec<Candidate>) -> Vec<Record> {
    let mut kept: Vec<Record> = Vec::new();
    for candidate in candidates {
        let known = |id: &ImageId| kept.iter().find(|record| record.id == *id);
        let settled = candidate.assign_id(known).unwrap();
        kept.retain(|record| record.id != settled.id);
        kept.push(settled);
    }
    kept
}

/// What is changed in a record, and how.
type Change = (&'static str, fn(&mut Record));

#[test]
fn records_that_differ_in_anything_are_never_one() {
    let changes: [Change; 5] = [
        ("program", |record| record.program = module(b"other")),
        ("config", |record| {
            Arc::make_mut(&mut record.config).user = "0".to_owned();
        }),
        ("layers", |record| record.chains.push(Digest::of(b"layer"))),
        ("blobs", |record| {
            record.blobs.insert(Digest::of(b"blob"));
        }),
        ("annotations", |record| {
            Arc::make_mut(&mut record.annotations).insert("a".to_owned(), "b".to_owned());
        }),
    ];
    for program in [module(b"bank"), Program::Linux] {
        for (what, change) in changes {
            let (bank, mut tenant) = (
                candidate("bank", program.clone()),
                candidate("tenant", program.clone()),
            );
            change(&mut tenant.record);
            let before = bank.record.clone();
            let kept = settle_all(vec![bank, tenant]);
            assert_eq!(kept.len(), 2, "{what}");
            assert_ne!(kept[0].id, kept[1].id, "{what}");
            assert!(has_same_content(&kept[0], &before), "{what}");
        }
    }
}

#[test]
fn the_same_content_is_one_image_under_the_id_it_had() {
    let again = || candidate("again", Program::Linux);
    let kept = settle_all(vec![candidate("first", Program::Linux), again()]);
    assert_eq!((kept.len(), kept[0].tags.len()), (1, 2));
    assert_eq!(kept[0].id, ImageId::new(Digest::of(b"{}")));
    // One that had to take another id keeps it when the better one becomes free.
    let mut other = candidate("other", Program::Linux);
    Arc::make_mut(&mut other.record.annotations).insert("a".into(), "b".into());
    let mut kept = settle_all(vec![again(), other]);
    let second = kept.pop().unwrap();
    assert_eq!(second.id, ImageId::new(Digest::of(b"other")));
    let mut once_more = candidate("other", Program::Linux);
    Arc::make_mut(&mut once_more.record.annotations).insert("a".into(), "b".into());
    let settled = once_more.assign_id(|id| (second.id == *id).then_some(&second));
    assert_eq!(settled.unwrap().id, second.id);
}

#[test]
fn a_module_is_named_by_its_manifest_even_if_that_is_somebodys_config() {
    let kept = settle_all(vec![candidate("m", module(b"x"))]);
    assert_eq!(kept[0].id, ImageId::new(Digest::of(b"m")));
    let mut squatter = candidate("squatter", Program::Linux);
    squatter.config = Digest::of(b"m");
    let kept = settle_all(vec![squatter, candidate("m", module(b"x"))]);
    assert_eq!(kept.len(), 2);
    assert_ne!(kept[1].id, kept[0].id);
}

#[test]
fn only_a_record_that_may_hold_several_images_loses_its_names() {
    let old = |digests: &[&str], program: Program| {
        let mut record = candidate("x", program).record;
        record.manifest = None;
        record.digests = digests.iter().map(|digest| (*digest).to_owned()).collect();
        record
    };
    let mut merged = old(&["a@sha256:1", "b@sha256:2"], module(b""));
    assert!(drop_ambiguous_names(&mut merged));
    assert!(merged.tags.is_empty() && merged.digests.is_empty());
    for mut clear in [
        old(&["a@sha256:1", "b@sha256:1"], module(b"")),
        old(&["a@sha256:1", "b@sha256:2"], Program::Linux),
        candidate("new", module(b"")).record,
    ] {
        assert!(!drop_ambiguous_names(&mut clear) && !clear.tags.is_empty());
    }
}

#[test]
fn many_names_of_one_registry_cost_only_its_own() {
    let named = |name: &str| {
        let mut candidate = candidate("m", module(b"m"));
        candidate.record.tags = BTreeSet::from([name.to_owned()]);
        candidate.record.digests.clear();
        candidate
    };
    let mut pinned = named("a.io/0/pinned:1");
    pinned.record.pins = pinned.record.tags.clone();
    let mut all = vec![pinned, named("b.io/victim:1")];
    all.extend((0..MAX_NAMES + 50).map(|number| named(&format!("a.io/x:{number}"))));
    all.push(named("c.io/other:1"));
    for candidate in &mut all {
        let name = candidate.record.tags.first().unwrap().clone();
        let facts = BTreeSet::from([Digest::of(name.as_bytes())]);
        candidate.record.verified = facts.clone();
        candidate.record.proven = BTreeMap::from([(name, facts)]);
    }
    let [kept] = settle_all(all).try_into().unwrap();
    assert_eq!(kept.tags.len(), MAX_NAMES);
    // What was proven goes with the name, and counts as long as it is there.
    assert!(kept.proven.keys().eq(&kept.tags));
    let mut without = kept.clone();
    without.proven.clear();
    assert!(kept.weight() > without.weight() + MAX_NAMES as u64 * 128);
    // What earlier builds look for is kept of the first ones.
    assert_eq!(kept.verified.len(), 256);
    assert!(kept.verified.contains(&Digest::of(b"b.io/victim:1")));
    for name in ["b.io/victim:1", "c.io/other:1", "a.io/0/pinned:1"] {
        assert!(kept.tags.contains(name), "{name}");
    }
}
