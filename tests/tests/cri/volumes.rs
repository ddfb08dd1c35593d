//! Mounts, the root filesystem, memory limits: what a guest may write, and how much it may take.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;
use coracle_tests::daemon::Daemon;
use coracle_tests::procs::Role;
use coracle_tests::push::artifact;

use crate::exec::exec;
use crate::linux::shell::{resources, security};
use crate::site::{Pod, daemon, eventually, tool};

/// A directory of the host for one test to mount.
fn host_dir(daemon: &Daemon, name: &str) -> PathBuf {
    let dir = daemon.scratch().dir().join("volumes").join(name);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn mount(host: &std::path::Path, guest: &str, readonly: bool) -> cri::Mount {
    cri::Mount {
        host_path: host.display().to_string(),
        container_path: guest.into(),
        readonly,
        ..Default::default()
    }
}

/// Runs the tool with these mounts; gives its exit code and what it wrote to both streams.
async fn run(daemon: &Daemon, pod: &Pod, args: &[&str], mounts: Vec<cri::Mount>) -> (i32, String) {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let name = format!(
        "c{}",
        COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    );
    let mut config = container(&name, tool(), args);
    config.mounts = mounts;
    let (status, text) = pod.finish(daemon, &config).await;
    let pod_name = &pod.config.metadata.as_ref().unwrap().name;
    (
        status.exit_code,
        text + &daemon.output(pod_name, &name, "stderr").unwrap(),
    )
}

#[tokio::test]
async fn directories_and_single_files_are_mounted_and_readonly_is_kept() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "mounts").await;
    let dir = host_dir(&daemon, "data");
    std::fs::write(dir.join("in"), "from the host").unwrap();
    let writable = || vec![mount(&dir, "/data", false)];
    assert_eq!(
        run(&daemon, &pod, &["read", "/data/in"], writable()).await,
        (0, "from the host\n".into())
    );
    assert_eq!(
        run(
            &daemon,
            &pod,
            &["write", "/data/out", "by the guest"],
            writable()
        )
        .await
        .0,
        0
    );
    assert_eq!(
        std::fs::read_to_string(dir.join("out")).unwrap(),
        "by the guest"
    );

    let readonly = || vec![mount(&dir, "/data", true)];
    assert_eq!(
        run(&daemon, &pod, &["read", "/data/in"], readonly()).await,
        (0, "from the host\n".into())
    );
    let (code, text) = run(&daemon, &pod, &["write", "/data/never", "x"], readonly()).await;
    assert_eq!(code, 1, "{text}");
    assert!(!dir.join("never").exists());

    // A single file, as a ConfigMap's subPath is.
    let one = || vec![mount(&dir.join("in"), "/etc/app/settings", true)];
    assert_eq!(
        run(&daemon, &pod, &["read", "/etc/app/settings"], one()).await,
        (0, "from the host\n".into())
    );
    assert_eq!(
        run(&daemon, &pod, &["write", "/etc/app/settings", "x"], one())
            .await
            .0,
        1
    );
    assert_eq!(
        run(&daemon, &pod, &["ls", "/etc/app"], one())
            .await
            .1
            .matches("settings")
            .count(),
        1
    );

    // A link on the host that leads out of the volume leads nowhere in the guest.
    std::os::unix::fs::symlink("/etc/passwd", dir.join("escape")).unwrap();
    let (code, text) = run(&daemon, &pod, &["read", "/data/escape"], writable()).await;
    assert!(code == 1 && !text.contains("root:"), "{text}");

    let mut config = container("mounts", tool(), &["show"]);
    config.mounts = readonly();
    let id = pod.start(&config).await;
    let mounts = pod.cri.wait_exit(&id).await.unwrap().mounts;
    assert_eq!(
        (mounts[0].container_path.as_str(), mounts[0].readonly),
        ("/data", true)
    );
    assert_eq!(mounts[0].host_path, dir.display().to_string());
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn the_root_is_the_images_and_each_container_writes_to_its_own() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "roots").await;
    assert_eq!(
        run(&daemon, &pod, &["read", "/etc/motd"], vec![]).await,
        (0, "from the image\n".into())
    );
    assert_eq!(
        run(&daemon, &pod, &["write", "/etc/motd", "changed"], vec![])
            .await
            .0,
        0
    );
    assert_eq!(
        run(&daemon, &pod, &["read", "/etc/motd"], vec![]).await,
        (0, "from the image\n".into())
    );
    for absent in ["/proc", "/sys", "/dev", "/etc/passwd", "/../etc/passwd"] {
        let (code, text) = run(&daemon, &pod, &["stat", absent], vec![]).await;
        assert_eq!(code, 1, "{absent} is there: {text}");
    }
    let mut config = container("readonly", tool(), &["write", "/new", "x"]);
    config
        .linux
        .as_mut()
        .unwrap()
        .security_context
        .as_mut()
        .unwrap()
        .readonly_rootfs = true;
    assert_eq!(pod.finish(&daemon, &config).await.0.exit_code, 1);
    daemon.finish().await.unwrap();
}

