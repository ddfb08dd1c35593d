//! What the crates may know of each other, held against `cargo metadata`.
//!
//! proto, metrics, sys and spec are leaves, and so are tree and unpack, the parts of images that handle what strangers
//! made: the jailed unpacker is the shim's, which joins unpack with the runtime's jail. Streaming knows metrics alone, which
//! whatever counts in the daemon may know. Below runtime, cgroup, network
//! and sandbox know sys and spec alone, and wasm also the jail of its compiler; control is how the daemon and the
//! processes of runtime speak with each other. Of the shim's crates, lifecycle knows images and control and no protocol
//! of clients; telemetry measures
//! what lifecycle shows; nri gives it plugins, whose protocol it alone knows; cri knows the protocol and nothing of the runtime but its leaves; host, which acts
//! on the node, knows no protocol and no configuration file; only the binary sees all. The tests see the protocol alone, so that they drive the daemon as a kubelet does.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "architecture/async_disk.rs"]
mod async_disk;
#[path = "architecture/circles.rs"]
mod circles;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// How the names of our crates begin.
const PREFIX: &str = "coracle-";

/// Each crate and those of ours that it may depend on, without the prefix.
const GRAPH: [(&str, &str); 26] = [
    ("admin", "images lifecycle proto sys"),
    ("proto", ""),
    ("images", "tree unpack"),
    ("tree", ""),
    ("unpack", ""),
    ("sys", ""),
    ("spec", ""),
    ("control", "cgroup network sandbox spec sys"),
    ("runtime", "cgroup control sandbox spec sys wasm"),
    ("cgroup", "spec sys"),
    ("network", "spec sys"),
    (
        "cri",
        "cgroup images lifecycle metrics network proto spec streaming telemetry trace",
    ),
    (
        "lifecycle",
        "cgroup control images metrics network spec streaming",
    ),
    ("metrics", ""),
    ("nri", "lifecycle metrics proto spec"),
    ("streaming", "metrics"),
    ("sandbox", "spec sys"),
    ("wasm", "sandbox spec sys"),
    (
        "host",
        "cgroup control images lifecycle metrics network sandbox spec streaming tree wasm",
    ),
    ("config", "cri spec"),
    ("image-cli", "proto"),
    ("demo", "config proto spec tree"),
    (
        "shim",
        "admin cgroup config control cri demo host image-cli images lifecycle metrics network nri runtime sandbox spec streaming telemetry trace unpack wasm",
    ),
    ("telemetry", "cgroup images lifecycle metrics"),
    ("trace", "metrics"),
    ("tests", "proto"),
];

/// What cargo says of the workspace.
fn metadata() -> serde_json::Value {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn crates_depend_on_each_other_only_as_designed() {
    let metadata = metadata();
    let seen: BTreeMap<&str, BTreeSet<&str>> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(ours)
        .collect();
    let designed: BTreeMap<&str, BTreeSet<&str>> = GRAPH
        .iter()
        .map(|(name, dependencies)| (*name, dependencies.split_whitespace().collect()))
        .collect();
    assert_eq!(seen, designed);
}

#[test]
fn only_the_wasm_crate_links_the_engine() {
    let metadata = metadata();
    let links = |package: &&serde_json::Value| {
        let dependencies = package["dependencies"].as_array().unwrap();
        let mut names = dependencies.iter().filter_map(|d| d["name"].as_str());
        names.any(|name| name.starts_with("wasmtime"))
    };
    let packages = metadata["packages"].as_array().unwrap().iter();
    let linking: Vec<&str> = packages
        .filter(links)
        .filter_map(|package| package["name"].as_str())
        .collect();
    assert_eq!(linking, ["coracle-wasm"]);
}

/// Unsafe code is in `runtime/sys` and `runtime/wasm`. What else has some is listed, and leaves the list with it.
#[test]
fn unsafe_code_is_where_it_is_expected() {
    const ELSEWHERE: [&str; 12] = [
        "runtime/control/src/process.rs",
        "runtime/control/src/spawner.rs",
        "runtime/sandbox/src/profile/compile.rs",
        "runtime/src/keeper/container_process/init.rs",
        "runtime/src/keeper/log.rs",
        "runtime/src/keeper/log/line.rs",
        "runtime/src/keeper/log/attach.rs",
        "runtime/src/keeper/log/write.rs",
        "runtime/src/keeper/containers/entry.rs",
        "runtime/src/keeper/containers/tests.rs",
        "runtime/src/native/exec.rs",
        "shim/src/check/probe.rs",
    ];
    let top = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = BTreeSet::new();
    for folder in ["proto", "images", "runtime", "shim"] {
        with_unsafe(&top.join(folder), &mut found);
    }
    let found: BTreeSet<&str> = found
        .iter()
        .filter_map(|path| path.strip_prefix(&top).ok()?.to_str())
        .filter(|path| !path.starts_with("runtime/sys/") && !path.starts_with("runtime/wasm/"))
        .collect();
    assert_eq!(found, BTreeSet::from(ELSEWHERE));
}

/// The source files below `dir` that have unsafe code.
fn with_unsafe(dir: &std::path::Path, found: &mut BTreeSet<std::path::PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            with_unsafe(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let mut code = text.lines().map(|line| line.split("//").next().unwrap());
            if code.any(|line| {
                ["{", "fn", "impl"]
                    .iter()
                    .any(|what| line.contains(&format!("unsafe {what}")))
            }) {
                found.insert(path);
            }
        }
    }
}

