//! What an image's config can try: users that overflow, volumes and files that climb, odd fields: T21, T24, T25, T50.

use coracle_proto::runtime::v1 as cri;
use coracle_tests::linux::Layer;
use serde_json::json;

use super::canary::{Canary, Fate, attempt, hostile, hostile_with, pulled, script};
use crate::linux::shell::{daemon, host_dir, mount, on_peer, security};
use crate::site::Pod;

/// A passwd in which a number is a name of root's.
const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n0777:x:0:0::/:/bin/sh\n4294967296:x:0:0::/:/bin/sh\nevil:x:4294967296:0::/:/bin/sh\n";

fn with_passwd(layer: Layer) -> Layer {
    let layer = layer.dir("etc", 0o755, (0, 0)).unwrap();
    layer.file("etc/passwd", 0o644, PASSWD).unwrap()
}

/// T21, CVE-2024-40635: a user that is no id is nobody's, above all not root's.
#[tokio::test]
async fn a_user_beyond_all_ids_is_refused() {
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    let pod = Pod::run(&daemon, "ids").await;
    let users = [
        "4294967296",
        "4294967295",
        "2147483648",
        "-1",
        "+0",
        " 0",
        "0x0",
        "1000:99999999999",
        "99999999999999999999",
        "evil",
        "1000:-1",
        "nobody:nogroup",
    ];
    for user in users {
        let config = json!({"Env": ["PATH=/bin"], "User": user});
        let image = hostile_with(&daemon, config, with_passwd).await;
        let fate = attempt(&daemon, &pod, &script(&image, "busybox id -u")).await;
        match &fate {
            Fate::Refused(_) => {}
            // Debian's containerd takes what the number overflows to.
            Fate::Ran(..) => assert!(on_peer(), "{user:?} ran: {fate:?}"),
        }
    }
    // Digits are a number, whatever names there are.
    let config = json!({"Env": ["PATH=/bin"], "User": "0777"});
    let image = hostile_with(&daemon, config, with_passwd).await;
    let fate = attempt(&daemon, &pod, &script(&image, "busybox id -u")).await;
    assert!(
        on_peer() || matches!(&fate, Fate::Ran(0, text) if text == "777\n"),
        "{fate:?}"
    );
    for value in [-1, i64::from(i32::MAX) + 1, i64::from(u32::MAX), 1 << 40] {
        let mut config = script(&image, "busybox id -u");
        security(&mut config).run_as_user = Some(cri::Int64Value { value });
        let fate = attempt(&daemon, &pod, &config).await;
        assert!(
            on_peer() || matches!(fate, Fate::Refused(_)),
            "{value}: {fate:?}"
        );
    }
    canary.is_untouched(&daemon).await;
    daemon.finish().await.unwrap();
}

/// The image's own users are read from regular, small files inside the image.
#[tokio::test]
async fn users_are_not_read_through_links_devices_or_pipes() {
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    let pod = Pod::run(&daemon, "users").await;
    std::fs::write(
        canary.dir().join("passwd"),
        format!("app:x:0:0:{}::\n", super::canary::SECRET),
    )
    .unwrap();
    let canary = Canary::plant(&daemon);
    let huge = vec![b'#'; 8 << 20];
    for case in 0..3 {
        let image = hostile(&daemon, |layer| {
            let layer = layer.dir("etc", 0o755, (0, 0)).unwrap();
            match case {
                0 => layer
                    .symlink("etc/passwd", &(canary.climbing() + "/passwd"))
                    .unwrap(),
                1 => layer.dir("etc/passwd", 0o755, (0, 0)).unwrap(),
                _ => layer.file("etc/passwd", 0o644, &huge).unwrap(),
            }
        })
        .await;
        let mut config = script(&image, "busybox id -u");
        security(&mut config).run_as_username = "app".into();
        let fate = attempt(&daemon, &pod, &config).await;
        assert!(matches!(fate, Fate::Refused(_)), "case {case}: {fate:?}");
    }
    canary.is_untouched(&daemon).await;
    daemon.finish().await.unwrap();
}

