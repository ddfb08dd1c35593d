//! What the node refuses a Linux container in front of whatever filter it has.

use coracle_proto::runtime::v1 as cri;
use coracle_tests::daemon::{Daemon, Options};
use cri::security_profile::ProfileType::{self, Localhost, Unconfined};

use super::shell::{daemon_with, fresh, on_peer, run, security, sh};
use crate::exec::exec;
use crate::site::Pod;

/// The filters with which a container has most: none is asked for, none is wanted, one that allows everything.
fn open_profiles(daemon: &Daemon) -> [Option<cri::SecurityProfile>; 3] {
    let path = daemon.scratch().dir().join(fresh("open") + ".json");
    std::fs::write(&path, r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).unwrap();
    let of = |kind: ProfileType, path: String| {
        Some(cri::SecurityProfile {
            profile_type: kind as i32,
            localhost_ref: path,
        })
    };
    [
        None,
        of(Unconfined, String::new()),
        of(Localhost, path.display().to_string()),
    ]
}

async fn configured(config: &str) -> Daemon {
    let options = Options {
        config: config.to_owned(),
        ..Options::default()
    };
    daemon_with(options).await
}

#[tokio::test]
async fn a_handler_keeps_containers_from_making_user_namespaces_whatever_their_profile() {
    if on_peer() {
        return; // It has no such setting.
    }
    let daemon = configured("[handlers.coracle]\nuser_namespaces = false\n").await;
    let pod = Pod::run(&daemon, "no-users").await;
    let tries = "probe try unshare-user; probe try clone3; probe try keyctl";
    for profile in open_profiles(&daemon) {
        let mut config = sh(&fresh("c"), tries);
        security(&mut config).seccomp = profile.clone();
        let ran = run(&daemon, &pod, &config).await;
        ran.says(&["unshare-user: EPERM", "clone3: ENOSYS", "keyctl: ok"]);
        let mut config = sh(&fresh("c"), "exec sleep 1000");
        security(&mut config).seccomp = profile;
        let id = pod.start(&config).await;
        let done = exec(&pod, &id, &["probe", "try", "unshare-user"], 0).await;
        assert_eq!(done.unwrap().out, "unshare-user: EPERM\n");
    }
    // It may have the node anyway.
    let mut config = sh(&fresh("c"), "probe try unshare-user");
    security(&mut config).capabilities = Some(cri::Capability {
        add_capabilities: vec!["SYS_ADMIN".into()],
        ..Default::default()
    });
    run(&daemon, &pod, &config)
        .await
        .says(&["unshare-user: ok"]);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_container_under_a_list_has_no_sockets_that_no_rule_sees() {
    if on_peer() {
        return; // It has no such lists.
    }
    let daemon = configured("[handlers.coracle]\negress = [\"203.0.113.1\"]\n").await;
    let pod = Pod::run(&daemon, "listed").await;
    for profile in open_profiles(&daemon) {
        let mut config = sh(
            &fresh("c"),
            "probe try vsock; probe try io_uring; nc -w 1 127.0.0.1 9 </dev/null; echo $?",
        );
        let security = security(&mut config);
        security.seccomp = profile;
        security.capabilities = Some(cri::Capability {
            drop_capabilities: vec!["NET_RAW".into()],
            ..Default::default()
        });
        let ran = run(&daemon, &pod, &config).await;
        ran.says(&["vsock: EAFNOSUPPORT", "io_uring: ENOSYS", "1"]);
    }
    daemon.finish().await.unwrap();
}
