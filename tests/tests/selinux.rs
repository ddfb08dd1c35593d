//! Promises on a node whose kernel has SELinux: the labels of programs and their files, and that the kernel heeds them.
//!
//! The tests load a policy into the kernel (`tests/guest/selinux.cil`) and so need a machine of their own, a guest:
//! `make test-v2 LSM=selinux`.
#![allow(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]

#[allow(dead_code, reason = "these tests use a part of what the others share")]
#[path = "cri/linux/shell.rs"]
mod shell;
#[allow(dead_code, reason = "these tests use a part of what the others share")]
#[path = "cri/site.rs"]
mod site;

#[path = "selinux/volumes.rs"]
mod volumes;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Once;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::daemon::Daemon;
use cri::security_profile::ProfileType;
use shell::{fresh, security, sh};
use site::{Pod, refused};
use tonic::Code;

const FILES: &str = "system_u:object_r:container_file_t:s0:c1,c2";
/// Prints the label that the script runs under. The kernel ends it with a NUL.
const WHO: &str = "tr -d '\\0' </proc/self/attr/current; echo";

/// Compiles and loads the policy, once a process, and has it enforced.
fn policy() {
    static LOADED: Once = Once::new();
    let selinux = Path::new("/sys/fs/selinux");
    assert!(
        std::env::var_os("CORACLE_IN_GUEST").is_some() && selinux.join("load").exists(),
        "these tests load an SELinux policy; run them by `make test-v2 LSM=selinux`"
    );
    LOADED.call_once(|| {
        let source = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/guest/selinux.cil"));
        let names: Vec<String> = (0..1024).map(|number| format!("c{number}")).collect();
        let declared: String = names
            .iter()
            .map(|name| format!("(category {name})\n"))
            .collect();
        let categories = format!("{declared}(categoryorder ({}))", names.join(" "));
        let policy = source.unwrap().replace(";CATEGORIES", &categories);
        fs::write("/tmp/policy.cil", policy).unwrap();
        let arguments = [
            "-o",
            "/tmp/policy",
            "-f",
            "/tmp/contexts",
            "-c",
            "33",
            "/tmp/policy.cil",
        ];
        assert!(
            Command::new("secilc")
                .args(arguments)
                .status()
                .unwrap()
                .success()
        );
        fs::write(selinux.join("load"), fs::read("/tmp/policy").unwrap()).unwrap();
        fs::write(selinux.join("enforce"), "1").unwrap();
    });
}

/// A container that runs a script with these categories, and the default of all else.
fn labelled(level: &str, script: &str) -> cri::ContainerConfig {
    let mut config = sh(&fresh("c"), script);
    security(&mut config).selinux_options = Some(cri::SeLinuxOption {
        level: level.into(),
        ..Default::default()
    });
    config
}

/// As the kubelet confines an ordinary container: a user, the default filter, no new privileges.
fn restricted(mut config: cri::ContainerConfig) -> cri::ContainerConfig {
    let security = security(&mut config);
    security.run_as_user = Some(cri::Int64Value { value: 1000 });
    security.no_new_privs = true;
    security.seccomp = Some(cri::SecurityProfile {
        profile_type: ProfileType::RuntimeDefault as i32,
        localhost_ref: String::new(),
    });
    config
}

/// The same for a program that is root.
fn restricted_root(config: cri::ContainerConfig) -> cri::ContainerConfig {
    let mut config = restricted(config);
    security(&mut config).run_as_user = Some(cri::Int64Value { value: 0 });
    config
}

async fn says(daemon: &Daemon, pod: &Pod, config: &cri::ContainerConfig) -> String {
    shell::run(daemon, pod, config).await.ok()
}

async fn exec(pod: &Pod, id: &str, script: &str) -> String {
    let request = cri::ExecSyncRequest {
        container_id: id.into(),
        cmd: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        timeout: 20,
    };
    let reply = pod.cri.runtime.clone().exec_sync(request).await.unwrap();
    String::from_utf8(reply.into_inner().stdout).unwrap()
}

