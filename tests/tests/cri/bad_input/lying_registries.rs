//! Registries that say one thing and send another, lead elsewhere, or take their time: each ends in a refusal with its reason,
//! and nothing of the image stays.

use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::{self, Cri, TIMEOUT};
use coracle_tests::daemon::{Daemon, Options};
use coracle_tests::guests;
use coracle_tests::push::{Image, digest};
use coracle_tests::scripted_registry::{Answer, Pace, ScriptedRegistry};
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::site::{Pod, daemon, daemon_with, ended_soon, failing_daemon, tool};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+json";
/// What no log and no other host may see.
const SECRET: &str = "canary-s3cret";

fn image(salt: &str) -> Image {
    Image::artifact(&guests::nothing(salt).unwrap())
}

/// The image's manifest, changed.
fn changed(image: &Image, change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut manifest: Value = serde_json::from_slice(&image.manifest()).unwrap();
    change(&mut manifest);
    manifest.to_string().into_bytes()
}

/// Names below the store's directories of content.
pub(super) fn content(daemon: &Daemon) -> Vec<String> {
    let images = daemon.scratch().dir().join("root/images");
    let mut names = Vec::new();
    for directory in ["blobs/sha256", "layers", "tmp"] {
        for entry in std::fs::read_dir(images.join(directory)).unwrap() {
            names.push(entry.unwrap().file_name().into_string().unwrap());
        }
    }
    names.sort();
    names
}

