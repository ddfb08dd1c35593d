//! Registries behind a proxy: what goes through it, what it cannot be made to do, and what a failure says.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use coracle_images::{Digest, ErrorKind, Images, ImagesConfig, Proxies};

use super::pull;
use crate::support::http_proxy::HttpProxy;
use crate::support::tls::{Certificates, TlsFront};
use crate::support::{MODULE, Parts, Reply, Scratch, ScriptedRegistry, Unpackers, closed_port};

const IMAGE: &str = "registry.invalid/app:v1";
/// `me:canary`.
const PASSWORD: &str = "Basic bWU6Y2FuYXJ5";

/// A registry for `registry.invalid`, over TLS and in plain, which no resolver knows: only a proxy leads there.
struct Site {
    registry: ScriptedRegistry,
    other: ScriptedRegistry,
    front: TlsFront,
    scratch: Scratch,
}

impl Site {
    async fn new() -> Self {
        let (registry, other) = (
            ScriptedRegistry::start().await,
            ScriptedRegistry::start().await,
        );
        let scratch = Scratch::new();
        let hosts = scratch.0.join("certs.d/registry.invalid");
        std::fs::create_dir_all(&hosts).unwrap();
        let certificates = Certificates::new(&hosts);
        std::fs::write(hosts.join("hosts.toml"), "ca = \"ca.pem\"\n").unwrap();
        let front = TlsFront::start(&certificates, false, &registry.host).await;
        registry.serve_image("app", "v1", &Parts::artifact(MODULE));
        Self {
            registry,
            other,
            front,
            scratch,
        }
    }

    /// A store with this proxy; registries are in plain if `plain`.
    async fn images(&self, proxy: &str, no_proxy: &[&str], plain: bool) -> Images {
        let no_proxy: Vec<String> = no_proxy.iter().map(|&entry| entry.to_owned()).collect();
        let proxies = Proxies::new(proxy, &no_proxy).unwrap();
        open(&self.scratch.0, proxies, plain).await
    }
}