#[tokio::test]
#[ignore = "needs a kernel with SELinux: make test-v2 LSM=selinux"]
async fn a_label_is_that_of_the_first_program_of_every_exec_and_of_the_files() {
    policy();
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "label").await;
    let expected = "system_u:system_r:container_t:s0:c1,c2\n";
    for dress in [|config| config, restricted] {
        assert_eq!(
            says(&daemon, &pod, &dress(labelled("s0:c1,c2", WHO))).await,
            expected
        );
        let id = pod.start(&dress(labelled("s0:c1,c2", "sleep 1000"))).await;
        assert_eq!(exec(&pod, &id, WHO).await, expected);
    }
    let mounts = labelled(
        "s0:c1,c2",
        "grep -e ' / / ' -e ' /dev ' -e ' /dev/pts ' /proc/self/mountinfo",
    );
    let mounts = says(&daemon, &pod, &mounts).await;
    assert_eq!(mounts.lines().count(), 3, "{mounts}");
    assert!(mounts.lines().all(|line| line.contains(FILES)), "{mounts}");
    daemon.finish().await.unwrap();
}

#[tokio::test]
#[ignore = "needs a kernel with SELinux: make test-v2 LSM=selinux"]
async fn a_label_that_the_policy_has_not_is_refused() {
    policy();
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "unknown").await;
    for level in ["s0,c1", "s9", "s0:c2000"] {
        let answer = pod.create(&labelled(level, "true")).await;
        refused(answer, Code::InvalidArgument, &[level, "policy"]);
    }
    let mut config = labelled("s0", "true");
    let options = security(&mut config).selinux_options.as_mut().unwrap();
    options.r#type = "no_such_t".into();
    let answer = pod.create(&config).await;
    refused(answer, Code::InvalidArgument, &["no_such_t", "policy"]);
    daemon.finish().await.unwrap();
}

#[tokio::test]
#[ignore = "needs a kernel with SELinux: make test-v2 LSM=selinux"]
async fn a_privileged_container_has_no_label() {
    policy();
    let daemon = shell::daemon().await;
    let mut config = daemon.pod("privileged");
    shell::pod_security(&mut config).privileged = true;
    let pod = Pod::run_config(&daemon, config).await;
    let mut config = labelled("s0:c1,c2", WHO);
    security(&mut config).privileged = true;
    let label = says(&daemon, &pod, &config).await;
    assert!(label.starts_with("system_u:system_r:node_t:"), "{label}");
    daemon.finish().await.unwrap();
}

/// The level of a label, `s0:c1,c2`.
fn level(label: &str) -> String {
    label
        .trim_end()
        .splitn(4, ':')
        .nth(3)
        .unwrap_or_default()
        .to_owned()
}

