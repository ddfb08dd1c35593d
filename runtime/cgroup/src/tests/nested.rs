//! Cgroups that a workload has nested below its own.

use super::*;

/// Deeper than any path that the kernel takes.
const DEPTH: usize = 2500;

/// Makes a chain of cgroups below `dir`; gives the deepest one.
fn chain(dir: &Path, depth: usize) -> OwnedFd {
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut here = openat(CWD, dir, flags, Mode::empty()).unwrap();
    for _ in 0..depth {
        mkdirat(&here, "n", Mode::RWXU).unwrap();
        here = openat(&here, "n", flags, Mode::empty()).unwrap();
    }
    here
}

fn join(deepest: &OwnedFd, pid: u32) {
    use rustix::fs::{Mode, OFlags, openat};
    let procs = openat(deepest, "cgroup.procs", OFlags::WRONLY, Mode::empty()).unwrap();
    rustix::io::write(&procs, pid.to_string().as_bytes()).unwrap();
}

#[test]
fn a_chain_that_no_path_names_is_killed_and_removed() {
    let parent = Parent::new();
    let cgroup = parent.create("container", &Limits::default());
    let dirs = match cgroup.layout() {
        Layout::V1(v1) => ["pids", "freezer"]
            .map(|name| v1.dir(name, cgroup.path()))
            .to_vec(),
        Layout::V2(_) => vec![],
    };
    let dirs = dirs.into_iter().chain([cgroup.unified_dir()]).flatten();
    let mut sleeper = Command::new("sleep").arg("1000").spawn().unwrap();
    for dir in dirs {
        join(&chain(&dir, DEPTH), sleeper.id());
    }
    let pid = sleeper.id().cast_signed();
    assert_eq!(cgroup.pids().unwrap(), [pid]);
    killed(&cgroup);
    assert!(!sleeper.wait().unwrap().success());
    // Once more from the freezer, which the kernel walks itself.
    killed(&cgroup);
    removed(&cgroup);
}

#[test]
fn deaths_for_lack_of_memory_are_counted_however_deep() {
    let parent = Parent::new();
    let cgroup = parent.create("container", &Limits::default());
    let Layout::V1(v1) = cgroup.layout() else {
        return;
    };
    drop(chain(&v1.dir("memory", cgroup.path()).unwrap(), 200));
    assert_eq!(cgroup.oom_kills().unwrap(), 0);
    removed(&cgroup);
}

#[test]
fn what_cannot_be_removed_in_time_is_removed_by_the_next_call() {
    let parent = Parent::new();
    let cgroup = parent.create("container", &Limits::default());
    let dir = cgroup.dirs().pop().unwrap();
    for number in 0..300 {
        std::fs::create_dir_all(dir.join(format!("{number}/below"))).unwrap();
    }
    let count = || std::fs::read_dir(&dir).unwrap().flatten().count();
    let before = count();
    walk::empty(&dir, Instant::now() + Duration::from_millis(2)).unwrap();
    let after = count();
    assert!(after < before, "{after} of {before} are left");
    removed(&cgroup);
}

#[test]
fn after_its_deadline_a_removal_removes_one_and_ends() {
    let parent = Parent::new();
    let cgroup = parent.create("container", &Limits::default());
    let dir = cgroup.dirs().pop().unwrap();
    for number in 0..50 {
        std::fs::create_dir_all(dir.join(format!("{number}/below"))).unwrap();
    }
    let count = || std::fs::read_dir(&dir).unwrap().flatten().count();
    let before = count();
    files::remove_tree(&dir, Instant::now()).unwrap_err();
    assert_eq!(count(), before - 1);
    removed(&cgroup);
}
