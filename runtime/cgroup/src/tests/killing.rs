//! Killing in steps, with few descriptors however many processes there are.

use super::leaves::pure_v1;
use super::*;

/// Set in the process of few descriptors: the cgroup that it kills.
const FEW: &str = "CORACLE_TEST_KILLED";

/// The node without its unified tree, if it has one beside v1: pids are signalled one by one.
fn signalled(parent: &Parent) -> Cgroups {
    pure_v1(parent).unwrap_or_else(|| parent.cgroups.clone())
}

#[test]
fn two_thousand_processes_are_killed_with_few_descriptors() {
    let parent = Parent::new();
    if let Ok(path) = std::env::var(FEW) {
        return killed(&signalled(&parent).open(&path).unwrap());
    }
    let path = format!("{}/many", parent.path);
    let cgroup = signalled(&parent)
        .create(&path, &Limits::default())
        .unwrap();
    let mut shell = run_in(
        &cgroup,
        "i=0; while [ $i -lt 2000 ]; do sleep 1000 & i=$((i+1)); done; wait",
    );
    wait_for("all of them", || cgroup.pids().unwrap().len() > 2000);
    let killer = Command::new("/bin/sh")
        .args(["-c", r#"ulimit -n 320; exec "$0" "$@""#])
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "tests::killing::two_thousand_processes_are_killed_with_few_descriptors",
        ])
        .env(FEW, &path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&killer.stdout);
    assert!(
        killer.status.success() && said.contains("1 passed"),
        "{said}"
    );
    assert_eq!(cgroup.pids().unwrap(), Vec::<i32>::new());
    shell.wait().unwrap();
}

#[test]
fn a_step_does_not_wait_for_what_does_not_die() {
    let parent = Parent::new();
    let Some(cgroups) = pure_v1(&parent) else {
        return;
    };
    let path = format!("{}/container", parent.path);
    let container = cgroups.create(&path, &Limits::default()).unwrap();
    let leaf = container.exec_leaf("a1").unwrap();
    let Layout::V1(v1) = container.layout() else {
        return;
    };
    let mut shell = leaves::run_in_leaf(&leaf, "sleep 1000 & sleep 1000");
    wait_for("the exec", || leaf.pids().unwrap().len() == 3);
    // Frozen from above, which killing an exec does not undo.
    let state = v1.dir("freezer", &path).unwrap().join("freezer.state");
    files::write(&state, "FROZEN").unwrap();
    let (begun, mut shortest, mut killing) = (Instant::now(), Duration::MAX, leaf.killing());
    let error = loop {
        let step = Instant::now();
        match killing.step(Duration::ZERO) {
            Ok(is_done) => assert!(!is_done),
            Err(error) => break error,
        }
        shortest = shortest.min(step.elapsed());
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(
        matches!(error, Error::StillAlive { left: 3, .. }),
        "{error}"
    );
    assert!(begun.elapsed() >= Duration::from_secs(2));
    // A step takes little of the two seconds.
    assert!(shortest < Duration::from_secs(1), "{shortest:?}");
    assert!(leaf.remove_some().unwrap_err().is_busy());
    files::write(&state, "THAWED").unwrap();
    wait_for("the end of the exec", || leaf.kill().is_ok());
    shell.wait().unwrap();
    wait_for("removal", || leaf.remove_some().is_ok());
    killed(&container);
}

#[test]
fn a_killing_that_is_given_up_leaves_nothing_frozen() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().to_owned();
    let mut sleeper = Command::new("sleep").arg("1000").spawn().unwrap();
    std::fs::write(dir.join("cgroup.procs"), format!("{}\n", sleeper.id())).unwrap();
    // A freezer that never gets there, as with a process in uninterruptible sleep.
    let state = dir.join("freezer.state");
    std::os::unix::fs::symlink("/dev/null", &state).unwrap();
    let mut killing = Killing::new(Target {
        path: "/given-up".to_owned(),
        listings: vec![dir.clone()],
        unified: None,
        freezer: Some(dir.clone()),
    });
    assert!(!killing.step(Duration::ZERO).unwrap());
    std::fs::remove_file(&state).unwrap();
    std::fs::write(&state, "FREEZING").unwrap();
    drop(killing);
    let left = std::fs::read_to_string(&state).unwrap();
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    assert!(left.starts_with("THAWED"), "{left}");
}

