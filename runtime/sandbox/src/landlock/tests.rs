//! Tests against the kernel, on threads restricted like a Wasm container, without the rest of its jail.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use rustix::fs::{Mode, OFlags, openat};
use rustix::process::{Pid, test_kill_process};
use rustix::thread::UnshareFlags;

use super::*;
use coracle_spec::Workload;
use coracle_sys::mounts::{self, Forbid};

/// A container whose root is `root`, with writable mounts at `/rw` and `/file`, and a read-only one at `/ro`.
fn spec(readonly: bool, kind: &str, network: &serde_json::Value) -> ContainerSpec {
    let mount = |target: &str, readonly| serde_json::json!({ "source": "/x", "target": target, "readonly": readonly });
    let text = serde_json::json!({
        "version": 1, "pod": "a".repeat(64), "id": "b".repeat(64),
        "workload": { "Wasm": {
            "kind": kind, "args": [], "env": [], "working_dir": "/", "stdin": false, "network": network,
        } },
        "root": { "layers": [], "upper": "/u", "work": "/w", "readonly": readonly },
        "mounts": [mount("/rw", false), mount("/ro", true), mount("/file", false), mount("/absent", false)],
        "identity": { "uid": 0, "gid": 0, "groups": [], "range": { "base": 1 << 30, "size": 65536 } },
        "cgroup_procs": [], "memory_limit_bytes": null, "oom_score_adj": 0, "spawn": "fork", "staging": "/s",
    });
    serde_json::from_value(text).unwrap()
}

/// The file system that the thread sees: a root with mounts in it, and `outside` beside it.
struct Fixture {
    top: PathBuf,
    code: File,
}

impl Fixture {
    /// Call it on a thread that ends soon: the thread gets its own mount namespace, which removes all of this at its
    /// end.
    fn new(name: &str) -> Self {
        let top = std::env::temp_dir().join(format!("coracle-landlock-{name}"));
        super::super::unshare(UnshareFlags::NEWNS | UnshareFlags::FS, "test's").unwrap();
        mounts::make_all_private().unwrap();
        let temporary = mounts::filesystem(c"tmpfs", &[], Forbid::default()).unwrap();
        let mount_point = rootfs_path::open_dir(&std::env::temp_dir()).unwrap();
        mounts::attach(temporary.as_fd(), mount_point.as_fd()).unwrap();
        for directory in ["root/rw", "root/ro", "root/sub", "outside"] {
            fs::create_dir_all(top.join(directory)).unwrap();
        }
        for file in [
            "root/file",
            "root/own",
            "outside/secret",
            "outside/file",
            "code",
        ] {
            fs::write(top.join(file), "text").unwrap();
        }
        for directory in ["root/rw", "root/ro"] {
            // The kernel's mounts are both writable: only Landlock protects the second one.
            let tree = mounts::filesystem(c"tmpfs", &[], Forbid::default()).unwrap();
            let mount_point = rootfs_path::open_dir(&top.join(directory)).unwrap();
            mounts::attach(tree.as_fd(), mount_point.as_fd()).unwrap();
            fs::write(top.join(directory).join("text"), "text").unwrap();
        }
        let file = mounts::clone_tree(&top.join("outside/file"), false).unwrap();
        let mount_point =
            rustix::fs::open(top.join("root/file"), OFlags::PATH, Mode::empty()).unwrap();
        mounts::attach(file.as_fd(), mount_point.as_fd()).unwrap();
        let code = File::open(top.join("code")).unwrap();
        Self { top, code }
    }

    fn confine(&self, spec: &ContainerSpec) -> Result<()> {
        let Workload::Wasm(wasm) = &spec.workload else {
            unreachable!("the spec above is Wasm's")
        };
        rustix::thread::set_no_new_privs(true).unwrap();
        let root = rootfs_path::open_dir(&self.top.join("root")).unwrap();
        confine_to(&root, spec, wasm, self.code.as_fd())
    }

