//! What a request can carry: sysctls, annotations, names, profiles, lines in the wrong place: T18, T19, T23, T33, T34.

use coracle_proto::runtime::v1 as cri;
use coracle_tests::daemon::Daemon;
use cri::security_profile::ProfileType::Localhost;
use tonic::Code;

use super::canary::{Canary, Fate, attempt};
use crate::linux::shell::{
    daemon, fresh, look, on_peer, pod_security, program, run_sh, security, sh,
};
use crate::site::Pod;

/// Runs a pod that should be refused as an invalid argument; on the peer, only what follows counts.
async fn pod_is_refused(daemon: &Daemon, config: &cri::PodSandboxConfig, what: &str) {
    match daemon.cri().run_pod(config).await {
        Ok(id) => {
            daemon.cri().stop_pod(&id).await.unwrap();
            daemon.cri().remove_pod(&id).await.unwrap();
            assert!(on_peer(), "{what:?} was taken");
        }
        Err(refusal) => assert!(
            on_peer() || refusal.code() == Code::InvalidArgument,
            "{what:?}: {refusal}"
        ),
    }
}

/// T18, CVE-2022-0811: a sysctl is one key and one value, of the pod's own.
#[tokio::test]
async fn sysctls_cannot_smuggle_others() {
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    let key = "kernel.shm_rmid_forced";
    let cases = [
        (key, "1+kernel.core_pattern=|/x"),
        (key, "1\nkernel.core_pattern=|/x"),
        (key, "1\0"),
        ("kernel/core_pattern", "|/x"),
        ("kernel.core_pattern", "|/x"),
        ("net.ipv4/../../kernel.core_pattern", "|/x"),
        ("net.ipv4....kernel.core_pattern", "|/x"),
        ("kernel.shm_rmid_forced+kernel.core_pattern", "1"),
        ("kernel.hostname", "owned"),
        ("vm.overcommit_memory", "1"),
        ("", "1"),
        ("net/../kernel/core_pattern", "|/x"),
    ];
    for (key, value) in cases {
        let mut config = daemon.pod(&fresh("sysctl"));
        let linux = config.linux.as_mut().unwrap();
        linux.sysctls = [(key.to_owned(), value.to_owned())].into();
        pod_is_refused(&daemon, &config, &format!("{key}={value}")).await;
        canary.is_untouched(&daemon).await;
    }
    for (key, network, ipc) in [("net.ipv4.ip_forward", true, false), (key, false, true)] {
        let mut config = daemon.pod(&fresh("node"));
        config.linux.as_mut().unwrap().sysctls = [(key.to_owned(), "1".to_owned())].into();
        let options = pod_security(&mut config)
            .namespace_options
            .as_mut()
            .unwrap();
        if network {
            options.network = cri::NamespaceMode::Node as i32;
        }
        if ipc {
            options.ipc = cri::NamespaceMode::Node as i32;
        }
        if !on_peer() {
            pod_is_refused(&daemon, &config, key).await;
        }
    }
    canary.is_untouched(&daemon).await;
    daemon.finish().await.unwrap();
}

/// T19, CVE-2024-3154: annotations are kept, returned, and mean nothing.
#[tokio::test]
async fn annotations_change_nothing() {
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    let annotations = [
        (
            "org.systemd.property.ExecStart",
            "['/bin/touch', '/tmp/owned']",
        ),
        ("io.kubernetes.cri-o.userns-mode", "host"),
        ("io.kubernetes.cri-o.Devices", "/dev/vda:/dev/vda:rwm"),
        ("io.kubernetes.cri-o.cgroup2-mount-hierarchy-rw", "true"),
        ("run.oci.seccomp_fail_unknown_syscall", "0"),
        ("run.oci.keep_original_groups", "1"),
        ("run.oci.mount_context_type", "rootcontext"),
        ("io.containerd.runc.v2.group", "../../x"),
        ("seccomp.security.alpha.kubernetes.io/pod", "unconfined"),
        ("line", "one\nCapEff: ff"),
        ("long", "x"),
    ];
    let plain = Pod::run(&daemon, "plain").await;
    let expected = look(&daemon, &plain, program("c", &[])).await;
    let mut config = daemon.pod("annotated");
    for (key, value) in annotations {
        let value = if key == "long" {
            value.repeat(1 << 20)
        } else {
            value.to_owned()
        };
        config.annotations.insert(key.into(), value);
    }
    let pod = Pod::run_config(&daemon, config.clone()).await;
    let mut container = program("c", &[]);
    container.annotations = config.annotations.clone();
    let found = look(&daemon, &pod, container.clone()).await;
    for (fact, value) in &expected {
        let prefixes = [
            "status.Cap",
            "status.Secc",
            "status.Groups",
            "status.NoNew",
            "status.Uid",
            "path.",
            "limit.",
            "node./dev",
        ];
        if prefixes.iter().any(|prefix| fact.starts_with(prefix)) {
            assert_eq!(found.get(fact), Some(value), "{fact}");
        }
    }
    assert_eq!(
        daemon.cri().pod_status(&pod.id).await.unwrap().annotations,
        config.annotations
    );
    let listed = daemon.cri().list(None).await.unwrap();
    let status = listed
        .iter()
        .find(|one| one.pod_sandbox_id == pod.id)
        .unwrap();
    assert_eq!(status.annotations, container.annotations);
    canary.is_untouched(&daemon).await;
    daemon.finish().await.unwrap();
}

