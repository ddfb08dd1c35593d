//! What a failed pull says, which failures are repeated, and after how long.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_images::{Credentials, Digest, Error, ErrorKind, Images, ImagesConfig, PullRequest};

use super::pull;
use crate::support::tls::{Certificates, TlsFront};
use crate::support::{
    MODULE, Parts, Reply, Scratch, ScriptedRegistry, Unpackers, closed_port, noise,
};

const MANIFEST: &str = "/app/manifests/v1";
const MIB: usize = 1 << 20;

/// Longer than any answer takes that comes, on however slow a machine.
const LONG: Duration = Duration::from_secs(60);

async fn open(scratch: &Scratch, idle_timeout: Duration) -> Images {
    let mut config = ImagesConfig::new(scratch.0.join("root"));
    std::fs::create_dir(&config.root).unwrap();
    config.registry_config = Some(scratch.0.join("certs.d"));
    config.pull_idle_timeout = idle_timeout;
    Images::open(config, Arc::new(Unpackers)).await.unwrap()
}

/// A registry with one artifact, and a store.
async fn site(module: &[u8]) -> (ScriptedRegistry, Images, Scratch) {
    site_that_gives_up(module, LONG).await
}

/// The same, for a host that says nothing for so long.
async fn site_that_gives_up(
    module: &[u8],
    idle_timeout: Duration,
) -> (ScriptedRegistry, Images, Scratch) {
    let (registry, scratch) = (ScriptedRegistry::start().await, Scratch::new());
    registry.serve_image("app", "v1", &Parts::artifact(module));
    let images = open(&scratch, idle_timeout).await;
    (registry, images, scratch)
}

