//! The signature policy: what is pulled under it, what is refused, and that nothing of a refused image is kept.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use coracle_images::{Digest, Error, ErrorKind, Image, Images, ImagesConfig, PullRequest};
use serde_json::{Value, json};

use super::{content, linux, native, pull};
use crate::support::signer::{
    BUNDLE, EMPTY, SIMPLE_SIGNING, Signer, layer, payload, signature_manifest,
};
use crate::support::{
    MODULE, OCI_INDEX, Parts, Registry, Reply, Scratch, ScriptedRegistry, Unpackers,
};

const COSIGN_2: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";

/// A store with a policy file and a directory of policies, which can be changed at any time.
pub(super) struct Node {
    pub(super) scratch: Scratch,
    pub(super) images: Images,
}

impl Node {
    pub(super) async fn new(policy: &Value) -> Self {
        let scratch = Scratch::new();
        let root = scratch.0.join("root");
        std::fs::create_dir(&root).unwrap();
        std::fs::create_dir(scratch.0.join("policies")).unwrap();
        let mut config = ImagesConfig::new(&root);
        config.pull_idle_timeout = Duration::from_secs(60);
        config.signature_policy = Some(scratch.0.join("policy.json"));
        config.signature_policy_dir = Some(scratch.0.join("policies"));
        config.registry_config = Some(scratch.0.join("certs.d"));
        let images = Images::open(config, Arc::new(Unpackers)).await.unwrap();
        let node = Self { scratch, images };
        node.set("policy.json", policy);
        node
    }

    pub(super) fn set(&self, file: &str, policy: &Value) {
        std::fs::write(self.scratch.0.join(file), policy.to_string()).unwrap();
    }

    pub(super) async fn pull(&self, reference: &str) -> Result<Arc<Image>, Error> {
        pull(&self.images, reference).await
    }

    pub(super) async fn pull_in(
        &self,
        namespace: &str,
        reference: &str,
    ) -> Result<Arc<Image>, Error> {
        let namespace = namespace.to_owned();
        let request = PullRequest {
            namespace,
            ..PullRequest::new(reference)
        };
        self.images.pull(request).await
    }

    /// Pulls, expects a refusal that says `says`, and looks for what it may have left.
    pub(super) async fn refuses(&self, reference: &str, says: &str) {
        let refused = self.pull(reference).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Signature, "{refused}");
        assert!(
            refused.to_string().contains(says),
            "{refused} does not say {says}"
        );
        assert!(self.images.list().is_empty(), "{reference} is listed");
        let left = content(&self.scratch.0.join("root"));
        assert!(left.is_empty(), "{reference} left {left:?}");
    }
}

/// Everything must be signed by this key, under its own repository's name.
pub(super) fn signed_by(key: &Path) -> Value {
    signed_as(key, &json!({"type": "matchRepository"}))
}

pub(super) fn signed_as(key: &Path, identity: &Value) -> Value {
    json!({"default": [{"type": "reject"}], "transports": {"docker": {"": [
        {"type": "sigstoreSigned", "keyPath": key, "signedIdentity": identity},
    ]}}})
}

pub(super) fn accept() -> Value {
    json!({"default": [{"type": "insecureAcceptAnything"}]})
}

/// What a list of referrers is sent as.
pub(super) fn is_index() -> Vec<(&'static str, String)> {
    vec![("Content-Type", OCI_INDEX.to_owned())]
}

pub(super) fn tag_of(digest: &Digest) -> String {
    format!("sha256-{}.sig", digest.hex())
}

/// Puts signatures at cosign's tag for `digest`.
pub(super) async fn attach(
    registry: &Registry,
    repository: &str,
    digest: &Digest,
    signed: &[(Vec<u8>, Value)],
) {
    let mut layers = Vec::new();
    for (payload, annotations) in signed {
        registry.blob(repository, SIMPLE_SIGNING, payload).await;
        layers.push(layer(SIMPLE_SIGNING, payload, annotations.clone()));
    }
    registry.blob(repository, EMPTY, b"{}").await;
    let manifest = signature_manifest(&layers, None);
    let kind = manifest["mediaType"].as_str().unwrap();
    registry
        .manifest(repository, &tag_of(digest), kind, &manifest)
        .await;
}

