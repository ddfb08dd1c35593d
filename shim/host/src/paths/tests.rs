//! Paths are resolved as by the kernel, created without following links, and a silent file system costs few threads.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use super::*;
use crate::scratch::Scratch;

fn open(path: &Path, missing: Missing) -> std::io::Result<std::os::fd::OwnedFd> {
    let locations = Locations::default();
    let opened = Lookup::new(&locations).open(path, missing);
    assert!(
        lock(&locations.inside).is_empty(),
        "a visit that ended stays"
    );
    opened
}

fn same(path: &Path) {
    let ours = fs::File::from(open(path, Missing::Refuse).unwrap());
    let (ours, theirs) = (ours.metadata().unwrap(), fs::metadata(path).unwrap());
    assert_eq!(
        (ours.dev(), ours.ino()),
        (theirs.dev(), theirs.ino()),
        "{}",
        path.display()
    );
}

#[test]
fn a_path_is_resolved_as_by_the_kernel() {
    let scratch = Scratch::new("walk");
    let root = &scratch.0;
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::write(root.join("a/file"), "x").unwrap();
    symlink("a/b", root.join("relative")).unwrap();
    symlink(root.join("a"), root.join("absolute")).unwrap();
    symlink("../../a/file", root.join("a/b/up")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    for path in [
        "a/b",
        "a/file",
        "relative",
        "absolute/b/up",
        "a/../a/./b/..",
        "relative/..",
    ] {
        same(&root.join(path));
    }
    for path in [
        "/",
        "/..",
        "/proc/self/exe",
        "/proc/self/root/etc",
        "/dev/fd/0",
        "/etc/mtab",
    ] {
        same(Path::new(path));
    }
    for path in ["absent", "a/file/x", "loop", "a/b/absent/y"] {
        let ours = open(&root.join(path), Missing::Refuse).unwrap_err();
        let theirs = fs::metadata(root.join(path)).unwrap_err();
        assert_eq!(ours.raw_os_error(), theirs.raw_os_error(), "{path}");
    }
}

#[test]
fn missing_directories_are_created_but_never_through_a_dangling_link() {
    let scratch = Scratch::new("walk-make");
    let root = &scratch.0;
    fs::create_dir(root.join("real")).unwrap();
    symlink("real", root.join("link")).unwrap();
    open(&root.join("link/x/y"), Missing::Create).unwrap();
    for made in ["real/x", "real/x/y"] {
        let facts = fs::metadata(root.join(made)).unwrap();
        assert_eq!(
            (
                facts.is_dir(),
                facts.permissions().mode() & 0o7777,
                facts.uid()
            ),
            (true, 0o755, 0),
            "{made}"
        );
    }
    symlink(root.join("elsewhere"), root.join("dangling")).unwrap();
    for path in ["dangling", "dangling/x", "real/x/absent/../y"] {
        // The last is created as far as possible: `..` of a new directory leads back.
        let opened = open(&root.join(path), Missing::Create);
        assert_eq!(opened.is_ok(), path.starts_with("real"), "{path}");
    }
    assert!(!root.join("elsewhere").exists());
    symlink("real", root.join("foreign")).unwrap();
    std::os::unix::fs::lchown(root.join("foreign"), Some(1234), Some(1234)).unwrap();
    same(&root.join("foreign/x"));
    let error = open(&root.join("foreign/new"), Missing::Create).unwrap_err();
    assert!(error.to_string().contains("not root's"), "{error}");
    assert!(!root.join("real/new").exists());
}

#[test]
fn nothing_is_created_behind_a_swapped_directory() {
    let scratch = Scratch::new("walk-race");
    let root = &scratch.0;
    let (outside, path) = (root.join("outside"), root.join("tenant"));
    fs::create_dir(&outside).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let ready = root.join("ready");
                let _ = symlink(&outside, &ready);
                let _ = std::os::unix::fs::lchown(&ready, Some(1234), Some(1234));
                let _ = fs::remove_dir_all(&path);
                let _ = fs::rename(&ready, &path);
                let _ = fs::remove_file(&path);
            }
        });
        for _ in 0..2000 {
            let _ = open(&path.join("deep/er"), Missing::Create);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[tokio::test]
async fn a_silent_file_system_is_refused_by_name_and_leaves_threads_for_others() {
    let paths = Paths::default();
    let open = Arc::new((Mutex::new(false), Condvar::new()));
    let mut hung = Vec::new();
    for number in 0..INSIDE + 20 {
        let (paths, open) = (paths.clone(), Arc::clone(&open));
        hung.push(tokio::spawn(async move {
            let hang = move |lookup: &Lookup<'_>| {
                let entered = lookup.enter(Location::Device(u64::MAX));
                entered.map_err(|error| super::super::io_error("enter", error))?;
                let mut is_open = lock(&open.0);
                while !*is_open {
                    is_open = open.1.wait(is_open).unwrap();
                }
                Ok(())
            };
            paths.run(|| format!("path {number}"), hang).await
        }));
    }
    // However slow the machine is, those who are let in stay, and the others are refused in the end.
    let long = Duration::from_secs(120);
    let refused = async {
        while hung.iter().filter(|one| one.is_finished()).count() < 20 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(long, refused).await.unwrap();
    let elsewhere = paths.run(String::new, |lookup| {
        let entered = lookup.enter(Location::Device(u64::MAX - 1));
        entered.map_err(|error| super::super::io_error("enter", error))
    });
    tokio::time::timeout(long, elsewhere)
        .await
        .unwrap()
        .unwrap();
    let there = paths.run(
        || "path".to_owned(),
        |lookup| {
            let entered = lookup.enter(Location::Device(u64::MAX));
            entered.map_err(|error| super::super::io_error("enter", error))
        },
    );
    let refused = tokio::time::timeout(long, there).await.unwrap();
    let refused = refused.unwrap_err().chain();
    assert!(refused.contains("no more are let in"), "{refused}");
    assert_eq!(
        lock(&paths.0.locations.inside)[&Location::Device(u64::MAX)].len(),
        INSIDE
    );
    *lock(&open.0) = true;
    open.1.notify_all();
    let mut done = 0;
    for one in hung {
        done += usize::from(one.await.unwrap().is_ok());
    }
    assert_eq!(done, INSIDE);
    assert!(lock(&paths.0.locations.inside).is_empty());
}
