//! What a registry cannot make this node do: where it may lead, what it is shown, how much of it is read.
//!
//! A registry that is not on loopback is played by `0.0.0.0`, which connects to this machine all the same.
#![allow(clippy::unwrap_used, reason = "a test panics to fail")]

mod support;

use std::path::Path;
use std::time::Duration;

use coracle_images::{
    Credentials, Digest, Error, ErrorKind, Images, ImagesConfig, Limits, PullRequest,
};
use support::{MODULE, Parts, Reply, Scratch, ScriptedRegistry, closed_port};

const SECRET: &[u8] = br#"{"schemaVersion": "a secret of the node"}"#;

/// A registry, another server, and a store for which the registry is not on loopback.
struct Site {
    liar: ScriptedRegistry,
    other: ScriptedRegistry,
    registry: String,
    images: Images,
    _scratch: Scratch,
}

impl Site {
    async fn new(is_loopback: bool) -> Self {
        let (liar, other, scratch) = (
            ScriptedRegistry::start().await,
            ScriptedRegistry::start().await,
            Scratch::new(),
        );
        let port = liar.host.rsplit_once(':').unwrap().1;
        let registry = match is_loopback {
            true => liar.host.clone(),
            false => format!("0.0.0.0:{port}"),
        };
        let images = open(&scratch.0, vec![registry.clone()]).await;
        liar.serve_image("app", "v1", &Parts::artifact(MODULE));
        Self {
            liar,
            other,
            registry,
            images,
            _scratch: scratch,
        }
    }

    async fn pull(&self, auth: bool) -> Result<(), Error> {
        let mut request = PullRequest::new(format!("{}/app:v1", self.registry));
        request.auth = auth.then(|| Credentials::Basic {
            username: "me".into(),
            password: "canary".into(),
        });
        self.images.pull(request).await.map(|_| ())
    }

    /// Makes a step of the pull lead to `url`.
    fn lead(&self, step: &str, url: &str) {
        let redirect = Reply::Full(307, vec![("Location", url.to_owned())], vec![]);
        match step {
            "realm" => self.liar.on("/", challenge(url)),
            "manifest" => self.liar.on("/app/manifests/v1", redirect),
            _ => self.liar.on(&blob(MODULE), redirect),
        }
    }
}

async fn open(root: &Path, plain_http: Vec<String>) -> Images {
    let mut config = ImagesConfig::new(root);
    config.plain_http = plain_http;
    config.pull_idle_timeout = Duration::from_secs(60);
    Images::open(config, std::sync::Arc::new(support::Unpackers))
        .await
        .unwrap()
}

fn blob(bytes: &[u8]) -> String {
    format!("/app/blobs/{}", Digest::of(bytes))
}