/// T24, CVE-2024-5154: what the runtime or a mount puts into /etc goes to the container's /etc.
#[tokio::test]
async fn files_in_etc_are_not_written_through_links() {
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    let pod = Pod::run(&daemon, "etc").await;
    let names = [
        "mtab",
        "passwd",
        "group",
        "hosts",
        "resolv.conf",
        "hostname",
    ];
    let given = host_dir(&daemon, "given");
    std::fs::write(given.join("hosts"), "given\n").unwrap();
    let each = hostile(&daemon, |layer| {
        let layer = layer.dir("etc", 0o755, (0, 0)).unwrap();
        let link = |layer: Layer, name: &&str| {
            let target = format!("{}/{name}", canary.climbing());
            layer.symlink(&format!("etc/{name}"), &target).unwrap()
        };
        names.iter().fold(layer, link)
    })
    .await;
    let whole = hostile(&daemon, |layer| {
        layer.symlink("etc", &canary.climbing()).unwrap()
    })
    .await;
    for image in [&each, &whole] {
        for mounted in [false, true] {
            let text = "for f in mtab passwd hosts resolv.conf hostname; do busybox cat /etc/$f; echo owned > /etc/$f; done";
            let mut config = script(image, text);
            if mounted {
                for name in ["hosts", "resolv.conf", "hostname"] {
                    config
                        .mounts
                        .push(mount(&given.join("hosts"), &format!("/etc/{name}"), false));
                }
            }
            attempt(&daemon, &pod, &config).await;
            canary.is_untouched(&daemon).await;
        }
    }
    daemon.finish().await.unwrap();
}

/// T25, CVE-2022-23648: a volume of an image is filled from the image alone.
#[tokio::test]
async fn volumes_of_an_image_copy_nothing_from_the_host() {
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    let pod = Pod::run(&daemon, "volumes").await;
    let climbing = canary.climbing();
    let paths = [
        format!("/{climbing}"),
        format!("/a/{climbing}"),
        "/linked".to_owned(),
        "/linked/x".to_owned(),
        "relative".to_owned(),
        "/".to_owned(),
        "/proc/1".to_owned(),
        "/dev".to_owned(),
        String::new(),
    ];
    for path in &paths {
        let config = json!({"Env": ["PATH=/bin"], "Volumes": {path: {}}});
        let image = hostile_with(&daemon, config, |layer| {
            layer
                .dir("a", 0o755, (0, 0))
                .unwrap()
                .symlink("linked", &canary.climbing())
                .unwrap()
        })
        .await;
        let text = format!(
            "busybox find '{path}' -name secret -exec busybox cat {{}} \\; ; busybox cat {}/secret",
            canary.dir().display()
        );
        attempt(&daemon, &pod, &script(&image, &text)).await;
        canary.is_untouched(&daemon).await;
    }
    daemon.finish().await.unwrap();
}

/// Links of an image lead neither its volumes nor the pod's into the kernel's file systems, which are mounted by then.
#[tokio::test]
async fn no_link_leads_a_volume_into_the_kernels_file_systems() {
    if on_peer() {
        return;
    }
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "led").await;
    let config = json!({"Env": ["PATH=/bin"], "Volumes": {"/v": {}, "/sub/w": {}}});
    let image = hostile_with(&daemon, config, |layer| {
        let layer = layer.symlink("v", "/sys").unwrap();
        let layer = layer.symlink("data", "/proc").unwrap();
        layer.symlink("more", "sys/kernel").unwrap()
    })
    .await;
    let mut plain = script(
        &image,
        "busybox cat /proc/mounts; busybox touch /sub/w/file",
    );
    security(&mut plain).readonly_rootfs = true;
    let fate = attempt(&daemon, &pod, &plain).await;
    let Fate::Ran(0, text) = &fate else {
        panic!("{fate:?}")
    };
    let over_sys = text.lines().filter(|line| line.contains(" /sys overlay"));
    assert_eq!(over_sys.count(), 0, "{text}");
    for (at, led) in [
        ("/data", "/proc"),
        ("/more", "/sys/kernel"),
        ("/data/self/attr", "/proc"),
    ] {
        let mut mounted = script(&image, "busybox true");
        let dir = crate::linux::shell::host_dir(&daemon, "d");
        mounted.mounts = vec![crate::linux::shell::mount(&dir, at, false)];
        let fate = attempt(&daemon, &pod, &mounted).await;
        fate.is_refused(&[at, led]);
    }
    daemon.finish().await.unwrap();
}

