//! Escapes by what a runtime leaves open or follows while it builds a container: T01, T03 to T08.

use std::os::unix::fs::{MetadataExt, symlink};

use coracle_tests::daemon::binary;

use super::canary::{Canary, Fate, attempt, hostile, script};
use crate::linux::shell::{
    daemon, host_dir, host_pid, mount, namespaces, on_peer, pod_security, program, sh,
};
use crate::site::Pod;
use coracle_proto::runtime::v1::NamespaceMode;

/// T01, CVE-2019-5736: the runtime's own program, reached through /proc, cannot be opened for writing.
#[tokio::test]
async fn the_runtimes_program_cannot_be_written() {
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    let program_path = if on_peer() {
        "/usr/sbin/runc".into()
    } else {
        binary().unwrap()
    };
    let before = std::fs::metadata(&program_path).unwrap();
    let mut config = daemon.pod("selfexe");
    let mode = NamespaceMode::Pod as i32;
    pod_security(&mut config)
        .namespace_options
        .as_mut()
        .unwrap()
        .pid = mode;
    let pod = Pod::run_config(&daemon, config).await;
    let image = hostile(&daemon, |layer| {
        layer
            .file("bin/script", 0o755, b"#!/proc/self/exe\n")
            .unwrap()
            .symlink("bin/link", "/proc/self/exe")
            .unwrap()
    })
    .await;
    // Holds whatever program it finds behind any /proc/PID/exe, and tries to write to it once it is idle.
    let mut grabber = program("grabber", &["/bin/probe", "grab", "4000"]);
    namespaces(&mut grabber).pid = mode;
    let grabbing = pod.start(&grabber).await;
    pod.wait_log(&daemon, "grabber", "grabbing").await;
    for round in 0..24 {
        let victim = ["/proc/self/exe", "/bin/script", "/bin/link"][round % 3];
        let mut config = script(&image, "");
        config.command = vec![victim.into(), "version".into()];
        namespaces(&mut config).pid = mode;
        attempt(&daemon, &pod, &config).await;
    }
    pod.cri.wait_exit(&grabbing).await.unwrap();
    let found = daemon.output("selfexe", "grabber", "stdout").unwrap();
    let own = format!("{}:{}", before.dev(), before.ino());
    assert!(found.contains("grabbed"), "{found}");
    for line in found.lines().filter(|line| line.starts_with("writable")) {
        assert!(
            !line.contains(&own),
            "the runtime's program could be opened for writing: {line}"
        );
    }
    let after = std::fs::metadata(&program_path).unwrap();
    assert_eq!(
        (after.mtime(), after.size()),
        (before.mtime(), before.size())
    );
    canary.is_untouched(&daemon).await;
    daemon.finish().await.unwrap();
}

/// T03, CVE-2024-21626: no directory of the host is left open to be a working directory.
#[tokio::test]
async fn a_working_directory_is_inside_or_refused() {
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    let pod = Pod::run(&daemon, "cwd").await;
    let image = hostile(&daemon, |layer| {
        layer.symlink("link", "/proc/self/fd/7").unwrap()
    })
    .await;
    let secret = canary.dir().join("secret");
    let look = format!(
        "busybox readlink /proc/self/cwd; busybox pwd; \
         for up in . .. ../.. ../../.. ../../../.. ../../../../../../..; do busybox cat $up{} 2>/dev/null; done",
        secret.display()
    );
    let mut paths: Vec<String> = (3..20).map(|fd| format!("/proc/self/fd/{fd}")).collect();
    paths.extend([
        "/link".into(),
        "/proc/self/fd/7/..".into(),
        "/proc/1/cwd".into(),
        "/proc/self/root/..".into(),
    ]);
    for path in paths {
        let mut config = script(&image, &look);
        config.working_dir = path.clone();
        if let Fate::Ran(_, text) = attempt(&daemon, &pod, &config).await {
            let cwd = text.lines().next().unwrap_or_default();
            assert!(
                !cwd.contains("unreachable") && !text.contains("/tmp/coracle"),
                "{path}: {text}"
            );
        }
    }
    pod.start(&program("fds", &["sleep", "31337"])).await;
    let fds = std::fs::read_dir(format!("/proc/{}/fd", host_pid(&daemon, "sleep 31337"))).unwrap();
    let mut names: Vec<_> = fds
        .flatten()
        .map(|fd| fd.file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["0", "1", "2"]);
    canary.is_untouched(&daemon).await;
    daemon.finish().await.unwrap();
}

/// T04, CVE-2025-31133: what masks is the null device, not what the container says it is.
#[tokio::test]
async fn masking_never_uses_a_device_of_the_containers() {
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    let pod = Pod::run(&daemon, "null").await;
    let dev = host_dir(&daemon, "dev");
    symlink("/proc/sys/kernel/core_pattern", dev.join("null")).unwrap();
    for name in [
        "zero", "full", "random", "urandom", "tty", "ptmx", "console",
    ] {
        symlink(canary.climbing(), dev.join(name)).unwrap();
    }
    let mut config = sh(
        "c",
        "echo owned > /proc/keys; echo owned > /dev/null; cat /proc/keys; cat /proc/timer_list; cat /proc/kcore | head -c 10",
    );
    config.mounts = vec![mount(&dev, "/dev", false)];
    match attempt(&daemon, &pod, &config).await {
        Fate::Refused(_) => {}
        // Debian's runc is older than the fix: what it masks with shows the file behind the link.
        Fate::Ran(..) if on_peer() => {}
        Fate::Ran(_, text) => {
            let shown = text
                .lines()
                .filter(|line| !line.contains("No such") && !line.contains("can't"));
            assert_eq!(shown.collect::<Vec<_>>(), Vec::<&str>::new());
        }
    }
    canary.is_untouched(&daemon).await;
    daemon.finish().await.unwrap();
}

