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

use std::ffi::CString;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Once;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::daemon::Daemon;
use cri::security_profile::ProfileType;
use rustix::mount::{MountFlags, UnmountFlags};
use shell::{fresh, mount, security, sh};
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
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/guest/selinux.cil");
        let words = [
            "-o",
            "/tmp/policy",
            "-f",
            "/tmp/contexts",
            "-c",
            "33",
            source,
        ];
        assert!(
            Command::new("secilc")
                .args(words)
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

async fn says(daemon: &Daemon, pod: &Pod, config: &cri::ContainerConfig) -> String {
    shell::run(daemon, pod, config).await.ok()
}

async fn exec(pod: &Pod, id: &str, script: &str) -> String {
    let asked = cri::ExecSyncRequest {
        container_id: id.into(),
        cmd: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        timeout: 20,
    };
    let reply = pod.cri.runtime.clone().exec_sync(asked).await.unwrap();
    String::from_utf8(reply.into_inner().stdout).unwrap()
}

/// A file system of the host's whose files all have this label, with the file `secret` in it; unmounted when dropped.
struct Volume(std::path::PathBuf);

impl Volume {
    fn new(daemon: &Daemon, name: &str, label: &str) -> Volume {
        let at = shell::host_dir(daemon, name);
        // mount(8) drops the option on a system that has no /etc/selinux.
        let options = CString::new(format!("mode=0777,context=\"{label}\"")).unwrap();
        rustix::mount::mount("tmpfs", &at, "tmpfs", MountFlags::empty(), &*options).unwrap();
        fs::write(at.join("secret"), "text\n").unwrap();
        Volume(at)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
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
    // Without a wish there is none.
    let plain = says(&daemon, &pod, &sh(&fresh("c"), WHO)).await;
    assert!(plain.starts_with("system_u:system_r:node_t:"), "{plain}");
    daemon.finish().await.unwrap();
}

#[tokio::test]
#[ignore = "needs a kernel with SELinux: make test-v2 LSM=selinux"]
async fn a_labelled_container_writes_only_to_files_of_its_categories() {
    policy();
    let daemon = shell::daemon().await;
    let volumes = [
        ("own", FILES),
        ("others", "system_u:object_r:container_file_t:s0:c3"),
        ("node", "system_u:object_r:node_t:s0"),
        ("secret", "system_u:object_r:secret_file_t:s0"),
    ];
    let volumes = volumes.map(|(name, label)| (name, Volume::new(&daemon, name, label)));
    let pod = Pod::run(&daemon, "files").await;
    let script = "echo x >/tmp/file && cat /tmp/file; for name in own others node secret; do \
                  cat /$name/secret 2>/dev/null || echo unread; \
                  (echo text >/$name/secret) 2>/dev/null || echo unwritten; done";
    let mounts = || {
        let mounts = volumes.iter();
        mounts.map(|(name, volume)| mount(&volume.0, &format!("/{name}"), false))
    };
    let mut config = labelled("s0:c1,c2", script);
    config.mounts.extend(mounts());
    let expected = "x\ntext\nunread\nunwritten\ntext\nunwritten\nunread\nunwritten\n";
    assert_eq!(says(&daemon, &pod, &config).await, expected);
    // The policy is at fault, not the volumes.
    let mut free = sh(&fresh("c"), script);
    free.mounts.extend(mounts());
    let expected = "x\ntext\ntext\ntext\ntext\n";
    assert_eq!(says(&daemon, &pod, &free).await, expected);
    pod.cri.remove_all_pods().await.unwrap();
    drop(volumes);
    daemon.finish().await.unwrap();
}

#[tokio::test]
#[ignore = "needs a kernel with SELinux: make test-v2 LSM=selinux"]
async fn a_label_that_the_policy_has_not_is_refused() {
    policy();
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "unknown").await;
    for level in ["s0,c1", "s9", "s0:c9"] {
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
