//! Volumes: whose files a labelled container reads and writes, and who may have them labelled.

use std::ffi::CString;
use std::fs;
use std::path::Path;

use coracle_tests::daemon::Daemon;
use rustix::mount::{MountFlags, UnmountFlags};
use tonic::Code;

use super::{FILES, WHO, labelled, level, policy, says};
use crate::shell::{self, fresh, mount, security, sh};
use crate::site::{Pod, refused};

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
    let mut free = labelled("s0", script);
    security(&mut free).selinux_options.as_mut().unwrap().r#type = "node_t".into();
    free.mounts.extend(mounts());
    let expected = "x\ntext\ntext\ntext\ntext\n";
    assert_eq!(says(&daemon, &pod, &free).await, expected);
    pod.cri.remove_all_pods().await.unwrap();
    drop(volumes);
    daemon.finish().await.unwrap();
}

#[tokio::test]
#[ignore = "needs a kernel with SELinux: make test-v2 LSM=selinux"]
async fn a_volume_gets_the_label_when_relabeling_is_requested() {
    policy();
    let daemon = shell::daemon().await;
    let at = shell::host_dir(&daemon, "disk");
    rustix::mount::mount("tmpfs", &at, "tmpfs", MountFlags::empty(), c"mode=0777").unwrap();
    let disk = Volume(at);
    let volume = disk.0.join("volume");
    fs::create_dir_all(volume.join("deep/er")).unwrap();
    fs::write(volume.join("deep/er/file"), "text\n").unwrap();
    // By a link and by a mount there is a way out, to the same disk.
    let outside = disk.0.join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "text\n").unwrap();
    std::os::unix::fs::symlink(&outside, volume.join("deep/link")).unwrap();
    let bound = volume.join("bound");
    fs::create_dir(&bound).unwrap();
    rustix::mount::mount_bind(&outside, &bound).unwrap();
    let bound = Volume(bound);
    let pod = Pod::run(&daemon, "relabel").await;
    let script =
        "cat /volume/deep/er/file; (echo new >/volume/deep/er/file) 2>/dev/null || echo unwritten";
    let mut config = sh(&fresh("c"), script);
    config.mounts.push(mount(&volume, "/volume", false));
    let before = says(&daemon, &pod, &config).await;
    assert_eq!(before, "text\nunwritten\n");
    let mut config = sh(&fresh("c"), script);
    config.mounts.push(mount(&volume, "/volume", false));
    config.mounts[0].selinux_relabel = true;
    assert_eq!(says(&daemon, &pod, &config).await, "text\n");
    let label = |path: &Path| {
        let mut bytes = [0; 256];
        let got = rustix::fs::lgetxattr(path, "security.selinux", &mut bytes[..]).unwrap();
        String::from_utf8_lossy(&bytes[..got])
            .trim_end_matches('\0')
            .to_owned()
    };
    let own = level(&says(&daemon, &pod, &sh(&fresh("c"), WHO)).await);
    let expected = format!("system_u:object_r:container_file_t:{own}");
    for path in ["", "deep", "deep/er", "deep/er/file", "deep/link"] {
        assert_eq!(label(&volume.join(path)), expected, "{path:?}");
    }
    for path in ["", "file"] {
        let kept = label(&outside.join(path));
        assert!(
            kept.starts_with("system_u:object_r:node_t:"),
            "{path:?} {kept}"
        );
    }
    // The node's own directories are not a container's.
    for system in ["/etc", "/usr/share", "/"] {
        let mut config = sh(&fresh("c"), "true");
        config
            .mounts
            .push(mount(Path::new(system), "/volume", true));
        config.mounts[0].selinux_relabel = true;
        let answer = pod.create(&config).await;
        refused(answer, Code::InvalidArgument, &[system, "label"]);
    }
    pod.cri.remove_all_pods().await.unwrap();
    drop((bound, disk));
    daemon.finish().await.unwrap();
}
