//! Every setting of `hosts.toml`, seen by the host that it is about.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_images::{Credentials, Digest, ErrorKind, Images, ImagesConfig, PullRequest};
use rustix::net::{AddressFamily, SocketType, bind, connect, getsockname, listen, socket};

use super::pull;
use crate::support::tls::{Certificates, TlsFront};
use crate::support::{MODULE, Parts, Reply, Scratch, ScriptedRegistry, Unpackers, closed_port};

const IMAGE: &str = "registry.invalid/app:v1";

/// A registry with one image, and a store that reads a `hosts.toml` for `registry.invalid`.
struct Site {
    registry: ScriptedRegistry,
    images: Images,
    scratch: Scratch,
}

impl Site {
    async fn new() -> Self {
        let (registry, scratch) = (ScriptedRegistry::start().await, Scratch::new());
        let hosts = scratch.0.join("certs.d");
        std::fs::create_dir_all(hosts.join("registry.invalid")).unwrap();
        std::fs::create_dir(scratch.0.join("root")).unwrap();
        let mut config = ImagesConfig::new(scratch.0.join("root"));
        config.pull_idle_timeout = Duration::from_secs(60);
        config.registry_config = Some(hosts);
        let images = Images::open(config, Arc::new(Unpackers)).await.unwrap();
        registry.serve_image("app", "v1", &Parts::artifact(MODULE));
        Self {
            registry,
            images,
            scratch,
        }
    }

    /// Pulls with this text as `hosts.toml`, in a store without the image.
    async fn pull(&self, text: &str) -> Result<(), coracle_images::Error> {
        let path = self.scratch.0.join("certs.d/registry.invalid/hosts.toml");
        std::fs::write(path, text).unwrap();
        self.registry.forget();
        let pulled = pull(&self.images, IMAGE).await.map(drop);
        self.images.remove(IMAGE).await.unwrap();
        pulled
    }