/// Ten thousand volumes are too many, or are made; either way the daemon lives.
#[tokio::test]
async fn ten_thousand_volumes_harm_nobody() {
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    let pod = Pod::run(&daemon, "many").await;
    let volumes: serde_json::Map<String, serde_json::Value> = (0..10_000)
        .map(|number| (format!("/v{number}"), json!({})))
        .collect();
    let config = json!({"Env": ["PATH=/bin"], "Volumes": volumes});
    let image = hostile_with(&daemon, config, |layer| layer).await;
    if !on_peer() {
        attempt(&daemon, &pod, &script(&image, "busybox true")).await;
    }
    canary.is_untouched(&daemon).await;
    daemon.finish().await.unwrap();
}

/// T50: what a config says beside users and volumes is carried out or refused, and the daemon never falls over it.
#[tokio::test]
async fn odd_configs_are_refused_or_carried_out_and_harm_nobody() {
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    let pod = Pod::run(&daemon, "configs").await;
    let many: Vec<String> = (0..20_000).map(|number| format!("V{number}=x")).collect();
    let cases = [
        ("nameless", json!({"Env": ["PATH=/bin", "=x"]})),
        ("nul", json!({"Env": ["PATH=/bin", "A\u{0}B=evil"]})),
        ("no value", json!({"Env": ["PATH=/bin", "LONELY"]})),
        (
            "large",
            json!({"Env": ["PATH=/bin", format!("A={}", "x".repeat(900 << 10))]}),
        ),
        (
            "larger",
            json!({"Env": ["PATH=/bin", format!("A={}", "x".repeat(1 << 20))]}),
        ),
        ("many", json!({"Env": many})),
        ("signal", json!({"Env": ["PATH=/bin"], "StopSignal": "999"})),
        (
            "signal name",
            json!({"Env": ["PATH=/bin"], "StopSignal": "SIGFOO"}),
        ),
        (
            "directory",
            json!({"Env": ["PATH=/bin"], "WorkingDir": "relative"}),
        ),
        (
            "climbing",
            json!({"Env": ["PATH=/bin"], "WorkingDir": canary.climbing()}),
        ),
        (
            "nul directory",
            json!({"Env": ["PATH=/bin"], "WorkingDir": "/a\u{0}b"}),
        ),
        (
            "long directory",
            json!({"Env": ["PATH=/bin"], "WorkingDir": "/x".repeat(5_000)}),
        ),
        (
            "longest directory",
            json!({"Env": ["PATH=/bin"], "WorkingDir": "/x".repeat(1 << 20)}),
        ),
        (
            "user",
            json!({"Env": ["PATH=/bin"], "User": "a".repeat(3 << 20)}),
        ),
        (
            "long signal",
            json!({"Env": ["PATH=/bin"], "StopSignal": "a".repeat(3 << 20)}),
        ),
        (
            "words",
            json!({"Env": ["PATH=/bin"], "Entrypoint": ["/bin/busybox\u{0}x"]}),
        ),
        (
            "labels",
            json!({"Env": ["PATH=/bin"], "Labels": {"a": "x".repeat(1 << 20), "b\n": "\u{0}"}}),
        ),
        (
            "types",
            json!({"Env": ["PATH=/bin"], "Cmd": [], "Entrypoint": null, "Volumes": null}),
        ),
    ];
    for (what, config) in cases {
        let text = "busybox env | busybox grep -c ^B=; busybox pwd | busybox cut -c1-20";
        let fate = match pulled(&daemon, config, |layer| layer).await {
            Ok(image) => attempt(&daemon, &pod, &script(&image, text)).await,
            Err(refusal) => Fate::Refused(refusal.message().to_owned()),
        };
        match &fate {
            Fate::Refused(text) => {
                assert!(!text.is_empty() && text.len() < 8 << 10, "{what}: {text}")
            }
            // A NUL does not make two variables of one.
            Fate::Ran(_, text) => assert!(text.starts_with("0\n"), "{what}: {text}"),
        }
        canary.is_untouched(&daemon).await;
    }
    assert!(on_peer() || !daemon.log().contains("panicked"));
    // Nothing of it goes to the node's log at length, nor into lists.
    let log = daemon.log();
    let longest = log.lines().map(str::len).max().unwrap_or_default();
    assert!(on_peer() || longest < 16 << 10, "a line of {longest} bytes");
    let mut service = daemon.cri().images.clone();
    let images = service.list_images(cri::ListImagesRequest::default());
    let images = images.await.unwrap().into_inner().images;
    assert!(images.iter().all(|image| image.username.len() <= 512));
    daemon.finish().await.unwrap();
}