/// A package's name and those of our crates that it depends on, without their prefix.
fn ours(package: &serde_json::Value) -> (&str, BTreeSet<&str>) {
    let dependencies = package["dependencies"].as_array().unwrap();
    let names = dependencies.iter().filter_map(|d| d["name"].as_str());
    (
        package["name"]
            .as_str()
            .unwrap()
            .strip_prefix(PREFIX)
            .unwrap(),
        names.filter_map(|name| name.strip_prefix(PREFIX)).collect(),
    )
}

/// Every test that the pages on security name, as `path::name`, is in the tree.
#[test]
fn tests_named_by_the_documentation_exist() {
    let top = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut named = 0;
    for page in ["attack-classes.md", "threat-model.md"] {
        let text = std::fs::read_to_string(top.join("docs/security").join(page)).unwrap();
        for quoted in text.split('`').skip(1).step_by(2) {
            let Some((file, name)) = quoted.split_once(".rs::") else {
                continue;
            };
            let path = top.join(format!("{file}.rs"));
            let source = std::fs::read_to_string(&path).unwrap_or_default();
            let is_there = source.contains(&format!("fn {name}()"));
            assert!(is_there, "{page} names {quoted}, which is not there");
            named += 1;
        }
    }
    assert!(named > 80, "only {named} tests are named");
}

/// Every file that these pages name, as `path` or `path/{one,two}.rs`, is in the tree.
#[test]
fn files_named_by_the_documentation_exist() {
    for (page, fewest) in [
        ("docs/security/threat-model.md", 40),
        ("docs/architecture.md", 50),
        ("CONTRIBUTING.md", 15),
    ] {
        let named = files_named_by(page);
        assert!(named > fewest, "{page}: only {named} files are named");
    }
}

fn files_named_by(page: &str) -> usize {
    let top = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = std::fs::read_to_string(top.join(page)).unwrap();
    let mut named = 0;
    let quoted = text.split('`').skip(1).step_by(2);
    for quoted in quoted.filter(|quoted| quoted.contains("/src/") && !quoted.contains("::")) {
        let (before, rest) = quoted.split_once('{').unwrap_or((quoted, "}"));
        let (parts, after) = rest.split_once('}').unwrap();
        for part in parts.split(',') {
            let path = top.join(format!("{before}{part}{after}"));
            assert!(path.is_file(), "{page}: {} is not there", path.display());
            named += 1;
        }
    }
    named
}

/// Every class of attacks has a test, or says why it has none.
#[test]
fn every_class_of_attacks_is_answered() {
    const LEFT_OUT: [u32; 9] = [9, 16, 20, 22, 29, 45, 57, 61, 64];
    let page = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docs/security/attack-classes.md"
    );
    let text = std::fs::read_to_string(page).unwrap();
    let rows: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| T")?.split_once(" | "))
        .collect();
    for class in (1..=65).filter(|class| !LEFT_OUT.contains(class)) {
        let row = rows.get(format!("{class:02}").as_str());
        let row = row.unwrap_or_else(|| panic!("T{class:02} has no line"));
        let is_answered = row.contains(".rs::") || row.contains("No test");
        assert!(
            is_answered,
            "T{class:02} has neither a test nor a reason: {row}"
        );
    }
    assert_eq!(rows.len(), 65 - LEFT_OUT.len());
}

/// Deadlines, tokens and rates go by clocks that nobody can set. Times that people read, of files and of containers, are
/// the only ones of the clock that can be: whoever adds another says here why a jump of it does no harm.
#[test]
fn only_these_read_the_clock_that_can_be_set() {
    let known = BTreeSet::from([
        // Ages of blobs that no record names: see the tests beside it.
        "images/src/collect.rs",
        // Part of a file's name.
        "images/src/metadata.rs",
        // When stored content was checked last; a jump costs one check too many or a late one.
        "images/src/self_check/progress.rs",
        // When a container started and ended, put in order by the lifecycle.
        "runtime/control/src/exits.rs",
        // Which compiled code was wanted last; what goes too early is compiled again.
        "runtime/wasm/src/cache/room.rs",
        // When a line was logged.
        "runtime/src/keeper/log/line.rs",
        // How long ago something was.
        "shim/admin/src/server.rs",
        // When a status was made.
        "shim/cri/src/convert/render.rs",
        // When something was measured; rates have a clock of their own.
        "shim/host/src/stats.rs",
        // When something was made; deadlines have the boot clock.
        "shim/lifecycle/src/clock.rs",
        // When the configuration was read last, for metrics.
        "shim/src/reload.rs",
        // Whether a certificate's file has changed.
        "shim/streaming/src/tls.rs",
    ]);
    let found = sources(|text| text.contains("SystemTime") || text.contains("ClockId::Realtime"));
    let known: BTreeSet<String> = known.into_iter().map(str::to_owned).collect();
    assert_eq!(found, known);
}