/// T23, CVE-2022-4318: nothing with a line break or beyond its length gets into a file of the container's.
#[tokio::test]
async fn lines_cannot_be_smuggled_into_files() {
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    let long = "x".repeat(254);
    for hostname in ["a\nb", "a\0b", long.as_str(), "a b\n127.0.0.1 x"] {
        let mut config = daemon.pod(&fresh("host"));
        config.hostname = hostname.into();
        pod_is_refused(&daemon, &config, hostname).await;
    }
    for bad in ["x\nnameserver 6.6.6.6", "x\0y"] {
        for field in 0..3 {
            let mut config = daemon.pod(&fresh("dns"));
            let mut dns = cri::DnsConfig::default();
            [&mut dns.servers, &mut dns.searches, &mut dns.options][field].push(bad.into());
            config.dns_config = Some(dns);
            pod_is_refused(&daemon, &config, bad).await;
        }
    }
    let pod = Pod::run(&daemon, "env").await;
    let mut config = sh(
        "c",
        "echo \"$HOME\" | wc -l; cat /etc/passwd | wc -l; grep -c owned /etc/passwd; :",
    );
    config.envs = vec![cri::KeyValue {
        key: "HOME".into(),
        value: b"/root\nowned:x:0:0::/:/bin/sh".to_vec(),
    }];
    let fate = attempt(&daemon, &pod, &config).await;
    assert!(
        matches!(&fate, Fate::Ran(0, text) if text == "2\n4\n0\n"),
        "{fate:?}"
    );
    canary.is_untouched(&daemon).await;
    daemon.finish().await.unwrap();
}

/// T33: ids and names are keys, never paths.
#[tokio::test]
async fn names_are_not_paths() {
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    let pod = Pod::run(&daemon, "names").await;
    let cri = daemon.cri();
    let long = "n".repeat(1 << 20);
    let ids = [
        "../../canary",
        "/",
        "",
        ".",
        "a\0b",
        "\u{1f980}",
        long.as_str(),
    ];
    for id in ids {
        assert!(cri.status(id).await.is_err() && cri.pod_status(id).await.is_err());
        assert!(cri.start(id).await.is_err());
        // Stopping and removing what is not there is done already, unless it cannot be an id.
        let _ = (cri.stop(id, 0).await, cri.remove(id).await);
        if !(on_peer() && id.is_empty()) {
            let _ = (cri.stop_pod(id).await, cri.remove_pod(id).await);
        }
        canary.is_untouched(&daemon).await;
    }
    for name in [
        "../../../x",
        "a/b",
        "a\nb",
        "\u{1f980}",
        "..",
        long.as_str(),
    ] {
        let mut config = program("c", &["/bin/true"]);
        config.metadata.as_mut().unwrap().name = name.into();
        config.log_path = fresh("log") + ".log";
        if let Ok(id) = pod.create(&config).await {
            assert_eq!(cri.status(&id).await.unwrap().metadata.unwrap().name, name);
            cri.remove(&id).await.unwrap();
        }
        canary.is_untouched(&daemon).await;
    }
    cri.list(None).await.unwrap();
    cri.list_pods(None).await.unwrap();
    run_sh(&daemon, &pod, "echo fine").await.says(&["fine"]);
    daemon.finish().await.unwrap();
}

/// T34, CVE-2023-2431: a profile that is not what it should be never means none.
#[tokio::test]
async fn a_profile_that_is_none_is_refused_and_never_left_out() {
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    let pod = Pod::run(&daemon, "profiles").await;
    let write = |name: &str, text: &str| {
        let path = daemon.scratch().dir().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let rule = |action: &str| {
        format!(
            r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{{"names": ["mkdir"], "action": "{action}"}}]}}"#
        )
    };
    let cases = [
        ("empty reference", String::new()),
        ("climbing", "../../etc/passwd".to_owned()),
        (
            "absent",
            daemon
                .scratch()
                .dir()
                .join("absent.json")
                .display()
                .to_string(),
        ),
        ("directory", "/etc".to_owned()),
        ("not json", write("text.json", "no profile")),
        ("json of something else", write("list.json", "[1, 2]")),
        (
            "unknown action",
            write("action.json", &rule("SCMP_ACT_GUESS")),
        ),
        ("notify", write("notify.json", &rule("SCMP_ACT_NOTIFY"))),
        (
            "unknown architecture",
            write(
                "arch.json",
                r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_PDP11"]}"#,
            ),
        ),
        (
            "huge",
            write(
                "huge.json",
                &format!(
                    "{{\"defaultAction\": \"SCMP_ACT_ALLOW\", \"x\": \"{}\"}}",
                    "x".repeat(50 << 20)
                ),
            ),
        ),
        ("device", "/dev/zero".to_owned()),
    ];
    for (what, reference) in cases {
        if on_peer() && ["huge", "device", "notify"].contains(&what) {
            continue;
        }
        let mut config = sh(&fresh("c"), "grep Seccomp: /proc/self/status");
        security(&mut config).seccomp = Some(cri::SecurityProfile {
            profile_type: Localhost as i32,
            localhost_ref: reference,
        });
        let fate = attempt(&daemon, &pod, &config).await;
        assert!(matches!(fate, Fate::Refused(_)), "{what}: {fate:?}");
        canary.is_untouched(&daemon).await;
    }
    if !on_peer() {
        let mut config = sh(&fresh("c"), "cat /proc/self/attr/current");
        security(&mut config).apparmor = Some(cri::SecurityProfile {
            profile_type: Localhost as i32,
            localhost_ref: "no-such-profile".into(),
        });
        attempt(&daemon, &pod, &config)
            .await
            .is_refused(&["no-such-profile"]);
    }
    daemon.finish().await.unwrap();
}
