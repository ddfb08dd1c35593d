//! What the crates may know of each other, held against `cargo metadata`.
//!
//! proto and runtime are leaves, and so is tree, the part of images that removes what strangers made; only shim sees all three; the tests see the protocol alone, so that they
//! drive the daemon as a kubelet does.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

#[test]
fn crates_depend_on_each_other_only_as_designed() {
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
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let seen: BTreeMap<&str, BTreeSet<&str>> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(ours)
        .collect();
    let want = BTreeMap::from([
        ("coracle-proto", BTreeSet::new()),
        ("coracle-images", BTreeSet::from(["coracle-tree"])),
        ("coracle-tree", BTreeSet::new()),
        ("coracle-runtime", BTreeSet::new()),
        (
            "coracle-shim",
            BTreeSet::from([
                "coracle-proto",
                "coracle-images",
                "coracle-runtime",
                "coracle-tree",
            ]),
        ),
        ("coracle-tests", BTreeSet::from(["coracle-proto"])),
    ]);
    assert_eq!(seen, want);
}

/// A package's name and those of our crates that it depends on.
fn ours(package: &serde_json::Value) -> (&str, BTreeSet<&str>) {
    let names = package["dependencies"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|d| d["name"].as_str());
    (
        package["name"].as_str().unwrap(),
        names.filter(|name| name.starts_with("coracle-")).collect(),
    )
}
