//! Images that are broken, too large, unreadable or for another machine, and tokens that expire: each is refused with its
//! reason, and nothing of it stays.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client;
use coracle_tests::daemon::Daemon;
use coracle_tests::guests;
use coracle_tests::push::{Image, Packing, digest, file, push_index};
use coracle_tests::scripted_registry::{Answer, ScriptedRegistry};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tonic::Code;

use super::lying_registries::content;
use super::{pushed, with_files};
use crate::site::{daemon, images, refused};

/// Bytes and files of images, as the kubelet sees them.
async fn usage(daemon: &Daemon) -> (u64, u64) {
    let mut service = daemon.cri().images.clone();
    let reply = service.image_fs_info(cri::ImageFsInfoRequest {}).await;
    let usage = reply.unwrap().into_inner().image_filesystems.remove(0);
    (
        usage.used_bytes.unwrap().value,
        usage.inodes_used.unwrap().value,
    )
}

/// An image whose second layer has other bytes than its packing says, under a digest that is right.
fn damaged(packing: Packing, damage: fn(&mut Vec<u8>)) -> Image {
    let module = guests::nothing("damaged").unwrap();
    let mut image = with_files(&[("m.wasm", &module)], &["/m.wasm"]);
    let noise: Vec<u8> = (0..200_000_u32)
        .map(|number| (number.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let files = [file("noise", 0o644, &noise)];
    let upper = Image::wasi(&files, packing, &["/m.wasm"]).unwrap();
    let (kind, mut bytes) = upper.layers[0].clone();
    if packing == Packing::Zstd {
        let tar = zstd::bulk::decompress(&bytes, 1 << 20).unwrap();
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        encoder.include_checksum(true).unwrap();
        encoder.write_all(&tar).unwrap();
        bytes = encoder.finish().unwrap();
    }
    damage(&mut bytes);
    let ids = image.config["rootfs"]["diff_ids"].as_array_mut().unwrap();
    ids.push(upper.config["rootfs"]["diff_ids"][0].clone());
    image.layers.push((kind, bytes));
    image
}

#[tokio::test]
async fn a_layer_with_a_wrong_or_missing_trailer_is_named_and_the_layers_below_go_too() {
    let daemon = daemon().await;
    let (before, used) = (content(&daemon), usage(&daemon).await);
    let checksum: fn(&mut Vec<u8>) = |bytes| *bytes.last_mut().unwrap() ^= 0x55;
    let gzip_checksum: fn(&mut Vec<u8>) = |bytes| {
        let at = bytes.len() - 8;
        bytes[at] ^= 0x55;
    };
    let end: fn(&mut Vec<u8>) = |bytes| bytes.truncate(bytes.len() - 4);
    for (what, packing, damage) in [
        ("gzip-length", Packing::Gzip, checksum),
        ("gzip-checksum", Packing::Gzip, gzip_checksum),
        ("gzip-end", Packing::Gzip, end),
        ("zstd-checksum", Packing::Zstd, checksum),
        ("zstd-end", Packing::Zstd, end),
    ] {
        let image = damaged(packing, damage);
        let pushed = pushed(what, &image);
        let layer = digest(&image.layers[1].1);
        let refusal = daemon.cri().pull(&pushed.reference).await.expect_err(what);
        assert_eq!(
            refusal.code(),
            Code::InvalidArgument,
            "{what}: {}",
            refusal.message()
        );
        assert!(
            refusal.message().contains(&layer),
            "{what}: {}",
            refusal.message()
        );
        assert_eq!(
            daemon.cri().image(&pushed.reference).await.unwrap(),
            None,
            "{what}"
        );
        assert_eq!(content(&daemon), before, "{what}");
        assert_eq!(usage(&daemon).await, used, "{what}");
    }
    let whole = pushed("whole", &damaged(Packing::Zstd, |_| {}));
    daemon.cri().pull(&whole.reference).await.unwrap();
    daemon.finish().await.unwrap();
}

/// A layer of zeros, packed 1000:1.
fn bomb(packing: Packing) -> Image {
    let zeros = vec![0; 300 << 20];
    let module = guests::nothing("bomb").unwrap();
    let files = [file("zeros", 0o644, &zeros), file("m.wasm", 0o644, &module)];
    let mut image = Image::wasi(&files, packing, &["/m.wasm"]).unwrap();
    if packing == Packing::Gzip {
        // What packs quickly packs zeros 100:1.
        let layer = &mut image.layers[0].1;
        let mut tar = Vec::new();
        GzDecoder::new(&layer[..]).read_to_end(&mut tar).unwrap();
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&tar).unwrap();
        *layer = encoder.finish().unwrap();
    }
    image
}

#[tokio::test]
async fn a_bomb_is_refused_by_the_limit_that_it_exceeds_and_the_disk_is_as_before() {
    let daemon = daemon().await;
    let (before, used) = (content(&daemon), usage(&daemon).await);
    for (what, packing) in [("gzip-bomb", Packing::Gzip), ("zstd-bomb", Packing::Zstd)] {
        let bomb = pushed(what, &bomb(packing));
        let began = Instant::now();
        let refusal = daemon.cri().pull(&bomb.reference).await;
        refused(refusal, Code::FailedPrecondition, &["max_ratio (200)"]);
        assert!(began.elapsed() < Duration::from_secs(100), "{what}");
        assert_eq!(content(&daemon), before, "{what}");
        assert_eq!(usage(&daemon).await, used, "{what}");
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_config_that_cannot_be_read_is_refused_with_the_place_and_harms_nobody() {
    let daemon = daemon().await;
    let (pid, before) = (daemon.pid(), content(&daemon));
    let registry = ScriptedRegistry::start().unwrap();
    let reference = format!("{}/app:v1", registry.host());
    let module = guests::nothing("configs").unwrap();
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let honest = with_files(&[("m.wasm", &module)], &["/m.wasm"]);
    let with = |path: &str, value: Value| {
        let mut config = honest.config.clone();
        *config.pointer_mut(path).unwrap() = value;
        config.to_string()
    };
    for (what, config, says) in [
        ("no JSON", "{\"os\": ".to_owned(), "line 1 column"),
        ("deep", deep, "line 1 column"),
        ("a list", "[1, 2]".to_owned(), "line 1 column"),
        (
            "a number for a list",
            with("/config/Env", json!(7)),
            "expected a sequence at line 1 column",
        ),
        (
            "a list in a list",
            with("/config/Entrypoint", json!([["/m.wasm"]])),
            "expected a string at line 1 column",
        ),
        (
            "an object for a digest",
            with("/rootfs/diff_ids", json!([{}])),
            "expected a string at line 1 column",
        ),
        (
            "no digest",
            with("/rootfs/diff_ids", json!(["sha256:../../x"])),
            "diff id",
        ),
        (
            "too few digests",
            with("/rootfs/diff_ids", json!([])),
            "0 diff ids",
        ),
    ] {
        registry.serve("app", "v1", &honest);
        let mut manifest: Value = serde_json::from_slice(&honest.manifest()).unwrap();
        manifest["config"]["digest"] = digest(config.as_bytes()).into();
        manifest["config"]["size"] = config.len().into();
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = Answer::ok(manifest.to_string()).with("Content-Type", kind);
        registry.on("/v2/app/manifests/v1", manifest);
        let blob = format!("/v2/app/blobs/{}", digest(config.as_bytes()));
        registry.on(&blob, Answer::ok(config));
        let refusal = daemon.cri().pull(&reference).await.expect_err(what);
        let message = refusal.message();
        assert_eq!(refusal.code(), Code::InvalidArgument, "{what}: {message}");
        assert!(message.contains(says), "{what}: {message}");
        assert!(message.len() < 8 << 10, "{what}");
        assert_eq!(content(&daemon), before, "{what}");
    }
    assert_eq!(daemon.pid(), pid);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn an_image_for_another_machine_is_refused_beside_what_is_offered() {
    let daemon = daemon().await;
    let host = images().registry.host();
    let module = guests::nothing("platforms").unwrap();
    let of = |os: &str, architecture: &str| {
        let mut image = with_files(&[("m.wasm", &module)], &["/m.wasm"]);
        image.config["os"] = os.into();
        image.config["architecture"] = architecture.into();
        image
    };
    let (windows, mainframe) = (of("windows", "amd64"), of("linux", "s390x"));
    let entries = [
        ("windows", "amd64", &windows),
        ("linux", "s390x", &mainframe),
    ];
    let index = push_index(host, "bad/platforms", "all", &entries).unwrap();
    refused(
        daemon.cri().pull(&index.reference).await,
        Code::InvalidArgument,
        &["windows/amd64", "linux/s390x"],
    );
    let alone = pushed("mainframe", &mainframe);
    refused(
        daemon.cri().pull(&alone.reference).await,
        Code::InvalidArgument,
        &["linux/s390x", "cannot run"],
    );
    // An index that calls a foreign image Wasm is not believed.
    let entries = [("wasi", "wasm", &mainframe)];
    let liar = push_index(host, "bad/platforms", "liar", &entries).unwrap();
    refused(
        daemon.cri().pull(&liar.reference).await,
        Code::InvalidArgument,
        &["linux/s390x"],
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_token_that_expires_in_a_pull_is_renewed_once_and_no_log_has_it() {
    const SECRET: &str = "canary-s3cret";
    let daemon = daemon().await;
    let registry = ScriptedRegistry::start().unwrap();
    let image = Image::artifact(&guests::nothing("token").unwrap());
    registry.serve("app", "v1", &image);
    let realm = format!("Bearer realm=\"http://{}/token\"", registry.host());
    let challenge = || Answer::status(401).with("WWW-Authenticate", &realm);
    registry.on("/v2/", challenge());
    let token = json!({"token": SECRET, "expires_in": 300}).to_string();
    registry.on("/token", Answer::ok(token));
    let blob = format!("/v2/app/blobs/{}", digest(&image.layers[0].1));
    registry.on(&blob, challenge());
    let reference = format!("{}/app:v1", registry.host());
    let pull = async || {
        let request = cri::PullImageRequest {
            image: Some(client::image(&reference)),
            auth: Some(cri::AuthConfig {
                username: "node".into(),
                password: SECRET.into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        daemon.cri().images.clone().pull_image(request).await
    };
    let refusal = pull().await.unwrap_err();
    let message = refusal.message();
    assert_eq!(refusal.code(), Code::Unauthenticated, "{message}");
    assert!(
        message.contains("app:v1") && !message.contains(SECRET),
        "{message}"
    );
    // The first one, and one renewal.
    let tokens = registry.requests("GET /token").len();
    assert_eq!(tokens, 2);
    assert_eq!(daemon.cri().image(&reference).await.unwrap(), None);
    // One that has only expired is renewed, and the pull goes on.
    registry.serve("app", "v1", &image);
    registry.once(&blob, challenge());
    pull().await.unwrap();
    assert_eq!(registry.requests("GET /token").len(), tokens + 2);
    assert!(!daemon.log().contains(SECRET));
    daemon.finish().await.unwrap();
}
