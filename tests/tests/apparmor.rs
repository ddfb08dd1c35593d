//! Promises on a node whose kernel has AppArmor: whose profile a program runs under, and what is refused.
//!
//! The tests load profiles into the kernel and so need a machine of their own: `make test-v2 LSM=apparmor` runs them
//! in a guest. A profile named `coracle-default` concerns every container, so they take turns; the daemon loads its own
//! whenever there is none.
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

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::daemon::Daemon;
use cri::security_profile::ProfileType;
use shell::{fresh, security, sh};
use site::{Pod, refused};
use tonic::{Code, Status};

/// Allows everything but writing to `/tmp/denied`.
const DENY: &str =
    "file, capability, network, mount, signal, ptrace, unix, deny /tmp/denied{,/**} w,";
/// Whom the program runs as, then whether it may write to `/tmp/allowed` and to `/tmp/denied`.
const SCRIPT: &str = "cat /proc/self/attr/current; \
     for name in allowed denied; do \
         if (echo x >/tmp/$name) 2>/dev/null; then echo wrote; else echo refused; fi; \
     done";
/// What [`SCRIPT`] says when nothing confines it.
const FREE: &str = "unconfined\nwrote\nwrote\n";
/// What it says under the profile that is ours.
const OURS: &str = "coracle-default (enforce)\nwrote\nwrote\n";

/// A profile in the kernel, unloaded when dropped.
struct Profile {
    name: &'static str,
    text: String,
}

impl Profile {
    /// Loads a profile of these rules. `mode` is a flag of AppArmor's, `complain` or `enforce`.
    fn load(name: &'static str, mode: &str, rules: &str) -> Profile {
        let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
        assert!(
            std::env::var_os("CORACLE_IN_GUEST").is_some() && enabled.is_ok_and(|it| it == "Y\n"),
            "these tests load AppArmor profiles; run them by `make test-v2 LSM=apparmor`"
        );
        let text = format!("profile {name} flags=(attach_disconnected,{mode}) {{ {rules} }}\n");
        let profile = Profile { name, text };
        profile.parser("--replace");
        profile
    }