    fn at(&self, path: &str) -> PathBuf {
        self.top.join(path)
    }
}

/// Runs `test` on its own thread, which stays restricted. Does nothing on a kernel without this version.
fn held(since: u32, test: impl FnOnce() + Send + 'static) {
    if version().unwrap().is_some_and(|version| version >= since) {
        thread::spawn(test).join().unwrap();
    }
}

fn write(path: &Path) -> Option<ErrorKind> {
    let opened = File::options().write(true).open(path);
    opened
        .and_then(|mut file| file.write_all(b"x"))
        .err()
        .map(|e| e.kind())
}

fn create(path: &Path) -> Option<ErrorKind> {
    File::create_new(path).err().map(|e| e.kind())
}

const DENIED: Option<ErrorKind> = Some(ErrorKind::PermissionDenied);

#[test]
fn a_read_only_root_is_read_and_its_writable_mounts_are_written() {
    held(2, || {
        let fixture = Fixture::new("readonly");
        fixture
            .confine(&spec(true, "module", &"off".into()))
            .unwrap();
        for path in ["root/own", "root/rw/text", "root/ro/text", "root/file"] {
            assert_eq!(
                fs::read_to_string(fixture.at(path)).unwrap(),
                "text",
                "{path}"
            );
        }
        fs::read_dir(fixture.at("root/sub")).unwrap();
        for path in ["root/rw/text", "root/file"] {
            assert_eq!(write(&fixture.at(path)), None, "{path}");
        }
        for path in ["root/own", "root/ro/text", "outside/secret"] {
            assert_eq!(write(&fixture.at(path)), DENIED, "{path}");
        }
        for path in ["root/new", "root/sub/new", "root/ro/new", "outside/new"] {
            assert_eq!(create(&fixture.at(path)), DENIED, "{path}");
        }
        // What a program does with its own files.
        fs::create_dir(fixture.at("root/rw/a")).unwrap();
        fs::rename(fixture.at("root/rw/text"), fixture.at("root/rw/a/b")).unwrap();
        std::os::unix::fs::symlink("b", fixture.at("root/rw/a/link")).unwrap();
        fs::write(fixture.at("root/rw/a/b"), "").unwrap();
        fs::remove_dir_all(fixture.at("root/rw/a")).unwrap();
    });
}

#[test]
fn files_outside_the_root_are_denied() {
    held(2, || {
        let fixture = Fixture::new("outside");
        let outside = rootfs_path::open_dir(&fixture.at("outside")).unwrap();
        let open = |path: &str| openat(&outside, path, OFlags::RDONLY, Mode::empty());
        open("secret").unwrap();
        let component = spec(false, "component", &"off".into());
        fixture.confine(&component).unwrap();
        assert_eq!(write(&fixture.at("root/own")), None);
        // A leaked descriptor of the host.
        assert_eq!(open("secret").unwrap_err(), rustix::io::Errno::ACCESS);
        assert_eq!(open(".").unwrap_err(), rustix::io::Errno::ACCESS);
        assert!(File::open("/proc/self/status").is_err());
        assert!(Command::new("/bin/true").spawn().is_err());
        // The compiled component can be opened by its descriptor's name, and nothing else in that directory.
        File::open(fixture.at("code")).unwrap();
        assert_eq!(write(&fixture.at("code")), DENIED);
        // Also under a read-only root.
        fixture
            .confine(&spec(true, "module", &"off".into()))
            .unwrap();
        assert_eq!(write(&fixture.at("root/own")), DENIED);
        assert!(File::open(fixture.at("code")).is_err());
    });
}

/// Listeners on this machine's loopback.
fn listeners() -> [(TcpListener, u16); 2] {
    [(); 2].map(|()| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    })
}

fn connect(port: u16) -> Option<ErrorKind> {
    TcpStream::connect(("127.0.0.1", port))
        .err()
        .map(|e| e.kind())
}

