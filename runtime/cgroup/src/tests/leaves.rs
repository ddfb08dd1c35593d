//! Exec leaves: what is killed with them, and what is not.

use super::*;

/// A shell that joins `leaf` the way an exec does: born into the v2 tree, moved by `tasks` elsewhere.
pub(super) fn run_in_leaf(leaf: &ExecLeaf, script: &str) -> Child {
    let join = r#"for file; do echo 0 > "$file" || exit 99; done; "#;
    let mut files = leaf.task_files();
    files.extend(leaf.unified_procs());
    let mut shell = Command::new("/bin/sh");
    shell
        .args(["-c", &format!("{join}{script}"), "sh"])
        .args(files)
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}

impl ExecLeaf {
    /// What a shell writes to, who cannot use [`ExecLeaf::clone_into_fd`].
    fn unified_procs(&self) -> Option<PathBuf> {
        let fd = self.clone_into_fd().unwrap()?;
        let dir = std::fs::read_link(format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&fd)
        ));
        Some(dir.unwrap().join("cgroup.procs"))
    }
}

/// Forks faster than a list of pids can be read and signalled.
const FORKING: &str = "for i in 1 2 3; do (while :; do sleep 0.01 & sleep 0.01; done) & done; wait";

pub(super) fn pure_v1(parent: &Parent) -> Option<Cgroups> {
    let Layout::V1(hybrid) = &*parent.cgroups.layout else {
        return None;
    };
    let layout = Layout::V1(V1 {
        hierarchies: hybrid.hierarchies.clone(),
        unified: None,
        page_sizes: vec![],
    });
    Some(Cgroups {
        layout: Arc::new(layout),
    })
}

#[test]
fn an_exec_is_killed_whole_and_alone() {
    let parent = Parent::new();
    for cgroups in [Some(parent.cgroups.clone()), pure_v1(&parent)]
        .into_iter()
        .flatten()
    {
        let path = format!("{}/container", parent.path);
        let container = cgroups.create(&path, &Limits::default()).unwrap();
        let mut init = run_in(&container, "sleep 1000 & sleep 1000");
        wait_for("init", || container.pids().unwrap().len() == 3);
        let (leaf, other) = (
            container.exec_leaf("a1").unwrap(),
            container.exec_leaf("b2").unwrap(),
        );
        assert!(leaf.is_own());
        let mut exec = run_in_leaf(&leaf, FORKING);
        let mut stays = run_in_leaf(&other, "sleep 1000 & sleep 1000");
        wait_for("all", || {
            leaf.pids().unwrap().len() > 5 && other.pids().unwrap().len() == 3
        });
        match leaf.kill_files().as_slice() {
            [file] => files::write(file, "1").unwrap(),
            _ => leaf.kill_list().unwrap().kill().unwrap(),
        }
        wait_for("the end", || leaf.pids().unwrap().is_empty());
        wait_for("the end of the exec", || leaf.kill().is_ok());
        exec.wait().unwrap();
        wait_for("removal", || leaf.remove().is_ok());
        leaf.remove().unwrap();
        assert_eq!(
            container.pids().unwrap().len(),
            6,
            "init and the other exec live"
        );
        assert_eq!(other.pids().unwrap().len(), 3);
        killed(&container);
        init.wait().unwrap();
        stays.wait().unwrap();
        // Leaves go with the container.
        removed(&container);
    }
}

#[test]
fn an_exec_counts_for_its_container() {
    let parent = Parent::new();
    let limits = Limits {
        pids: Some(20),
        memory_bytes: Some(32 << 20),
        memory_swap_bytes: Some(32 << 20),
        ..Limits::default()
    };
    let container = parent.create("container", &limits);
    let leaf = container.exec_leaf("oom").unwrap();
    let status = run_in_leaf(&leaf, "exec tail /dev/zero").wait().unwrap();
    assert!(!status.success());
    assert_eq!(container.oom_kills().unwrap(), 1);
    let script = "i=0; while [ $i -lt 40 ]; do sleep 1000 & i=$((i + 1)); done; wait";
    let mut many = run_in_leaf(&leaf, script);
    wait_for("the pids limit", || {
        container.stats().unwrap().pids == 20 || many.try_wait().unwrap().is_some()
    });
    // The shell gives up, and may do so between the two looks.
    wait_for("as many in the container as in the leaf", || {
        leaf.pids().unwrap().len() == container.pids().unwrap().len()
    });
    assert!((10..=20).contains(&leaf.pids().unwrap().len()));
    wait_for("the end of the exec", || leaf.kill().is_ok());
    many.wait().unwrap();
}