    fn parser(&self, action: &str) {
        let mut parser = Command::new("apparmor_parser")
            .args([action, "--skip-cache"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = parser.stdin.take().unwrap();
        stdin.write_all(self.text.as_bytes()).unwrap();
        drop(stdin);
        assert!(parser.wait().unwrap().success(), "{action} {}", self.text);
    }

    /// What [`SCRIPT`] says under [`DENY`].
    fn confined(&self) -> String {
        format!("{} (enforce)\nwrote\nrefused\n", self.name)
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        self.parser("--remove");
    }
}

/// A container that runs a script under `apparmor`, or with the field left out.
fn under(apparmor: Option<cri::SecurityProfile>, script: &str) -> cri::ContainerConfig {
    let mut config = sh(&fresh("c"), script);
    security(&mut config).apparmor = apparmor;
    config
}

/// The same with the field that older kubelets fill.
fn under_old(text: &str, script: &str) -> cri::ContainerConfig {
    let mut config = sh(&fresh("c"), script);
    set_old(security(&mut config), text);
    config
}

#[allow(deprecated, reason = "older kubelets fill this field")]
fn set_old(security: &mut cri::LinuxContainerSecurityContext, text: &str) {
    security.apparmor_profile = text.into();
}

fn of_type(profile_type: ProfileType) -> Option<cri::SecurityProfile> {
    Some(cri::SecurityProfile {
        profile_type: profile_type as i32,
        localhost_ref: String::new(),
    })
}

fn localhost(name: &str) -> Option<cri::SecurityProfile> {
    Some(cri::SecurityProfile {
        profile_type: ProfileType::Localhost as i32,
        localhost_ref: name.into(),
    })
}

/// As the kubelet confines an ordinary container: a user, the default filter, no new privileges.
fn restricted(mut config: cri::ContainerConfig) -> cri::ContainerConfig {
    let security = security(&mut config);
    security.run_as_user = Some(cri::Int64Value { value: 1000 });
    security.no_new_privs = true;
    security.seccomp = of_type(ProfileType::RuntimeDefault);
    config
}

async fn says(daemon: &Daemon, pod: &Pod, config: &cri::ContainerConfig) -> String {
    shell::run(daemon, pod, config).await.ok()
}

async fn exec(pod: &Pod, id: &str, script: &str) -> Result<String, Status> {
    let request = cri::ExecSyncRequest {
        container_id: id.into(),
        cmd: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        timeout: 20,
    };
    let reply = pod.cri.runtime.clone().exec_sync(request).await?;
    Ok(String::from_utf8(reply.into_inner().stdout).unwrap())
}

#[tokio::test]
#[ignore = "needs a kernel with AppArmor: make test-v2 LSM=apparmor"]
async fn a_profile_confines_the_first_program_and_every_exec() {
    let deny = Profile::load("coracle-test-deny", "enforce", DENY);
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "profile").await;
    let request = || localhost(deny.name);
    for config in [
        under(request(), SCRIPT),
        restricted(under(request(), SCRIPT)),
        under(localhost(&format!("localhost/{}", deny.name)), SCRIPT),
    ] {
        assert_eq!(says(&daemon, &pod, &config).await, deny.confined());
    }
    // The rules are at fault, not the files.
    assert_eq!(says(&daemon, &pod, &under(None, SCRIPT)).await, OURS);
    for config in [
        under(request(), "sleep 1000"),
        restricted(under(request(), "sleep 1000")),
    ] {
        let id = pod.start(&config).await;
        assert_eq!(exec(&pod, &id, SCRIPT).await.unwrap(), deny.confined());
        let first = exec(&pod, &id, "cat /proc/1/attr/current").await.unwrap();
        assert_eq!(first, "coracle-test-deny (enforce)\n");
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
#[ignore = "needs a kernel with AppArmor: make test-v2 LSM=apparmor"]
async fn a_profile_confines_a_pod_with_users_of_its_own() {
    let deny = Profile::load("coracle-test-users", "enforce", DENY);
    let daemon = shell::daemon().await;
    let mut config = daemon.pod("users");
    let options = shell::pod_security(&mut config).namespace_options.as_mut();
    let mapping = cri::IdMapping {
        host_id: 1_000_000,
        container_id: 0,
        length: 65_536,
    };
    let users = cri::UserNamespace {
        mode: cri::NamespaceMode::Pod as i32,
        uids: vec![mapping],
        gids: vec![mapping],
    };
    options.unwrap().userns_options = Some(users.clone());
    let pod = Pod::run_config(&daemon, config).await;
    let mut config = under(localhost(deny.name), SCRIPT);
    shell::namespaces(&mut config).userns_options = Some(users);
    assert_eq!(says(&daemon, &pod, &config).await, deny.confined());
    config.metadata.as_mut().unwrap().name = "runs".into();
    config.command = ["/bin/sleep", "1000"].map(str::to_owned).to_vec();
    let id = pod.start(&config).await;
    assert_eq!(exec(&pod, &id, SCRIPT).await.unwrap(), deny.confined());
    daemon.finish().await.unwrap();
}

#[tokio::test]
#[ignore = "needs a kernel with AppArmor: make test-v2 LSM=apparmor"]
async fn a_profile_that_only_complains_forbids_nothing() {
    // Enforced, it would allow no writing at all.
    let complain = Profile::load("coracle-test-complain", "complain", "/** mrix,");
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "complain").await;
    let config = under(localhost(complain.name), SCRIPT);
    let expected = "coracle-test-complain (complain)\nwrote\nwrote\n";
    assert_eq!(says(&daemon, &pod, &config).await, expected);
    daemon.finish().await.unwrap();
}

#[tokio::test]
#[ignore = "needs a kernel with AppArmor: make test-v2 LSM=apparmor"]
async fn a_profile_that_is_not_loaded_is_refused_by_name() {
    let loaded = Profile::load("coracle-test-loaded", "enforce", DENY);
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "absent").await;
    for config in [
        under(localhost("coracle-test-absent"), "true"),
        under(localhost("localhost/coracle-test-absent"), "true"),
        under_old("localhost/coracle-test-absent", "true"),
        restricted(under(localhost("coracle-test-absent"), "true")),
    ] {
        refused(
            pod.create(&config).await,
            Code::InvalidArgument,
            &["coracle-test-absent", "not loaded"],
        );
    }
    // A profile that goes later takes nobody's confinement away unnoticed.
    let id = pod.create(&under(localhost(loaded.name), SCRIPT)).await;
    let runs = pod
        .start(&under(localhost(loaded.name), "sleep 1000"))
        .await;
    drop(loaded);
    let id = id.unwrap();
    let start = pod.cri.start(&id).await.expect_err("its profile is gone");
    assert!(start.message().contains("coracle-test-loaded"), "{start}");
    let late = exec(&pod, &runs, SCRIPT)
        .await
        .expect_err("its profile is gone");
    assert!(late.message().contains("coracle-test-loaded"), "{late}");
    daemon.finish().await.unwrap();
}

#[tokio::test]
#[ignore = "needs a kernel with AppArmor: make test-v2 LSM=apparmor"]
async fn the_default_is_the_profile_of_that_name_and_ours_if_there_is_none() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "default").await;
    let by_default = || {
        [
            under(None, SCRIPT),
            under(of_type(ProfileType::RuntimeDefault), SCRIPT),
            under_old("runtime/default", SCRIPT),
        ]
    };
    for config in by_default() {
        assert_eq!(says(&daemon, &pod, &config).await, OURS);
    }
    // An administrator's own takes its place.
    let default = Profile::load("coracle-default", "enforce", DENY);
    for config in by_default() {
        assert_eq!(says(&daemon, &pod, &config).await, default.confined());
    }
    for config in [
        under(of_type(ProfileType::Unconfined), SCRIPT),
        under_old("unconfined", SCRIPT),
    ] {
        assert_eq!(says(&daemon, &pod, &config).await, FREE);
    }
    // Gone, it is loaded again for whoever needs it, also as a container's first exec finds it.
    drop(default);
    for config in by_default() {
        assert_eq!(says(&daemon, &pod, &config).await, OURS);
    }
    let id = pod.start(&under(None, "sleep 1000")).await;
    assert_eq!(exec(&pod, &id, SCRIPT).await.unwrap(), OURS);
    daemon.finish().await.unwrap();
}

