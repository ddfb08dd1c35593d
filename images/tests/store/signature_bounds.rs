//! The signature policy among many pulls, many keys, many names and long lists: nobody waits for somebody else's, and nobody
//! loses what was proven.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coracle_images::{Digest, ErrorKind, Images, ImagesConfig};
use serde_json::{Value, json};

use super::signatures::{
    Node, accept, attach, digest_of, is_index, serve_referrer, signed_by, tag_of,
};
use crate::support::signer::{EMPTY, SIMPLE_SIGNING, Signer, layer, signature_manifest};
use crate::support::{MODULE, OCI_INDEX, Parts, Registry, Reply, ScriptedRegistry, Unpackers};

/// Everything must be signed by one of these keys, under its own repository's name.
fn signed_by_any(signers: &[&Signer]) -> Value {
    let keys: Vec<_> = signers.iter().map(|signer| signer.public()).collect();
    json!({"default": [{"type": "sigstoreSigned", "keyPaths": keys, "signedIdentity": {"type": "matchRepository"}}]})
}

/// Serves signatures at cosign's tag for `digest`.
fn serve_signatures(registry: &ScriptedRegistry, digest: &Digest, signed: &[(Vec<u8>, Value)]) {
    let mut layers = Vec::new();
    for (payload, annotations) in signed {
        let path = format!("/app/blobs/{}", Digest::of(payload));
        registry.on(&path, Reply::ok(payload));
        layers.push(layer(SIMPLE_SIGNING, payload, annotations.clone()));
    }
    let manifest = signature_manifest(&layers, None);
    let path = format!("/app/manifests/{}", tag_of(digest));
    registry.on(&path, Reply::manifest(&manifest));
}