#[test]
fn files_to_join_are_the_leafs_where_it_has_its_own() {
    let parent = Parent::new();
    let container = parent.create("container", &Limits::default());
    let leaf = container.exec_leaf("x").unwrap();
    assert_eq!(leaf.path(), format!("{}/exec-x", container.path()));
    let (own, all) = (leaf.task_files(), container.task_files());
    assert_eq!(own.len(), all.len());
    let differing: Vec<_> = own.iter().filter(|file| !all.contains(file)).collect();
    match parent.cgroups.version() {
        Version::V1 => assert!(differing.len() == 1 && differing[0].ends_with("exec-x/tasks")),
        Version::V2 => assert!(own.is_empty()),
    }
    assert!(own.iter().all(|file| file.exists()));
    let again = container.exec_leaf("x").unwrap();
    assert_eq!(again.task_files(), own, "a leaf that exists is taken over");
}

#[test]
fn bad_names_and_absent_containers_are_refused() {
    let parent = Parent::new();
    let container = parent.create("container", &Limits::default());
    for name in ["", "a/b", "..", "a b", &"x".repeat(129)] {
        let refused = container.exec_leaf(name).unwrap_err();
        assert!(matches!(refused, Error::BadPath { .. }), "{name:?}");
    }
    container.remove().unwrap();
    container.exec_leaf("a").unwrap_err();
    assert!(!container.exists(), "a refused leaf makes no container");
}

#[test]
fn a_workload_that_leaves_no_room_gets_no_leaf() {
    let parent = Parent::new();
    let container = parent.create("container", &Limits::default());
    let Some(dir) = container.unified_dir() else {
        return;
    };
    let full = dir.join("cgroup.max.descendants");
    files::write(&full, "0").unwrap();
    let leaf = container.exec_leaf("a").unwrap();
    let container_procs = Some(dir.join("cgroup.procs"));
    assert_eq!(leaf.unified_procs(), container_procs);
    leaf.remove().unwrap();
    files::write(&full, "max").unwrap();
    std::fs::create_dir(dir.join("threads")).unwrap();
    files::write(&dir.join("threads/cgroup.type"), "threaded").unwrap();
    let leaf = container.exec_leaf("a").unwrap();
    assert_eq!(
        leaf.unified_procs(),
        container_procs,
        "a threaded cgroup takes no processes"
    );
    assert!(!dir.join("exec-a").exists());
    leaf.remove().unwrap();
}

#[test]
fn cgroups_that_the_workload_made_are_killed_and_removed() {
    let parent = Parent::new();
    let container = parent.create("container", &Limits::default());
    let dirs = container.dirs();
    let mut files = Vec::new();
    for dir in &dirs {
        std::fs::create_dir_all(dir.join("own/deeper")).unwrap();
        // A cpuset of its own would have to be filled first.
        if !dir.join("cpuset.cpus").exists() {
            files.push(dir.join("own/deeper/cgroup.procs"));
        }
    }
    let mut shell = Command::new("/bin/sh")
        .args([
            "-c",
            r#"for file; do echo 0 > "$file" || exit 99; done; sleep 1000 & sleep 1000"#,
            "sh",
        ])
        .args(&files)
        .spawn()
        .unwrap();
    wait_for("the workload", || container.pids().unwrap().len() == 2 + 1);
    killed(&container);
    shell.wait().unwrap();
    removed(&container);
    assert!(dirs.iter().all(|dir| !dir.exists()));
}
