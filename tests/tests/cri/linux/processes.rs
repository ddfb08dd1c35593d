//! A container's process and its end: exit codes, streams, arguments, environment, directory.

use coracle_proto::runtime::v1 as cri;
use coracle_tests::log;

use super::shell::{daemon, images, look, on_peer, program, run, run_sh, sh};
use crate::site::Pod;

#[tokio::test]
async fn exit_codes_and_signals_are_reported() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "codes").await;
    for (script, code, reason) in [
        ("exit 0", 0, "Completed"),
        ("exit 3", 3, "Error"),
        // A child's signal, since the first process of a pid namespace ignores those it has no handler for.
        ("sh -c 'kill -ABRT $$'; exit $?", 134, "Error"),
        ("kill -KILL -1; exit 9", 9, "Error"),
    ] {
        let ran = run_sh(&daemon, &pod, script).await;
        let ended = (ran.status.exit_code, ran.status.reason.as_str());
        assert_eq!(ended, (code, reason), "{script}");
        assert!(ran.status.finished_at >= ran.status.started_at);
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn both_streams_reach_the_log_whole_and_in_order() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "streams").await;
    let script =
        "i=0; while [ $i -lt 500 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done; printf tail";
    let config = sh("both", script);
    let ran = run(&daemon, &pod, &config).await;
    let lines = |text: &str| {
        (0..500)
            .map(|i| format!("{text} {i}\n"))
            .collect::<String>()
    };
    assert_eq!(ran.out.trim_end(), lines("out") + "tail");
    assert_eq!(ran.err, lines("err"));

    let long = "head -c 100000 /dev/zero | tr '\\0' a; echo; echo after";
    let ran = run(&daemon, &pod, &sh("long", long)).await;
    assert_eq!(ran.out, "a".repeat(100_000) + "\nafter\n");
    let records = log::read(&daemon.container_log("streams", "long")).unwrap();
    assert!(records.iter().all(|record| record.bytes.len() <= 16_384));
    assert!(records.len() >= 8, "{}", records.len());
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn arguments_environment_and_directory_are_what_cri_or_the_image_says() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "args").await;
    let script = "for a in \"$0\" \"$@\"; do echo \"<$a>\"; done; pwd; echo $FROM_IMAGE $ADDED $HOSTNAME; echo $PATH";
    let mut config = program("args", &["/bin/sh", "-c", script]);
    config.args = vec!["zero".into(), "two words".into(), String::new()];
    config.working_dir = "/made/for/this".into();
    config.envs = vec![cri::KeyValue {
        key: "ADDED".into(),
        value: b"a=b".to_vec(),
    }];
    run(&daemon, &pod, &config).await.says(&[
        "<zero>",
        "<two words>",
        "<>",
        "/made/for/this",
        "yes a=b args",
        "/bin",
    ]);
    // A name without a slash is looked for in the environment's PATH.
    run(&daemon, &pod, &program("path", &["echo", "found"]))
        .await
        .says(&["found"]);
    // The image's Cmd, when neither command nor arguments are given.
    let mut bare = program("bare", &[]);
    bare.stdin = false;
    assert_eq!(run(&daemon, &pod, &bare).await.status.exit_code, 0);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn the_images_user_directory_volume_and_entry_point_hold() {
    let daemon = daemon().await;
    let dressed = &images().dressed.reference;
    daemon.cri().pull(dressed).await.unwrap();
    let pod = Pod::run(&daemon, "dressed").await;
    let config = coracle_tests::client::container("default", dressed, &[]);
    run(&daemon, &pod, &config).await.says(&["by default"]);

    let script =
        "id -u; id -g; id -G | tr ' ' '\\n' | sort -n | tr '\\n' ' '; echo; pwd; echo $HOME";
    let config = coracle_tests::client::container("own", dressed, &[script]);
    run(&daemon, &pod, &config).await.says(&[
        "1000",
        "1001",
        // The kubelet names the image's user itself, so that the peer never looks for that one's groups.
        if on_peer() {
            "1001 "
        } else {
            "1001 1002 1004 "
        },
        "/home/app/work",
        "/home/app",
    ]);
    // A volume holds what the image has there, belongs to whom it belonged, and can be written in a read-only root.
    let script = "cat /data/from-image; stat -c '%a %u %g' /data; echo x > /data/new && echo written; \
                  echo x 2>/dev/null > /new || echo refused";
    let mut config = coracle_tests::client::container("volume", dressed, &[script]);
    super::shell::security(&mut config).readonly_rootfs = true;
    run(&daemon, &pod, &config).await.says(&[
        "of the image",
        "750 1000 1001",
        "written",
        "refused",
    ]);
    // The next container has a volume of its own.
    let config = coracle_tests::client::container("next", dressed, &["ls /data"]);
    run(&daemon, &pod, &config).await.says(&["from-image"]);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_process_starts_as_fresh_as_the_kernel_makes_one() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "fresh").await;
    let facts = look(&daemon, &pod, program("c", &[])).await;
    for (name, value) in [
        ("status.SigBlk", "0000000000000000"),
        ("status.Seccomp", "0"),
        ("umask", "0022"),
        ("nice", "0"),
        ("scheduler", "0"),
        ("pdeathsig", "0"),
        ("subreaper", "0"),
        ("securebits", "0"),
        ("keepcaps", "0"),
        ("dumpable", "1"),
        ("personality", "0"),
        ("pid", "1 parent 0 group 1 session 1"),
        ("oom_score_adj.0", "0"),
        ("cwd", "/"),
    ] {
        assert_eq!(facts[name], value, "{name}");
    }
    // Go leaves a signal of the C library's ignored.
    let ignored = if on_peer() {
        "0000000080000000"
    } else {
        "0000000000000000"
    };
    assert_eq!(facts["status.SigIgn"], ignored);
    let fds: Vec<_> = facts
        .keys()
        .filter(|name| name.starts_with("fd."))
        .collect();
    assert_eq!(fds, ["fd.0", "fd.1", "fd.2"]);
    assert!(facts["fd.0"].starts_with("/dev/null"), "{}", facts["fd.0"]);
    let cpus = std::thread::available_parallelism().unwrap().get();
    assert_eq!(facts["affinity"], cpus.to_string());
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_terminal_is_all_three_streams_and_the_controlling_one() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "tty").await;
    let script = "for fd in 0 1 2; do test -t $fd && echo $fd; done; readlink /proc/self/fd/1; tty; \
                  stat -c %F /dev/console; echo to stderr >&2; ls -1 /dev/pts; echo x > /dev/tty && echo has tty";
    let mut config = sh("c", script);
    config.tty = true;
    config.stdin = true;
    let ran = run(&daemon, &pod, &config).await;
    let text = ran.ok();
    for line in [
        "0",
        "1",
        "2",
        "/dev/pts/0",
        "character special file",
        "to stderr",
        "ptmx",
        "has tty",
    ] {
        assert!(
            text.lines().any(|l| l.trim_end() == line),
            "no {line:?} in {text}"
        );
    }
    daemon.finish().await.unwrap();
}
