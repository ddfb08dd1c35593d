//! What a Wasm module can try on the engine, the host's functions and its directories: T51, T54 to T56, T60.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;
use coracle_tests::daemon::Daemon;
use coracle_tests::guests;
use coracle_tests::push::{Image, Packing, file};

use super::canary::{Canary, Fate, SECRET, attempt};
use crate::linux::shell::{fresh, host_dir, mount, on_peer};
use crate::site::{Pod, daemon, images};

/// A limit that a guest with nothing to hide keeps to. Bytes.
const MEMORY: i64 = 64 << 20;

/// Has the daemon pull an image of this module. Gives its reference, or why there is none.
pub async fn pulled(daemon: &Daemon, module: &[u8]) -> Result<String, String> {
    let image = Image::wasi(
        &[file("x.wasm", 0o755, module)],
        Packing::Gzip,
        &["/x.wasm"],
    );
    let pushed = image
        .unwrap()
        .push(images().registry.host(), &fresh("evil"), "v1");
    let reference = pushed.unwrap().reference;
    match daemon.cri().pull(&reference).await {
        Ok(_) => Ok(reference),
        Err(refusal) => Err(refusal.message().to_owned()),
    }
}

/// A container of that image with these arguments and a memory limit.
pub fn limited(image: &str, args: &[&str]) -> cri::ContainerConfig {
    let mut config = container(&fresh("c"), image, args);
    let linux = config.linux.as_mut().unwrap();
    linux.resources.as_mut().unwrap().memory_limit_in_bytes = MEMORY;
    config
}

/// What becomes of a module of this text.
pub async fn fate(daemon: &Daemon, pod: &Pod, text: &str) -> Fate {
    match pulled(daemon, &guests::module(text).unwrap()).await {
        Ok(image) => attempt(daemon, pod, &limited(&image, &[])).await,
        Err(refusal) => Fate::Refused(refusal),
    }
}

/// The memory that a process has in use. Bytes.
pub fn resident(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        << 10
}