/// As this user, in the group that the volumes here belong to.
fn run_as(config: &mut cri::ContainerConfig, user: i64) {
    let context = security(config);
    context.run_as_user = Some(cri::Int64Value { value: user });
    context.run_as_group = Some(cri::Int64Value { value: 5678 });
}

#[tokio::test]
async fn files_on_a_volume_have_the_requested_owner_and_secrets_can_be_read() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "owners").await;
    let dir = host_dir(&daemon, "owned");
    chown(&dir, Some(1234), Some(5678)).unwrap();
    std::fs::write(dir.join("secret"), "s3cret").unwrap();
    std::fs::set_permissions(dir.join("secret"), std::fs::Permissions::from_mode(0o400)).unwrap();
    chown(dir.join("secret"), Some(1234), Some(5678)).unwrap();
    let as_user = |name: &str, args: &[&str], user: i64| {
        let mut config = container(name, tool(), args);
        config.mounts = vec![mount(&dir, "/data", false)];
        run_as(&mut config, user);
        config
    };
    let (status, text) = pod
        .finish(&daemon, &as_user("read", &["read", "/data/secret"], 1234))
        .await;
    assert_eq!((status.exit_code, text.as_str()), (0, "s3cret\n"));
    let user = status.user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid), (1234, 5678));
    let (status, _) = pod
        .finish(
            &daemon,
            &as_user("write", &["write", "/data/mine", "x"], 1234),
        )
        .await;
    assert_eq!(status.exit_code, 0);
    let owner = std::fs::metadata(dir.join("mine")).unwrap();
    assert_eq!((owner.uid(), owner.gid()), (1234, 5678));
    let (status, _) = pod
        .finish(&daemon, &as_user("other", &["read", "/data/secret"], 4321))
        .await;
    assert_eq!(status.exit_code, 1, "another user read a 0400 file");
    daemon.finish().await.unwrap();
}

/// An overlay, which takes no id map, mounted until it is dropped.
struct Overlay(std::path::PathBuf);

