//! Device policies, seen by a process inside: the v1 hierarchy and the v2 program must agree.

use std::path::{Path, PathBuf};

use super::super::bpf::Programs;
use super::super::detect;
use super::super::devices::Policy;
use super::*;

/// Device nodes to be tried, in a directory that goes away with it.
struct Nodes(PathBuf);

impl Nodes {
    fn new(name: &str) -> Self {
        let dir = PathBuf::from(format!(
            "/dev/shm/coracle-nodes-{name}-{}",
            std::process::id()
        ));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        // /dev/shm may be mounted nodev, which would refuse what the cgroup allows.
        use rustix::mount::{MountFlags, mount};
        mount("nodes", &dir, "tmpfs", MountFlags::empty(), None).unwrap();
        Self(dir)
    }

    /// The results of a process in the cgroup of `procs` that makes and then opens each of `numbers`:
    /// two letters a device, `y` for allowed (or a driver's own complaint), `-` for EPERM.
    fn tried(&self, procs: &[PathBuf], access: &str, numbers: &[&str]) -> String {
        let script = r#"
            dir=$1; open=$2; shift 2; tried=
            say() { case "$1" in *"not permitted"*) tried="$tried-";; *) tried="${tried}y";; esac; }
            for device; do
                set -- $device
                node=$dir/$1-$2-$3; made=$dir/made
                rm -f "$made"
                say "$(mknod "$made" $1 $2 $3 2>&1)"
                case $open in
                    r) say "$(head -c 0 "$node" 2>&1)";;
                    w) say "$(dd if=/proc/self/comm of="$node" count=0 conv=notrunc 2>&1 | grep open)";;
                esac
            done
            echo "$tried" > "$dir/answer""#;
        for number in numbers {
            let node = self.0.join(number.replace(' ', "-"));
            if !node.exists() {
                let mut mknod = Command::new("mknod");
                let made = mknod.arg(&node).args(number.split(' ')).status().unwrap();
                assert!(made.success());
            }
        }
        let join = r#"count=$1; shift; while [ "$count" -gt 0 ]; do echo 0 > "$1" || exit 99; shift; count=$((count - 1)); done"#;
        let status = Command::new("/bin/sh")
            .args([
                "-c",
                &format!("{join}\n{script}"),
                "sh",
                &procs.len().to_string(),
            ])
            .args(procs)
            .args([self.0.as_os_str(), access.as_ref()])
            .args(numbers)
            .stdin(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "{status}");
        let answer = std::fs::read_to_string(self.0.join("answer")).unwrap();
        answer.trim().to_owned()
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
        std::fs::remove_dir(&self.0).unwrap();
    }
}

/// A cgroup of the v2 tree that goes away with it.
struct V2Cgroup(PathBuf);