/// T05, CVE-2025-52565: a console is a terminal of this container's devpts, or there is no container.
#[tokio::test]
async fn a_console_is_never_somewhere_else() {
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    let pod = Pod::run(&daemon, "console").await;
    let dev = host_dir(&daemon, "dev");
    std::fs::create_dir(dev.join("pts")).unwrap();
    symlink(canary.climbing() + "/core", dev.join("console")).unwrap();
    let pts = host_dir(&daemon, "pts");
    for number in 0..4 {
        symlink(
            "/proc/sys/kernel/core_pattern",
            pts.join(number.to_string()),
        )
        .unwrap();
    }
    symlink(canary.climbing() + "/ptmx", pts.join("ptmx")).unwrap();
    for (dev_too, pts_too) in [(true, false), (false, true), (true, true)] {
        let mut config = sh(
            &crate::linux::shell::fresh("c"),
            "echo owned > /dev/console; stat -c '%t:%F' /dev/console",
        );
        config.tty = true;
        config.stdin = true;
        config.mounts = Vec::new();
        if dev_too {
            config.mounts.push(mount(&dev, "/dev", false));
        }
        if pts_too {
            config.mounts.push(mount(&pts, "/dev/pts", false));
        }
        attempt(&daemon, &pod, &config).await;
        canary.is_untouched(&daemon).await;
    }
    daemon.finish().await.unwrap();
}

/// T06, CVE-2025-52881: nothing is mounted into /proc, so that labels and sysctls are written where they belong.
#[tokio::test]
async fn nothing_is_mounted_into_proc() {
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    let pod = Pod::run(&daemon, "proc").await;
    let fake = host_dir(&daemon, "fake");
    std::fs::create_dir_all(fake.join("self/attr")).unwrap();
    std::fs::write(fake.join("self/attr/current"), "").unwrap();
    for inside in [
        "/proc",
        "/proc/self",
        "/proc/sys",
        "/proc/self/attr",
        "/proc/sys/kernel/core_pattern",
        "/bin/../proc/sys",
    ] {
        let mut config = program(
            &crate::linux::shell::fresh("c"),
            &["/bin/cat", "/proc/mounts"],
        );
        config.mounts = vec![mount(&fake, inside, false)];
        let expected: &[&str] = if on_peer() { &[] } else { &[inside] };
        attempt(&daemon, &pod, &config).await.is_refused(expected);
    }
    canary.is_untouched(&daemon).await;
    daemon.finish().await.unwrap();
}

/// T07, CVE-2026-41579: where the image says that /dev is elsewhere, elsewhere stays as it is.
#[tokio::test]
async fn directories_that_are_links_lead_nowhere_on_the_host() {
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    let pod = Pod::run(&daemon, "links").await;
    let targets = [canary.dir().display().to_string(), canary.climbing()];
    for name in ["etc", "run", "tmp", "dev"] {
        for target in &targets {
            let image = hostile(&daemon, |layer| layer.symlink(name, target).unwrap()).await;
            let script_text = format!(
                "busybox ls /{name}/ 2>&1; busybox cat /{name}/secret; echo owned > /{name}/new"
            );
            let mut config = script(&image, &script_text);
            config.working_dir = format!("/{name}/made");
            attempt(&daemon, &pod, &config).await;
            // Debian's runc is older than the fix: it removes and makes the links of /dev in that directory.
            if !(on_peer() && name == "dev") {
                canary.is_untouched(&daemon).await;
            }
        }
    }
    daemon.finish().await.unwrap();
}

/// T08, CVE-2025-54867: /proc and /sys of an image are directories or there is no container.
#[tokio::test]
async fn proc_and_sys_are_ordinary_directories() {
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    let pod = Pod::run(&daemon, "fakes").await;
    for name in ["proc", "sys"] {
        for target in ["/tmp", "/bin", &canary.climbing(), "../../.."] {
            let image = hostile(&daemon, |layer| {
                layer
                    .dir("tmp", 0o777, (0, 0))
                    .unwrap()
                    .symlink(name, target)
                    .unwrap()
            })
            .await;
            let fate = attempt(&daemon, &pod, &script(&image, "busybox true")).await;
            if !on_peer() {
                fate.is_refused(&[name]);
            }
            canary.is_untouched(&daemon).await;
        }
        let image = hostile(&daemon, |layer| layer.file(name, 0o644, b"a file").unwrap()).await;
        let fate = attempt(&daemon, &pod, &script(&image, "busybox true")).await;
        fate.is_refused(if on_peer() {
            &[]
        } else {
            std::slice::from_ref(&name)
        });
    }
    canary.is_untouched(&daemon).await;
    daemon.finish().await.unwrap();
}
