#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::fs as files;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::*;

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("coracle-tree-{name}-{}", std::process::id()));
        remove(&path).unwrap();
        files::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = remove(&self.0);
    }
}

/// Makes a chain of `depth` directories below `at`, each named `name`, with a file at every hundredth.
fn chain(at: &Path, name: &str, depth: usize) {
    let mut directory = fs::open(at, directory_flags(), Mode::empty()).unwrap();
    for level in 0..depth {
        fs::mkdirat(&directory, name, Mode::RWXU).unwrap();
        if level % 100 == 0 {
            let flags = OFlags::CREATE | OFlags::WRONLY;
            fs::openat(&directory, "file", flags, Mode::RUSR).unwrap();
        }
        directory = fs::openat(&directory, name, directory_flags(), Mode::empty()).unwrap();
    }
}

/// As deep as no recursion on a thread's stack goes, with paths longer than any system call takes.
#[test]
fn depth_costs_no_stack() {
    let scratch = Scratch::new("deep");
    chain(&scratch.0, "d", 15_000);
    // Names that the removal would choose itself, and long ones.
    chain(&scratch.0, ".0", 300);
    chain(&scratch.0, &"n".repeat(255), 100);
    let small = std::thread::Builder::new().stack_size(128 << 10);
    let path = scratch.0.clone();
    small
        .spawn(move || remove(&path))
        .unwrap()
        .join()
        .unwrap()
        .unwrap();
    assert!(!scratch.0.exists());
}

#[test]
fn wide_and_odd_trees_go_whole() {
    let scratch = Scratch::new("wide");
    for outer in 0..50 {
        for inner in 0..20 {
            let directory = scratch.0.join(format!("{outer}/.{inner:x}/x"));
            files::create_dir_all(&directory).unwrap();
            files::write(directory.join("f"), "x").unwrap();
        }
    }
    let fifo = scratch.0.join("1/fifo");
    fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::empty(), 0).unwrap();
    let closed = scratch.0.join("2/closed/in");
    files::create_dir_all(&closed).unwrap();
    fs::chmod(&closed, Mode::empty()).unwrap();
    remove(&scratch.0).unwrap();
    assert!(!scratch.0.exists());
    remove(&scratch.0).unwrap();
}

#[test]
fn links_are_removed_and_not_followed() {
    let scratch = Scratch::new("links");
    let (kept, tree) = (scratch.0.join("kept"), scratch.0.join("tree"));
    files::create_dir_all(kept.join("in")).unwrap();
    files::write(kept.join("file"), "x").unwrap();
    files::create_dir_all(tree.join("a/b")).unwrap();
    for place in ["link", "a/link", "a/b/link"] {
        symlink(&kept, tree.join(place)).unwrap();
    }
    symlink(&kept, scratch.0.join("top")).unwrap();
    remove(&tree).unwrap();
    remove(&scratch.0.join("top")).unwrap();
    assert!(!tree.exists() && kept.join("in").exists() && kept.join("file").exists());
}

#[test]
fn a_limit_stops_and_the_next_call_goes_on() {
    let scratch = Scratch::new("limit");
    let tree = scratch.0.join("tree");
    files::create_dir(&tree).unwrap();
    chain(&tree, "d", 1_000);
    let mut calls = 0;
    while !remove_some(&tree, 100).unwrap() {
        calls += 1;
        assert!(tree.exists() && calls < 100);
    }
    assert!(calls > 5 && !tree.exists());
}

#[test]
fn a_removal_without_an_end_is_given_up() {
    let scratch = Scratch::new("end");
    let tree = scratch.0.join("tree");
    files::create_dir(&tree).unwrap();
    chain(&tree, "d", 100);
    assert!(!remove_for(&tree, u64::MAX, Duration::ZERO).unwrap());
    let error = remove_within(&tree, 50).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::DirectoryNotEmpty);
    assert!(error.to_string().contains("50 entries"), "{error}");
    remove(&tree).unwrap();
    assert!(!tree.exists());
}
