use std::fs;
use std::os::unix::fs::symlink;
use std::sync::mpsc;

use rustix::fs::{AtFlags, Mode, OFlags, lgetxattr, mkdirat, openat, unlinkat};

use super::super::paths::with_lookup;
use super::*;
use crate::scratch::Scratch;

/// How long is waited for what must happen, on however slow a machine.
const LONG: Duration = Duration::from_secs(60);
/// SELinux does not run here, so any text is a label on a file system with attributes.
const LABEL: &str = "system_u:object_r:container_file_t:s0:c1,c2";

fn label_of(path: &Path) -> Option<String> {
    let mut bytes = [0; 128];
    let got = lgetxattr(path, ATTRIBUTE, &mut bytes[..]).ok()?;
    Some(String::from_utf8_lossy(&bytes[..got]).into_owned())
}

fn relabel(path: &Path) -> Result<(), Error> {
    let volume = with_lookup(|lookup| open(lookup, path, &[]))?;
    walk::walk(&volume.top, LABEL, &|| false).map_err(|error| io_error("label", error))
}

#[test]
fn every_file_gets_the_label_and_no_link_is_followed() {
    let scratch = Scratch::new("relabel");
    let top = scratch.0.join("volume");
    fs::create_dir_all(top.join("a/b/c")).unwrap();
    fs::create_dir_all(top.join("d")).unwrap();
    let outside = scratch.put("outside", b"x");
    // More than one batch of entries.
    for number in 0..600 {
        fs::write(top.join(format!("a/{number:0>60}")), "").unwrap();
    }
    fs::write(top.join("a/b/c/last"), "").unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        top.join("fifo"),
        rustix::fs::FileType::Fifo,
        Mode::RWXU,
        0,
    )
    .unwrap();
    symlink(&outside, top.join("a/link")).unwrap();
    symlink("/", top.join("d/root")).unwrap();
    // A file that has the label is left alone.
    relabel(&top.join("d")).unwrap();
    relabel(&top).unwrap();
    let (mut seen, mut left) = (0, vec![top.clone()]);
    while let Some(path) = left.pop() {
        assert_eq!(
            label_of(&path).as_deref(),
            Some(LABEL),
            "{}",
            path.display()
        );
        seen += 1;
        if path.is_dir() && !path.is_symlink() {
            let entries = fs::read_dir(&path).unwrap();
            left.extend(entries.map(|entry| entry.unwrap().path()));
        }
    }
    assert_eq!(seen, 600 + 9);
    assert_eq!(label_of(Path::new(&outside)), None);
    relabel(Path::new(&outside)).unwrap();
    assert_eq!(label_of(Path::new(&outside)).as_deref(), Some(LABEL));
}

#[test]
fn a_deep_tree_needs_no_deep_stack() {
    let scratch = Scratch::new("relabel-deep");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut at = rustix::fs::open(&scratch.0, flags, Mode::empty()).unwrap();
    for _ in 0..5000 {
        mkdirat(&at, "d", Mode::RWXU).unwrap();
        at = openat(&at, "d", flags, Mode::empty()).unwrap();
    }
    mkdirat(&at, "end", Mode::RWXU).unwrap();
    relabel(&scratch.0).unwrap();
    assert_eq!(
        label_of(&procfs_path(&at).join("end")).as_deref(),
        Some(LABEL)
    );
    // From the deepest up: removing the scratch directory would recurse too deep.
    unlinkat(&at, "end", AtFlags::REMOVEDIR).unwrap();
    for _ in 0..5000 {
        at = openat(&at, "..", flags, Mode::empty()).unwrap();
        unlinkat(&at, "d", AtFlags::REMOVEDIR).unwrap();
    }
}

