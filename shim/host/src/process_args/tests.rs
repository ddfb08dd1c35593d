//! How arguments, environment, directories, signals and log paths are composed.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::sync::Arc;

use coracle_images::{Digest, ImageId, LinuxImage, RunConfig};
use coracle_lifecycle::{ContainerName, Kind};

use super::*;

fn image(config: RunConfig) -> Image {
    Image {
        id: ImageId::new(Digest::of(b"config")),
        repo_tags: vec!["registry.local:5000/tools/hello:1.0".to_owned()],
        repo_digests: Vec::new(),
        size: 1,
        user: None,
        config: config.into(),
        kind: ImageKind::Linux(LinuxImage { layers: Vec::new() }),
        pinned: false,
        spec_annotations: Arc::default(),
    }
}

fn config() -> ContainerConfig {
    ContainerConfig {
        name: ContainerName {
            name: "web".to_owned(),
            attempt: 0,
        },
        image: "sha256:abc".to_owned(),
        ..ContainerConfig::default()
    }
}

fn composed(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn arguments_are_composed_as_kubernetes_says() {
    let table = [
        ("e1 e2", "c", "", "", "e1 e2 c"),
        ("e1 e2", "c", "", "a", "e1 e2 a"),
        ("e1 e2", "c", "x", "", "x"),
        ("e1 e2", "c", "x y", "a b", "x y a b"),
        ("", "c d", "", "", "c d"),
        ("", "", "", "", "hello"),
        ("", "", "", "a b", "hello a b"),
    ];
    for (entrypoint, cmd, command, args, want) in table {
        let image = image(RunConfig {
            entrypoint: composed(entrypoint),
            cmd: composed(cmd),
            ..RunConfig::default()
        });
        let config = ContainerConfig {
            command: composed(command),
            args: composed(args),
            ..config()
        };
        assert_eq!(
            argv(&image, &config, true).unwrap(),
            composed(want),
            "{entrypoint}|{cmd}|{command}|{args}"
        );
    }
}

#[test]
fn odd_arguments_are_refused() {
    let plain = image(RunConfig::default());
    for command in [
        vec![String::new()],
        vec!["a\0b".to_owned()],
        vec!["x".repeat(MAX_ARGS_BYTES + 1)],
    ] {
        let config = ContainerConfig {
            command,
            ..config()
        };
        assert_eq!(
            argv(&plain, &config, true).unwrap_err().kind(),
            Kind::Invalid
        );
    }
}

#[test]
fn the_containers_environment_wins_and_bad_names_are_refused() {
    let env = ["PATH=/bin", "A=1", "=odd", "NOVALUE"]
        .map(str::to_owned)
        .to_vec();
    let image = image(RunConfig {
        env,
        ..RunConfig::default()
    });
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let requested = ContainerConfig {
        env: vec![pair("A", "2"), pair("B", "x=y"), pair("A", "3")],
        ..config()
    };
    assert_eq!(
        environment(&image, &requested, &[], &[]).unwrap(),
        [pair("PATH", "/bin"), pair("A", "3"), pair("B", "x=y")]
    );
    for bad in [
        pair("", "v"),
        pair("A=B", "v"),
        pair("A\0", "v"),
        pair("A", "v\0"),
    ] {
        let requested = ContainerConfig {
            env: vec![bad.clone()],
            ..config()
        };
        assert_eq!(
            environment(&image, &requested, &[], &[])
                .unwrap_err()
                .kind(),
            Kind::Invalid,
            "{bad:?}"
        );
    }
}

#[test]
fn the_working_directory_is_the_containers_then_the_images_then_the_root() {
    let of_image = image(RunConfig {
        working_dir: "/srv".to_owned(),
        ..RunConfig::default()
    });
    let requested = |directory: &str| ContainerConfig {
        working_dir: directory.to_owned(),
        ..config()
    };
    assert_eq!(working_dir(&of_image, &requested("/app")).unwrap(), "/app");
    assert_eq!(working_dir(&of_image, &requested("")).unwrap(), "/srv");
    assert_eq!(
        working_dir(&image(RunConfig::default()), &requested("")).unwrap(),
        "/"
    );
    for bad in ["app", "/a/../../b", "/a\0"] {
        assert!(working_dir(&of_image, &requested(bad)).is_err(), "{bad:?}");
    }
}

#[test]
fn signals_have_names_numbers_and_a_default() {
    let table = [
        ("SIGTERM", Some(15)),
        ("term", Some(15)),
        ("9", Some(9)),
        ("SIGRTMIN+3", Some(37)),
        ("RTMAX-1", Some(63)),
        ("SIGRTMIN", Some(34)),
        ("0", None),
        ("65", None),
        ("999", None),
        ("SIGNONE", None),
        ("", None),
        ("SIGRTMIN+31", None),
        ("RTMIN+x", None),
    ];
    for (text, want) in table {
        assert_eq!(signal_number(text), want, "{text:?}");
    }
    let quits = image(RunConfig {
        stop_signal: "SIGQUIT".to_owned(),
        ..RunConfig::default()
    });
    assert_eq!(stop_signal(&quits, &config()).unwrap(), 3);
    assert_eq!(
        stop_signal(
            &quits,
            &ContainerConfig {
                stop_signal: Some(2),
                ..config()
            }
        )
        .unwrap(),
        2
    );
    assert_eq!(
        stop_signal(&image(RunConfig::default()), &config()).unwrap(),
        15
    );
    let odd = image(RunConfig {
        stop_signal: "999".to_owned(),
        ..RunConfig::default()
    });
    assert_eq!(
        stop_signal(&odd, &config()).unwrap_err().kind(),
        Kind::Invalid
    );
}

#[test]
fn a_log_path_is_below_its_directory() {
    assert_eq!(
        log_path("/var/log/pods/x/", "web/0.log").unwrap(),
        "/var/log/pods/x/web/0.log"
    );
    assert_eq!(log_path("", "web/0.log").unwrap(), "");
    assert_eq!(log_path("/var/log", "").unwrap(), "");
    for bad in ["../x", "/etc/x", "a/../../x", "a\0", "./x"] {
        assert!(log_path("/var/log", bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_linux_image_runs_its_arguments_and_never_its_own_name() {
    let image = image(RunConfig::default());
    assert_eq!(
        argv(&image, &config(), false).unwrap_err().kind(),
        Kind::Invalid
    );
    let requested = ContainerConfig {
        args: composed("sleep 1"),
        ..config()
    };
    assert_eq!(
        argv(&image, &requested, false).unwrap(),
        composed("sleep 1")
    );
}

#[test]
fn the_image_overrides_the_defaults_and_devices_override_all() {
    let image = image(RunConfig {
        env: vec!["PATH=/image".to_owned()],
        ..RunConfig::default()
    });
    let requested = ContainerConfig {
        env: vec![("A".to_owned(), "1".to_owned())],
        ..config()
    };
    let usual = [("PATH", "/usual"), ("HOSTNAME", "web")];
    let devices = [("A".to_owned(), "2".to_owned())];
    let env = environment(&image, &requested, &usual, &devices).unwrap();
    let expected = [("PATH", "/image"), ("HOSTNAME", "web"), ("A", "2")];
    assert_eq!(
        env,
        expected.map(|(name, value)| (name.to_owned(), value.to_owned()))
    );
}

#[test]
fn a_text_that_no_linux_program_can_get_is_refused_and_not_shown() {
    let image = image(RunConfig::default());
    let with = |arg: usize, value: usize| {
        let config = ContainerConfig {
            command: vec!["x".to_owned(), "y".repeat(arg)],
            env: vec![("TOKEN".to_owned(), "z".repeat(value))],
            ..config()
        };
        linux_process(&image, &config, &[("HOME", "/".to_owned())], &[])
    };
    // With `TOKEN=` and the NULs.
    with(131_071, 131_065).unwrap();
    for (refused, what) in [
        (with(131_072, 1), "argument 1 has 131073 bytes"),
        (with(1, 131_066), "variable \"TOKEN\" has 131073 bytes"),
    ] {
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        let text = error.to_string();
        assert!(text.contains(what) && !text.contains("zz"), "{text}");
    }
}
