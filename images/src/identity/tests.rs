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
        brought_by: None,
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

#[test]
fn copies_of_an_image_never_cost_the_original_its_names() {
    let original = [
        "docker.io/library/busybox:1.36".to_owned(),
        format!("docker.io/library/busybox@{}", Digest::of(b"index")),
    ];
    let copies: [fn(usize) -> String; 5] = [
        // Tags of one repository, repositories of one owner, ports and hosts of one server.
        |number| format!("docker.io/evil/copy:{number}"),
        |number| format!("docker.io/evil/copy{number}:latest"),
        |number| format!("docker.io/evil/a{number}/b/c:latest"),
        |number| format!("evil.example:{}/copy:latest", number + 1),
        |number| format!("r{number}.evil.example/copy:latest"),
    ];
    for copy in copies {
        let named = |name: &str| {
            let mut candidate = candidate("m", module(b"m"));
            let names = BTreeSet::from([name.to_owned()]);
            let none = BTreeSet::new();
            let is_digest = name.contains('@');
            candidate.record.tags = if is_digest {
                none.clone()
            } else {
                names.clone()
            };
            candidate.record.digests = if is_digest { names } else { none };
            candidate
        };
        let all = original.iter().cloned();
        let all: Vec<Candidate> = all
            .chain((0..MAX_NAMES + 20).map(copy))
            .map(|name| named(&name))
            .collect();
        let [kept] = settle_all(all).try_into().unwrap();
        assert_eq!(kept.tags.len() + kept.digests.len(), MAX_NAMES);
        for name in &original {
            assert!(kept.has_name(name), "{name} beside {}", copy(0));
        }
    }
}

#[test]
fn a_repository_loses_tags_before_its_digest_and_never_the_new_names() {
    let tagged = |number: usize| {
        let mut candidate = candidate("m", module(b"m"));
        candidate.record.tags = BTreeSet::from([format!("r.io/x:{number:05}")]);
        candidate.record.digests = BTreeSet::from(["r.io/x@sha256:0".to_owned()]);
        candidate
    };
    let all: Vec<Candidate> = (0..MAX_NAMES + 5).rev().map(tagged).collect();
    let [kept] = settle_all(all).try_into().unwrap();
    assert!(kept.has_name("r.io/x@sha256:0") && kept.has_name("r.io/x:00000"));
    assert_eq!(kept.tags.len(), MAX_NAMES - 1);
}

#[test]
fn few_long_names_cost_whoever_has_given_them() {
    let named = |name: String| {
        let mut candidate = candidate("m", module(b"m"));
        candidate.record.tags = BTreeSet::from([name]);
        candidate.record.digests.clear();
        candidate
    };
    let honest = |number: usize| format!("docker.io/library/busybox:{number}");
    let long = |number: usize| format!("evil.example/{}:{number:04}", "x".repeat(900));
    let names = (0..200).map(honest).chain((0..300).map(long));
    let [kept] = settle_all(names.map(named).collect()).try_into().unwrap();
    let bytes: usize = kept.tags.iter().map(String::len).sum();
    assert!(bytes <= MAX_NAME_BYTES, "{bytes}");
    assert!((0..200).all(|number| kept.has_name(&honest(number))));
}