async fn pull_as(daemon: &Daemon, reference: &str) -> Result<(), Status> {
    let request = cri::PullImageRequest {
        image: Some(client::image(reference)),
        auth: Some(cri::AuthConfig {
            username: "node".into(),
            password: SECRET.into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut images = daemon.cri().images.clone();
    images.pull_image(request).await.map(drop)
}

/// Documents: what they are sent as, what they are, and how they are refused.
fn lies(image: &Image) -> Vec<(&'static str, Answer, Code, &'static str)> {
    let sent_as = |kind: &str, body: Vec<u8>| Answer::ok(body).with("Content-Type", kind);
    let invalid = Code::InvalidArgument;
    let layer = json!({"mediaType": "application/wasm", "digest": digest(b"x"), "size": 1});
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    vec![
        (
            "an index's type",
            sent_as(INDEX, image.manifest()),
            invalid,
            "manifest",
        ),
        (
            "another mediaType inside",
            sent_as(
                MANIFEST,
                changed(image, |manifest| manifest["mediaType"] = INDEX.into()),
            ),
            invalid,
            "manifest",
        ),
        (
            "layers of two schemas",
            sent_as(
                MANIFEST,
                changed(image, |manifest| manifest["fsLayers"] = json!([])),
            ),
            invalid,
            "manifest",
        ),
        (
            "schema 1",
            sent_as(
                SCHEMA_1,
                json!({"schemaVersion": 1, "fsLayers": [], "history": []})
                    .to_string()
                    .into(),
            ),
            invalid,
            "manifest",
        ),
        (
            "ten thousand layers",
            sent_as(
                MANIFEST,
                changed(image, |manifest| {
                    manifest["layers"] = vec![layer; 10_000].into()
                }),
            ),
            Code::FailedPrecondition,
            "max_layers",
        ),
        (
            "a document without end",
            sent_as(MANIFEST, b" ".to_vec()).at(Pace::Endless),
            Code::FailedPrecondition,
            "max_manifest_bytes",
        ),
        (
            "a deep document",
            sent_as(MANIFEST, deep.into_bytes()),
            invalid,
            "manifest",
        ),
        (
            "a layer of negative size",
            sent_as(
                MANIFEST,
                changed(image, |manifest| manifest["layers"][0]["size"] = json!(-1)),
            ),
            invalid,
            "manifest",
        ),
        (
            "a digest that is a path",
            sent_as(
                MANIFEST,
                changed(image, |manifest| {
                    manifest["layers"][0]["digest"] = "sha256:../../../../etc/passwd".into()
                }),
            ),
            invalid,
            "manifest",
        ),
        (
            "no JSON",
            sent_as(MANIFEST, b"\xff\xfe".to_vec()),
            invalid,
            "manifest",
        ),
        (
            "an empty index",
            sent_as(
                INDEX,
                json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []})
                    .to_string()
                    .into(),
            ),
            invalid,
            "offers",
        ),
    ]
}

#[tokio::test]
async fn documents_that_lie_are_refused_with_their_reason_and_leave_nothing() {
    let daemon = daemon().await;
    let registry = ScriptedRegistry::start().unwrap();
    let honest = image("documents");
    registry.serve("app", "v1", &honest);
    let reference = format!("{}/app:v1", registry.host());
    let (pid, before) = (daemon.pid(), content(&daemon));
    for (what, answer, code, says) in lies(&honest) {
        registry.on("/v2/app/manifests/v1", answer);
        let began = Instant::now();
        let refusal = daemon.cri().pull(&reference).await.expect_err(what);
        ended_soon(began);
        assert_eq!(refusal.code(), code, "{what}: {}", refusal.message());
        assert!(
            refusal.message().contains(says),
            "{what}: {}",
            refusal.message()
        );
        assert_eq!(
            daemon.cri().image(&reference).await.unwrap(),
            None,
            "{what}"
        );
        assert_eq!(content(&daemon), before, "{what}");
    }
    assert_eq!(daemon.pid(), pid);
    registry.serve("app", "v1", &honest);
    daemon.cri().pull(&reference).await.unwrap();
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn blobs_of_another_length_or_digest_are_refused_and_leave_nothing() {
    let daemon = daemon_with(Options {
        images: "pull_idle_timeout_s = 5".into(),
        ..Options::default()
    })
    .await;
    let registry = ScriptedRegistry::start().unwrap();
    let honest = image("lengths");
    let module = honest.layers[0].1.clone();
    registry.serve("app", "v1", &honest);
    let path = format!("/v2/app/blobs/{}", digest(&module));
    let reference = format!("{}/app:v1", registry.host());
    let before = content(&daemon);
    let longer = [&module[..], b"more"].concat();
    let mut other = module.clone();
    *other.last_mut().unwrap() ^= 1;
    for (what, answer, code) in [
        ("more bytes", Answer::ok(longer), Code::DataLoss),
        ("fewer bytes", Answer::ok(&module[1..]), Code::DataLoss),
        ("other bytes", Answer::ok(other), Code::DataLoss),
        (
            "fewer bytes than promised",
            Answer::ok(&module[1..]).promising(module.len() as u64),
            Code::Unknown,
        ),
        (
            "bytes without end",
            Answer::ok(&module[..]).at(Pace::Endless),
            Code::DataLoss,
        ),
        (
            "silence",
            Answer::ok(&module[..1])
                .promising(module.len() as u64)
                .at(Pace::Stall),
            Code::Unknown,
        ),
    ] {
        registry.on(&path, answer);
        let refusal = daemon.cri().pull(&reference).await.expect_err(what);
        assert_eq!(refusal.code(), code, "{what}: {}", refusal.message());
        assert!(
            refusal.message().contains(&digest(&module)),
            "{what}: {}",
            refusal.message()
        );
        assert_eq!(
            daemon.cri().image(&reference).await.unwrap(),
            None,
            "{what}"
        );
        // Manifest and config have arrived whole; after a failure of the registry they stay for the next attempt.
        let kept = [
            digest(honest.config.to_string().as_bytes()),
            digest(&honest.manifest()),
        ];
        let mut left = content(&daemon);
        left.retain(|name| {
            !before.contains(name) && !kept.iter().any(|digest| digest.ends_with(name.as_str()))
        });
        assert!(left.is_empty(), "{what} left {left:?}");
    }
    registry.serve("app", "v1", &honest);
    daemon.cri().pull(&reference).await.unwrap();
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_registry_that_drips_ends_and_delays_nobody() {
    let daemon = daemon_with(Options {
        images: "pull_idle_timeout_s = 8\npull_min_bytes_per_s = 1024".into(),
        ..Options::default()
    })
    .await;
    let registry = ScriptedRegistry::start().unwrap();
    let (slow, quick) = (image("slow"), image("quick"));
    registry.serve("slow", "v1", &slow);
    registry.serve("quick", "v1", &quick);
    let module = slow.layers[0].1.clone();
    registry.on(
        &format!("/v2/slow/blobs/{}", digest(&module)),
        Answer::ok(module).at(Pace::Drip(Duration::from_millis(500))),
    );
    let reference = format!("{}/slow:v1", registry.host());
    let (first, second) = (daemon.cri(), daemon.cri());
    let began = Instant::now();
    let other = async {
        daemon
            .cri()
            .pull(&format!("{}/quick:v1", registry.host()))
            .await
            .unwrap();
        began.elapsed()
    };
    let slow = async |cri: &Cri| {
        let refusal = cri.pull(&reference).await.unwrap_err();
        (refusal, began.elapsed())
    };
    let (one, two, quick) = tokio::join!(
        Box::pin(slow(&first)),
        Box::pin(slow(&second)),
        Box::pin(other)
    );
    for (refusal, took) in [one, two] {
        assert!(quick < took, "another image took {quick:?}, not {took:?}");
        assert!(
            refusal.message().starts_with("RegistryUnavailable"),
            "{}",
            refusal.message()
        );
        assert!(
            refusal.message().contains("less than"),
            "{}",
            refusal.message()
        );
    }
    assert!(began.elapsed() < TIMEOUT, "{:?}", began.elapsed());
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn wherever_a_registry_leads_no_credentials_follow_and_forbidden_places_are_not_asked() {
    let daemon = daemon().await;
    let registry = ScriptedRegistry::start().unwrap();
    let other = ScriptedRegistry::start().unwrap();
    let honest = image("redirects");
    let module = honest.layers[0].1.clone();
    registry.serve("app", "v1", &honest);
    other.on("/elsewhere", Answer::ok(&module[..]));
    let basic = "Basic realm=\"r\"";
    let reference = format!("{}/app:v1", registry.host());
    let blob = format!("/v2/app/blobs/{}", digest(&module));
    registry.on("/v2/", Answer::status(401).with("WWW-Authenticate", basic));
    let to = |target: &str| Answer::status(307).with("Location", target);
    for (target, code) in [
        (
            "http://169.254.169.254/latest/meta-data",
            Code::InvalidArgument,
        ),
        ("http://[fe80::1]/x", Code::InvalidArgument),
        ("file:///etc/passwd", Code::InvalidArgument),
        ("gopher://127.0.0.1/x", Code::InvalidArgument),
        (blob.as_str(), Code::InvalidArgument),
    ] {
        registry.on(&blob, to(target));
        let refusal = pull_as(&daemon, &reference).await.expect_err(target);
        assert_eq!(refusal.code(), code, "{target}: {}", refusal.message());
        assert!(!refusal.message().contains(SECRET), "{}", refusal.message());
    }
    assert!(
        registry.requests(&blob).len() < 20,
        "a loop of redirects does not end"
    );
    // A registry on loopback may lead to another one there, without the credentials.
    registry.on(&blob, to(&format!("http://{}/elsewhere", other.host())));
    pull_as(&daemon, &reference).await.unwrap();
    assert_eq!(other.requests("/elsewhere").len(), 1);
    assert!(
        !registry.requests("uthorization").is_empty(),
        "it never wanted any"
    );
    // A realm elsewhere does not get them either, unless it is https.
    daemon.cri().remove_image(&reference).await.unwrap();
    let realm = format!(
        "Bearer realm=\"http://{}/token\",service=\"r\"",
        other.host()
    );
    registry.on("/v2/", Answer::status(401).with("WWW-Authenticate", &realm));
    other.on("/token", Answer::ok("{\"token\":\"t\"}"));
    let _ = pull_as(&daemon, &reference).await;
    for request in other.requests("/elsewhere") {
        assert!(
            !request.to_ascii_lowercase().contains("authorization"),
            "{request}"
        );
    }
    assert!(!daemon.log().contains(SECRET), "the log has the password");
    daemon.finish().await.unwrap();
}

/// The step that fails is undone, and the next pull succeeds; what was there works meanwhile.
#[tokio::test]
async fn a_full_or_failing_disk_at_any_step_of_a_pull_harms_nothing_else() {
    let daemon = failing_daemon().await;
    let registry = ScriptedRegistry::start().unwrap();
    let pod = Pod::run(&daemon, "alive").await;
    let before = content(&daemon);
    for (number, site) in [
        "pull.manifest",
        "pull.blob",
        "pull.unpack",
        "pull.commit",
        "pull.record",
    ]
    .iter()
    .enumerate()
    {
        for (action, code) in [
            ("enospc", Code::ResourceExhausted),
            ("error", Code::Internal),
        ] {
            let (tag, what) = (format!("{action}{number}"), format!("{site} {action}"));
            let module = guests::nothing(&what).unwrap();
            let files = [coracle_tests::push::file("m.wasm", 0o644, &module)];
            let packing = coracle_tests::push::Packing::Gzip;
            let image = Image::wasi(&files, packing, &["/m.wasm"]).unwrap();
            registry.serve("app", &tag, &image);
            let reference = format!("{}/app:{tag}", registry.host());
            daemon.plan(&format!("{what}\n")).unwrap();
            let refusal = daemon.cri().pull(&reference).await.expect_err(&what);
            daemon.plan("").unwrap();
            assert_eq!(refusal.code(), code, "{what}: {}", refusal.message());
            if *site != "pull.record" {
                assert_eq!(
                    daemon.cri().image(&reference).await.unwrap(),
                    None,
                    "{what}"
                );
                crate::site::eventually("what the failed pull stored goes", || {
                    content(&daemon) == before
                })
                .await;
            }
            daemon.cri().pull(&reference).await.unwrap();
            daemon.cri().remove_image(&reference).await.unwrap();
            crate::site::eventually("the image goes", || content(&daemon) == before).await;
        }
    }
    let (status, _) = pod
        .finish(&daemon, &client::container("old", tool(), &["show"]))
        .await;
    assert_eq!(status.exit_code, 0);
    daemon.finish().await.unwrap();
}