async fn failed(images: &Images, reference: &str, auth: bool) -> Error {
    let mut request = PullRequest::new(reference);
    request.auth = auth.then(|| Credentials::Basic {
        username: "me".into(),
        password: "canary".into(),
    });
    let error = images.pull(request).await.unwrap_err();
    assert!(error.to_string().contains(reference), "{error}");
    assert!(!format!("{error} {error:?}").contains("canary"), "{error}");
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn each_answer_of_a_registry_has_a_message_of_its_own() {
    use ErrorKind::{Invalid, Missing, RegistryUnavailable, Unauthorized};
    let anonymous = "refuses to give manifest app:v1 to an anonymous client";
    let named = "refuses to give manifest app:v1 to the given credentials";
    for (reply, auth, kind, text, requests) in [
        (
            Reply::status(401, "X", "x"),
            false,
            Unauthorized,
            anonymous,
            1,
        ),
        (Reply::status(401, "X", "x"), true, Unauthorized, named, 1),
        (Reply::status(403, "X", "x"), true, Unauthorized, named, 1),
        (
            Reply::status(404, "X", "x"),
            false,
            Missing,
            "has no manifest app:v1",
            1,
        ),
        (
            Reply::status(429, "X", "x"),
            false,
            RegistryUnavailable,
            "it answers 429",
            3,
        ),
        (
            Reply::status(429, "Retry-After", "3600"),
            false,
            RegistryUnavailable,
            "it answers 429, to be tried again after 3600 s",
            1,
        ),
        (
            Reply::status(400, "X", "x"),
            false,
            RegistryUnavailable,
            "it answers 400",
            1,
        ),
        (
            Reply::status(500, "X", "x"),
            false,
            RegistryUnavailable,
            "it answers 500",
            3,
        ),
        (
            Reply::status(503, "X", "x"),
            false,
            RegistryUnavailable,
            "it answers 503",
            3,
        ),
        (
            Reply::Stalls(b"{\"schemaVersion\"".to_vec(), 3),
            false,
            RegistryUnavailable,
            "sent nothing of manifest app:v1 for 1s",
            1,
        ),
        (
            Reply::Dies(vec![], b"{}".to_vec(), 1),
            false,
            RegistryUnavailable,
            "it broke off",
            3,
        ),
        (
            Reply::status(302, "X", "x"),
            false,
            Invalid,
            "it redirects to nowhere",
            1,
        ),
        (Reply::ok(b"no JSON"), false, Invalid, "manifest", 1),
    ] {
        let stalls = matches!(reply, Reply::Stalls(..));
        let idle_timeout = if stalls { Duration::from_secs(1) } else { LONG };
        let (registry, images, _scratch) = site_that_gives_up(MODULE, idle_timeout).await;
        registry.on(MANIFEST, reply);
        let error = failed(&images, &format!("{}/app:v1", registry.host), auth).await;
        assert!(error.to_string().contains(text), "{text}: {error}");
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(registry.requests(MANIFEST), requests, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_realm_that_fails_is_told_from_one_that_refuses() {
    use ErrorKind::{RegistryUnavailable, Unauthorized};
    for (reply, kind, text) in [
        (
            Reply::status(401, "X", "x"),
            Unauthorized,
            "refuses to give a token for app to the given credentials",
        ),
        (
            Reply::status(400, "X", "x"),
            Unauthorized,
            "refuses to give a token",
        ),
        (
            Reply::status(503, "X", "x"),
            RegistryUnavailable,
            "did not deliver a token for app: it answers 503",
        ),
        (
            Reply::ok(b"{}"),
            RegistryUnavailable,
            "its realm answers without a token",
        ),
    ] {
        let (registry, images, _scratch) = site(MODULE).await;
        let realm = format!("Bearer realm=\"http://{}/v2/token\"", registry.host);
        registry.on("/", Reply::status(401, "WWW-Authenticate", &realm));
        registry.on("/token", reply);
        let error = failed(&images, &format!("{}/app:v1", registry.host), true).await;
        assert!(error.to_string().contains(text), "{text}: {error}");
        assert_eq!(error.kind(), kind, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_without_a_connection_is_told_apart_by_its_cause() {
    let (registry, images, scratch) = site(MODULE).await;
    let hosts = scratch.0.join("certs.d/tls.invalid");
    std::fs::create_dir_all(&hosts).unwrap();
    let certificates = Certificates::new(&hosts);
    let front = TlsFront::start(&certificates, false, &registry.host).await;
    let wants_client = TlsFront::start(&certificates, true, &registry.host).await;
    let nobody = format!("127.0.0.1:{}", closed_port());
    let ends_early = TlsFront::start(&certificates, false, &nobody).await;
    let trusts = "ca = \"ca.pem\"";
    for (server, setting, text) in [
        (
            format!("http://{nobody}"),
            "",
            "cannot be reached: Connection refused",
        ),
        (
            format!("https://{nobody}"),
            "",
            "cannot be reached: Connection refused",
        ),
        (
            "https://nowhere.invalid".into(),
            "",
            "cannot be reached: the name does not resolve",
        ),
        (
            format!("https://{}", front.host),
            "",
            "is not trusted: invalid peer certificate: UnknownIssuer",
        ),
        (
            format!("https://localhost:{}", front.port()),
            trusts,
            "is not trusted: invalid peer certificate: ",
        ),
        (
            format!("https://{}", registry.host),
            trusts,
            "it does not speak TLS",
        ),
        (
            format!("https://{}", wants_client.host),
            trusts,
            "`client` in its hosts.toml names",
        ),
        (
            format!("https://{}", ends_early.host),
            trusts,
            "it ends the connection before it answers",
        ),
    ] {
        let text_of_file = format!("server = \"{server}\"\n{setting}\n");
        std::fs::write(hosts.join("hosts.toml"), text_of_file).unwrap();
        let error = failed(&images, "tls.invalid/app:v1", false).await;
        assert!(error.to_string().contains(text), "{text}: {error}");
        assert!(!error.to_string().contains("token"), "{error}");
        assert_eq!(error.kind(), ErrorKind::RegistryUnavailable, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_asks_for_a_pause_gets_it_for_every_kind_of_request() {
    let (registry, images, _scratch) = site(MODULE).await;
    let busy = || Reply::status(503, "Retry-After", "1");
    let blob = format!("/app/blobs/{}", Digest::of(MODULE));
    let parts = Parts::artifact(MODULE);
    let config = format!("/app/blobs/{}", Digest::of(&parts.config.1));
    registry.on(&blob, Reply::turns(vec![busy(), Reply::ok(MODULE)]));
    registry.on(
        &config,
        Reply::turns(vec![busy(), Reply::ok(&parts.config.1)]),
    );
    let realm = format!("Bearer realm=\"http://{}/v2/token\"", registry.host);
    registry.on("/", Reply::status(401, "WWW-Authenticate", &realm));
    let token = Reply::ok(br#"{"token": "t"}"#);
    registry.on("/token", Reply::turns(vec![busy(), token]));
    let began = Instant::now();
    pull(&images, &format!("{}/app:v1", registry.host))
        .await
        .unwrap();
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(3), "{took:?}");
    for path in ["/token", &blob, &config] {
        assert_eq!(
            registry.gets(path) + registry.requests(&format!("GET /v2{path}?")),
            2,
            "{path}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expires_in_a_blob_is_renewed_where_the_blob_broke_off() {
    let module = [MODULE, &noise(3, 4 * MIB)].concat();
    let (registry, images, _scratch) = site(&module).await;
    let realm = format!("Bearer realm=\"http://{}/v2/token\"", registry.host);
    registry.on("/", Reply::status(401, "WWW-Authenticate", &realm));
    registry.on("/token", Reply::ok(br#"{"token": "t"}"#));
    let blob = format!("/app/blobs/{}", Digest::of(&module));
    let expired = || Reply::status(401, "X", "x");
    let breaks = || Reply::Breaks(module.clone(), 3 * MIB / 2);
    // Twice: each time it has made progress in between.
    registry.on(
        &blob,
        Reply::turns(vec![breaks(), expired(), breaks(), expired(), breaks()]),
    );
    let reference = format!("{}/app:v1", registry.host);
    pull(&images, &reference).await.unwrap();
    assert_eq!(
        (registry.gets(&blob), registry.requests("/v2/token")),
        (5, 3)
    );
    // A registry that refuses in earnest is asked for one new token.
    images.remove(&reference).await.unwrap();
    registry.forget();
    registry.on(&blob, Reply::turns(vec![breaks(), expired()]));
    let refused = pull(&images, &reference).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unauthorized, "{refused}");
    assert_eq!(registry.requests("/v2/token"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_hosts_the_last_is_repeated_and_the_others_are_not() {
    let (registry, images, scratch) = site(MODULE).await;
    let mirror = ScriptedRegistry::start().await;
    let hosts = scratch.0.join("certs.d/two.invalid");
    std::fs::create_dir_all(&hosts).unwrap();
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n",
        registry.host, mirror.host
    );
    std::fs::write(hosts.join("hosts.toml"), text).unwrap();
    let blob = format!("/app/blobs/{}", Digest::of(MODULE));
    // It has the manifest, and refuses the blob.
    mirror.serve_image("app", "v1", &Parts::artifact(MODULE));
    mirror.on(&blob, Reply::status(404, "X", "x"));
    let busy = Reply::status(503, "X", "x");
    registry.on(&blob, Reply::turns(vec![busy, Reply::ok(MODULE)]));
    pull(&images, "two.invalid/app:v1").await.unwrap();
    assert_eq!(registry.requests(&blob), 2);
}
