//! Volumes: host paths, read-only in depth, propagation, images as volumes, what is refused.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client;
use coracle_tests::daemon::Options;
use coracle_tests::push::artifact;
use cri::MountPropagation::{
    self, PropagationBidirectional, PropagationHostToContainer, PropagationPrivate,
};
use tonic::Code;

use super::shell::{
    daemon, daemon_with, fresh, host_dir, images, mount, on_peer, program, run, security, sh,
};
use crate::site::{Pod, refused};

/// A tmpfs on a directory of the host, gone on drop.
struct Tmpfs(std::path::PathBuf);

impl Tmpfs {
    fn on(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let mut command = Command::new("mount");
        assert!(
            command
                .args(["-t", "tmpfs", "tmpfs"])
                .arg(dir)
                .status()
                .unwrap()
                .success()
        );
        Self(dir.to_owned())
    }

    fn propagate(&self, how: &str) {
        let mut command = Command::new("mount");
        assert!(command.arg(how).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .args(["-R", "-l"])
            .arg(&self.0)
            .status();
    }
}

#[tokio::test]
async fn directories_and_files_are_mounted_and_links_inside_lead_nowhere_outside() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "volumes").await;
    let dir = host_dir(&daemon, "data");
    std::fs::write(dir.join("in"), "from the host\n").unwrap();
    std::os::unix::fs::symlink("/etc/shadow", dir.join("link")).unwrap();
    let mut config = sh(
        "c",
        "cat /data/in /etc/one; echo x > /data/out; echo x 2>/dev/null > /ro/no || echo refused; \
         cat /data/link 2>/dev/null || echo nothing; cat /etc/link-to-data/in",
    );
    config.mounts = vec![
        mount(&dir, "/data", false),
        mount(&dir, "/ro", true),
        mount(&dir.join("in"), "/etc/one", true),
    ];
    let lines = [
        "from the host",
        "from the host",
        "refused",
        "nothing",
        "from the host",
    ];
    run(&daemon, &pod, &config).await.says(&lines);
    assert_eq!(std::fs::read_to_string(dir.join("out")).unwrap(), "x\n");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn mounts_inside_mounts_and_over_links_of_the_image_land_where_they_say() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "nested").await;
    let (outer, inner) = (host_dir(&daemon, "outer"), host_dir(&daemon, "inner"));
    std::fs::write(inner.join("f"), "inner\n").unwrap();
    // Given in the wrong order: parents come first all the same. The link leads to /data inside the container.
    let mut config = sh("c", "cat /a/b/c/f /data/f; ls /a");
    config.mounts = vec![
        mount(&inner, "/a/b/c", false),
        mount(&outer, "/a", false),
        mount(&inner, "/etc/link-to-data", false),
    ];
    run(&daemon, &pod, &config)
        .await
        .says(&["inner", "inner", "b"]);
    assert!(outer.join("b/c").is_dir());
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn recursive_read_only_reaches_submounts_and_plain_read_only_does_not() {
    if on_peer() {
        return;
    }
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "rro").await;
    let dir = host_dir(&daemon, "tree");
    let below = Tmpfs::on(&dir.join("sub"));
    for (recursive, output) in [(false, "wrote"), (true, "refused")] {
        let script = "touch /v/top 2>/dev/null && echo bad; touch /v/sub/x 2>/dev/null && echo wrote || echo refused";
        let mut config = sh(&fresh("c"), script);
        config.mounts = vec![mount(&dir, "/v", true)];
        config.mounts[0].recursive_read_only = recursive;
        run(&daemon, &pod, &config).await.says(&[output]);
    }
    for change in [
        (|m: &mut cri::Mount| m.readonly = false) as fn(&mut cri::Mount),
        |m| m.propagation = PropagationHostToContainer as i32,
    ] {
        let mut config = program(&fresh("bad"), &["/bin/true"]);
        config.mounts = vec![mount(&dir, "/v", true)];
        config.mounts[0].recursive_read_only = true;
        change(&mut config.mounts[0]);
        let refusal = pod.create(&config).await.unwrap_err();
        let text = refusal.message();
        assert!(text.starts_with("RROUnsupported"), "{text}");
    }
    drop(below);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn propagation_is_private_one_way_or_both_ways_as_requested() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "propagation").await;
    let dir = host_dir(&daemon, "shared");
    let volume = Tmpfs::on(&dir);
    volume.propagate("--make-rshared");
    std::fs::create_dir(dir.join("late")).unwrap();
    std::fs::create_dir(dir.join("up")).unwrap();
    let start = async |name: &str, propagation: MountPropagation| {
        let script = "mount -t tmpfs none /v/up; touch /v/up/made-inside; echo ready; \
                      while [ ! -e /v/go ]; do sleep 0.02; done; ls /v/late; umount /v/up";
        let mut config = sh(name, script);
        config.mounts = vec![mount(&dir, "/v", false)];
        config.mounts[0].propagation = propagation as i32;
        let context = security(&mut config);
        context.privileged = propagation == PropagationBidirectional;
        context.capabilities = Some(cri::Capability {
            add_capabilities: vec!["SYS_ADMIN".into()],
            ..Default::default()
        });
        let id = pod.start(&config).await;
        pod.wait_log(&daemon, name, "ready").await;
        id
    };
    for (name, propagation, sees, shows) in [
        ("private", PropagationPrivate, "", false),
        ("slave", PropagationHostToContainer, "later\n", false),
    ] {
        let id = start(name, propagation).await;
        assert_eq!(dir.join("up/made-inside").exists(), shows, "{name}");
        let late = Tmpfs::on(&dir.join("late"));
        std::fs::write(dir.join("late/later"), "").unwrap();
        std::fs::write(dir.join("go"), "").unwrap();
        pod.cri.wait_exit(&id).await.unwrap();
        let out = daemon.output("propagation", name, "stdout").unwrap();
        assert_eq!(out, format!("ready\n{sees}"), "{name}");
        std::fs::remove_file(dir.join("go")).unwrap();
        drop(late);
    }
    // Both ways is for privileged containers in privileged pods.
    let mut config = daemon.pod("both");
    super::shell::pod_security(&mut config).privileged = true;
    let both = Pod::run_config(&daemon, config).await;
    let script = "mount -t tmpfs none /v/up; touch /v/up/made-inside; echo ready; \
                  while [ ! -e /v/go ]; do sleep 0.02; done; umount /v/up";
    let mut config = sh("c", script);
    config.mounts = vec![mount(&dir, "/v", false)];
    config.mounts[0].propagation = PropagationBidirectional as i32;
    security(&mut config).privileged = true;
    let id = both.start(&config).await;
    both.wait_log(&daemon, "c", "ready").await;
    assert!(dir.join("up/made-inside").exists());
    std::fs::write(dir.join("go"), "").unwrap();
    assert_eq!(both.cri.wait_exit(&id).await.unwrap().exit_code, 0);
    drop(volume);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn an_image_is_a_volume_whole_or_in_part_and_never_written() {
    if on_peer() {
        return;
    }
    let daemon = daemon().await;
    let content = &images().content.reference;
    let image_id = daemon.cri().pull(content).await.unwrap();
    let pod = Pod::run(&daemon, "imagevolume").await;
    let volume = |inside: &str, sub_path: &str| cri::Mount {
        container_path: inside.into(),
        image: Some(client::image(content)),
        image_sub_path: sub_path.into(),
        readonly: true,
        ..Default::default()
    };
    let mut config = sh(
        "c",
        "cat /all/top /all/sub/inner /part/inner; touch /all/x 2>/dev/null || echo refused; \
         grep ' /\\(all\\|part\\) .* ro,nosuid,nodev' /proc/mounts | grep -cv noexec",
    );
    config.mounts = vec![volume("/all", ""), volume("/part", "sub")];
    let ran = run(&daemon, &pod, &config).await;
    let mounted = ran.status.mounts[0].image.clone().unwrap();
    assert!(
        [content.as_str(), image_id.as_str()].contains(&mounted.image.as_str()),
        "{mounted:?}"
    );
    ran.says(&["top of the image", "inside", "inside", "refused", "2"]);
    for bad in ["absent", "../..", "/etc", "out/passwd"] {
        let mut config = program(&fresh("bad"), &["/bin/true"]);
        config.mounts = vec![volume("/v", bad)];
        let refusal = match pod.create(&config).await {
            Ok(id) => pod.cri.start(&id).await.expect_err(bad),
            Err(refusal) => refusal,
        };
        let text = refusal.message();
        assert!(
            text.contains(bad) || text.contains("image_sub_path"),
            "{text}"
        );
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn an_artifact_is_a_volume_of_its_files_and_runs_nothing() {
    if on_peer() {
        return;
    }
    let daemon = daemon().await;
    let files: [(&str, &[u8]); 3] = [
        ("model/weights.bin", b"weights\n"),
        ("model/tokens/list.txt", b"tokens\n"),
        ("readme", b"read me\n"),
    ];
    let host = images().content.reference.split('/').next().unwrap();
    let artifact = artifact::push(host, "model", "v1", &files).unwrap();
    daemon.cri().pull(&artifact.reference).await.unwrap();
    let pod = Pod::run(&daemon, "artifact").await;
    let volume = |inside: &str, sub_path: &str| cri::Mount {
        container_path: inside.into(),
        image: Some(client::image(&artifact.reference)),
        image_sub_path: sub_path.into(),
        readonly: true,
        ..Default::default()
    };
    let script = "cat /all/model/weights.bin /all/model/tokens/list.txt /part/weights.bin /one; \
                  ls /all; touch /all/x 2>/dev/null || echo refused; \
                  echo x 2>/dev/null > /all/readme || echo refused; stat -c %a /all/readme";
    let mut config = sh("c", script);
    config.mounts = vec![
        volume("/all", ""),
        volume("/part", "model"),
        volume("/one", "readme"),
    ];
    run(&daemon, &pod, &config).await.says(&[
        "weights", "tokens", "weights", "read me", "model", "readme", "refused", "refused", "444",
    ]);
    // A user without any right to the node's own files.
    let mut config = sh("user", "cat /all/model/tokens/list.txt");
    config.mounts = vec![volume("/all", "")];
    security(&mut config).run_as_user = Some(cri::Int64Value { value: 1234 });
    run(&daemon, &pod, &config).await.says(&["tokens"]);
    for bad in ["absent", "../..", "/etc", "readme/x"] {
        let mut config = program(&fresh("bad"), &["/bin/true"]);
        config.mounts = vec![volume("/v", bad)];
        let refusal = pod.create(&config).await.expect_err(bad);
        assert!(
            refusal.message().contains(bad) || refusal.message().contains("image_sub_path"),
            "{refusal}"
        );
    }
    let running = client::container("run", &artifact.reference, &["/readme"]);
    refused(
        pod.create(&running).await,
        Code::InvalidArgument,
        &["is an artifact", "no program"],
    );
    daemon
        .cri()
        .remove_image(&artifact.reference)
        .await
        .unwrap();
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn mounts_that_cannot_be_are_refused_by_name() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "badmounts").await;
    let dir = host_dir(&daemon, "d");
    let cases = [
        ("relative-host", mount(Path::new("etc"), "/v", false), "etc"),
        ("empty-inside", mount(&dir, "", false), "container path"),
    ];
    for (name, bad, expected) in cases {
        let mut config = program(name, &["/bin/true"]);
        config.mounts = vec![bad];
        let created = pod.create(&config).await;
        if on_peer() {
            continue;
        }
        refused(created, Code::InvalidArgument, &[expected]);
    }
    daemon.finish().await.unwrap();
}

/// Calico and others count on it; containerd and CRI-O do it.
#[tokio::test]
async fn an_absent_host_path_is_made_unless_the_operator_refuses() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "absent").await;
    let dir = host_dir(&daemon, "d");
    let absent = dir.join("absent/deep");
    let mut config = sh("made", "echo here > /v/file");
    config.mounts = vec![mount(&absent, "/v", false)];
    let (status, _) = pod.finish(&daemon, &config).await;
    assert_eq!(status.exit_code, 0);
    assert_eq!(
        std::fs::read_to_string(absent.join("file")).unwrap(),
        "here\n"
    );
    for made in [&absent, &dir.join("absent")] {
        let facts = std::fs::metadata(made).unwrap();
        let mode = facts.permissions().mode() & 0o7777;
        assert_eq!((mode, facts.uid(), facts.gid()), (0o755, 0, 0), "{made:?}");
    }
    // Never behind a link that leads to nothing.
    std::os::unix::fs::symlink(dir.join("elsewhere"), dir.join("dangling")).unwrap();
    let mut config = program("dangling", &["/bin/true"]);
    config.mounts = vec![mount(&dir.join("dangling"), "/v", false)];
    if !on_peer() {
        let created = pod.create(&config).await;
        refused(created, Code::InvalidArgument, &["dangling", "link"]);
    }
    assert!(!dir.join("elsewhere").exists());
    daemon.finish().await.unwrap();
    if on_peer() {
        return; // It has no such setting.
    }
    let options = Options {
        sandbox: "create_host_paths = false\n".into(),
        ..Options::default()
    };
    let daemon = daemon_with(options).await;
    let pod = Pod::run(&daemon, "absent").await;
    let dir = host_dir(&daemon, "d");
    let mut config = program("absent", &["/bin/true"]);
    config.mounts = vec![mount(&dir.join("absent"), "/v", false)];
    let created = pod.create(&config).await;
    refused(created, Code::InvalidArgument, &["absent"]);
    assert!(!dir.join("absent").exists(), "a missing source was made");
    daemon.finish().await.unwrap();
}
