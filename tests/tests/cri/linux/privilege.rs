//! Capabilities, privileged containers, sysctls.

use coracle_proto::runtime::v1 as cri;
use tonic::Code;

use super::shell::{
    daemon, fresh, look, on_peer, pod_security, program, run, run_sh, security, sh,
};
use crate::site::{Pod, refused};

/// The default set: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, net_raw,
/// sys_chroot, mknod, audit_write, setfcap. Source: containerd `oci/spec.go`.
const DEFAULT: u64 = 0xa804_25fb;

fn caps(add: &[&str], drop: &[&str]) -> Option<cri::Capability> {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Some(cri::Capability {
        add_capabilities: owned(add),
        drop_capabilities: owned(drop),
        add_ambient_capabilities: Vec::new(),
    })
}

#[tokio::test]
async fn capabilities_are_the_default_set_with_what_is_added_and_dropped() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "caps").await;
    let every = std::fs::read_to_string("/proc/self/status").unwrap();
    let every = every
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:\t"))
        .unwrap();
    let every = u64::from_str_radix(every, 16).unwrap();
    for (add, drop, set) in [
        (&[][..], &[][..], DEFAULT),
        (&["NET_ADMIN"], &[], DEFAULT | 1 << 12),
        (
            &["SYS_TIME"],
            &["NET_RAW"],
            (DEFAULT | 1 << 25) & !(1 << 13),
        ),
        (&[], &["ALL"], 0),
        (&["NET_BIND_SERVICE"], &["ALL"], 1 << 10),
        (&["ALL"], &[], every),
        (&["ALL"], &["SYS_ADMIN"], every & !(1 << 21)),
    ] {
        let mut config = program(&fresh("c"), &[]);
        security(&mut config).capabilities = caps(add, drop);
        let facts = look(&daemon, &pod, config).await;
        for name in ["CapBnd", "CapPrm", "CapEff"] {
            let found = &facts[&format!("status.{name}")];
            assert_eq!(
                *found,
                format!("{set:016x}"),
                "{name} with +{add:?} -{drop:?}"
            );
        }
        assert_eq!(facts["status.CapInh"], "0000000000000000");
        assert_eq!(facts["status.CapAmb"], "0000000000000000");
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_user_that_is_not_root_has_none_but_ambient_ones() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "user").await;
    let mut config = program("plain", &[]);
    security(&mut config).run_as_user = Some(cri::Int64Value { value: 1000 });
    security(&mut config).capabilities = caps(&["NET_BIND_SERVICE"], &["ALL"]);
    let facts = look(&daemon, &pod, config.clone()).await;
    assert_eq!(facts["status.CapBnd"], format!("{:016x}", 1 << 10));
    for name in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
        assert_eq!(
            facts[&format!("status.{name}")],
            "0000000000000000",
            "{name}"
        );
    }
    if !on_peer() {
        config.metadata.as_mut().unwrap().name = "ambient".into();
        config.log_path = "ambient.log".into();
        let added = security(&mut config).capabilities.as_mut().unwrap();
        added.add_ambient_capabilities = vec!["NET_BIND_SERVICE".into()];
        let facts = look(&daemon, &pod, config).await;
        for name in ["CapPrm", "CapEff", "CapAmb", "CapInh"] {
            let found = &facts[&format!("status.{name}")];
            assert_eq!(*found, format!("{:016x}", 1 << 10), "{name}");
        }
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn an_unknown_capability_is_refused_by_name() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "unknown").await;
    let mut config = program("c", &["/bin/true"]);
    security(&mut config).capabilities = caps(&["FLY"], &[]);
    let refusal = match pod.create(&config).await {
        Ok(id) => pod.cri.start(&id).await.map(|()| id),
        Err(refusal) => Err(refusal),
    };
    if on_peer() {
        // runc passes over what it does not know.
        refusal.unwrap();
    } else {
        refused(refusal, Code::InvalidArgument, &["FLY"]);
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_privileged_container_is_the_nodes_root() {
    let daemon = daemon().await;
    let mut config = daemon.pod("privileged");
    pod_security(&mut config).privileged = true;
    let pod = Pod::run_config(&daemon, config).await;
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let own = own
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:\t"))
        .unwrap();
    let mut config = sh(
        "c",
        "grep CapEff /proc/self/status | cut -f 2; grep -w Seccomp: /proc/self/status | cut -f 2; \
         [ -e /dev/kmsg ] && echo host devices; mount -t tmpfs none /tmp && echo mounts; \
         mkdir /sys/fs/cgroup/memory/x 2>/dev/null || mkdir /sys/fs/cgroup/x && echo cgroups && \
         rmdir /sys/fs/cgroup/memory/x 2>/dev/null || rmdir /sys/fs/cgroup/x; \
         head -c 1 /proc/keys | wc -c; touch /sys/kernel/mm/transparent_hugepage/enabled && echo sys",
    );
    let context = security(&mut config);
    context.privileged = true;
    context.masked_paths.clear();
    context.readonly_paths.clear();
    let out = run(&daemon, &pod, &config).await.out;
    let lines: Vec<_> = out.lines().collect();
    let all = [own, "0", "host devices", "mounts", "cgroups", "1", "sys"];
    // Under the peer, the pod's own process has mounted the network namespace's sysfs read-only before.
    assert_eq!(lines[..], all[..if on_peer() { 6 } else { 7 }]);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_privileged_container_needs_a_privileged_pod() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "plain").await;
    let mut config = program("c", &["/bin/true"]);
    security(&mut config).privileged = true;
    let refusal = pod.create(&config).await.unwrap_err();
    assert!(refusal.message().contains("privileged"), "{refusal}");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn sysctls_are_the_pods_own() {
    let daemon = daemon().await;
    let before = std::fs::read_to_string("/proc/sys/kernel/shm_rmid_forced").unwrap();
    let mut config = daemon.pod("sysctls");
    config.linux.as_mut().unwrap().sysctls = [
        ("kernel.shm_rmid_forced", "1"),
        ("net.ipv4.ip_local_port_range", "2000 3000"),
        ("net.ipv4.ip_unprivileged_port_start", "77"),
        ("kernel.msgmax", "7777"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    let pod = Pod::run_config(&daemon, config).await;
    let script = "cd /proc/sys; cat kernel/shm_rmid_forced net/ipv4/ip_local_port_range \
                  net/ipv4/ip_unprivileged_port_start kernel/msgmax | tr '\\t' ' '; \
                  echo 0 2>/dev/null > kernel/shm_rmid_forced || echo read-only";
    let lines = ["1", "2000 3000", "77", "7777", "read-only"];
    run_sh(&daemon, &pod, script).await.says(&lines);
    let after = std::fs::read_to_string("/proc/sys/kernel/shm_rmid_forced").unwrap();
    assert_eq!(before, after);
    daemon.finish().await.unwrap();
}

/// As containerd and CRI-O have it, and upstream's conformance tests rely on it.
#[tokio::test]
async fn selinux_options_are_passed_over_where_the_kernel_has_no_selinux() {
    if std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        return; // tests/selinux.rs says what they mean there.
    }
    let daemon = daemon().await;
    let options = cri::SeLinuxOption {
        user: "no_such_u".into(),
        role: "no_such_r".into(),
        r#type: "no_such_t".into(),
        level: "s0:c0,c1".into(),
    };
    let mut config = daemon.pod("selinux");
    pod_security(&mut config).selinux_options = Some(options.clone());
    let pod = Pod::run_config(&daemon, config).await;
    let mut config = sh(&fresh("c"), "echo ran");
    security(&mut config).selinux_options = Some(options);
    run(&daemon, &pod, &config).await.says(&["ran"]);
    daemon.finish().await.unwrap();
}