pub(super) fn digest_of(manifest: &Value) -> Digest {
    manifest["digest"].as_str().unwrap().parse().unwrap()
}

/// Payloads with their annotations, for the image of a digest.
type Signatures<'a> = &'a dyn Fn(&Digest) -> Vec<(Vec<u8>, Value)>;

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_if_the_policys_key_has_signed_it_whatever_kind_of_key_it_is() {
    let registry = Registry::start().await;
    for kind in ["P-256", "P-384", "ed25519", "rsa"] {
        let (signer, repository) = (Signer::new(kind), kind.to_lowercase());
        let node = Node::new(&signed_by(&signer.public())).await;
        let name = format!("{}/{repository}", registry.host);
        let image = registry
            .image(&repository, "v1", &Parts::artifact(MODULE))
            .await;
        let digest = digest_of(&image);
        node.refuses(&format!("{name}:v1"), "the image has no signature")
            .await;
        attach(
            &registry,
            &repository,
            &digest,
            &[signer.simple(&digest, &name)],
        )
        .await;
        for reference in [format!("{name}:v1"), format!("{name}@{digest}")] {
            node.pull(&reference)
                .await
                .unwrap_or_else(|error| panic!("{kind}: {error}"));
        }
        // The same key among others, and as text.
        let pem = std::fs::read(signer.public()).unwrap();
        let data = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, pem);
        let identity = json!({"type": "matchRepository"});
        let other = Signer::new("P-256");
        for keys in [
            json!({"keyPaths": [other.public(), signer.public()]}),
            json!({"keyData": data}),
            json!({"keyDatas": [data]}),
        ] {
            let mut rule = keys;
            rule["type"] = json!("sigstoreSigned");
            rule["signedIdentity"] = identity.clone();
            node.set(
                "policy.json",
                &json!({"default": [rule, {"type": "insecureAcceptAnything"}]}),
            );
            node.pull(&format!("{name}:v1")).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_signature_does_not_say_of_this_image_by_this_key_counts_for_nothing() {
    let registry = Registry::start().await;
    let (signer, stranger) = (Signer::new("P-256"), Signer::new("P-256"));
    let node = Node::new(&signed_by(&signer.public())).await;
    let name = format!("{}/app", registry.host);
    let other = Digest::of(b"another image");
    let with = |digest: &Digest, pointer: &str, value: Value| {
        let mut payload = payload(digest, &name);
        *payload.pointer_mut(pointer).unwrap() = value;
        payload
    };
    let mut number = 0;
    let mut case = async |says: &str, sign: Signatures<'_>| {
        number += 1;
        let tag = format!("v{number}");
        let module = [MODULE, tag.as_bytes()].concat();
        let digest = digest_of(&registry.image("app", &tag, &Parts::artifact(&module)).await);
        attach(&registry, "app", &digest, &sign(&digest)).await;
        node.refuses(&format!("{name}:{tag}"), says).await;
        node.refuses(&format!("{name}@{digest}"), says).await;
    };
    case("has no signature", &|_| vec![]).await;
    case("one signature is not by the key", &|digest| {
        vec![stranger.simple(digest, &name)]
    })
    .await;
    case("none of the image's 2 signatures", &|digest| {
        let (payload, _) = signer.simple(digest, &name);
        let (_, stolen) = signer.simple(&other, &name);
        vec![stranger.simple(digest, &name), (payload, stolen)]
    })
    .await;
    case("is for another image", &|_| {
        vec![signer.simple(&other, &name)]
    })
    .await;
    case("has the name", &|digest| {
        vec![signer.simple(digest, "evil.example/app")]
    })
    .await;
    case("has the name", &|digest| vec![signer.simple(digest, "")]).await;
    case("critical.type", &|digest| {
        vec![signer.simple_with(&with(
            digest,
            "/critical/type",
            json!("atomic container signature"),
        ))]
    })
    .await;
    case("unusable", &|digest| {
        vec![signer.simple_with(&with(digest, "/critical/image", json!({})))]
    })
    .await;
    case("not base64", &|digest| {
        let (payload, _) = signer.simple(digest, &name);
        vec![(payload, json!({"dev.cosignproject.cosign/signature": "?"}))]
    })
    .await;
    case("has no signature", &|digest| {
        let (payload, _) = signer.simple(digest, &name);
        vec![(payload, Value::Null)]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_requirements_of_a_scope_must_be_met_and_any_signature_may_meet_one() {
    let registry = Registry::start().await;
    let (first, second, third) = (
        Signer::new("P-256"),
        Signer::new("ed25519"),
        Signer::new("P-256"),
    );
    let rule = |signer: &Signer| json!({"type": "sigstoreSigned", "keyPath": signer.public(), "signedIdentity": {"type": "matchRepository"}});
    let node = Node::new(&json!({"default": [rule(&first), rule(&second)]})).await;
    let name = format!("{}/app", registry.host);
    let digest = digest_of(&registry.image("app", "v1", &Parts::artifact(MODULE)).await);
    let by = |signers: &[&Signer]| -> Vec<(Vec<u8>, Value)> {
        signers
            .iter()
            .map(|signer| signer.simple(&digest, &name))
            .collect()
    };
    for lacking in [by(&[&first]), by(&[&second, &third]), by(&[&third])] {
        attach(&registry, "app", &digest, &lacking).await;
        node.refuses(&format!("{name}:v1"), "by the key").await;
    }
    attach(&registry, "app", &digest, &by(&[&third, &second, &first])).await;
    node.pull(&format!("{name}:v1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_index_it_may_be_signed_itself_or_the_manifest_that_this_node_takes() {
    let registry = Registry::start().await;
    let signer = Signer::new("P-256");
    let node = Node::new(&signed_by(&signer.public())).await;
    let name = format!("{}/multi", registry.host);
    let mut number = 0;
    let mut push = async || {
        number += 1;
        let tag = format!("v{number}");
        let mut entries = Vec::new();
        for (kind, architecture) in [("own", native()), ("foreign", "s390x")] {
            let parts = linux(&format!("{kind}{tag}"));
            let mut entry = registry
                .image("multi", &format!("{kind}{tag}"), &parts)
                .await;
            entry["platform"] = json!({"os": "linux", "architecture": architecture});
            entries.push(entry);
        }
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
        let index = registry.manifest("multi", &tag, OCI_INDEX, &index).await;
        (
            tag,
            digest_of(&index),
            digest_of(&entries[0]),
            digest_of(&entries[1]),
        )
    };
    let (tag, _, _, foreign) = push().await;
    attach(
        &registry,
        "multi",
        &foreign,
        &[signer.simple(&foreign, &name)],
    )
    .await;
    node.refuses(&format!("{name}:{tag}"), "has no signature")
        .await;
    let (tag, index, own, _) = push().await;
    attach(&registry, "multi", &own, &[signer.simple(&own, &name)]).await;
    node.pull(&format!("{name}@{index}")).await.unwrap();
    node.pull(&format!("{name}:{tag}")).await.unwrap();
    let (tag, index, _, _) = push().await;
    attach(&registry, "multi", &index, &[signer.simple(&index, &name)]).await;
    node.pull(&format!("{name}:{tag}")).await.unwrap();
}

/// Serves an image with a document that refers to it, by the API or by the tag of registries without it.
pub(super) fn serve_referrer(
    registry: &ScriptedRegistry,
    by_api: bool,
    artifact: (&str, &str),
    make: &dyn Fn(&Digest) -> (Vec<u8>, Value),
) -> String {
    let (kind, media_type) = artifact;
    let digest = registry.serve_image("app", "v1", &Parts::artifact(MODULE));
    let (blob, annotations) = make(&digest);
    registry.on(
        &format!("/app/blobs/{}", Digest::of(&blob)),
        Reply::ok(&blob),
    );
    let manifest = signature_manifest(
        &[layer(media_type, &blob, annotations)],
        Some((kind, &digest)),
    );
    let manifest_digest = Digest::of(manifest.to_string().as_bytes());
    registry.on(
        &format!("/app/manifests/{manifest_digest}"),
        Reply::manifest(&manifest),
    );
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": Digest::of(b"sbom").as_str(), "size": 9,
         "artifactType": "application/spdx+json"},
        {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest_digest.as_str(), "size": 9,
         "artifactType": kind},
    ]});
    let path = match by_api {
        true => format!("/app/referrers/{digest}"),
        false => format!("/app/manifests/sha256-{}", digest.hex()),
    };
    registry.on(
        &path,
        Reply::Full(200, is_index(), index.to_string().into_bytes()),
    );
    format!("{}/app:v1", registry.host)
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_are_found_among_the_referrers_with_and_without_the_api() {
    let signer = Signer::new("P-256");
    for by_api in [true, false] {
        let registry = ScriptedRegistry::start().await;
        let node = Node::new(&signed_by(&signer.public())).await;
        let name = format!("{}/app", registry.host);
        let simple = |digest: &Digest| signer.simple(digest, &name);
        let reference = serve_referrer(&registry, by_api, (COSIGN_2, SIMPLE_SIGNING), &simple);
        node.pull(&reference).await.unwrap();
        let sbom = Digest::of(b"sbom");
        assert_eq!(
            registry.gets(sbom.as_str()),
            0,
            "another artifact was fetched"
        );
        // Registries that do not know artifact types list the type of the config.
        let registry = ScriptedRegistry::start().await;
        let name = format!("{}/app", registry.host);
        let simple = |digest: &Digest| signer.simple(digest, &name);
        let reference = serve_referrer(&registry, by_api, (EMPTY, SIMPLE_SIGNING), &simple);
        node.pull(&reference).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_of_cosign_3_counts_where_the_policy_does_not_ask_for_a_name() {
    let (signer, stranger) = (Signer::new("P-256"), Signer::new("P-256"));
    let repository = || json!({"type": "matchRepository"});
    let digest_alone = || json!({"type": "matchDigest"});
    for (identity, by, named, says) in [
        (digest_alone(), &signer, None, None),
        (digest_alone(), &stranger, None, Some("not by the key")),
        (repository(), &signer, None, Some("has no name")),
        (repository(), &signer, Some("app"), None),
        (repository(), &signer, Some("other"), Some("has the name")),
    ] {
        let registry = ScriptedRegistry::start().await;
        let node = Node::new(&signed_as(&signer.public(), &identity)).await;
        let name = named.map(|named| format!("{}/{named}", registry.host));
        let bundle = |digest: &Digest| (by.bundle(digest, name.as_deref()), Value::Null);
        let reference = serve_referrer(&registry, true, (BUNDLE, BUNDLE), &bundle);
        match says {
            None => drop(node.pull(&reference).await.unwrap()),
            Some(says) => node.refuses(&reference, says).await,
        }
    }
    // The statement of another image, beside this one.
    let registry = ScriptedRegistry::start().await;
    let node = Node::new(&signed_as(&signer.public(), &digest_alone())).await;
    let other = |_: &Digest| (signer.bundle(&Digest::of(b"other"), None), Value::Null);
    let reference = serve_referrer(&registry, true, (BUNDLE, BUNDLE), &other);
    node.refuses(&reference, "is for another image").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_cannot_be_read_refuses_pulls_before_the_first_request() {
    let registry = ScriptedRegistry::start().await;
    let signer = Signer::new("P-256");
    registry.serve_image("app", "v1", &Parts::artifact(MODULE));
    let reference = format!("{}/app:v1", registry.host);
    let node = Node::new(&accept()).await;
    let path = node.scratch.0.join("policy.json");
    let mode =
        |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o666);
    node.refuses(&reference, "only root can write").await;
    mode(0o644);
    for (policy, says) in [
        (json!([]), "no signature policy"),
        (json!({"default": []}), "no requirements"),
        (
            json!({"default": [{"type": "reject"}]}),
            "rejects this image",
        ),
        (
            json!({"default": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"}]}),
            "GPG",
        ),
        (
            json!({"default": [{"type": "sigstoreSigned", "keyPath": "/no/such/key"}]}),
            "/no/such/key",
        ),
        (
            json!({"default": [{"type": "sigstoreSigned", "keyPath": node.scratch.0}]}),
            "only root can write",
        ),
        (
            json!({"default": [{"type": "sigstoreSigned", "keyData": "aGk="}]}),
            "no PEM section",
        ),
        (
            json!({"default": [{"type": "insecureAcceptAnything"}, {"type": "reject"}]}),
            "rejects this image",
        ),
    ] {
        node.set("policy.json", &policy);
        node.refuses(&reference, says).await;
    }
    std::fs::write(&path, "{").unwrap();
    node.refuses(&reference, "no signature policy").await;
    std::fs::remove_file(&path).unwrap();
    node.refuses(&reference, "is not there").await;
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    node.refuses(&reference, "only root can write").await;
    std::fs::remove_file(&path).unwrap();
    assert!(registry.heads().is_empty(), "{:?}", registry.heads());
    node.set("policy.json", &accept());
    node.pull(&reference).await.unwrap();
    // Another scope than the image's does not count.
    let other = json!({"default": [{"type": "reject"}], "transports": {"docker": {
        "r.example": [{"type": "sigstoreSigned", "keyPath": signer.public()}], registry.host.as_str(): [{"type": "insecureAcceptAnything"}],
    }}});
    node.set("policy.json", &other);
    node.pull(&reference).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_image_is_checked_again_and_stays_when_it_is_refused() {
    let registry = Registry::start().await;
    let signer = Signer::new("P-256");
    let node = Node::new(&accept()).await;
    let name = format!("{}/app", registry.host);
    let digest = digest_of(&registry.image("app", "v1", &Parts::artifact(MODULE)).await);
    let image = node.pull(&format!("{name}:v1")).await.unwrap();
    node.set("policy.json", &signed_by(&signer.public()));
    let refused = node.pull(&format!("{name}:v1")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Signature, "{refused}");
    assert_eq!(
        node.images.resolve(&format!("{name}:v1")).unwrap().id,
        image.id
    );
    attach(&registry, "app", &digest, &[signer.simple(&digest, &name)]).await;
    node.pull(&format!("{name}:v1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_lists_of_signatures_are_bounded_and_refuse_the_image() {
    let signer = Signer::new("P-256");
    let payload = b"{}";
    let one = |size: u64, seed: u32| {
        json!({"mediaType": SIMPLE_SIGNING, "digest": Digest::of(payload).as_str(), "size": size,
               "annotations": {"dev.cosignproject.cosign/signature": format!("{seed:08}")}})
    };
    let many: Vec<Value> = (0..1_000).map(|seed| one(2, seed)).collect();
    let mut long = one(2, 1);
    long["annotations"]["dev.cosignproject.cosign/signature"] = json!("a".repeat(9 << 10));
    for (layers, says, most_gets) in [
        (json!(many), "more than 64 signatures", 64),
        (json!([one(1 << 40, 1)]), "bytes in all", 0),
        (json!([one(300 << 10, 1)]), "a signature of more than", 0),
        (json!([one(3, 1)]), "holds", 1),
        (json!([long]), "the text of a signature has more than", 0),
        (
            json!([{"mediaType": SIMPLE_SIGNING, "digest": "sha512:00", "size": 1}]),
            "has no signature",
            0,
        ),
        (json!("text"), "no list of signatures", 0),
    ] {
        let registry = ScriptedRegistry::start().await;
        let node = Node::new(&signed_by(&signer.public())).await;
        let digest = registry.serve_image("app", "v1", &Parts::artifact(MODULE));
        registry.on(
            &format!("/app/blobs/{}", Digest::of(payload)),
            Reply::ok(payload),
        );
        let manifest = json!({"schemaVersion": 2, "layers": layers});
        registry.on(
            &format!("/app/manifests/{}", tag_of(&digest)),
            Reply::manifest(&manifest),
        );
        node.refuses(&format!("{}/app:v1", registry.host), says)
            .await;
        let gets = registry.gets(Digest::of(payload).as_str());
        assert!(gets <= most_gets, "{gets} requests: {says}");
    }
    // Referrers without end, and each of them another one.
    let registry = ScriptedRegistry::start().await;
    let node = Node::new(&signed_by(&signer.public())).await;
    let digest = registry.serve_image("app", "v1", &Parts::artifact(MODULE));
    let entry = |seed: u32| json!({"digest": Digest::of(&seed.to_le_bytes()).as_str(), "artifactType": BUNDLE});
    let index = json!({"manifests": (0..1_000).map(entry).collect::<Vec<_>>()});
    let list = index.to_string().into_bytes();
    registry.on(
        &format!("/app/referrers/{digest}"),
        Reply::Full(200, is_index(), list),
    );
    node.refuses(
        &format!("{}/app:v1", registry.host),
        "more than 32 referrers",
    )
    .await;
    assert!(
        registry.heads().len() < 64,
        "{} requests",
        registry.heads().len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_documents_of_signatures_end_at_their_limit() {
    let signer = Signer::new("P-256");
    for place in ["tag", "referrers"] {
        let registry = ScriptedRegistry::start().await;
        let node = Node::new(&signed_by(&signer.public())).await;
        let digest = registry.serve_image("app", "v1", &Parts::artifact(MODULE));
        let path = match place {
            "tag" => format!("/app/manifests/{}", tag_of(&digest)),
            _ => format!("/app/referrers/{digest}"),
        };
        registry.on(&path, Reply::Endless(200, is_index()));
        node.refuses(&format!("{}/app:v1", registry.host), "max_manifest_bytes")
            .await;
        assert!(
            registry.sent() < 32 << 20,
            "{} bytes were taken",
            registry.sent()
        );
    }
}

/// The kubelet tries again what it takes for a registry that is away, and says so to people.
#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_fails_to_deliver_signatures_is_unavailable_and_not_distrusted() {
    let signer = Signer::new("P-256");
    let registry = ScriptedRegistry::start().await;
    let node = Node::new(&signed_by(&signer.public())).await;
    let digest = registry.serve_image("app", "v1", &Parts::artifact(MODULE));
    for (path, reply) in [
        (
            format!("/app/manifests/{}", tag_of(&digest)),
            Reply::Full(500, vec![], vec![]),
        ),
        (
            format!("/app/referrers/{digest}"),
            Reply::Dies(is_index(), vec![b' '; 1000], 10),
        ),
    ] {
        registry.on(&path, reply);
        let failed = node
            .pull(&format!("{}/app:v1", registry.host))
            .await
            .unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::RegistryUnavailable, "{failed}");
        registry.on(&path, Reply::Full(404, vec![], vec![]));
    }
    assert!(node.images.list().is_empty());
    node.refuses(&format!("{}/app:v1", registry.host), "has no signature")
        .await;
}