/// What capabilities and an unmasked `/proc` would allow.
#[tokio::test]
#[ignore = "needs a kernel with AppArmor: make test-v2 LSM=apparmor"]
async fn our_default_leaves_programs_alone_and_shuts_the_ways_to_the_node() {
    let daemon = shell::daemon().await;
    let mut config = daemon.pod("ways");
    let options = shell::pod_security(&mut config).namespace_options.as_mut();
    options.unwrap().pid = cri::NamespaceMode::Node as i32;
    let pod = Pod::run_config(&daemon, config).await;
    let widened = |apparmor, script: &str| {
        let mut config = under(apparmor, script);
        shell::namespaces(&mut config).pid = cri::NamespaceMode::Node as i32;
        let security = security(&mut config);
        security.masked_paths.clear();
        security.readonly_paths.clear();
        security.capabilities = Some(cri::Capability {
            add_capabilities: vec!["ALL".into()],
            ..Default::default()
        });
        config
    };
    // Each is a way to the node for who has the capability. What is written is what is there already.
    let ways = "try() { if (eval \"$1\") >/dev/null 2>&1; then echo open; else echo shut; fi; }; \
        try 'probe try mount | grep -q ok'; \
        try 'ls /proc/1/root/'; \
        try 'cat /proc/sys/vm/swappiness >/tmp/v && cat /tmp/v >/proc/sys/vm/swappiness'; \
        try 'cat /proc/sys/kernel/core_pattern >/tmp/v && cat /tmp/v >/proc/sys/kernel/core_pattern'; \
        try 'kill -0 1'";
    let said = says(&daemon, &pod, &widened(None, ways)).await;
    assert_eq!(said, "shut\n".repeat(5));
    // The profile shuts them, nothing else does.
    let said = says(
        &daemon,
        &pod,
        &widened(of_type(ProfileType::Unconfined), ways),
    )
    .await;
    assert_eq!(said, "open\n".repeat(5));
    // What programs do every day.
    let usual = "mkdir /tmp/d && echo x >/tmp/d/f && mv /tmp/d/f /tmp/d/g && ln -s g /tmp/d/h && cat /tmp/d/h && \
        cat /proc/self/status >/dev/null && ls /proc/self/root/ >/dev/null && echo 1 >/dev/null && \
        (sleep 100 & kill $!) && echo done";
    assert_eq!(says(&daemon, &pod, &under_pid(usual)).await, "x\ndone\n");
    // Who stops it is heard.
    let config = under_pid("trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done");
    let id = pod.start(&config).await;
    let name = &config.metadata.as_ref().unwrap().name;
    pod.wait_log(&daemon, name, "ready").await;
    pod.cri.stop(&id, 60).await.unwrap();
    assert_eq!(pod.cri.status(&id).await.unwrap().exit_code, 5);
    daemon.finish().await.unwrap();
}