/// A daemon or keeper that is killed in the middle of a killing thaws nothing.
#[test]
fn what_a_killing_that_died_has_frozen_is_thawed_and_nothing_else() {
    let parent = Parent::new();
    let Some(cgroups) = pure_v1(&parent) else {
        return;
    };
    let made = |name: &str| {
        let path = format!("{}/{name}", parent.path);
        cgroups.create(&path, &Limits::default()).unwrap()
    };
    let (ours, operators) = (made("ours"), made("operators"));
    let state = |cgroup: &Cgroup| cgroup.target().freezer.unwrap().join("freezer.state");
    let is = |state: &Path, wanted: &str| files::read(state).unwrap().trim() == wanted;
    let mut lives = run_in(&ours, "sleep 1000");
    let mut paused = run_in(&operators, "sleep 1000");
    let leaf = ours.exec_leaf("a1").unwrap();
    let mut exec = leaves::run_in_leaf(&leaf, "sleep 1000 & sleep 1000");
    wait_for("all", || {
        leaf.pids().unwrap().len() == 3 && ours.pids().unwrap().len() > 3
    });
    files::write(&state(&operators), "FROZEN").unwrap();
    // Killings that stop being called once they have frozen, as those of a process that is gone.
    for target in [leaf.target(), ours.target()] {
        let freezer = target.freezer.clone().unwrap().join("freezer.state");
        let mut killing = Killing::new(target);
        wait_for("the freezer", || {
            // Nothing was signalled yet.
            killing.stage_until_frozen();
            is(&freezer, "FROZEN")
        });
        std::mem::forget(killing);
    }
    // The next daemon.
    let thawed = ours.thaw_left().unwrap();
    assert_eq!(thawed, [ours.path(), leaf.path()]);
    assert!(operators.thaw_left().unwrap().is_empty());
    // The kernel may still be on its way there.
    assert!(!is(&state(&operators), "THAWED"), "that was not ours");
    assert!(is(&state(&ours), "THAWED"));
    wait_for("the exec's end", || leaf.pids().unwrap().is_empty());
    exec.wait().unwrap();
    assert!(lives.try_wait().unwrap().is_none(), "it was not to die");
    assert!(ours.thaw_left().unwrap().is_empty(), "the marks are gone");
    files::write(&state(&operators), "THAWED").unwrap();
    for (cgroup, shell) in [(ours, &mut lives), (operators, &mut paused)] {
        cgroup.kill().unwrap();
        shell.wait().unwrap();
        cgroup.remove().unwrap();
    }
}

#[test]
fn fork_tree_is_killed_and_counted() {
    let parent = Parent::new();
    let cgroup = parent.create("pod", &Limits::default());
    let mut shell = run_in(
        &cgroup,
        "for i in 1 2 3 4; do (setsid sh -c 'sleep 1000 & sleep 1000' &) & done; sleep 1000",
    );
    // Counted at once: shells that are about to end count, too.
    wait_for("the tree", || {
        cgroup.pids().unwrap().len() >= 13 && cgroup.stats().unwrap().pids >= 13
    });
    let started = Instant::now();
    killed(&cgroup);
    println!("kill of 13 processes: {:?}", started.elapsed());
    assert_eq!(cgroup.pids().unwrap(), Vec::<i32>::new());
    assert!(!shell.wait().unwrap().success());
    removed(&cgroup);
}

#[test]
fn kill_without_unified_tree_uses_the_freezer() {
    let parent = Parent::new();
    let Layout::V1(hybrid) = &*parent.cgroups.layout else {
        return;
    };
    let pure = Cgroups {
        layout: Arc::new(Layout::V1(V1 {
            hierarchies: hybrid.hierarchies.clone(),
            unified: None,
            page_sizes: vec![],
        })),
    };
    let cgroup = pure
        .create(&format!("{}/pod", parent.path), &Limits::default())
        .unwrap();
    // Each shell keeps forking: only a frozen tree can be killed whole.
    let mut shell = run_in(
        &cgroup,
        "for i in 1 2 3; do (while :; do sleep 0.01 & sleep 0.01; done) & done; wait",
    );
    wait_for("the tree", || cgroup.pids().unwrap().len() > 5);
    killed(&cgroup);
    assert_eq!(cgroup.pids().unwrap(), Vec::<i32>::new());
    shell.wait().unwrap();
}

#[test]
fn frozen_cgroups_are_killed() {
    let parent = Parent::new();
    let v1 = |cgroup: &Cgroup| match cgroup.layout() {
        Layout::V1(v1) => v1.dir("freezer", cgroup.path()),
        Layout::V2(_) => None,
    };
    let cgroup = parent.create("pod", &Limits::default());
    let ways = [
        v1(&cgroup).map(|dir| (dir.join("freezer.state"), "FROZEN")),
        cgroup
            .unified_dir()
            .map(|dir| (dir.join("cgroup.freeze"), "1")),
    ];
    assert!(ways.iter().any(Option::is_some));
    for (file, frozen) in ways.into_iter().flatten() {
        let cgroup = parent.create("pod", &Limits::default());
        let mut shell = run_in(&cgroup, "sleep 1000 & sleep 1000");
        wait_for("the tree", || cgroup.pids().unwrap().len() >= 3);
        files::write(&file, frozen).unwrap();
        killed(&cgroup);
        shell.wait().unwrap();
        removed(&cgroup);
    }
}