/// T51, CVE-2026-44216: what grows is refused or bounded, and the daemon grows with none of it.
#[tokio::test]
async fn growing_without_end_is_answered_and_costs_the_daemon_nothing() {
    if on_peer() {
        return; // It runs no WebAssembly.
    }
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    let pod = Pod::run(&daemon, "grow").await;
    let before = resident(daemon.pid());
    let growing = |kind: &str, grow: &str| {
        format!(
            "(module (import \"wasi_snapshot_preview1\" \"proc_exit\" (func $exit (param i32)))
             (memory (export \"memory\") 1) {kind}
             (func (export \"_start\") (call $exit (i32.eq {grow} (i32.const -1)))))"
        )
    };
    // Each exits 1 when growing was refused, as it must be.
    let tables = "(table $t 1 funcref)";
    for (kind, grow) in [
        ("", "(memory.grow (i32.const 65535))"),
        ("", "(memory.grow (i32.const -1))"),
        ("", "(memory.grow (i32.const 2000))"),
        (tables, "(table.grow $t (ref.null func) (i32.const -1))"),
        (tables, "(table.grow $t (ref.null func) (i32.const -2))"),
        (
            tables,
            "(table.grow $t (ref.null func) (i32.const 0x7fffffff))",
        ),
    ] {
        let fate = fate(&daemon, &pod, &growing(kind, grow)).await;
        assert!(matches!(fate, Fate::Ran(1, _)), "{grow}: {fate:?}");
    }
    // Many of them, or large from the start: refused with a reason, or run.
    let many = |what: &str, count: usize| {
        let all = what.repeat(count);
        format!("(module (memory (export \"memory\") 1) {all} (func (export \"_start\")))")
    };
    for text in [
        many("(table 1 funcref)", 5_000),
        many("(table 10000000 funcref)", 90),
        many("(memory 1)", 5_000),
        many("(global i64 (i64.const 0))", 200_000),
        "(module (memory (export \"memory\") 65536) (func (export \"_start\")))".to_owned(),
        "(module (memory (export \"memory\") 1) (table 0xffffffff funcref) (func (export \"_start\")))".to_owned(),
    ] {
        let fate = fate(&daemon, &pod, &text).await;
        let shown = &text[..text.len().min(80)];
        assert!(!matches!(&fate, Fate::Refused(text) if text.is_empty()), "{shown}: {fate:?}");
        canary.is_untouched(&daemon).await;
    }
    let grown = resident(daemon.pid()).saturating_sub(before);
    assert!(grown < 64 << 20, "the daemon grew by {} MiB", grown >> 20);
    daemon.finish().await.unwrap();
}

/// T54: a stack without end is a trap of that guest, whatever its frames are like.
#[tokio::test]
async fn a_stack_without_end_is_a_trap() {
    if on_peer() {
        return; // It runs no WebAssembly.
    }
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    let pod = Pod::run(&daemon, "stack").await;
    let locals = "(local i64)".repeat(2_000);
    // Values that are alive over the call have to be kept in the frame.
    let wide: String = (0..2_000)
        .map(|local| format!("(local.set {local} (i64.load (i32.const {local})))"))
        .collect();
    let kept: String = (0..2_000)
        .map(|local| format!("(i64.store (i32.const {local}) (local.get {local}))"))
        .collect();
    for text in [
        "(module (memory (export \"memory\") 1) (func $f (export \"_start\") (call $f)))"
            .to_owned(),
        format!(
            "(module (memory (export \"memory\") 1)
             (func $f (export \"_start\") {locals} {wide} (call $f) {kept}))"
        ),
        "(module (memory (export \"memory\") 1) (table 1 funcref) (elem (i32.const 0) $f)
         (func $f (export \"_start\") (call_indirect (i32.const 0))))"
            .to_owned(),
    ] {
        let fate = fate(&daemon, &pod, &text).await;
        let is_trap =
            matches!(&fate, Fate::Ran(134, text) if text.contains("call stack exhausted"));
        assert!(is_trap, "{fate:?}");
    }
    canary.is_untouched(&daemon).await;
    daemon.finish().await.unwrap();
}

/// T55, CVE-2026-27204: arguments that no program needs are an error or a trap of the guest that gives them.
#[tokio::test]
async fn calls_with_absurd_arguments_harm_their_caller_alone() {
    if on_peer() {
        return; // It runs no WebAssembly.
    }
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    let image = pulled(&daemon, &guests::hostile().unwrap()).await.unwrap();
    let pod = Pod::run(&daemon, "calls").await;
    let before = resident(daemon.pid());
    let volume = host_dir(&daemon, "rw");
    for number in 0..12 {
        let mut config = limited(&image, &["call", &number.to_string()]);
        config.mounts = vec![mount(&volume, "/rw", false)];
        let begun = Instant::now();
        let fate = attempt(&daemon, &pod, &config).await;
        let Fate::Ran(code, text) = &fate else {
            panic!("call {number} was not tried: {fate:?}")
        };
        assert!([0, 1, 134, 137].contains(code), "call {number}: {fate:?}");
        if *code == 0 {
            assert!(text.ends_with("done\n"), "call {number}: {fate:?}");
        }
        if let Some(opened) = text.lines().find_map(|line| line.strip_prefix("opened ")) {
            let opened: u32 = opened.parse().unwrap();
            assert!(opened < 65_536, "it has {opened} descriptors open");
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "call {number}");
        canary.is_untouched(&daemon).await;
    }
    let made: Vec<_> = fs::read_dir(&volume).unwrap().flatten().collect();
    assert!(made.is_empty(), "a path with a NUL became {made:?}");
    let grown = resident(daemon.pid()).saturating_sub(before);
    assert!(grown < 64 << 20, "the daemon grew by {} MiB", grown >> 20);
    daemon.finish().await.unwrap();
}

/// T56, CVE-2026-58494, CVE-2026-47261: no path leads out of the root and the volumes, and none writes to one that is
/// read-only.
#[tokio::test]
async fn no_path_leads_out_of_the_directories_of_a_guest() {
    if on_peer() {
        return; // It runs no WebAssembly.
    }
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    let image = pulled(&daemon, &guests::hostile().unwrap()).await.unwrap();
    let (writable, readonly) = (host_dir(&daemon, "rw"), host_dir(&daemon, "ro"));
    fs::write(writable.join("own"), "own").unwrap();
    fs::write(readonly.join("file"), "unchanged").unwrap();
    // What a Linux container that shares the volume could have planted.
    symlink(canary.dir(), writable.join("planted")).unwrap();
    symlink(canary.climbing(), writable.join("planted-climb")).unwrap();
    let before = fs::metadata(readonly.join("file")).unwrap();
    let pod = Pod::run(&daemon, "paths").await;
    let secret = canary.dir().display().to_string();
    let mut config = limited(&image, &["paths", &secret]);
    config.mounts = vec![
        mount(&writable, "/rw", false),
        mount(&readonly, "/ro", true),
    ];
    let Fate::Ran(0, text) = attempt(&daemon, &pod, &config).await else {
        panic!("the tries did not come to their end")
    };
    assert!(text.ends_with("done\n") && !text.contains(SECRET), "{text}");
    canary.is_untouched(&daemon).await;
    let names: Vec<String> = fs::read_dir(&readonly)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names, ["file"]);
    let after = fs::metadata(readonly.join("file")).unwrap();
    assert_eq!(
        fs::read_to_string(readonly.join("file")).unwrap(),
        "unchanged"
    );
    assert_eq!(
        (after.modified().unwrap(), after.len()),
        (before.modified().unwrap(), before.len())
    );
    // Hard links across volumes would make the read-only one writable.
    for name in ["linked", "linked2", "renamed"] {
        assert!(
            !writable.join(name).exists(),
            "{name} came out of the read-only volume"
        );
    }
    let tries = text.lines().filter(|line| !line.starts_with(' ')).count();
    assert!(tries > 150, "only {tries} tries:\n{text}");
    daemon.finish().await.unwrap();
}

/// T60: guests have no memory in common and no threads, by which they could measure time and each other.
#[tokio::test]
async fn proposals_that_widen_the_engine_are_off() {
    if on_peer() {
        return; // It runs no WebAssembly.
    }
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    let pod = Pod::run(&daemon, "proposals").await;
    let start = "(func (export \"_start\"))";
    for off in [
        format!("(module (memory (export \"memory\") 1 1 shared) {start})"),
        format!("(module (import \"env\" \"memory\" (memory 1 1 shared)) {start})"),
        format!(
            "(module (memory (export \"memory\") 1) (type $f (func)) (type (cont $f)) {start})"
        ),
    ] {
        let fate = fate(&daemon, &pod, &off).await;
        assert!(matches!(fate, Fate::Refused(_)), "{off}: {fate:?}");
    }
    canary.is_untouched(&daemon).await;
    daemon.finish().await.unwrap();
}