    fn certificates(&self) -> Certificates {
        Certificates::new(&self.scratch.0.join("certs.d/registry.invalid"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_may_do_what_its_capabilities_list() {
    let site = Site::new().await;
    let mirror = ScriptedRegistry::start().await;
    mirror.serve_image("app", "v1", &Parts::artifact(MODULE));
    let (own, host) = (&site.registry.host, &mirror.host);
    for (capabilities, tags, blobs) in [
        ("[\"pull\"]", 0, true),
        ("[\"resolve\"]", 1, false),
        ("[\"Pull\", \"RESOLVE\", \"push\"]", 1, true),
        ("[]", 1, true),
    ] {
        mirror.forget();
        let text = format!(
            "server = \"http://{own}\"\n[host.\"http://{host}\"]\ncapabilities = {capabilities}\n"
        );
        site.pull(&text).await.unwrap();
        assert_eq!(mirror.requests("/manifests/v1"), tags, "{capabilities}");
        assert_eq!(mirror.requests("/blobs/") > 0, blobs, "{capabilities}");
        assert_eq!(
            mirror.requests("?ns=registry.invalid"),
            mirror.requests("/app/")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_trusted_by_ca_or_not_looked_at() {
    let site = Site::new().await;
    let certificates = site.certificates();
    let front = TlsFront::start(&certificates, false, &site.registry.host).await;
    let server = format!("server = \"https://{}\"\n", front.host);
    let both = [
        certificates.0.join("other.pem"),
        certificates.0.join("ca.pem"),
    ];
    let both = both.map(|path| std::fs::read(path).unwrap()).concat();
    std::fs::write(certificates.0.join("bundle.pem"), both).unwrap();
    let absolute = format!("ca = \"{}\"", certificates.0.join("ca.pem").display());
    for setting in [
        "ca = \"ca.pem\"",
        "ca = [\"other.pem\", \"ca.pem\"]",
        "ca = \"bundle.pem\"",
        &absolute,
        "skip_verify = true",
    ] {
        let pulled = site.pull(&format!("{server}{setting}\n")).await;
        pulled.unwrap_or_else(|error| panic!("{setting}: {error}"));
    }
    for setting in ["", "ca = \"other.pem\"", "skip_verify = false"] {
        let error = site
            .pull(&format!("{server}{setting}\n"))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RegistryUnavailable, "{error}");
        assert!(
            error
                .to_string()
                .contains("is not trusted: invalid peer certificate"),
            "{error}"
        );
    }
    for (setting, text) in [
        (
            "ca = \"server.key\"",
            "server.key: it has no certificate in PEM",
        ),
        ("ca = \"absent.pem\"", "absent.pem"),
    ] {
        let error = site
            .pull(&format!("{server}{setting}\n"))
            .await
            .unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_presented_to_its_host_alone() {
    let site = Site::new().await;
    let certificates = site.certificates();
    let front = TlsFront::start(&certificates, true, &site.registry.host).await;
    let server = format!("server = \"https://{}\"\nca = \"ca.pem\"\n", front.host);
    for client in [
        "\"both.pem\"",
        "[\"both.pem\"]",
        "[[\"client.pem\", \"client.key\"]]",
        "[[\"both.pem\", \"\"]]",
    ] {
        let pulled = site.pull(&format!("{server}client = {client}\n")).await;
        pulled.unwrap_or_else(|error| panic!("{client}: {error}"));
    }
    let missing = site.pull(&server).await.unwrap_err().to_string();
    assert!(missing.contains("`client` in its hosts.toml"), "{missing}");
    for (client, text) in [
        ("\"client.pem\"", "client.pem: it has no private key in PEM"),
        ("\"client.key\"", "client.key: it has no certificate in PEM"),
        (
            "[\"both.pem\", \"both.pem\"]",
            "hosts.toml:3: it has 2 client certificates",
        ),
        (
            "3",
            "hosts.toml:3: must be a path, a list of paths, or a list of pairs",
        ),
        ("[[\"client.pem\", \"server.key\"]]", "they cannot be used"),
    ] {
        let error = site
            .pull(&format!("{server}client = {client}\n"))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains(text), "{client}: {error}");
    }
    // A redirect to another host that wants one gets none.
    let open = TlsFront::start(&certificates, false, &site.registry.host).await;
    let target = format!("https://{}/v2/elsewhere", front.host);
    site.registry.on("/elsewhere", Reply::ok(MODULE));
    let blob = format!("/app/blobs/{}", Digest::of(MODULE));
    site.registry
        .on(&blob, Reply::status(307, "Location", &target));
    let text = format!(
        "server = \"https://{}\"\nca = \"ca.pem\"\nclient = \"both.pem\"\n",
        open.host
    );
    site.pull(&text).await.unwrap_err();
    assert_eq!(site.registry.requests("/elsewhere"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_a_directory_without_a_file_are_those_of_its_registry() {
    let site = Site::new().await;
    let certificates = site.certificates();
    let front = TlsFront::start(&certificates, true, &site.registry.host).await;
    let dir = site
        .scratch
        .0
        .join(format!("certs.d/0.0.0.0_{}_", front.port()));
    std::fs::create_dir(&dir).unwrap();
    let copy = |from: &str, to: &str| {
        std::fs::copy(certificates.0.join(from), dir.join(to)).unwrap();
    };
    let reference = format!("0.0.0.0:{}/app:v1", front.port());
    copy("ca.pem", "registry.crt");
    copy("client.pem", "node.cert");
    pull(&site.images, &reference).await.unwrap_err();
    copy("client.key", "node.key");
    pull(&site.images, &reference).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificates_for_all_registries_are_trusted_and_never_presented() {
    let site = Site::new().await;
    let certificates = site.certificates();
    let dir = site.scratch.0.join("certs.d/_default");
    std::fs::create_dir(&dir).unwrap();
    for (from, to) in [
        ("ca.pem", "all.crt"),
        ("client.pem", "node.cert"),
        ("client.key", "node.key"),
    ] {
        std::fs::copy(certificates.0.join(from), dir.join(to)).unwrap();
    }
    for (asks, is_pulled) in [(false, true), (true, false)] {
        let front = TlsFront::start(&certificates, asks, &site.registry.host).await;
        let reference = format!("0.0.0.0:{}/app:v1", front.port());
        let pulled = pull(&site.images, &reference).await;
        assert_eq!(pulled.is_ok(), is_pulled, "asks for one: {asks}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_files_that_only_root_can_write_and_keys_that_only_root_can_read() {
    let site = Site::new().await;
    let certificates = site.certificates();
    let front = TlsFront::start(&certificates, true, &site.registry.host).await;
    let text = format!(
        "server = \"https://{}\"\nca = \"ca.pem\"\nclient = [[\"client.pem\", \"client.key\"]]\n",
        front.host
    );
    site.pull(&text).await.unwrap();
    let (write, read) = ("only root can write", "only root can read and write");
    for (name, mode, owner, problem) in [
        ("ca.pem", 0o646, 0, write),
        ("ca.pem", 0o644, 1000, write),
        ("client.pem", 0o666, 0, write),
        ("client.key", 0o644, 0, read),
        ("client.key", 0o600, 1000, read),
    ] {
        let path = certificates.0.join(name);
        let change = |mode, owner| {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            std::os::unix::fs::chown(&path, Some(owner), None).unwrap();
        };
        change(mode, owner);
        let refused = site.pull(&text).await.unwrap_err();
        change(0o600, 0);
        assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
        let says = format!(
            "{name}: it has mode {mode:04o} and owner {owner}:0, must be a file that {problem}"
        );
        assert!(refused.to_string().contains(&says), "{refused}");
    }
    // The group of root may have both.
    let key = certificates.0.join("client.key");
    std::fs::set_permissions(&key, Permissions::from_mode(0o640)).unwrap();
    site.pull(&text).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn header_fields_go_to_their_host_alone_and_yield_to_credentials() {
    let site = Site::new().await;
    let other = ScriptedRegistry::start().await;
    other.on("/elsewhere", Reply::ok(MODULE));
    let blob = format!("/app/blobs/{}", Digest::of(MODULE));
    let target = format!("http://{}/v2/elsewhere", other.host);
    site.registry
        .on(&blob, Reply::status(307, "Location", &target));
    let fields = "[header]\nx-one = \"canary-1\"\nx-two = [\"canary-2\", \"canary-3\"]\nauthorization = \"Basic canary-4\"\naccept = \"canary-5\"\n";
    let text = format!("server = \"http://{}\"\n{fields}", site.registry.host);
    site.pull(&text).await.unwrap();
    let shown = site.registry.heads();
    for head in &shown {
        for field in [
            "x-one: canary-1\r\n",
            "x-two: canary-2\r\n",
            "x-two: canary-3\r\n",
            "authorization: Basic canary-4\r\n",
        ] {
            assert!(head.contains(field), "{field} is not in {head}");
        }
        assert!(
            !head.contains("/manifests/") || !head.contains("canary-5"),
            "{head}"
        );
    }
    let elsewhere = other.heads().concat();
    assert!(
        elsewhere.contains("/elsewhere") && !elsewhere.contains("canary"),
        "{elsewhere}"
    );
    // Credentials of a pull take the place of a configured authorization.
    site.registry.on(
        "/",
        Reply::status(401, "WWW-Authenticate", "Basic realm=\"r\""),
    );
    site.registry.forget();
    let mut request = PullRequest::new(IMAGE);
    request.auth = Some(Credentials::Basic {
        username: "me".into(),
        password: "secret".into(),
    });
    site.images.pull(request).await.unwrap();
    for head in site
        .registry
        .heads()
        .iter()
        .filter(|head| head.contains("/app/"))
    {
        assert_eq!(
            head.to_lowercase().matches("authorization:").count(),
            1,
            "{head}"
        );
        assert!(!head.contains("canary-4"), "{head}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_is_the_root_of_the_api_or_lies_before_it() {
    let site = Site::new().await;
    let digest = Digest::of(MODULE);
    let config = Digest::of(&Parts::artifact(MODULE).config.1);
    let files = [
        "manifests/v1".to_owned(),
        format!("blobs/{digest}"),
        format!("blobs/{config}"),
    ];
    for (path, is_override, root) in [
        ("", false, "/v2"),
        ("/v2", false, "/v2"),
        ("/base", false, "/base/v2"),
        ("/base/v2/", false, "/base/v2"),
        ("/cache", true, "/cache"),
        ("/cache/v2", true, "/cache/v2"),
        ("/v2/cache", true, "/v2/cache"),
        ("", true, ""),
    ] {
        for file in &files {
            let from = format!("/app/{file}");
            site.registry
                .alias_path(&from, &format!("{root}/app/{file}"));
        }
        let text = format!(
            "server = \"http://{}{path}\"\noverride_path = {is_override}\n",
            site.registry.host
        );
        let pulled = site.pull(&text).await;
        pulled.unwrap_or_else(|error| panic!("{path:?} {is_override}: {error}"));
        let blobs = format!("GET {root}/app/blobs/");
        assert!(site.registry.requests(&blobs) > 0, "{path:?} {is_override}");
    }
}

/// How long a host is dialled where its file does not say it.
const DIALLING: Duration = Duration::from_secs(10);

/// A listener whose queue is full: who connects is not answered.
struct Deaf {
    port: u16,
    _held: Vec<rustix::fd::OwnedFd>,
}

impl Deaf {
    fn new() -> Self {
        let make = || socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        let listener = make();
        bind(&listener, &std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        listen(&listener, 0).unwrap();
        let address = std::net::SocketAddr::try_from(getsockname(&listener).unwrap()).unwrap();
        let mut held = vec![listener];
        for _ in 0..4 {
            let client = make();
            rustix::fs::fcntl_setfl(&client, rustix::fs::OFlags::NONBLOCK).unwrap();
            let _ = connect(&client, &address);
            held.push(client);
        }
        Self {
            port: address.port(),
            _held: held,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_does_not_answer_delays_a_pull_by_its_dial_timeout() {
    let site = Site::new().await;
    let deaf = Deaf::new();
    let mirror = format!("[host.\"http://127.0.0.1:{}\"]\n", deaf.port);
    let began = Instant::now();
    let text = format!(
        "server = \"http://{}\"\n{mirror}dial_timeout = \"300ms\"\n",
        site.registry.host
    );
    site.pull(&text).await.unwrap();
    let took = began.elapsed();
    assert!(
        took > Duration::from_millis(250) && took < DIALLING,
        "{took:?}"
    );
    let text = format!(
        "server = \"http://127.0.0.1:{}\"\ndial_timeout = \"0.2s\"\n",
        deaf.port
    );
    let error = site.pull(&text).await.unwrap_err().to_string();
    assert!(
        error.contains("cannot be reached: no connection within 0.2 s"),
        "{error}"
    );
    let error = site
        .pull("dial_timeout = \"soon\"\n")
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("hosts.toml:1: \"soon\" is no duration"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_directory_is_that_of_host_and_port_or_the_default_one() {
    let site = Site::new().await;
    let port = closed_port();
    let server = format!("server = \"http://{}\"\n", site.registry.host);
    for (name, registry) in [
        (
            format!("ported.invalid_{port}_"),
            format!("ported.invalid:{port}"),
        ),
        (
            format!("colon.invalid:{port}"),
            format!("colon.invalid:{port}"),
        ),
        ("_default".to_owned(), "any.invalid".to_owned()),
    ] {
        let dir = site.scratch.0.join("certs.d").join(name);
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("hosts.toml"), &server).unwrap();
        let pulled = pull(&site.images, &format!("{registry}/app:v1")).await;
        pulled.unwrap_or_else(|error| panic!("{registry}: {error}"));
    }
}
