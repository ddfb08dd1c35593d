//! Devices by name: whom their nodes belong to, the programs of the node that their specifications have run, and network
//! devices.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::daemon::{Daemon, Options};
use coracle_tests::tools;
use tonic::Code;

use super::shell::{self, fresh, namespace, namespaces, program, run, security, sh};
use super::start_failures::start_failing;
use super::users::in_userns;
use crate::site::{Pod, eventually, refused};

/// A daemon that reads specifications from its scratch, with more settings of `[cdi]` and `[sandbox]`.
async fn daemon(cdi: &str, sandbox: &str) -> Daemon {
    let options = Options {
        config: format!("[cdi]\nspec_dirs = [\"@scratch@/cdi\"]\n{cdi}\n"),
        sandbox: sandbox.into(),
        ..Options::default()
    };
    let daemon = shell::daemon_with(options).await;
    std::fs::create_dir(daemon.scratch().dir().join("cdi")).unwrap();
    daemon
}

/// Writes the specification of `v.com/NAME=0` with these edits.
fn specify(daemon: &Daemon, name: &str, edits: &str) {
    let text = format!(
        r#"{{"cdiVersion": "1.1.0", "kind": "v.com/{name}", "devices": [{{"name": "0", "containerEdits": {edits}}}]}}"#
    );
    let path = daemon.scratch().dir().join(format!("cdi/{name}.json"));
    std::fs::write(path, text).unwrap();
}

/// The container with device `v.com/NAME=0`.
fn with_device(mut config: cri::ContainerConfig, name: &str) -> cri::ContainerConfig {
    config.cdi_devices.push(cri::CdiDevice {
        name: format!("v.com/{name}=0"),
    });
    config
}