async fn open(scratch: &Path, proxies: Proxies, plain: bool) -> Images {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let root = scratch.join(format!("root-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
    std::fs::create_dir(&root).unwrap();
    let mut config = ImagesConfig::new(root);
    config.pull_idle_timeout = Duration::from_secs(60);
    config.registry_config = Some(scratch.join("certs.d"));
    config.proxies = proxies;
    if plain {
        config.plain_http = vec!["registry.invalid".to_owned()];
    }
    Images::open(config, Arc::new(Unpackers)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn https_goes_through_a_tunnel_and_http_by_whole_urls_with_the_proxys_password() {
    let site = Site::new().await;
    for (plain, to, begins) in [
        (
            false,
            &site.front.host,
            "CONNECT registry.invalid:443 HTTP/1.1",
        ),
        (true, &site.registry.host, "GET http://registry.invalid/v2/"),
    ] {
        let proxy = HttpProxy::start(&[("registry.invalid", to)], Some(PASSWORD)).await;
        let url = format!("http://me:canary@{}", proxy.host);
        let images = site.images(&url, &[], plain).await;
        pull(&images, IMAGE).await.unwrap();
        let heads = proxy.heads();
        assert!(
            heads.iter().all(|head| head.starts_with(begins)),
            "{heads:?}"
        );
        let shown = site.registry.heads().concat().to_lowercase();
        assert!(
            shown.contains("/blobs/") && !shown.contains("proxy-"),
            "{shown}"
        );
        site.registry.forget();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn loopback_and_what_no_proxy_lists_are_reached_without() {
    let site = Site::new().await;
    let proxy = HttpProxy::start(&[], None).await;
    let url = format!("http://{}", proxy.host);
    let images = site.images(&url, &["registry.invalid:443"], false).await;
    let near = pull(&images, &format!("{}/app:v1", site.registry.host)).await;
    near.unwrap();
    let far = pull(&images, IMAGE).await.unwrap_err().to_string();
    assert!(
        far.contains("registry.invalid cannot be reached: the name does not resolve"),
        "{far}"
    );
    assert_eq!(proxy.heads(), Vec::<String>::new());
    // The same name at another port is not listed.
    let images = site.images(&url, &["registry.invalid:5000"], false).await;
    pull(&images, IMAGE).await.unwrap_err();
    assert!(!proxy.heads().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_of_hosts_toml_has_a_proxy_of_its_own() {
    let site = Site::new().await;
    let proxy = HttpProxy::start(&[("registry.invalid", &site.front.host)], None).await;
    let text = format!("ca = \"ca.pem\"\nproxy = \"http://{}\"\n", proxy.host);
    std::fs::write(
        site.scratch.0.join("certs.d/registry.invalid/hosts.toml"),
        text,
    )
    .unwrap();
    // Whatever holds for others.
    let nobody = format!("http://127.0.0.1:{}", closed_port());
    for proxies in [
        Proxies::default(),
        Proxies::new(&nobody, &["*".to_owned()]).unwrap(),
    ] {
        let images = open(&site.scratch.0, proxies, false).await;
        pull(&images, IMAGE).await.unwrap();
    }
    assert!(!proxy.heads().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_through_a_proxy_reaches_only_hosts_that_prove_their_name() {
    let site = Site::new().await;
    let routes = [
        ("registry.invalid", site.front.host.as_str()),
        ("cdn.invalid", &site.front.host),
        // What a name that the proxy resolves may lead to: a service in plain, and one with a certificate for others.
        ("metadata.invalid", &site.other.host),
        ("internal.invalid", &site.front.host),
    ];
    let proxy = HttpProxy::start(&routes, None).await;
    let images = site
        .images(&format!("http://{}", proxy.host), &[], false)
        .await;
    let blob = format!("/app/blobs/{}", Digest::of(MODULE));
    site.registry.on("/elsewhere", Reply::ok(MODULE));
    for step in ["/app/manifests/v1", &blob] {
        for (url, text) in [
            (
                "https://metadata.invalid/x",
                "does not answer through the proxy",
            ),
            (
                "https://internal.invalid/v2/elsewhere",
                "does not answer through the proxy",
            ),
            ("http://metadata.invalid/x", "scheme"),
            ("https://169.254.169.254/x", "link-local"),
            ("https://[::ffff:127.0.0.1]/x", "loopback"),
            ("https://127.0.0.1/x", "loopback"),
            ("https://localhost/x", "loopback"),
        ] {
            site.registry.on(step, Reply::status(307, "Location", url));
            let refused = pull(&images, IMAGE).await.unwrap_err().to_string();
            assert!(refused.contains(text), "{url}: {refused}");
        }
        site.registry
            .serve_image("app", "v1", &Parts::artifact(MODULE));
    }
    assert_eq!(site.other.heads(), Vec::<String>::new());
    assert_eq!(site.registry.requests("/elsewhere"), 0);
    let target = "https://cdn.invalid/v2/elsewhere";
    site.registry
        .on(&blob, Reply::status(307, "Location", target));
    pull(&images, IMAGE).await.unwrap();
    assert_eq!(site.registry.requests("/elsewhere"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_in_plain_leads_nowhere_else_in_plain_through_a_proxy() {
    let site = Site::new().await;
    let routes = [
        ("registry.invalid", site.registry.host.as_str()),
        ("metadata.invalid", &site.other.host),
    ];
    let proxy = HttpProxy::start(&routes, None).await;
    let url = format!("http://{}", proxy.host);
    let images = site.images(&url, &["near.invalid"], true).await;
    let realm = |url: &str| {
        let field = format!("Bearer realm=\"{url}\"");
        Reply::status(401, "WWW-Authenticate", &field)
    };
    for (target, text) in [
        ("http://metadata.invalid/x", "plain http"),
        (&format!("http://{}/x", proxy.host), "loopback"),
        ("http://near.invalid/x", "does not answer"),
    ] {
        for is_realm in [true, false] {
            let redirect = Reply::status(307, "Location", target);
            match is_realm {
                true => site.registry.on("/", realm(target)),
                false => site.registry.on("/app/manifests/v1", redirect),
            }
            let refused = pull(&images, IMAGE).await.unwrap_err().to_string();
            assert!(refused.contains(text), "{target}: {refused}");
            site.registry.on("/", Reply::ok(b"{}"));
        }
        site.registry
            .serve_image("app", "v1", &Parts::artifact(MODULE));
    }
    assert_eq!(site.other.heads(), Vec::<String>::new());
    let seen = proxy.heads().concat();
    assert!(
        !seen.contains("metadata") && !seen.contains("near"),
        "{seen}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_names_the_proxy_and_what_it_did() {
    let site = Site::new().await;
    let nobody = format!("127.0.0.1:{}", closed_port());
    let closed = HttpProxy::start(&[], None).await;
    let wary = HttpProxy::start(
        &[("registry.invalid", &site.registry.host)],
        Some("another"),
    )
    .await;
    let absent = "proxy.invalid:3128".to_owned();
    for (proxy, plain, text) in [
        (&nobody, false, "cannot be reached: Connection refused"),
        (&nobody, true, "cannot be reached: Connection refused"),
        (
            &closed.host,
            false,
            "the proxy refuses or fails to connect to it",
        ),
        (&closed.host, true, "it answers 502"),
        (
            &wary.host,
            false,
            "the proxy requires another user and password (407)",
        ),
        (
            &wary.host,
            true,
            "the proxy requires another user and password (407)",
        ),
        (&absent, false, "the name does not resolve"),
    ] {
        let images = site
            .images(&format!("http://me:canary@{proxy}"), &[], plain)
            .await;
        let error = pull(&images, IMAGE).await.unwrap_err();
        let named = format!("registry.invalid (through the proxy http://{proxy})");
        let message = error.to_string();
        assert!(
            message.contains(&named) && message.contains(text),
            "{message}"
        );
        assert!(!message.contains("canary"), "{message}");
        assert_eq!(error.kind(), ErrorKind::RegistryUnavailable, "{message}");
    }
}