#[test]
fn the_node_itself_is_refused() {
    let scratch = Scratch::new("relabel-node");
    symlink("/etc", scratch.0.join("etc")).unwrap();
    let link = scratch.0.join("etc");
    let paths = [
        "/",
        "/etc",
        "/etc/../etc/passwd",
        "/usr/share",
        "/proc/1",
        "/var/lib",
        "/tmp",
        // The same directory by another way.
        "/proc/self/root/etc",
    ];
    let open = |path: &Path| with_lookup(|lookup| open(lookup, path, &[scratch.0.join("own")]));
    for path in paths.map(Path::new).into_iter().chain([&*link]) {
        let refused = open(path).map(drop).unwrap_err();
        assert_eq!(
            refused.kind(),
            Kind::Invalid,
            "{}: {refused}",
            path.display()
        );
    }
    fs::create_dir_all(scratch.0.join("own/pods")).unwrap();
    fs::create_dir_all(scratch.0.join("owner")).unwrap();
    for path in ["", "own", "own/pods"] {
        let refused = open(&scratch.0.join(path)).map(drop).unwrap_err();
        assert_eq!(refused.kind(), Kind::Invalid, "{path:?}");
    }
    open(&scratch.0.join("owner")).unwrap();
}

fn pod() -> PodId {
    PodId::random().unwrap()
}

/// Work that continues until it is stopped, and reports that.
fn endless(ended: mpsc::Sender<()>) -> impl FnOnce(&dyn Fn() -> bool) -> Result<(), Error> + Send {
    move |is_stopped| {
        while !is_stopped() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = ended.send(());
        Ok(())
    }
}

#[tokio::test]
async fn labelling_ends_when_its_pod_is_stopped_or_at_its_time_limit() {
    let relabels = Relabels {
        limit: Duration::from_millis(200),
        ..Relabels::default()
    };
    let (sender, ended) = mpsc::channel();
    let (slow, stopped) = (pod(), pod());
    let late = relabels.in_time(&slow, relabels.run(&slow, 1, endless(sender.clone())));
    assert_eq!(late.await.unwrap_err().kind(), Kind::Deadline);
    ended.recv_timeout(LONG).unwrap();
    let relabels = Relabels::default();
    let work = relabels.in_time(&stopped, relabels.run(&stopped, 1, endless(sender.clone())));
    let stop = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        relabels.of(&stopped).set();
    };
    let (refused, ()) = tokio::join!(work, stop);
    assert_eq!(refused.unwrap_err().kind(), Kind::WrongPhase);
    ended.recv_timeout(LONG).unwrap();
    // Later work for the same pod does not begin.
    let later = relabels.in_time(&stopped, relabels.run(&stopped, 1, endless(sender)));
    let refused = tokio::time::timeout(LONG, later).await.unwrap();
    assert_eq!(refused.unwrap_err().kind(), Kind::WrongPhase);
}

#[tokio::test]
async fn a_hanging_file_system_leaves_threads_for_the_others() {
    let mut relabels = Relabels {
        limit: Duration::from_millis(300),
        ..Relabels::default()
    };
    let (release, hung) = mpsc::channel::<()>();
    let hung = Arc::new(Mutex::new(hung));
    let pods: Vec<PodId> = (0..THREADS + 2).map(|_| pod()).collect();
    let all = pods.iter().map(|pod| {
        let hung = Arc::clone(&hung);
        // It ignores the stop, like a thread in a dead file system.
        let work = relabels.run(pod, 7, move |_| {
            let _ = hung.lock().unwrap().recv();
            Ok(())
        });
        relabels.in_time(pod, work)
    });
    for result in futures_util::future::join_all(all).await {
        assert_eq!(result.unwrap_err().kind(), Kind::Deadline);
    }
    assert_eq!(relabels.threads.available_permits(), THREADS - INSIDE);
    // Whoever else has work has all the time that a slow machine takes.
    relabels.limit = LONG;
    let other = pod();
    let work = relabels.run(&other, 8, |_| Ok(()));
    relabels.in_time(&other, work).await.unwrap();
    drop(release);
    let free = async {
        while relabels.threads.available_permits() < THREADS {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, free).await.unwrap();
    relabels.run(&other, 7, |_| Ok(())).await.unwrap();
    assert_eq!(
        relabels.lock().devices.len(),
        1,
        "places of file systems pile up"
    );
}
