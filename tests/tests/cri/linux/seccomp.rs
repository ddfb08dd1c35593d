//! Seccomp: what the default profile blocks, a profile of the node's, none.

use std::path::PathBuf;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::daemon::Daemon;
use cri::security_profile::ProfileType::{self, Localhost, RuntimeDefault, Unconfined};

use super::shell::{daemon, fresh, look, program, run, security, sh};
use crate::site::Pod;

fn profile(kind: ProfileType, path: &str) -> Option<cri::SecurityProfile> {
    Some(cri::SecurityProfile {
        profile_type: kind as i32,
        localhost_ref: path.into(),
    })
}

fn write_profile(daemon: &Daemon, text: &str) -> PathBuf {
    let path = daemon.scratch().dir().join(fresh("profile") + ".json");
    std::fs::write(&path, text).unwrap();
    path
}

const TRIES: &str = "for t in unshare-user unshare-mount mount keyctl bpf clone3 vsock io_uring; do probe try $t; done";

#[tokio::test]
async fn the_default_profile_blocks_what_containers_never_need() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "default").await;
    let mut config = sh("c", TRIES);
    security(&mut config).seccomp = profile(RuntimeDefault, "");
    let mut lines = vec![
        "unshare-user: EPERM",
        "unshare-mount: EPERM",
        "mount: EPERM",
        "keyctl: EPERM",
        "bpf: EPERM",
        "clone3: ENOSYS",
    ];
    let out = run(&daemon, &pod, &config).await.ok();
    let found: Vec<_> = out.lines().take(6).collect();
    // containerd 1.6 knows neither of the last two.
    if !super::shell::on_peer() {
        lines.extend(["vsock: EAFNOSUPPORT", "io_uring: EPERM"]);
        let vsock = out.lines().nth(6).unwrap();
        assert!(
            ["vsock: EPERM", "vsock: EAFNOSUPPORT"].contains(&vsock),
            "{vsock}"
        );
        assert_eq!(out.lines().nth(7).unwrap(), "io_uring: EPERM");
    }
    assert_eq!(found, lines[..6]);
    let mut config = program("look", &[]);
    security(&mut config).seccomp = profile(RuntimeDefault, "");
    assert_eq!(look(&daemon, &pod, config).await["status.Seccomp"], "2");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn the_default_profile_opens_with_the_capability() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "opens").await;
    let mut config = sh(
        "c",
        "probe try unshare-mount; probe try mount; probe try chroot",
    );
    security(&mut config).seccomp = profile(RuntimeDefault, "");
    security(&mut config).capabilities = Some(cri::Capability {
        add_capabilities: vec!["SYS_ADMIN".into()],
        ..Default::default()
    });
    let lines = ["unshare-mount: ok", "mount: ok", "chroot: ok"];
    run(&daemon, &pod, &config).await.says(&lines);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn unconfined_means_no_filter() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "none").await;
    let mut config = sh(
        "c",
        "probe try unshare-user; probe try keyctl; grep -w Seccomp: /proc/self/status | cut -f 2",
    );
    security(&mut config).seccomp = profile(Unconfined, "");
    run(&daemon, &pod, &config)
        .await
        .says(&["unshare-user: ok", "keyctl: ok", "0"]);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_profile_of_the_nodes_is_followed_to_the_letter() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "localhost").await;
    let path = write_profile(
        &daemon,
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
            "syscalls": [
              {"names": ["mkdir", "mkdirat", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
              {"names": ["chroot"], "action": "SCMP_ACT_ERRNO"},
              {"names": ["unshare"], "action": "SCMP_ACT_KILL_PROCESS"}
            ]}"#,
    );
    let mut config = sh(
        "c",
        "probe try mkdir /tmp/x; probe try chroot; probe try keyctl; (probe try unshare-mount); echo $?; echo end",
    );
    security(&mut config).seccomp = profile(Localhost, &path.display().to_string());
    let ran = run(&daemon, &pod, &config).await;
    ran.says(&["mkdir: ENOSPC", "chroot: EPERM", "keyctl: ok", "159", "end"]);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn the_filter_comes_before_the_first_instruction_of_the_program() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "first").await;
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW",
                   "syscalls": [{"names": ["uname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}"#;
    let path = write_profile(&daemon, text);
    for no_new_privs in [false, true] {
        let mut config = program(&fresh("c"), &[]);
        security(&mut config).seccomp = profile(Localhost, &path.display().to_string());
        security(&mut config).no_new_privs = no_new_privs;
        let facts = look(&daemon, &pod, config).await;
        assert_eq!(facts["status.Seccomp"], "2");
        assert_eq!(
            facts["status.NoNewPrivs"],
            u8::from(no_new_privs).to_string()
        );
    }
    daemon.finish().await.unwrap();
}