fn challenge(realm: &str) -> Reply {
    let field = format!("Bearer realm=\"{realm}\",service=\"s\"");
    Reply::Full(401, vec![("WWW-Authenticate", field)], b"{}".to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_leads_to_loopback_link_local_or_another_scheme() {
    for step in ["realm", "manifest", "blob"] {
        let site = Site::new(false).await;
        let port = site.other.host.rsplit_once(':').unwrap().1;
        for url in [
            format!("http://127.0.0.1:{port}/v2/x"),
            format!("http://localhost:{port}/v2/x"),
            format!("http://2130706433:{port}/v2/x"),
            format!("http://[::1]:{port}/v2/x"),
            format!("http://[::ffff:127.0.0.1]:{port}/v2/x"),
            format!("http://0.0.0.0:{port}/v2/x"),
            "http://169.254.169.254/latest/meta-data".to_owned(),
            "http://[fe80::1]/".to_owned(),
            "http://100.100.100.200/".to_owned(),
            format!("ftp://127.0.0.1:{port}/x"),
            "file:///etc/hostname".to_owned(),
            "unix:///run/x".to_owned(),
        ] {
            site.lead(step, &url);
            let refused = site.pull(true).await.unwrap_err();
            assert_eq!(
                refused.kind(),
                ErrorKind::Invalid,
                "{step} {url}: {refused}"
            );
        }
        assert_eq!(site.other.heads(), Vec::<String>::new(), "{step}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_reference_reaches_no_metadata_service() {
    let site = Site::new(true).await;
    for host in ["169.254.169.254", "100.100.100.200:80", "[fe80::1]:80"] {
        let refused = site
            .images
            .pull(PullRequest::new(format!("{host}/app:v1")))
            .await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Invalid, "{host}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_followed_without_credentials_and_not_for_ever() {
    let site = Site::new(true).await;
    let token = format!("http://{}/v2/token", site.liar.host);
    site.liar.on("/", challenge(&token));
    let scope = "/token?scope=repository%3Aapp%3Apull&service=s";
    site.liar
        .on(scope, Reply::ok(br#"{"access_token": "canary-token"}"#));
    site.other.on("/elsewhere", Reply::ok(MODULE));
    site.lead("blob", &format!("http://{}/v2/elsewhere", site.other.host));
    site.pull(true).await.unwrap();
    let shown = site.other.heads().concat().to_lowercase();
    assert!(shown.contains("get /v2/elsewhere"), "{shown}");
    assert!(
        !shown.contains("authorization") && !shown.contains("canary"),
        "{shown}"
    );
    let own = site.liar.heads().concat();
    assert!(
        own.contains("canary-token"),
        "the registry itself is shown its token"
    );

    let site = Site::new(true).await;
    site.lead("manifest", "/v2/app/manifests/v1");
    let refused = site.pull(false).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
    assert_eq!(site.liar.gets("/manifests/v1"), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_error_shows_what_a_redirect_has_fetched() {
    for step in ["manifest", "blob"] {
        let site = Site::new(true).await;
        site.other.on("/secret", Reply::ok(SECRET));
        site.lead(step, &format!("http://{}/v2/secret", site.other.host));
        let error = site.pull(false).await.unwrap_err();
        // Ports are numbers, too: they are not what was fetched.
        let message = format!("{error} {error:?}")
            .replace(&site.registry, "REGISTRY")
            .replace(&site.liar.host, "LIAR")
            .replace(&site.other.host, "OTHER");
        for secret in [
            Digest::of(SECRET).hex(),
            "a secret",
            &SECRET.len().to_string(),
        ] {
            assert!(!message.contains(secret), "{step}: {message}");
        }
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{step}: {message}");
    }
}

/// What the kernel holds of a connection on its way.
const BUFFERS: usize = 12 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn header_fields_without_an_end_are_given_up() {
    let manifest = "/app/manifests/v1".to_owned();
    for path in ["/".to_owned(), manifest, blob(MODULE)] {
        let site = Site::new(true).await;
        site.liar.on(&path, Reply::EndlessHead);
        let failed = site.pull(false).await.unwrap_err();
        let kind = failed.kind();
        assert_eq!(kind, ErrorKind::RegistryUnavailable, "{path}: {failed}");
        // Three attempts at most.
        let sent = site.liar.sent();
        assert!(sent < 3 * BUFFERS, "{path}: {sent} bytes were taken");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_whole_is_bounded_before_it_is_read() {
    const ALLOWED: u64 = 100 << 10;
    let scope = "/token?scope=repository%3Aapp%3Apull&service=s";
    for (what, path, status) in [
        ("manifest", "/app/manifests/v1", 200),
        ("error", "/app/manifests/v1", 500),
        ("token", scope, 200),
        ("refused token", scope, 403),
        ("challenge", "/", 200),
    ] {
        let (liar, scratch) = (ScriptedRegistry::start().await, Scratch::new());
        let limits = Limits {
            max_manifest_bytes: ALLOWED,
            ..Limits::default()
        };
        let mut config = ImagesConfig::new(&scratch.0);
        (config.limits, config.pull_idle_timeout) = (limits, Duration::from_secs(60));
        let images = Images::open(config, std::sync::Arc::new(support::Unpackers))
            .await
            .unwrap();
        liar.serve_image("app", "v1", &Parts::artifact(MODULE));
        if path == scope {
            let realm = format!("http://{}/v2/token", liar.host);
            liar.on("/", challenge(&realm));
        }
        liar.on(path, Reply::Endless(status, vec![]));
        let pulled = images
            .pull(PullRequest::new(format!("{}/app:v1", liar.host)))
            .await;
        assert_eq!(pulled.is_ok(), what == "challenge", "{what}: {pulled:?}");
        // Three attempts at most.
        assert!(
            liar.sent() < 3 * BUFFERS,
            "{what}: {} bytes were taken",
            liar.sent()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_not_there_is_said_to_be_so() {
    let scratch = Scratch::new();
    let images = open(&scratch.0, vec![]).await;
    let host = format!("127.0.0.1:{}", closed_port());
    let error = images
        .pull(PullRequest::new(format!("{host}/app:v1")))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RegistryUnavailable);
    let wanted = format!("{host} cannot be reached: Connection refused");
    assert!(error.to_string().contains(&wanted), "{error}");
    let error = images
        .pull(PullRequest::new("nowhere.invalid/app:v1"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RegistryUnavailable);
    assert!(
        error
            .to_string()
            .contains("nowhere.invalid cannot be reached: the name does not resolve"),
        "{error}"
    );
}