#[test]
fn only_listed_tcp_ports_are_allowed() {
    held(PORTS, || {
        let [(_first, listed), (_second, other)] = listeners();
        let fixture = Fixture::new("ports");
        let rules = [format!("203.0.113.7:{listed}")];
        let network = serde_json::json!({ "on": { "listed": { "rules": rules } } });
        assert_eq!((connect(listed), connect(other)), (None, None));
        fixture
            .confine(&spec(false, "component", &network))
            .unwrap();
        assert_eq!((connect(listed), connect(other)), (None, DENIED));
        TcpListener::bind("127.0.0.1:0").unwrap();
    });
}

#[test]
fn an_unrestricted_network_has_all_ports_and_a_denied_one_none() {
    held(PORTS, || {
        let [(_first, one), (_second, other)] = listeners();
        let fixture = Fixture::new("closed");
        let open = serde_json::json!({ "on": "open" });
        fixture.confine(&spec(false, "component", &open)).unwrap();
        assert_eq!((connect(one), connect(other)), (None, None));
        // Preview 1 has no sockets, whatever the pod's policy is.
        fixture.confine(&spec(false, "module", &open)).unwrap();
        assert_eq!((connect(one), connect(other)), (DENIED, DENIED));
        let bound = TcpListener::bind("127.0.0.1:0").unwrap_err();
        assert_eq!(bound.kind(), ErrorKind::PermissionDenied);
    });
}

#[test]
fn signals_and_abstract_sockets_of_others_are_denied() {
    held(SCOPES, || {
        let name = format!("coracle-landlock-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let _listener = UnixListener::bind_addr(&address).unwrap();
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let pid = Pid::from_child(&child);
        UnixStream::connect_addr(&address).unwrap();
        test_kill_process(pid).unwrap();
        let fixture = Fixture::new("scopes");
        let hold = thread::scope(|scope| {
            let held = scope.spawn(|| {
                fixture
                    .confine(&spec(false, "module", &"off".into()))
                    .unwrap();
                let connected = UnixStream::connect_addr(&address);
                (connected.err().map(|e| e.kind()), test_kill_process(pid))
            });
            held.join().unwrap()
        });
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(hold, (DENIED, Err(rustix::io::Errno::PERM)));
    });
}

#[test]
fn confining_to_nothing_leaves_open_descriptors_usable() {
    held(1, || {
        let fixture = Fixture::new("nothing");
        rustix::thread::set_no_new_privs(true).unwrap();
        confine_to_nothing().unwrap();
        assert!(File::open(fixture.at("root/own")).is_err());
        assert_eq!(std::io::read_to_string(&fixture.code).unwrap(), "text");
    });
}

#[test]
fn a_refusal_of_the_kernel_is_an_error() {
    held(1, || {
        let fixture = Fixture::new("refusal");
        let module = spec(false, "module", &"off".into());
        // The kernel stacks 16 rulesets.
        let first = (0..20)
            .map(|_| fixture.confine(&module))
            .position(|done| done.is_err());
        assert_eq!(first, Some(16));
        let error = fixture.confine(&module).unwrap_err();
        assert!(error.chain().contains("by Landlock version"), "{error:?}");
    });
}

#[test]
fn each_version_handles_only_the_rights_it_has() {
    let known = [
        (0x1fff, 0, 0),
        (0x3fff, 0, 0),
        (0x7fff, 0, 0),
        (0x7fff, 3, 0),
        (0xffff, 3, 0),
        (0xffff, 3, 3),
        (0xffff, 3, 3),
        (0xffff, 3, 3),
    ];
    for (version, (files, ports, scopes)) in (1..).zip(known) {
        let expected = Handled {
            files,
            ports,
            scopes,
        };
        assert_eq!(handled(version, &TcpPorts::NONE), expected, "{version}");
    }
    assert_eq!(restrictions(1), ["own files"]);
    assert_eq!(restrictions(7).len(), 4);
}