impl V2Cgroup {
    fn new(name: &str) -> Self {
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = detect::parse(&text).unified.unwrap();
        let dir = mount.join(format!("coracle-test-bpf-{name}-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        Self(dir)
    }

    fn procs(&self) -> Vec<PathBuf> {
        vec![self.0.join("cgroup.procs")]
    }
}

impl Drop for V2Cgroup {
    fn drop(&mut self) {
        let patient = Instant::now() + Duration::from_secs(60);
        files::remove_tree(&self.0, patient).unwrap();
    }
}

/// null, mem, fuse, a disk, a terminal.
const TRIED: [&str; 5] = ["c 1 3", "c 1 1", "c 10 229", "b 8 0", "c 5 2"];
/// For each of [`TRIED`]: whether its node can be made, and whether it can be opened.
const DEFAULTS: &str = "yyy-y-y-yy";

fn disk() -> DeviceRule {
    DeviceRule::new(DeviceClass::Block, Some(8), Some(0), "r")
}

#[test]
fn the_program_confines_and_is_replaced() {
    let nodes = Nodes::new("v2");
    let cgroup = V2Cgroup::new("confines");
    let programs = Programs::default();
    let apply = |rules: &[DeviceRule]| programs.apply(&cgroup.0, &Policy::of(rules)).unwrap();
    let read = || nodes.tried(&cgroup.procs(), "r", &TRIED);
    assert_eq!(read(), "yyyyyyyyyy", "no policy");
    apply(&DeviceRule::defaults());
    assert_eq!(read(), DEFAULTS);
    apply(&[DeviceRule::defaults(), vec![disk()]].concat());
    assert_eq!(
        read(),
        "yyy-y-yyyy",
        "the second program took the place of the first"
    );
    assert_eq!(
        nodes.tried(&cgroup.procs(), "w", &TRIED),
        DEFAULTS,
        "the disk is for reading"
    );
    apply(&[]);
    // The nodes in /dev that a shell needs are denied, too; so it cannot even say so.
    let status = Command::new("/bin/sh")
        .args([
            "-c",
            "echo 0 > \"$0\" || exit 99; : < /dev/null || exit 7; exit 8",
        ])
        .args(cgroup.procs())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!([Some(2), Some(7)].contains(&status.code()), "{status}");
    apply(&DeviceRule::everything());
    assert_eq!(read(), "yyyyyyyyyy", "the program is gone");
}

#[test]
fn a_program_holds_in_cgroups_below_and_is_replaced_once() {
    let nodes = Nodes::new("below");
    let cgroup = V2Cgroup::new("below");
    let leaf = cgroup.0.join("exec-1");
    std::fs::create_dir(&leaf).unwrap();
    // The same program, as a daemon attaches it that goes on, and another one, as from the next daemon.
    let programs = [Programs::default(), Programs::default()];
    for programs in programs.iter().chain(&programs) {
        for _ in 0..2 {
            programs
                .apply(&cgroup.0, &Policy::of(&DeviceRule::defaults()))
                .unwrap();
        }
    }
    let [programs, _] = programs;
    programs
        .apply(
            &leaf,
            &Policy::of(&[DeviceRule::defaults(), vec![disk()]].concat()),
        )
        .unwrap();
    let read = nodes.tried(&[leaf.join("cgroup.procs")], "r", &TRIED);
    assert_eq!(
        read, DEFAULTS,
        "no cgroup allows more than the one above it"
    );
    programs.apply(&cgroup.0, &Policy::Everything).unwrap();
    let read = nodes.tried(&[leaf.join("cgroup.procs")], "r", &TRIED);
    assert_eq!(read, "yyy-y-yyyy", "repeated policies left nothing behind");
}

#[test]
fn a_container_has_the_devices_it_was_given() {
    let nodes = Nodes::new("container");
    let parent = Parent::new();
    let with = |rules: Vec<DeviceRule>| Limits {
        devices: Some(rules),
        ..Limits::default()
    };
    let cgroup = parent.create("pod", &with(DeviceRule::defaults()));
    let read = || nodes.tried(&cgroup.procs_files(), "r", &TRIED);
    assert_eq!(read(), DEFAULTS);
    cgroup.set(&Limits::default()).unwrap();
    assert_eq!(read(), DEFAULTS, "what is not given stays");
    // The kernel refuses to start over once a cgroup is below.
    let below = parent.create("pod/below", &Limits::default());
    cgroup
        .set(&with([DeviceRule::defaults(), vec![disk()]].concat()))
        .unwrap();
    assert_eq!(read(), "yyy-y-yyyy");
    cgroup.set(&with(DeviceRule::defaults())).unwrap();
    assert_eq!(read(), DEFAULTS);
    removed(&below);
    cgroup.set(&with(DeviceRule::everything())).unwrap();
    assert_eq!(read(), "yyyyyyyyyy");
    assert_eq!(
        nodes.tried(
            &parent.create("wasm", &Limits::default()).procs_files(),
            "r",
            &TRIED
        ),
        "yyyyyyyyyy"
    );
}

#[test]
fn a_policy_costs_little() {
    let cgroup = V2Cgroup::new("cost");
    let policy = Policy::of(&DeviceRule::defaults());
    let programs = Programs::default();
    let loaded = least(50, || {
        Programs::default().apply(&cgroup.0, &policy).unwrap();
    });
    let program = least(50, || programs.apply(&cgroup.0, &policy).unwrap());
    let parent = Parent::new();
    let limits = Limits {
        devices: Some(DeviceRule::defaults()),
        ..Limits::default()
    };
    let mut number = 0;
    let plain = least(50, || {
        number += 1;
        parent.create(&format!("plain{number}"), &Limits::default());
    });
    let with_devices = least(50, || {
        number += 1;
        parent.create(&format!("devices{number}"), &limits);
    });
    println!(
        "device program: {loaded:?}, known {program:?}; create: {plain:?}, with devices {with_devices:?}"
    );
    // A hundred times what it takes.
    assert!(program < Duration::from_millis(50), "{program:?}");
}

#[test]
fn a_cgroup_that_is_gone_is_named() {
    let error = Programs::default()
        .apply(
            Path::new("/sys/fs/cgroup/coracle-absent"),
            &Policy::Everything,
        )
        .unwrap_err();
    assert!(error.to_string().contains("coracle-absent"), "{error}");
}
