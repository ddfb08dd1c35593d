//! Stored content is not given to every pull that names its digest: the repository of the pull must prove that it has the
//! content, by sending its bytes.
#![allow(clippy::unwrap_used, reason = "a test panics to fail")]

mod support;

use std::path::Path;

use coracle_images::{Credentials, Digest, Error, ErrorKind, Images, ImagesConfig, PullRequest};
use serde_json::json;
use support::{MODULE, Parts, Reply, Scratch, ScriptedRegistry, TAR, tar};

async fn open(root: &Path) -> Images {
    let mut config = ImagesConfig::new(root);
    config.registry_config = Some(root.join("hosts"));
    config.plain_http = vec!["bank.invalid".to_owned()];
    Images::open(config, std::sync::Arc::new(support::Unpackers))
        .await
        .unwrap()
}

async fn pull(images: &Images, reference: &str) -> Result<Digest, Error> {
    let pulled = images.pull(PullRequest::new(reference)).await;
    pulled.map(|image| image.id.digest().clone())
}

/// Private images of both sorts, with what is private in them.
fn private() -> Vec<(&'static str, Parts, Vec<u8>)> {
    let archive = tar(&[("a.wasm", MODULE), ("secret", b"of the bank")]);
    let layers = Parts::archives("wasi", "wasm", json!({}), &[(TAR, archive.clone())]);
    let module = [MODULE, b"of the bank"].concat();
    vec![
        ("layer", layers, archive),
        ("module", Parts::artifact(&module), module),
    ]
}

/// Serves the manifest and the config of an image, and says of the rest that it is there without having it.
fn pretend(liar: &ScriptedRegistry, repository: &str, parts: &Parts, secret: &[u8]) {
    liar.serve_image(repository, "v1", parts);
    let path = format!("/{repository}/blobs/{}", Digest::of(secret));
    liar.on(&path, Reply::Full(404, vec![], b"{}".to_vec()));
    let length = vec![("Content-Type", "application/octet-stream".to_owned())];
    liar.on_head(&path, Reply::Full(200, length, secret.to_vec()));
}