impl Overlay {
    fn over(dir: &std::path::Path) -> Self {
        for part in ["low", "up", "work", "all"] {
            std::fs::create_dir(dir.join(part)).unwrap();
        }
        let options = format!(
            "lowerdir={0}/low,upperdir={0}/up,workdir={0}/work",
            dir.display()
        );
        let mounted = std::process::Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o", &options])
            .arg(dir.join("all"))
            .status();
        assert!(mounted.unwrap().success());
        Self(dir.join("all"))
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_volume_that_takes_no_id_map_is_for_users_other_than_root() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "unmapped").await;
    let overlay = Overlay::over(&host_dir(&daemon, "layers"));
    chown(&overlay.0, Some(1234), Some(5678)).unwrap();
    let as_user = |name: &str, user: i64| {
        let mut config = container(name, tool(), &["write", "/data/mine", "x"]);
        config.mounts = vec![mount(&overlay.0, "/data", false)];
        run_as(&mut config, user);
        config
    };
    let root = pod.create(&as_user("root", 0)).await.unwrap();
    let refusal = pod.cri.start(&root).await.unwrap_err();
    let path = overlay.0.display().to_string();
    assert!(
        refusal.message().contains(&path) && refusal.message().contains("runAsUser"),
        "{refusal}"
    );
    let (status, _) = pod.finish(&daemon, &as_user("user", 1234)).await;
    assert_eq!(status.exit_code, 0);
    let owner = std::fs::metadata(overlay.0.join("mine")).unwrap();
    assert_eq!((owner.uid(), owner.gid()), (1234, 5678));
    // An exec is whoever its container is.
    std::fs::set_permissions(overlay.0.join("mine"), PermissionsExt::from_mode(0o400)).unwrap();
    let mut stays = as_user("stays", 1234);
    stays.args = vec!["sleep".into()];
    let id = pod.start(&stays).await;
    let guest = daemon.processes(Role::Guest).pop().unwrap();
    let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", guest.pid)).unwrap();
    let mut lines = mounts.lines();
    let root = lines.find(|line| line.contains(" / / ")).unwrap();
    assert!(root.contains("volatile"), "{root}");
    let read = exec(&pod, &id, &["cat", "/data/mine"], 30).await.unwrap();
    assert_eq!((read.code, read.out.as_str()), (0, "x"), "{read:?}");
    drop(pod);
    drop(overlay);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn the_memory_limit_is_the_guests_own_error_first() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "memory").await;
    let mut config = container("refused", tool(), &["grow", "512"]);
    resources(&mut config).memory_limit_in_bytes = 64 << 20;
    let id = pod.start(&config).await;
    let status = pod.cri.wait_exit(&id).await.unwrap();
    match (status.exit_code, status.reason.as_str()) {
        (3, "Error") => assert!(
            daemon
                .output("memory", "refused", "stdout")
                .unwrap()
                .contains("refused at")
        ),
        // The kernel counts the engine's own pages too and may be first by a page.
        (137, "OOMKilled") => {}
        other => panic!("{other:?}: {}", status.message),
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn the_cgroups_limit_kills_and_is_called_oom() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "oom").await;
    let dir = host_dir(&daemon, "go");
    let mut config = container("oom", tool(), &["grow-when", "/go/now", "200"]);
    config.mounts = vec![mount(&dir, "/go", true)];
    resources(&mut config).memory_limit_in_bytes = 512 << 20;
    let id = pod.start(&config).await;
    pod.wait_log(&daemon, "oom", "waiting").await;
    // The engine has a limit of 512 MiB; the cgroup gets a lower one without it.
    let guest = daemon.processes(Role::Guest).pop().unwrap();
    let cgroup = std::fs::read_to_string(format!("/proc/{}/cgroup", guest.pid)).unwrap();
    let memory = cgroup
        .lines()
        .find_map(|line| line.split_once(":memory:"))
        .map(|(_, path)| path.to_owned());
    let limit = match memory {
        Some(path) => format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes"),
        None => format!(
            "/sys/fs/cgroup{}/memory.max",
            cgroup.trim().trim_start_matches("0::")
        ),
    };
    std::fs::write(&limit, (48 << 20).to_string()).unwrap();
    std::fs::write(dir.join("now"), "").unwrap();
    let status = pod.cri.wait_exit(&id).await.unwrap();
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled")
    );
    // The sandbox does not mind.
    let (status, _) = pod
        .finish(&daemon, &container("after", tool(), &["show"]))
        .await;
    assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));
    eventually("no guest is left", || {
        daemon.processes(Role::Guest).is_empty()
    })
    .await;
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_guest_reads_the_files_of_an_artifact_whole_in_part_and_one_alone_and_writes_none() {
    let daemon = daemon().await;
    let files: [(&str, &[u8]); 2] = [("model/weights.bin", b"weights"), ("readme", b"read me")];
    let host = crate::site::images().registry.host();
    let artifact = artifact::push(host, "model-for-wasm", "v1", &files).unwrap();
    daemon.cri().pull(&artifact.reference).await.unwrap();
    let pod = Pod::run(&daemon, "artifact").await;
    let volume = |sub_path: &str| {
        vec![cri::Mount {
            container_path: "/data".into(),
            image: Some(coracle_tests::client::image(&artifact.reference)),
            image_sub_path: sub_path.into(),
            readonly: true,
            ..Default::default()
        }]
    };
    for (sub_path, path, says) in [
        ("", "/data/model/weights.bin", "weights\n"),
        ("model", "/data/weights.bin", "weights\n"),
        ("readme", "/data", "read me\n"),
    ] {
        let read = run(&daemon, &pod, &["read", path], volume(sub_path)).await;
        assert_eq!(read, (0, says.into()), "{sub_path:?}");
    }
    let (code, text) = run(&daemon, &pod, &["write", "/data/readme", "x"], volume("")).await;
    assert_eq!(code, 1, "{text}");
    let running = container("run", &artifact.reference, &[]);
    let refused = pod.create(&running).await.unwrap_err();
    assert!(refused.message().contains("is an artifact"), "{refused}");
    daemon
        .cri()
        .remove_image(&artifact.reference)
        .await
        .unwrap();
    daemon.finish().await.unwrap();
}