/// An ordinary container of a pod among the node's processes.
fn under_pid(script: &str) -> cri::ContainerConfig {
    let mut config = under(None, script);
    shell::namespaces(&mut config).pid = cri::NamespaceMode::Node as i32;
    config
}

#[tokio::test]
#[ignore = "needs a kernel with AppArmor: make test-v2 LSM=apparmor"]
async fn a_privileged_container_has_no_profile() {
    let default = Profile::load("coracle-default", "enforce", DENY);
    let daemon = shell::daemon().await;
    let mut config = daemon.pod("privileged");
    shell::pod_security(&mut config).privileged = true;
    let pod = Pod::run_config(&daemon, config).await;
    for profile in [None, localhost(default.name)] {
        let mut config = under(profile, SCRIPT);
        security(&mut config).privileged = true;
        assert_eq!(says(&daemon, &pod, &config).await, FREE);
    }
    drop(default);
    daemon.finish().await.unwrap();
}

#[tokio::test]
#[ignore = "needs a kernel with AppArmor: make test-v2 LSM=apparmor"]
async fn the_old_field_counts_until_there_is_a_new_one() {
    let deny = Profile::load("coracle-test-old", "enforce", DENY);
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "old").await;
    let named = format!("localhost/{}", deny.name);
    let mut config = under_old(&named, SCRIPT);
    assert_eq!(says(&daemon, &pod, &config).await, deny.confined());
    config = under_old("localhost/coracle-test-absent", SCRIPT);
    security(&mut config).apparmor = localhost(deny.name);
    assert_eq!(says(&daemon, &pod, &config).await, deny.confined());
    config = under_old(&named, SCRIPT);
    security(&mut config).apparmor = of_type(ProfileType::Unconfined);
    assert_eq!(says(&daemon, &pod, &config).await, FREE);
    daemon.finish().await.unwrap();
}

#[tokio::test]
#[ignore = "needs a kernel with AppArmor: make test-v2 LSM=apparmor"]
async fn a_profile_without_signals_does_not_keep_its_container_alive() {
    let hears = Profile::load("coracle-test-hears", "enforce", DENY);
    let deaf = Profile::load("coracle-test-deaf", "enforce", "file, capability,");
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "deaf").await;
    let script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done";
    for (profile, grace_s, code) in [(&hears, 60, 5), (&deaf, 2, 137)] {
        let config = under(localhost(profile.name), script);
        let id = pod.start(&config).await;
        let name = &config.metadata.as_ref().unwrap().name;
        pod.wait_log(&daemon, name, "ready").await;
        pod.cri.stop(&id, grace_s).await.unwrap();
        let status = pod.cri.status(&id).await.unwrap();
        assert_eq!(status.exit_code, code, "{}: {status:?}", profile.name);
    }
    daemon.finish().await.unwrap();
}