#[tokio::test(flavor = "multi_thread")]
async fn naming_a_digest_is_no_proof() {
    for (what, parts, secret) in private() {
        for is_same_host in [true, false] {
            let (bank, evil, scratch) = (
                ScriptedRegistry::start().await,
                ScriptedRegistry::start().await,
                Scratch::new(),
            );
            let mut images = open(&scratch.0).await;
            bank.serve_image("bank/app", "v1", &parts);
            let own = pull(&images, &format!("{}/bank/app:v1", bank.host))
                .await
                .unwrap();
            let registry = if is_same_host { &bank } else { &evil };
            pretend(registry, "tenant-b/x", &parts, &secret);
            let theirs = format!("{}/tenant-b/x:v1", registry.host);
            for _ in 0..2 {
                let error = pull(&images, &theirs).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Missing, "{what}: {error}");
                assert!(images.resolve(&theirs).is_none(), "{what}");
                drop(images);
                images = open(&scratch.0).await;
            }
            // One that has the bytes gets them used, and is the same image.
            registry.serve_image("tenant-b/x", "v1", &parts);
            let path = format!("/tenant-b/x/blobs/{}", Digest::of(&secret));
            registry.on_head(&path, Reply::ok(&secret));
            assert_eq!(pull(&images, &theirs).await.unwrap(), own, "{what}");
            assert_eq!(registry.gets(&path), 3, "{what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_proves_nothing_for_anybody_else() {
    for (what, parts, secret) in private() {
        let (bank, mirror, scratch) = (
            ScriptedRegistry::start().await,
            ScriptedRegistry::start().await,
            Scratch::new(),
        );
        let images = open(&scratch.0).await;
        bank.serve_image("bank/app", "v1", &parts);
        pull(&images, &format!("{}/bank/app:v1", bank.host))
            .await
            .unwrap();
        let hosts = scratch.0.join("hosts/bank.invalid");
        std::fs::create_dir_all(&hosts).unwrap();
        let text = format!(
            "server = \"http://{}\"\n[host.\"http://{}\"]\n",
            bank.host, mirror.host
        );
        std::fs::write(hosts.join("hosts.toml"), text).unwrap();
        pretend(&mirror, "tenant-b/x", &parts, &secret);
        // The mirror is asked with the registry's name.
        for end in ["manifests/v1", &format!("blobs/{}", Digest::of(&secret))] {
            mirror.alias(
                &format!("/tenant-b/x/{end}"),
                &format!("/tenant-b/x/{end}?ns=bank.invalid"),
            );
        }
        let config = Digest::of(&parts.config.1);
        mirror.alias(
            &format!("/tenant-b/x/blobs/{config}"),
            &format!("/tenant-b/x/blobs/{config}?ns=bank.invalid"),
        );
        let error = pull(&images, "bank.invalid/tenant-b/x:v1")
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Missing, "{what}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proven_repository_is_only_checked_again() {
    for (what, parts, secret) in private() {
        let (bank, scratch) = (ScriptedRegistry::start().await, Scratch::new());
        bank.serve_image("bank/app", "v1", &parts);
        let name = format!("{}/bank/app:v1", bank.host);
        let first = pull(&open(&scratch.0).await, &name).await.unwrap();
        let images = open(&scratch.0).await;
        let blob = format!("/bank/app/blobs/{}", Digest::of(&secret));
        assert_eq!(pull(&images, &name).await.unwrap(), first, "{what}");
        assert_eq!(bank.gets(&blob), 1, "{what}: transferred once");
        for status in [401, 403] {
            let refused = Reply::Full(status, vec![], b"{}".to_vec());
            bank.on_head(&blob, refused.clone());
            bank.on(&blob, refused);
            let error = pull(&images, &name).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unauthorized, "{what}: {error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_token_goes_to_the_realm_and_nowhere_else() {
    let registry = ScriptedRegistry::start().await;
    registry.serve_image("app", "v1", &Parts::artifact(MODULE));
    let realm = format!(
        "Bearer realm=\"http://{}/v2/token\",service=\"s\"",
        registry.host
    );
    registry.on(
        "/",
        Reply::Full(401, vec![("WWW-Authenticate", realm)], vec![]),
    );
    registry.on("/token", Reply::ok(br#"{"access_token": "given"}"#));
    let scratch = Scratch::new();
    let images = open(&scratch.0).await;
    let request = || PullRequest {
        auth: Some(Credentials::Identity("canary&x".into())),
        ..PullRequest::new(format!("{}/app:v1", registry.host))
    };
    images.pull(request()).await.unwrap();
    let (with, without): (Vec<String>, Vec<String>) = registry
        .heads()
        .into_iter()
        .partition(|head| head.contains("canary"));
    assert!(
        with.len() == 1 && with[0].starts_with("POST /v2/token "),
        "{with:?}"
    );
    for part in [
        "grant_type=refresh_token",
        "refresh_token=canary%26x",
        "service=s",
        "scope=repository%3Aapp%3Apull",
    ] {
        assert!(with[0].contains(part), "{} has no {part}", with[0]);
    }
    assert!(without.iter().skip(1).all(|head| {
        head.to_ascii_lowercase()
            .contains("authorization: bearer given")
    }));
    // A realm that leads on does not get it sent there.
    registry.forget();
    let there = vec![("Location", format!("http://{}/v2/elsewhere", registry.host))];
    registry.on("/token", Reply::Full(307, there, vec![]));
    let refused = images.pull(request()).await.unwrap_err().to_string();
    assert!(
        refused.contains("redirects") && !refused.contains("canary"),
        "{refused}"
    );
    assert!(
        registry
            .heads()
            .iter()
            .all(|head| !head.contains("elsewhere") || !head.starts_with("POST /v2/elsewhere"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_credentials_serve_pulls_that_bring_none_and_are_read_each_time() {
    let registry = ScriptedRegistry::start().await;
    registry.serve_image("app", "v1", &Parts::artifact(MODULE));
    let challenge = vec![("WWW-Authenticate", "Basic".to_owned())];
    registry.on("/", Reply::Full(401, challenge, vec![]));
    let scratch = Scratch::new();
    let path = scratch.0.join("auth.json");
    let mut config = ImagesConfig::new(&scratch.0);
    config.auth_file = Some(path.clone());
    let images = Images::open(config, std::sync::Arc::new(support::Unpackers))
        .await
        .unwrap();
    let login = |password: &str| {
        let text = json!({"auths": {&registry.host: {"username": "node", "password": password}}});
        std::fs::write(&path, text.to_string()).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&path, mode).unwrap();
    };
    let reference = format!("{}/app:v1", registry.host);
    let sent = || {
        let heads = registry
            .heads()
            .into_iter()
            .filter(|head| head.contains("manifests"));
        let fields = heads.filter_map(|head| {
            let head = head.to_ascii_lowercase();
            Some(
                head.split_once("authorization: basic ")?
                    .1
                    .lines()
                    .next()?
                    .to_owned(),
            )
        });
        fields.collect::<Vec<_>>()
    };
    pull(&images, &reference).await.unwrap();
    assert_eq!(sent(), [""; 0], "there is no file yet");
    // `node:one`, `node:two` and `pod:own` in base64, in lower case.
    for (password, expected) in [("one", "bm9kztpvbmu="), ("two", "bm9kztp0d28=")] {
        registry.forget();
        login(password);
        pull(&images, &reference).await.unwrap();
        assert_eq!(sent(), [expected]);
    }
    registry.forget();
    let own = Credentials::Basic {
        username: "pod".into(),
        password: "own".into(),
    };
    let request = PullRequest {
        auth: Some(own),
        ..PullRequest::new(reference.as_str())
    };
    images.pull(request).await.unwrap();
    assert_eq!(sent(), ["cg9kom93bg=="], "the kubelet's come first");
}