#[tokio::test]
async fn devices_belong_to_the_user_of_the_security_context_where_the_operator_says_so() {
    if shell::on_peer() {
        return;
    }
    let setting = "device_ownership_from_security_context = ";
    for (value, lines) in [
        ("true", ["1000:1001", "1000:1001", "1000:44", "0:0"]),
        ("false", ["0:0", "0:0", "0:44", "0:0"]),
    ] {
        let daemon = daemon("", &format!("{setting}{value}")).await;
        let node = |path: &str, more: &str| {
            format!(r#"{{"path": "{path}", "hostPath": "/dev/null"{more}}}"#)
        };
        let (own, stated) = (node("/dev/own", ""), node("/dev/stated", r#", "gid": 44"#));
        specify(
            &daemon,
            "x",
            &format!(r#"{{"deviceNodes": [{own}, {stated}]}}"#),
        );
        let pod = Pod::run(&daemon, "owners").await;
        let script = "for d in asked own stated null; do stat -c %u:%g /dev/$d; done";
        let mut config = with_device(sh("c", script), "x");
        config.devices = vec![cri::Device {
            host_path: "/dev/null".into(),
            container_path: "/dev/asked".into(),
            permissions: "rw".into(),
        }];
        let user = security(&mut config);
        user.run_as_user = Some(cri::Int64Value { value: 1000 });
        user.run_as_group = Some(cri::Int64Value { value: 1001 });
        run(&daemon, &pod, &config).await.says(&lines);
        daemon.finish().await.unwrap();
    }
}

/// The setting that lists the scripts of these tests.
const LISTED: &str = "hooks = [\"@scratch@/hook\"]\nnode_hooks = [\"@scratch@/node-hook\"]";

/// Writes the script and gives its path.
fn script(daemon: &Daemon, name: &str, text: &str) -> PathBuf {
    let path = daemon.scratch().dir().join(name);
    tools::install(&path, format!("#!/bin/sh\n{text}").as_bytes()).unwrap();
    path
}

/// Specifies a device whose hook for the created container is `program`, with more fields.
fn specify_hook(daemon: &Daemon, name: &str, program: &str, more: &str) {
    let hook = format!(r#"{{"hookName": "createContainer", "path": {program:?}{more}}}"#);
    specify(daemon, name, &format!(r#"{{"hooks": [{hook}]}}"#));
}

/// Finds the root by the bundle, as NVIDIA's hooks do, and looks around from inside the hook.
const LOOK: &str = r#"
state=$(cat)
bundle=${state#*'"bundle":"'}; bundle=${bundle%%'"'*}
grep -q '"path":"rootfs"' "$bundle/config.json" || exit 1
root=$bundle/rootfs
echo "$state" > "$root/state"
{ echo "$0 $*"; env | grep HOOK; readlink /proc/self/ns/net; id -u; ls -A "${bundle%/*}"; } > "$root/seen"
mkdir "$root/mounted" && mount -t tmpfs hook "$root/mounted" && echo in > "$root/mounted/file"
ln -s /seen "$root/link"
setsid sleep 4711 <&- >/dev/null 2>&1 &
# Through a link of the image, nothing of the node is written.
ln -s /tmp/of-a-hook "$root/outside"; echo >> "$root/outside" 2>/dev/null && exit 1
# As update-ldcache does: into the container's root, in a mount namespace of its own.
unshare --mount sh -c 'cd "$0" && pivot_root . tmp && cd / && exec /bin/busybox true' "$root" || exit 1
ls /etc/hostname /root >/dev/null || exit 1
"#;

#[tokio::test]
async fn a_listed_hook_changes_the_root_of_a_container_and_leaves_nothing_else() {
    if shell::on_peer() {
        return;
    }
    let daemon = daemon(LISTED, "").await;
    let hook = script(&daemon, "hook", LOOK).display().to_string();
    let more = r#", "args": ["hook", "--link", "a::b"], "env": ["HOOK=1"]"#;
    specify_hook(&daemon, "gpu", &hook, more);
    let pod = Pod::run(&daemon, "hooked").await;
    let look = "cat /link /mounted/file; ls / | grep -c node || true; readlink /proc/self/ns/net; ls -d /proc/[0-9]* | wc -l; cat /state";
    for readonly in [false, true] {
        let mut config = with_device(sh(&fresh("c"), look), "gpu");
        security(&mut config).readonly_rootfs = readonly;
        let out = run(&daemon, &pod, &config).await.ok();
        let lines: Vec<&str> = out.lines().collect();
        let [
            ran,
            env,
            net,
            uid,
            ls,
            file,
            node,
            own_net,
            processes,
            state,
        ] = lines.as_slice()
        else {
            panic!("{out}")
        };
        assert_eq!(*ran, format!("{hook} --link a::b"));
        assert_eq!((*env, *uid, *ls, *file), ("HOOK=1", "0", "bundle", "in"));
        assert_eq!(net, own_net);
        assert_ne!(*net, namespace("self", "net"));
        // Its mounts are gone, and so is what it left running: sh, ls and wc remain.
        assert_eq!((*node, *processes), ("0", "3"));
        assert!(state.contains(r#""status":"creating""#), "{state}");
        assert!(!state.contains("annotations"), "{state}");
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_hook_of_a_pod_with_a_user_namespace_is_that_pods_root() {
    if shell::on_peer() {
        return;
    }
    let daemon = daemon(LISTED, "").await;
    let text = r#"
state=$(cat); bundle=${state#*'"bundle":"'}; root=${bundle%%'"'*}/rootfs
{ id -u; cat /proc/self/uid_map; cat /etc/shadow 2>/dev/null | wc -l; } > "$root/seen""#;
    let hook = script(&daemon, "hook", text).display().to_string();
    specify_hook(&daemon, "gpu", &hook, "");
    let pod = Pod::run_config(&daemon, in_userns(&daemon, "userns", 720_000)).await;
    let config = with_device(sh("c", "cat /seen; stat -c %u /seen"), "gpu");
    let out = run(&daemon, &pod, &config).await.ok();
    let words: Vec<&str> = out.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "720000", "65536", "0", "0"]);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_hook_that_fails_or_hangs_fails_the_start_with_its_reason() {
    if shell::on_peer() {
        return;
    }
    let daemon = daemon(LISTED, "").await;
    let pod = Pod::run(&daemon, "failing").await;
    let hook = daemon.scratch().dir().join("hook").display().to_string();
    let cases = [
        ("echo no such GPU >&2; exit 3", "", "no such GPU"),
        ("exit 3", "", "exit status: 3"),
        (
            "sleep 4712 & sleep 4712",
            r#", "timeout": 1"#,
            "did not end within 1 s",
        ),
        ("yes", r#", "timeout": 1"#, "did not end within 1 s"),
    ];
    for (text, more, why) in cases {
        script(&daemon, "hook", text);
        specify_hook(&daemon, "gpu", &hook, more);
        let config = with_device(program(&fresh("c"), &["/bin/true"]), "gpu");
        let (message, status) = start_failing(&pod, &config).await;
        assert!(
            message.contains(why) && message.contains(&hook),
            "{message}"
        );
        assert_eq!(status.reason, "StartError");
        let hung = || {
            let all = coracle_tests::procs::of_scratch(daemon.scratch());
            all.iter().any(|process| process.command.contains("4712"))
        };
        eventually("the hook has ended", || !hung()).await;
    }
    daemon.finish().await.unwrap();
}

/// Notes where and about what it runs, then does as its first argument says.
const NOTE: &str = r#"
state=$(cat)
bundle=${state#*'"bundle":"'}; bundle=${bundle%%'"'*}
root=$(sed 's/.*"path":"//; s/".*//' "$bundle/config.json")
{ echo "$state"; env | grep HOOK; readlink /proc/self/ns/net; ls -d "$root/bin/busybox"; ls -l /proc/self/fd | grep -c socket:; } > "$0.$1" 2>&1
case $2 in
fail) echo "no such GPU" >&2; exit 3 ;;
hang) sleep @time@ & exec sleep @time@ ;;
leave) sleep @time@ & ;;
esac
"#;

/// Whether a process of the node has this argument.
fn runs(argument: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes.map(|entry| entry.path()).any(|process| {
        let command = std::fs::read(process.join("cmdline")).unwrap_or_default();
        let mut words = command.split(|byte| *byte == 0);
        words.any(|word| word == argument.as_bytes())
    })
}

/// Specifies a device with hooks for the start and for the end of a container, which do as `then` says.
fn specify_node_hooks(daemon: &Daemon, name: &str, hook: &str, then: &str) {
    let of = |moment: &str| {
        format!(
            r#"{{"hookName": {moment:?}, "path": {hook:?}, "args": ["h", {moment:?}, {then:?}], "env": ["HOOK=1"], "timeout": 1}}"#
        )
    };
    let (start, stop) = (of("poststart"), of("poststop"));
    specify(daemon, name, &format!(r#"{{"hooks": [{start}, {stop}]}}"#));
}

#[tokio::test]
async fn listed_hooks_run_on_the_node_when_a_container_has_started_and_when_it_has_ended() {
    if shell::on_peer() {
        return;
    }
    let daemon = daemon(LISTED, "").await;
    let time = format!("4713.{}", std::process::id());
    let hook = script(&daemon, "node-hook", &NOTE.replace("@time@", &time));
    let hook = hook.display().to_string();
    let pod = Pod::run(&daemon, "hooked").await;
    for then in ["", "leave", "fail", "hang"] {
        for moment in ["poststart", "poststop"] {
            let _ = std::fs::remove_file(format!("{hook}.{moment}"));
        }
        specify_node_hooks(&daemon, "gpu", &hook, then);
        let config = with_device(
            program(&fresh("c"), &["/bin/busybox", "sleep", "600"]),
            "gpu",
        );
        let id = pod.start(&config).await;
        // StartContainer has answered: what runs for it has ended, and a failure changes nothing.
        let note = std::fs::read_to_string(format!("{hook}.poststart")).unwrap();
        let [state, env, net, root, sockets] = note.lines().collect::<Vec<_>>()[..] else {
            panic!("{note}")
        };
        assert!(
            state.contains(r#""status":"running""#) && state.contains(&id),
            "{state}"
        );
        let pid = state.split(r#""pid":"#).nth(1).unwrap();
        let pid: i32 = pid.split([',', '}']).next().unwrap().parse().unwrap();
        assert_eq!(root, format!("/proc/{pid}/root/bin/busybox"));
        assert_eq!((env, net), ("HOOK=1", namespace("self", "net").as_str()));
        assert_eq!(sockets, "0", "the daemon has some");
        let status = pod.cri.status(&id).await.unwrap();
        assert_eq!(status.state, cri::ContainerState::ContainerRunning as i32);
        let stop = format!("{hook}.poststop");
        assert!(!std::path::Path::new(&stop).exists(), "it runs");
        pod.cri.stop(&id, 0).await.unwrap();
        eventually("the hook of its end has run", || {
            std::fs::read_to_string(&stop).is_ok_and(|note| note.lines().count() == 5)
        })
        .await;
        let note = std::fs::read_to_string(&stop).unwrap();
        assert!(
            note.contains(r#""status":"stopped""#) && !note.contains("pid"),
            "{note}"
        );
        pod.cri.remove(&id).await.unwrap();
        eventually("what hooks left is killed", || !runs(&time)).await;
    }
    for why in ["exit status: 3: no such GPU", "did not end within 1 s"] {
        let log = daemon.log();
        let count = log.lines().filter(|line| line.contains(why)).count();
        assert_eq!(count, 2, "{why}: {log}");
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_hook_that_the_operator_has_not_listed_is_refused_with_the_line_to_add() {
    if shell::on_peer() {
        return;
    }
    let daemon = daemon(LISTED, "").await;
    let hook = script(&daemon, "hook", "exit 0").display().to_string();
    let other = script(&daemon, "other", "exit 0").display().to_string();
    let pod = Pod::run(&daemon, "refused").await;
    let linked = daemon.scratch().dir().join("./hook").display().to_string() + "/../hook";
    specify_hook(&daemon, "other", &other, "");
    specify_hook(&daemon, "linked", &linked, "");
    specify_hook(&daemon, "late", &hook, r#", "timeout": 0"#);
    specify_hook(&daemon, "odd", &hook, r#", "user": "root""#);
    for moment in ["prestart", "createRuntime", "startContainer", "prestop"] {
        let hooks = format!(r#"{{"hooks": [{{"hookName": {moment:?}, "path": {hook:?}}}]}}"#);
        specify(&daemon, &moment.to_lowercase(), &hooks);
    }
    for moment in ["poststart", "poststop"] {
        // Listed for the inside of containers only.
        let hooks = format!(r#"{{"hooks": [{{"hookName": {moment:?}, "path": {hook:?}}}]}}"#);
        specify(&daemon, moment, &hooks);
    }
    for (device, words) in [
        ("other", [other.as_str(), "cdi.hooks"]),
        ("linked", [linked.as_str(), "cdi.hooks"]),
        ("late", ["timeout", "above 0"]),
        ("odd", ["odd.json", "user"]),
        ("prestart", ["\"prestart\"", "half made"]),
        ("createruntime", ["\"createRuntime\"", "half made"]),
        (
            "startcontainer",
            ["\"startContainer\"", "file of the image"],
        ),
        ("prestop", ["\"prestop\"", "knows none"]),
        ("poststart", [hook.as_str(), "cdi.node_hooks"]),
        ("poststop", [hook.as_str(), "cdi.node_hooks"]),
    ] {
        let config = with_device(program(&fresh("c"), &["/bin/true"]), device);
        refused(pod.create(&config).await, Code::InvalidArgument, &words);
    }
    specify_hook(&daemon, "gpu", &hook, "");
    let mut shared = with_device(program("c", &["/bin/true"]), "gpu");
    namespaces(&mut shared).pid = cri::NamespaceMode::Pod as i32;
    let words = ["shareProcessNamespace", hook.as_str()];
    refused(pod.create(&shared).await, Code::InvalidArgument, &words);
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o775)).unwrap();
    let config = with_device(program("c", &["/bin/true"]), "gpu");
    let words = ["others than root", hook.as_str()];
    refused(pod.create(&config).await, Code::InvalidArgument, &words);
    daemon.finish().await.unwrap();
}

/// An interface of the node that a test has made, one end of a pair; removed with it.
pub struct Interface(pub String);

impl Interface {
    pub fn new(daemon: &Daemon) -> Self {
        let name = format!("{}x", daemon.scratch().interface_prefix());
        let interface = Self(name.clone());
        let other = format!("{name}y");
        ip(&[
            "link", "add", &name, "mtu", "1400", "type", "veth", "peer", "name", &other,
        ]);
        ip(&["link", "set", &name, "address", "0a:00:00:00:00:77"]);
        ip(&["address", "add", "198.51.100.7/24", "dev", &name]);
        ip(&["address", "add", "2001:db8::7/64", "dev", &name, "nodad"]);
        interface
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        let mut remove = std::process::Command::new("ip");
        // The other end, which stays on the node under its name.
        let other = format!("{}y", self.0);
        let _ = remove.args(["link", "delete", &other]).output();
    }
}

fn ip(args: &[&str]) {
    let done = std::process::Command::new("ip")
        .args(args)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "ip {}: {error}", args.join(" "));
}

#[tokio::test]
async fn a_network_device_of_the_node_moves_into_the_pod_and_is_found_when_it_is_back() {
    if shell::on_peer() {
        return;
    }
    let daemon = daemon("", "").await;
    let nic = Interface::new(&daemon);
    let device = |name: &str| {
        format!(
            r#"{{"netDevices": [{{"hostInterfaceName": "{}", "name": "{name}"}}]}}"#,
            nic.0
        )
    };
    specify(&daemon, "nic", &device("fast0"));
    specify(&daemon, "clash", &device("eth0"));
    let pod = Pod::run(&daemon, "fast").await;
    let look = "cat /sys/class/net/fast0/mtu /sys/class/net/fast0/address; ip -o address show dev fast0 | grep -o 'inet6* [^ ]*' | grep -v fe80";
    let facts = [
        "1400",
        "0a:00:00:00:00:77",
        "inet 198.51.100.7/24",
        "inet6 2001:db8::7/64",
    ];
    // A container that comes again finds it where it is.
    for _ in 0..2 {
        let config = with_device(sh(&fresh("c"), look), "nic");
        run(&daemon, &pod, &config).await.says(&facts);
    }
    assert!(!std::path::Path::new(&format!("/sys/class/net/{}", nic.0)).exists());
    let other = Pod::run(&daemon, "other").await;
    let id = other
        .create(&with_device(program("c", &["/bin/true"]), "nic"))
        .await
        .unwrap();
    let words = [nic.0.as_str(), "another pod"];
    refused(other.cri.start(&id).await, Code::FailedPrecondition, &words);
    // As the kernel gives a physical device back when a pod's namespace ends.
    let netns = daemon.scratch().dir().join("run/netns").join(&pod.id);
    let own = std::process::id().to_string();
    let netns = format!("--net={}", netns.display());
    let back = std::process::Command::new("nsenter")
        .args([netns.as_str(), "ip", "link", "set", "fast0", "netns", &own])
        .status();
    assert!(back.unwrap().success());
    let id = other
        .create(&with_device(program("d", &["/bin/true"]), "clash"))
        .await
        .unwrap();
    let words = ["eth0", "already"];
    refused(other.cri.start(&id).await, Code::FailedPrecondition, &words);
    let config = with_device(sh("e", "cat /sys/class/net/fast0/mtu"), "nic");
    run(&daemon, &other, &config).await.says(&["1400"]);
    let mut config = daemon.pod("node");
    shell::pod_security(&mut config)
        .namespace_options
        .as_mut()
        .unwrap()
        .network = cri::NamespaceMode::Node as i32;
    let node = Pod::run_config(&daemon, config).await;
    let mut config = with_device(program("c", &["/bin/true"]), "nic");
    namespaces(&mut config).network = cri::NamespaceMode::Node as i32;
    refused(
        node.create(&config).await,
        Code::InvalidArgument,
        &["hostNetwork", nic.0.as_str()],
    );
    daemon.finish().await.unwrap();
}