#[tokio::test]
#[ignore = "needs a kernel with SELinux: make test-v2 LSM=selinux"]
async fn a_pods_containers_share_categories_that_no_other_pod_has() {
    policy();
    let mut daemon = shell::daemon().await;
    let one = Pod::run(&daemon, "one").await;
    let other = Pod::run(&daemon, "other").await;
    let label = says(&daemon, &one, &sh(&fresh("c"), WHO)).await;
    let own = level(&label);
    assert!(
        label.starts_with("system_u:system_r:container_t:s0:c"),
        "{label}"
    );
    assert_eq!(own.matches(['c', ',']).count(), 3, "{label}");
    // One that asks for a type keeps the level.
    let mut typed = labelled("", WHO);
    security(&mut typed)
        .selinux_options
        .as_mut()
        .unwrap()
        .r#type = "node_t".into();
    let typed = says(&daemon, &one, &typed).await;
    assert_eq!(typed.trim_end(), format!("system_u:system_r:node_t:{own}"));
    let theirs = level(&says(&daemon, &other, &sh(&fresh("c"), WHO)).await);
    assert_ne!(own, theirs);
    // Shared memory is the pod's: what one container leaves the next one reads.
    let left = "echo text >/dev/shm/file && grep ' /dev/shm ' /proc/self/mountinfo";
    let mounted = says(&daemon, &one, &sh(&fresh("c"), left)).await;
    assert!(
        mounted.contains(&format!("system_u:object_r:container_file_t:{own}")),
        "{mounted}"
    );
    let id = one.start(&sh(&fresh("c"), "sleep 1000")).await;
    daemon.restart().await.unwrap();
    let read = says(&daemon, &one, &sh(&fresh("c"), "cat /dev/shm/file")).await;
    assert_eq!(read, "text\n");
    for label in [
        says(&daemon, &one, &sh(&fresh("c"), WHO)).await,
        exec(&one, &id, WHO).await,
    ] {
        assert_eq!(level(&label), own);
    }
    let third = Pod::run(&daemon, "third").await;
    // Its shared memory is the pod's, though the first container to have it has a level of its own.
    let shm = "grep ' /dev/shm ' /proc/self/mountinfo";
    let mounted = says(&daemon, &third, &labelled("s0:c1,c2", shm)).await;
    let new = level(&says(&daemon, &third, &sh(&fresh("c"), WHO)).await);
    assert!(new != own && new != theirs, "{own} {theirs} {new}");
    let expected = format!("system_u:object_r:container_file_t:{new}");
    assert!(mounted.contains(&expected), "{mounted}");
    // Another daemon hands out pairs of another share.
    let second = shell::daemon().await;
    let foreign = Pod::run(&second, "foreign").await;
    let foreign = level(&says(&second, &foreign, &sh(&fresh("c"), WHO)).await);
    assert_ne!(share(&own), share(&foreign), "{own} {foreign}");
    assert_eq!(share(&own), share(&new), "{own} {new}");
    second.finish().await.unwrap();
    daemon.finish().await.unwrap();
}

/// Which of the 32 shares of all pairs of categories a level is of.
fn share(level: &str) -> u32 {
    let pair = level
        .strip_prefix("s0:c")
        .unwrap()
        .split_once(",c")
        .unwrap();
    let (low, high): (u32, u32) = (pair.0.parse().unwrap(), pair.1.parse().unwrap());
    (high * (high - 1) / 2 + low) / (1024 * 1023 / 2 / 32)
}

#[tokio::test]
#[ignore = "needs a kernel with SELinux: make test-v2 LSM=selinux"]
async fn what_is_made_for_a_container_has_its_label() {
    policy();
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "own").await;
    // Opened twice: what a program makes it may also open. The policy lets containers read everything.
    let script = "for file in /etc/hosts /etc/hostname /etc/resolv.conf /dev/shm/x /tmp/x; do \
                  : >>$file && : >>$file && echo $file; done";
    for dress in [|config| config, restricted_root] {
        let output = says(&daemon, &pod, &dress(sh(&fresh("c"), script))).await;
        assert_eq!(output.lines().count(), 5, "{output}");
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
#[ignore = "needs a kernel with SELinux: make test-v2 LSM=selinux"]
async fn a_pod_among_the_nodes_processes_has_no_label_of_its_own_accord() {
    policy();
    let daemon = shell::daemon().await;
    let mut config = daemon.pod("node");
    let options = shell::pod_security(&mut config).namespace_options.as_mut();
    options.unwrap().pid = cri::NamespaceMode::Node as i32;
    let pod = Pod::run_config(&daemon, config).await;
    let mut config = sh(&fresh("c"), WHO);
    shell::namespaces(&mut config).pid = cri::NamespaceMode::Node as i32;
    let label = says(&daemon, &pod, &config).await;
    assert!(label.starts_with("system_u:system_r:node_t:"), "{label}");
    let mut asking = labelled("s0:c1,c2", WHO);
    shell::namespaces(&mut asking).pid = cri::NamespaceMode::Node as i32;
    let label = says(&daemon, &pod, &asking).await;
    assert_eq!(label, "system_u:system_r:container_t:s0:c1,c2\n");
    daemon.finish().await.unwrap();
}