/// The only thread here answers every RPC of a daemon meanwhile.
#[tokio::test]
async fn signatures_by_many_keys_are_verified_beside_the_async_threads() {
    let registry = ScriptedRegistry::start().await;
    let (stranger, known) = (Signer::new("ed25519"), Signer::new("ed25519"));
    let name = format!("{}/app", registry.host);
    let digest = registry.serve_image("app", "v1", &Parts::artifact(MODULE));
    let signed: Vec<_> = (0..8)
        .map(|number| stranger.simple(&digest, &format!("{name}{number}")))
        .collect();
    serve_signatures(&registry, &digest, &signed);
    let key = STANDARD.encode(std::fs::read(known.public()).unwrap());
    let keys = vec![key; 4000];
    let node = Node::new(&json!({"default": [{"type": "sigstoreSigned", "keyDatas": keys}]})).await;
    let turns = Arc::new(AtomicU64::new(0));
    let others = tokio::spawn({
        let turns = Arc::clone(&turns);
        async move {
            loop {
                tokio::time::sleep(Duration::from_millis(5)).await;
                turns.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let began = Instant::now();
    node.refuses(&format!("{name}:v1"), "none of the image's 8 signatures")
        .await;
    let (all, turns) = (began.elapsed(), turns.load(Ordering::Relaxed));
    others.abort();
    assert!(
        all > Duration::from_millis(500),
        "too little to verify: {all:?}"
    );
    // Most of a hundred; some are before and after the verification.
    assert!(turns > 40, "others had {turns} turns in {all:?}");
}

/// There are eight permits for large documents in the whole process.
#[tokio::test(flavor = "multi_thread")]
async fn pulls_of_large_manifests_with_large_signatures_do_not_wait_for_each_other() {
    let registry = Registry::start().await;
    let signer = Signer::new("P-256");
    let node = Node::new(&signed_by(&signer.public())).await;
    let name = format!("{}/app", registry.host);
    let mut tags = Vec::new();
    for number in 0..24 {
        let tag = format!("v{number}");
        let mut parts = Parts::artifact(&[MODULE, tag.as_bytes()].concat());
        parts.annotations = json!({"padding": "p".repeat(300 << 10)});
        let digest = digest_of(&registry.image("app", &tag, &parts).await);
        let (payload, mut annotations) = signer.simple(&digest, &name);
        annotations["padding"] = "p".repeat(300 << 10).into();
        attach(&registry, "app", &digest, &[(payload, annotations)]).await;
        tags.push(tag);
    }
    let references: Vec<_> = tags.iter().map(|tag| format!("{name}:{tag}")).collect();
    let pulls = references.iter().map(|reference| node.pull(reference));
    for (reference, pulled) in references
        .iter()
        .zip(futures_util::future::join_all(pulls).await)
    {
        pulled.unwrap_or_else(|error| panic!("{reference}: {error}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_still_accepts_the_key_accepts_the_stored_image() {
    let registry = Registry::start().await;
    let (first, second, third) = (
        Signer::new("P-256"),
        Signer::new("ed25519"),
        Signer::new("P-256"),
    );
    let node = Node::new(&accept()).await;
    let name = format!("{}/app", registry.host);
    let tag = format!("{name}:v1");
    let digest = digest_of(&registry.image("app", "v1", &Parts::artifact(MODULE)).await);
    let both = [first.simple(&digest, &name), second.simple(&digest, &name)];
    attach(&registry, "app", &digest, &both).await;
    node.set("policies/team.json", &signed_by_any(&[&first, &second]));
    let image = node.pull_in("team", &tag).await.unwrap();
    for (keys, is_met) in [
        (vec![&first], true),
        (vec![&second], true),
        (vec![&third, &first], true),
        (vec![&second, &third, &first], true),
        (vec![&third], false),
    ] {
        node.set("policies/team.json", &signed_by_any(&keys));
        let checked = node.images.check_stored(&image.id, &tag, "team");
        assert_eq!(checked.is_ok(), is_met, "{} keys: {checked:?}", keys.len());
    }
    // Each requirement needs a key of its own.
    let rule = |signer: &Signer| signed_by_any(&[signer])["default"][0].clone();
    for (one, other, is_met) in [(&first, &second, true), (&first, &third, false)] {
        let policy = json!({"default": [rule(one), rule(other)]});
        node.set("policies/team.json", &policy);
        let checked = node.images.check_stored(&image.id, &tag, "team");
        assert_eq!(checked.is_ok(), is_met, "{checked:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_number_of_other_names_takes_away_what_is_proven_of_an_image() {
    let registry = ScriptedRegistry::start().await;
    let signer = Signer::new("P-256");
    let node = Node::new(&signed_by(&signer.public())).await;
    node.set("policies/bank.json", &signed_by(&signer.public()));
    let name = format!("{}/app", registry.host);
    let digest = registry.serve_image("app", "v0", &Parts::artifact(MODULE));
    serve_signatures(&registry, &digest, &[signer.simple(&digest, &name)]);
    let image = node.pull_in("bank", &format!("{name}:v0")).await.unwrap();
    for number in 1..270 {
        let tag = format!("v{number}");
        registry.alias("/app/manifests/v0", &format!("/app/manifests/{tag}"));
        node.pull(&format!("{name}:{tag}")).await.unwrap();
    }
    let may = |name: &str| node.images.check_stored(&image.id, name, "bank");
    may(&format!("{name}:v0")).unwrap();
    may(&format!("{name}:v269")).unwrap();
    // What belongs to a name goes with it.
    let other = Parts::artifact(&[MODULE, b"other"].concat());
    let moved = registry.serve_image("app", "v0", &other);
    serve_signatures(&registry, &moved, &[signer.simple(&moved, &name)]);
    node.pull(&format!("{name}:v0")).await.unwrap();
    may(&format!("{name}:v0")).unwrap_err();
}

/// What only a namespace has accepted is not for all as soon as namespaces have no policies any more.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_directory_of_policies_the_nodes_policy_is_asked_about_what_came_by_them() {
    let registry = Registry::start().await;
    let signer = Signer::new("P-256");
    let node = Node::new(&signed_by(&signer.public())).await;
    node.set("policies/dev.json", &accept());
    let tag = format!("{}/app:v1", registry.host);
    registry.image("app", "v1", &Parts::artifact(MODULE)).await;
    let id = node.pull_in("dev", &tag).await.unwrap().id.clone();
    let Node { scratch, images } = node;
    drop(images);
    let mut config = ImagesConfig::new(scratch.0.join("root"));
    config.signature_policy = Some(scratch.0.join("policy.json"));
    let images = Images::open(config.clone(), Arc::new(Unpackers))
        .await
        .unwrap();
    assert!(images.has_signature_policies());
    for namespace in ["dev", "default", ""] {
        let refused = images.check_stored(&id, &tag, namespace).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Signature, "{refused}");
    }
    drop(images);
    // Without any policy every image is accepted.
    config.signature_policy = None;
    let images = Images::open(config, Arc::new(Unpackers)).await.unwrap();
    images.check_stored(&id, &tag, "default").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pause_that_a_registry_asks_for_holds_for_signatures_too() {
    let registry = ScriptedRegistry::start().await;
    let signer = Signer::new("P-256");
    let node = Node::new(&signed_by(&signer.public())).await;
    let name = format!("{}/app", registry.host);
    let digest = registry.serve_image("app", "v1", &Parts::artifact(MODULE));
    let (payload, annotations) = signer.simple(&digest, &name);
    serve_signatures(&registry, &digest, &[(payload.clone(), annotations)]);
    let busy = Reply::status(429, "Retry-After", "2");
    registry.on(
        &format!("/app/blobs/{}", Digest::of(&payload)),
        Reply::turns(vec![busy, Reply::ok(&payload)]),
    );
    let began = Instant::now();
    node.pull(&format!("{name}:v1")).await.unwrap();
    let waited = began.elapsed();
    assert!(
        waited >= Duration::from_secs(2),
        "asked again after {waited:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_on_a_later_page_of_the_referrers_is_found_and_endless_pages_end() {
    let signer = Signer::new("P-256");
    let registry = ScriptedRegistry::start().await;
    let node = Node::new(&signed_by(&signer.public())).await;
    let name = format!("{}/app", registry.host);
    let simple = |digest: &Digest| signer.simple(digest, &name);
    let reference = serve_referrer(&registry, true, (EMPTY, SIMPLE_SIGNING), &simple);
    let digest = registry.serve_image("app", "v1", &Parts::artifact(MODULE));
    let list = format!("/app/referrers/{digest}");
    registry.alias(&list, &format!("{list}?last=2"));
    let sbom =
        json!({"digest": Digest::of(b"sbom").as_str(), "artifactType": "application/spdx+json"});
    let page = |next: String| {
        let index =
            json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [sbom.clone()]});
        let fields = vec![
            ("Content-Type", OCI_INDEX.to_owned()),
            ("Link", format!("<{next}>; rel=\"next\"")),
        ];
        Reply::Full(200, fields, index.to_string().into_bytes())
    };
    registry.on(&list, page(format!("/v2{list}?last=1")));
    registry.on(&format!("{list}?last=1"), page("?last=2".to_owned()));
    node.pull(&reference).await.unwrap();
    // One leads to the other, for ever; each has another signature that does not exist.
    let registry = ScriptedRegistry::start().await;
    let node = Node::new(&signed_by(&signer.public())).await;
    let digest = registry.serve_image("app", "v1", &Parts::artifact(MODULE));
    let list = format!("/app/referrers/{digest}");
    registry.on(&list, page("?last=1".to_owned()));
    registry.on(&format!("{list}?last=1"), page("?last=2".to_owned()));
    registry.on(&format!("{list}?last=2"), page("?last=1".to_owned()));
    node.refuses(&format!("{}/app:v1", registry.host), "more than 16 pages")
        .await;
    assert_eq!(registry.requests("/referrers/"), 16);
    // A link to another host is no page.
    registry.forget();
    registry.on(
        &list,
        page(format!("http://169.254.169.254/v2{list}?last=1")),
    );
    node.refuses(&format!("{}/app:v1", registry.host), "has no signature")
        .await;
    assert_eq!(registry.requests("/referrers/"), 1);
}

/// What hosts without the API of referrers answer, besides 404.
#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_answers_otherwise_than_with_a_list_is_asked_for_the_tag() {
    let signer = Signer::new("P-256");
    for (status, kind) in [
        (400, "application/json"),
        (406, "text/plain"),
        (200, "text/html"),
        (200, "application/json"),
    ] {
        let registry = ScriptedRegistry::start().await;
        let node = Node::new(&signed_by(&signer.public())).await;
        let name = format!("{}/app", registry.host);
        let simple = |digest: &Digest| signer.simple(digest, &name);
        let reference = serve_referrer(&registry, false, (EMPTY, SIMPLE_SIGNING), &simple);
        let digest = registry.serve_image("app", "v1", &Parts::artifact(MODULE));
        let fields = vec![("Content-Type", kind.to_owned())];
        let page = b"{\"errors\": [], \"manifests\": []}".to_vec();
        registry.on(
            &format!("/app/referrers/{digest}"),
            Reply::Full(status, fields, page),
        );
        let pulled = node.pull(&reference).await;
        pulled.unwrap_or_else(|error| panic!("{status}, {kind}: {error}"));
    }
    // One that fails may have what it does not give.
    let registry = ScriptedRegistry::start().await;
    let node = Node::new(&signed_by(&signer.public())).await;
    let digest = registry.serve_image("app", "v1", &Parts::artifact(MODULE));
    let list = format!("/app/referrers/{digest}");
    registry.on(&list, Reply::status(500, "X", ""));
    let failed = node.pull(&format!("{}/app:v1", registry.host)).await;
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::RegistryUnavailable);
}

/// A pull-through cache has images, and often none of what refers to them.
#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_lists_no_referrers_does_not_speak_for_the_registry() {
    let signer = Signer::new("P-256");
    let (registry, mirror) = (
        ScriptedRegistry::start().await,
        ScriptedRegistry::start().await,
    );
    let node = Node::new(&signed_by(&signer.public())).await;
    let hosts = node.scratch.0.join("certs.d").join(&registry.host);
    std::fs::create_dir_all(&hosts).unwrap();
    let text = format!("[host.\"http://{}\"]\n", mirror.host);
    std::fs::write(hosts.join("hosts.toml"), text).unwrap();
    let name = format!("{}/app", registry.host);
    let simple = |digest: &Digest| signer.simple(digest, &name);
    let reference = serve_referrer(&registry, true, (EMPTY, SIMPLE_SIGNING), &simple);
    let digest = mirror.serve_image("app", "v1", &Parts::artifact(MODULE));
    let list = |manifests: Value| {
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
        Reply::Full(200, is_index(), index.to_string().into_bytes())
    };
    for host in [&mirror, &registry] {
        host.on(&format!("/app/referrers/{digest}"), list(json!([])));
    }
    node.refuses(&reference, "has no signature").await;
    serve_referrer(&registry, true, (EMPTY, SIMPLE_SIGNING), &simple);
    mirror.forget();
    node.pull(&reference).await.unwrap();
    assert_eq!(mirror.requests("/referrers/"), 1);
    // A registry that is away is no proof of there being none; and what the mirror has at cosign's tag needs no registry.
    node.images.remove(&reference).await.unwrap();
    drop(registry);
    let failed = node.pull(&reference).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::RegistryUnavailable, "{failed}");
    serve_signatures(&mirror, &digest, &[signer.simple(&digest, &name)]);
    node.pull(&reference).await.unwrap();
}
