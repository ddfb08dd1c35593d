//! The root filesystem: the image's layers, the container's own writes, what is masked, what is read-only.

use std::path::Path;

use super::shell::{daemon, look, on_peer, program, resources, run, run_sh, security, sh};
use crate::site::{Pod, eventually};

#[tokio::test]
async fn the_root_is_the_images_layers_and_each_container_writes_to_its_own() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "layers").await;
    let script = "cat /etc/motd; ls /etc/gone 2>/dev/null || echo gone; readlink /etc/link-to-data; \
                  cat /data/from-image; stat -c '%a %u %g' /data/from-image /tmp; \
                  [ $(stat -c %i /bin/sh) = $(stat -c %i /bin/busybox) ] && echo one file; \
                  rm /etc/motd; echo mine > /etc/mine; mkdir /new; chown 5:6 /tmp; cat /etc/mine";
    let output = [
        "upper",
        "gone",
        "/data",
        "of the image",
        "640 1000 1001",
        "1777 0 0",
        "one file",
        "mine",
    ];
    // Twice, since the first must leave nothing for the second.
    run_sh(&daemon, &pod, script).await.says(&output);
    run_sh(&daemon, &pod, script).await.says(&output);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn what_a_container_wrote_goes_with_it() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "written").await;
    let id = pod
        .start(&sh(
            "c",
            "head -c 3000000 /dev/zero > /big; mkdir -p /a/b; mknod /a/b/fifo p",
        ))
        .await;
    assert_eq!(pod.cri.wait_exit(&id).await.unwrap().exit_code, 0);
    let holding = |name: &str| {
        let find = std::process::Command::new("find")
            .arg(daemon.scratch().dir().join("root"))
            .args(["-name", name])
            .output();
        String::from_utf8(find.unwrap().stdout).unwrap()
    };
    assert_eq!(holding("fifo").lines().count(), 1);
    pod.cri.remove(&id).await.unwrap();
    eventually("its files go", || {
        holding("fifo").is_empty() && holding("big").is_empty()
    })
    .await;
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn nothing_waits_until_a_writable_layer_is_on_a_disk() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "volatile").await;
    let script = "grep -c ' / / .* overlay .*volatile' /proc/self/mountinfo; echo x > /x; sync /x && echo synced";
    run_sh(&daemon, &pod, script).await.says(&["1", "synced"]);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_read_only_root_is_read_only_but_for_what_must_not_be() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "readonly").await;
    let script = "for p in /x /etc/motd /bin/x /proc/sys/kernel/hostname /sys/x; do \
                  (echo x > $p) 2>/dev/null && echo wrote $p; done; \
                  for p in /dev/shm/x /dev/null; do echo x > $p && echo may $p; done";
    let mut config = sh("c", script);
    security(&mut config).readonly_rootfs = true;
    run(&daemon, &pod, &config)
        .await
        .says(&["may /dev/shm/x", "may /dev/null"]);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn proc_and_sys_are_masked_and_read_only_as_requested() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "masked").await;
    let facts = look(&daemon, &pod, program("default", &[])).await;
    for path in ["/proc/kcore", "/proc/keys", "/proc/timer_list"] {
        let fact = &facts[&format!("path.{path}")];
        let absent = fact == "ENOENT";
        assert!(
            absent || fact == "open ok, read nothing, write ok",
            "{path}: {fact}"
        );
    }
    for path in ["/proc/acpi", "/proc/scsi", "/sys/firmware"] {
        let fact = &facts[&format!("path.{path}")];
        assert!(
            fact == "ENOENT" || fact.ends_with("empty"),
            "{path}: {fact}"
        );
    }
    for path in [
        "/proc/sysrq-trigger",
        "/proc/sys/kernel/hostname",
        "/proc/sys/vm/swappiness",
    ] {
        let fact = &facts[&format!("path.{path}")];
        assert!(
            fact == "ENOENT" || fact.ends_with("write EROFS"),
            "{path}: {fact}"
        );
    }
    let mut bare = program("unmasked", &[]);
    security(&mut bare).masked_paths.clear();
    security(&mut bare).readonly_paths.clear();
    let facts = look(&daemon, &pod, bare).await;
    assert!(
        facts["path./proc/keys"].contains("read bytes"),
        "{}",
        facts["path./proc/keys"]
    );
    let sysrq = &facts["path./proc/sysrq-trigger"];
    assert!(!sysrq.contains("EROFS"), "{sysrq}");
    let mut own = program("own", &[]);
    security(&mut own).masked_paths = vec!["/etc/motd".into(), "/home".into(), "/absent".into()];
    security(&mut own).readonly_paths = vec!["/tmp".into(), "/not-there".into()];
    own.command = [
        "/bin/sh",
        "-c",
        "cat /etc/motd; ls /home; touch /tmp/x 2>/dev/null || echo refused",
    ]
    .map(str::to_owned)
    .to_vec();
    run(&daemon, &pod, &own).await.says(&["refused"]);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn dev_holds_what_every_program_expects() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "dev").await;
    let facts = look(&daemon, &pod, program("c", &[])).await;
    for (name, number) in [
        ("null", "1,3"),
        ("zero", "1,5"),
        ("full", "1,7"),
        ("random", "1,8"),
        ("urandom", "1,9"),
        ("tty", "5,0"),
    ] {
        assert_eq!(
            facts[&format!("node./dev/{name}")],
            format!("char 0666 0:0 {number}")
        );
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        assert_eq!(
            facts[&format!("node./dev/{name}")],
            format!("link {target}")
        );
    }
    assert_eq!(facts["node./dev/ptmx"], "link pts/ptmx");
    assert!(facts["node./dev/shm"].starts_with("dir 1777"));
    assert!(facts["node./dev/mqueue"].starts_with("dir 1777"));
    let nodes = facts.iter().filter(|(name, value)| {
        name.starts_with("node./dev/") && (value.starts_with("char") || value.starts_with("block"))
    });
    let mut names: Vec<_> = nodes
        .map(|(name, _)| name.trim_start_matches("node./dev/"))
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "full", "null", "pts/ptmx", "random", "tty", "urandom", "zero"
        ]
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn the_cgroup_tree_shows_the_container_alone_and_cannot_be_written() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "cgroupfs").await;
    let script = "for d in /sys/fs/cgroup /sys/fs/cgroup/*; do (mkdir $d/x || echo 1 > $d/cgroup.procs) 2>/dev/null \
                  && echo wrote $d; done; \
                  f=/sys/fs/cgroup/memory/memory.limit_in_bytes; [ -e $f ] || f=/sys/fs/cgroup/memory.max; cat $f";
    let mut config = sh("c", script);
    resources(&mut config).memory_limit_in_bytes = 64 << 20;
    // Debian's runc leaves the directory of the version 1 hierarchies writable, a tmpfs of the container's own.
    let top = on_peer() && Path::new("/sys/fs/cgroup/memory").is_dir();
    let lines = ["wrote /sys/fs/cgroup", "67108864"];
    let output = if top { &lines[..] } else { &lines[1..] };
    run(&daemon, &pod, &config).await.says(output);
    daemon.finish().await.unwrap();
}
