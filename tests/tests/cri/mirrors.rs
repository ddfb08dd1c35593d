//! Registry mirrors: `hosts.toml` as containerd has it.
//!
//! The registries of these tests are names under `.invalid`, which no resolver knows: every byte comes from where a
//! `hosts.toml` says.

use std::fs;
use std::path::PathBuf;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client;
use coracle_tests::daemon::{Daemon, Options};
use coracle_tests::faulty_registry::{Fault, FaultyRegistry};
use coracle_tests::guests;
use coracle_tests::push::{Image, Packing, file};
use coracle_tests::registry::ClosedPort;
use tonic::Code;

use crate::site::{images, refused};

/// A daemon whose mirrors are told by files that the test writes.
struct Site {
    daemon: Daemon,
    dir: PathBuf,
}

impl Site {
    async fn new(name: &str) -> Self {
        let dir = PathBuf::from(format!(
            "/tmp/coracle-mirrors-{}-{name}",
            std::process::id()
        ));
        fs::create_dir_all(&dir).unwrap();
        let config = format!("registry_config = \"{}\"", dir.display());
        let options = Options {
            images: config,
            ..Options::default()
        };
        let daemon = Daemon::start_with(options).await.unwrap();
        Self { daemon, dir }
    }

    /// The file of one registry: a server and mirrors before it, all spoken to by http.
    fn route(&self, registry: &str, mirrors: &[&str], server: &str) {
        let tables: String = mirrors
            .iter()
            .map(|host| format!("[host.\"http://{host}\"]\n"))
            .collect();
        self.write(registry, &format!("server = \"http://{server}\"\n{tables}"));
    }

    fn write(&self, registry: &str, text: &str) {
        fs::create_dir_all(self.dir.join(registry)).unwrap();
        fs::write(self.dir.join(registry).join("hosts.toml"), text).unwrap();
    }

    async fn finish(self) {
        fs::remove_dir_all(&self.dir).unwrap();
        self.daemon.finish().await.unwrap();
    }
}

fn small(salt: &str) -> Image {
    let module = guests::nothing(salt).unwrap();
    let files = [file("m.wasm", 0o644, &module)];
    Image::wasi(&files, Packing::Gzip, &["/m.wasm"]).unwrap()
}

/// A port on which nobody listens.
fn nobody() -> ClosedPort {
    ClosedPort::take().unwrap()
}

#[tokio::test]
async fn the_first_mirror_that_works_serves_and_the_image_keeps_its_name() {
    let site = Site::new("order").await;
    let serves = FaultyRegistry::start(small("order"), Fault::None).unwrap();
    let unasked = FaultyRegistry::start(small("order"), Fault::None).unwrap();
    let down = nobody();
    site.route(
        "mirrored.invalid",
        &[down.host(), serves.host(), unasked.host()],
        down.host(),
    );
    let cri = site.daemon.cri();
    let id = cri.pull("mirrored.invalid/app:v1").await.unwrap();
    let image = cri.image(&id).await.unwrap().unwrap();
    assert_eq!(image.repo_tags, ["mirrored.invalid/app:v1"]);
    assert!(image.repo_digests[0].starts_with("mirrored.invalid/app@sha256:"));
    assert!(serves.requests() > 0);
    assert_eq!(
        unasked.requests(),
        0,
        "a mirror after the one that served got requests"
    );
    site.finish().await;
}

#[tokio::test]
async fn a_file_counts_from_the_next_pull_on() {
    let site = Site::new("reload").await;
    let image = small("reload");
    let serves = FaultyRegistry::start(image, Fault::None).unwrap();
    let cri = site.daemon.cri();
    let down = nobody();
    site.route("changing.invalid", &[], down.host());
    cri.pull("changing.invalid/app:v1").await.unwrap_err();
    site.route("changing.invalid", &[serves.host()], down.host());
    cri.pull("changing.invalid/app:v1").await.unwrap();
    site.finish().await;
}

#[tokio::test]
async fn mirrors_that_have_nothing_or_send_rubbish_are_left_for_the_server() {
    let site = Site::new("fallback").await;
    let absent = images().registry.host();
    let cri = site.daemon.cri();
    for (name, fault) in [
        ("wrong", Fault::WrongLayer),
        ("dies", Fault::DieMidLayer),
        ("error", Fault::ServerError),
        ("refuses", Fault::Unauthorized),
    ] {
        let image = small(name);
        let faulty = FaultyRegistry::start(image.clone(), fault).unwrap();
        let server = FaultyRegistry::start(image, Fault::None).unwrap();
        let registry = format!("{name}.invalid");
        site.route(&registry, &[absent, faulty.host()], server.host());
        let reference = format!("{registry}/nobody-pushed-this:v1");
        cri.pull(&reference)
            .await
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(faulty.requests() > 0 && server.requests() > 0, "{name}");
    }
    site.finish().await;
}

#[tokio::test]
async fn a_failure_names_every_host() {
    let site = Site::new("all").await;
    let (one, two) = (nobody(), nobody());
    let mirrors = [one.host(), images().registry.host()];
    site.route("gone.invalid", &mirrors, two.host());
    let pull = site
        .daemon
        .cri()
        .pull("gone.invalid/nobody-pushed-this:v1")
        .await;
    let (first, last) = (
        format!("http://{} ", one.host()),
        format!("http://{} ", two.host()),
    );
    let middle = format!("http://{} has no manifest", images().registry.host());
    refused(
        pull,
        Code::Unknown,
        &["RegistryUnavailable", &first, &middle, &last],
    );
    site.finish().await;
}

#[tokio::test]
async fn a_file_that_is_wrong_stops_the_pulls_of_its_registry_alone() {
    let site = Site::new("wrong").await;
    let serves = FaultyRegistry::start(small("wrong-file"), Fault::None).unwrap();
    site.write(
        "bad.invalid",
        "server = \"https://bad.invalid\"\n[host.\"http://m\"\n",
    );
    site.route("good.invalid", &[], serves.host());
    let place = format!("{}/bad.invalid/hosts.toml:2: ", site.dir.display());
    let cri = site.daemon.cri();
    refused(
        cri.pull("bad.invalid/app:v1").await,
        Code::InvalidArgument,
        &[&place],
    );
    cri.pull("good.invalid/app:v1").await.unwrap();
    site.finish().await;
}

#[tokio::test]
async fn a_mirror_never_sees_the_password_of_the_registry() {
    let site = Site::new("secret").await;
    let image = small("secret");
    let mirror = FaultyRegistry::start(image.clone(), Fault::WantsPassword).unwrap();
    let server = FaultyRegistry::start(image, Fault::WantsPassword).unwrap();
    site.route("private.invalid", &[mirror.host()], server.host());
    let request = cri::PullImageRequest {
        image: Some(client::image("private.invalid/app:v1")),
        auth: Some(cri::AuthConfig {
            username: "user".into(),
            password: "canary".into(),
            ..Default::default()
        }),
        sandbox_config: None,
    };
    let mut service = site.daemon.cri().images.clone();
    service.pull_image(request).await.unwrap();
    assert!(mirror.requests() > 0 && server.passwords() > 0);
    assert_eq!(mirror.passwords(), 0, "the mirror was shown the password");
    assert!(!site.daemon.log().contains("canary"));
    site.finish().await;
}