/// All other code makes namespaces through these, which count them for a user that no container is.
#[test]
fn only_these_make_namespaces() {
    let known = BTreeSet::from([
        "runtime/sys/src/fork.rs",
        "runtime/sys/src/namespaces.rs",
        // `coracle check` tries what the kernel has, in a process of its own.
        "shim/src/check/probe.rs",
    ]);
    let calls = [
        "unshare_unsafe(",
        "libc::unshare(",
        "SYS_unshare,",
        "SYS_clone,",
        "SYS_clone3,",
        "thread::unshare(",
    ];
    let found = sources(|text| {
        let code = text.split("mod tests {").next().unwrap_or_default();
        calls.iter().any(|call| code.contains(call))
    });
    assert_eq!(found, known.into_iter().map(str::to_owned).collect());
}

/// Arguments and environment of a process are in its own memory, and whoever reads them waits while that is held: by a
/// page that a user-space file system or userfaultfd has not delivered, say. Whoever adds a reader says here why it may wait.
#[test]
fn only_these_read_what_lies_in_the_memory_of_a_process() {
    let known = BTreeSet::from([
        // On a thread of its own with a deadline, of processes in the daemon's own cgroup.
        "runtime/network/src/cni/orphans.rs",
        // A demonstration at a terminal, which can be interrupted.
        "shim/demo/src/leak_check.rs",
    ]);
    let names = ["cmdline", "environ", "mem", "maps", "smaps", "auxv"];
    let ends: Vec<String> = names.iter().map(|name| format!("}}/{name}\"")).collect();
    let found = sources(|text| {
        let code = text.split("mod tests {").next().unwrap_or_default();
        ends.iter().any(|end| code.contains(end)) || code.contains("\"cmdline\"")
    });
    assert_eq!(found, known.into_iter().map(str::to_owned).collect());
}

/// The files of ours, but files of tests, whose text `has` something.
fn sources(has: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = BTreeSet::new();
    let mut open = vec![root.join("images"), root.join("runtime"), root.join("shim")];
    while let Some(path) = open.pop() {
        for entry in std::fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            let is_test = name.ends_with("tests.rs") || name.contains("/tests/");
            if path.is_dir() {
                open.push(path);
            } else if name.ends_with(".rs") && !is_test {
                let text = std::fs::read_to_string(&path).unwrap();
                if has(&text) {
                    found.insert(name);
                }
            }
        }
    }
    found
}

/// Licences, banned crates and sources of all that is compiled, by the file that cargo-deny reads.
#[test]
fn every_crate_is_permitted_by_the_policy() {
    use coracle_tests::dependencies::{Graph, Policy, violations};
    let graph = Graph::of_workspace().unwrap();
    let found = violations(&graph, &Policy::of_workspace().unwrap());
    assert!(found.is_empty(), "{found:#?}");
}

/// The bill of materials has the engine, with its checksum and what it depends on, and nothing that only tests use.
#[test]
fn the_bill_of_materials_is_that_of_the_daemon() {
    let graph = coracle_tests::dependencies::Graph::of_workspace().unwrap();
    let bill: serde_json::Value = serde_json::from_str(&graph.bill().unwrap()).unwrap();
    assert_eq!(bill["metadata"]["component"]["name"], "coracle-shim");
    let components = bill["components"].as_array().unwrap();
    let named = |name: &str| components.iter().find(|one| one["name"] == name);
    let engine = named("wasmtime").unwrap();
    assert_eq!(engine["hashes"][0]["content"].as_str().unwrap().len(), 64);
    let only_in_tests = named("wasi-preview1-component-adapter-provider");
    assert!(named("coracle-tests").is_none() && only_in_tests.is_none());
    let references: BTreeSet<&str> = components
        .iter()
        .filter_map(|one| one["bom-ref"].as_str())
        .collect();
    assert_eq!(references.len(), components.len());
    for entry in bill["dependencies"].as_array().unwrap() {
        for needed in entry["dependsOn"].as_array().unwrap() {
            assert!(references.contains(needed.as_str().unwrap()), "{needed}");
        }
    }
    let licenses = graph.licenses().unwrap();
    assert!(licenses.contains("--- wasmtime LICENSE ---"));
}
