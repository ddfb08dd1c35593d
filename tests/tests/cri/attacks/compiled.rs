//! Attacks on the compiler, and forged compiled code: T53, T59.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use coracle_tests::client::container;
use coracle_tests::daemon::{Daemon, Options};
use coracle_tests::guests;
use coracle_tests::procs::Role;
use coracle_tests::push::{Image, Packing, file};
use tonic::Code;

use super::canary::{Canary, Fate, attempt};
use super::wasm::{fate, limited, pulled, resident};
use crate::linux::shell::{fresh, on_peer};
use crate::site::{Pod, daemon, daemon_with, failing_daemon, images};

/// A module that prints these five bytes and a newline.
fn saying(text: &str) -> Vec<u8> {
    assert_eq!(text.len(), 5);
    let text = format!(
        "(module (import \"wasi_snapshot_preview1\" \"fd_write\" (func $w (param i32 i32 i32 i32) (result i32)))
         (memory (export \"memory\") 1) (data (i32.const 0) \"\\10\\00\\00\\00\\06\\00\\00\\00\")
         (data (i32.const 16) \"{text}\\n\")
         (func (export \"_start\") (drop (call $w (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"
    );
    guests::module(&text).unwrap()
}

/// The files of compiled code in a daemon's cache, sorted by name.
fn cached(daemon: &Daemon) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![daemon.scratch().dir().join("root/compiled")];
    while let Some(path) = open.pop() {
        for entry in fs::read_dir(path).unwrap().flatten() {
            match entry.path() {
                path if path.is_dir() => open.push(path),
                path if path.extension().is_some_and(|kind| kind == "cwasm") => found.push(path),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

/// Replaces a file that is read-only.
fn replace(path: &Path, bytes: &[u8]) {
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

/// T59: code that was compiled elsewhere is no module, whatever it is called.
#[tokio::test]
async fn compiled_code_of_an_image_is_not_run() {
    if on_peer() {
        return; // It runs no WebAssembly.
    }
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    pulled(&daemon, &saying("first")).await.unwrap();
    let pod = Pod::run(&daemon, "compiled").await;
    // Made by this very node: as valid as it can be.
    let code = fs::read(&cached(&daemon)[0]).unwrap();
    let mut dressed = saying("outer");
    dressed.extend_from_slice(&code);
    for bytes in [code, dressed] {
        let fate = match pulled(&daemon, &bytes).await {
            Ok(image) => attempt(&daemon, &pod, &limited(&image, &[])).await,
            Err(refusal) => Fate::Refused(refusal),
        };
        assert!(matches!(&fate, Fate::Refused(_)), "{fate:?}");
        canary.is_untouched(&daemon).await;
    }
    daemon.finish().await.unwrap();
}

/// What [`damage`] can do to an entry of the cache.
const DAMAGES: [&str; 7] = [
    "flipped",
    "short",
    "another module's",
    "a link",
    "label",
    "no label",
    "empty",
];

/// Makes the entry `own`, which held `good`, something else; `foreign` is another module's.
fn damage(what: &str, (own, good): (&Path, &[u8]), foreign: &Path) {
    let label = own.with_extension("json");
    let middle = good.len() / 2;
    match what {
        "flipped" => {
            let mut bytes = good.to_vec();
            bytes[middle] ^= 1;
            replace(own, &bytes);
        }
        "short" => replace(own, &good[..middle]),
        "another module's" => {
            replace(own, &fs::read(foreign).unwrap());
            replace(&label, &fs::read(foreign.with_extension("json")).unwrap());
        }
        "a link" => {
            fs::remove_file(own).unwrap();
            std::os::unix::fs::symlink(foreign, own).unwrap();
        }
        "label" => {
            let text = fs::read_to_string(&label).unwrap();
            let text = text.replacen("memory_min_bytes\":", "memory_min_bytes\":1", 1);
            replace(&label, text.as_bytes());
        }
        "no label" => fs::remove_file(&label).unwrap(),
        _ => replace(own, b""),
    }
}

/// T59: an entry of the cache that is not what was put there is made again and never run.
#[tokio::test]
async fn a_changed_cache_entry_is_made_again_and_never_run() {
    if on_peer() {
        return; // It runs no WebAssembly.
    }
    let mut daemon = daemon().await;
    let (first, second) = (saying("first"), saying("other"));
    let image = pulled(&daemon, &first).await.unwrap();
    let before = cached(&daemon);
    pulled(&daemon, &second).await.unwrap();
    let after = cached(&daemon);
    let is_new = |path: &&PathBuf| !before.contains(path);
    let foreign = after.iter().find(is_new).unwrap().clone();
    let pod = Pod::run(&daemon, "cache").await;
    let says = async |daemon: &Daemon, what: &str| {
        let (status, output) = pod
            .finish(daemon, &container(&fresh("c"), &image, &[]))
            .await;
        assert_eq!(
            (status.exit_code, output.as_str()),
            (0, "first\n"),
            "{what}"
        );
    };
    says(&daemon, "untouched").await;
    let sum = |path: &PathBuf| fs::read(path).unwrap();
    let own = before
        .iter()
        .find(|path| {
            // The entry whose text is in it; the multi-verb guest's is another.
            sum(path).windows(5).any(|bytes| bytes == b"first")
        })
        .unwrap()
        .clone();
    let good = sum(&own);
    for what in DAMAGES {
        for restarts in [true, false] {
            damage(what, (&own, &good), &foreign);
            if restarts {
                daemon.restart().await.unwrap();
            }
            says(&daemon, what).await;
        }
    }
    assert!(daemon.log().contains("failed verification"));
    daemon.finish().await.unwrap();
}

/// T53: compiling is bounded, its client gets the reason, and no other pod is affected.
#[tokio::test]
async fn a_module_that_is_too_much_to_compile_is_refused_and_costs_the_daemon_nothing() {
    if on_peer() {
        return; // It runs no WebAssembly.
    }
    let options = Options {
        config: "[wasm]\ncompile_timeout_s = 3\ncompile_memory_bytes = 268435456\n".to_owned(),
        ..Options::default()
    };
    let daemon = daemon_with(options).await;
    let canary = Canary::plant(&daemon);
    let pod = Pod::run(&daemon, "bombs").await;
    let before = resident(daemon.pid());
    let with = |body: &str| {
        format!("(module (memory (export \"memory\") 1) (func (export \"_start\") {body}))")
    };
    let deep = with(&("(block ".repeat(900) + &")".repeat(900)));
    let wide = with(&format!(
        "(local {}) {}",
        "i64 ".repeat(45_000),
        "(local.set 44999 (i64.mul (local.get 1) (local.get 44998)))".repeat(20_000)
    ));
    let table = with(&format!(
        "{}(br_table {} (i32.load (i32.const 0))){}",
        "(block ".repeat(500),
        "0 1 2 3 4 5 6 7 8 9 ".repeat(10_000),
        ")".repeat(500)
    ));
    let calls: String =
        "(func (result i64) (i64.mul (i64.load (i32.const 8)) (i64.load (i32.const 16))))"
            .repeat(100_000);
    let many =
        format!("(module (memory (export \"memory\") 1) (func (export \"_start\")) {calls})");
    for (what, text) in [
        ("deep", deep),
        ("wide", wide),
        ("table", table),
        ("many", many),
    ] {
        let begun = Instant::now();
        let fate = fate(&daemon, &pod, &text).await;
        match &fate {
            Fate::Ran(code, _) => assert_eq!(*code, 0, "{what}: {fate:?}"),
            Fate::Refused(text) => assert!(text.contains("compile"), "{what}: {text}"),
        }
        assert!(
            begun.elapsed() < Duration::from_secs(100),
            "{what} took {:?}",
            begun.elapsed()
        );
        assert!(
            daemon.processes(Role::Compiler).is_empty(),
            "{what} left its compiler"
        );
        canary.is_untouched(&daemon).await;
    }
    let grown = resident(daemon.pid()).saturating_sub(before);
    assert!(grown < 64 << 20, "the daemon grew by {} MiB", grown >> 20);
    daemon.finish().await.unwrap();
}

/// T53: a probe or a create does not pay again for what was found out of a module; those that ask at the same time share
/// one compiler.
#[tokio::test]
async fn a_module_that_does_not_compile_is_compiled_once_until_a_restart() {
    if on_peer() {
        return; // It runs no WebAssembly.
    }
    let mut daemon = failing_daemon().await;
    let good = saying("hello");
    let bad = [b"\0asm\x01\0\0\0".as_slice(), &[0xff; 64]].concat();
    let image = Image::wasi(
        &[
            file("good.wasm", 0o755, &good),
            file("bad.wasm", 0o755, &bad),
        ],
        Packing::Gzip,
        &["/good.wasm"],
    );
    let host = images().registry.host();
    let image = image
        .unwrap()
        .push(host, &fresh("mixed"), "v1")
        .unwrap()
        .reference;
    daemon.cri().pull(&image).await.unwrap();
    daemon.rebase();
    let pod = Pod::run(&daemon, "failures").await;
    let compilers = |daemon: &Daemon| {
        let reached = daemon.reached();
        reached
            .iter()
            .filter(|site| *site == "compile.exec")
            .count()
    };
    let config = |name: &str| {
        let mut config = container(name, &image, &[]);
        config.command = vec!["/bad.wasm".to_owned()];
        config
    };
    for round in 1..=2 {
        let before = compilers(&daemon);
        let mut creates = tokio::task::JoinSet::new();
        for number in 0..8 {
            let (cri, id, sandbox) = (daemon.cri(), pod.id.clone(), pod.config.clone());
            let config = config(&format!("c{round}-{number}"));
            creates.spawn(async move { cri.create(&id, &config, &sandbox).await });
        }
        let mut reasons: Vec<String> = Vec::new();
        for refusal in creates.join_all().await {
            let refusal = refusal.expect_err("it is no module");
            assert_eq!(refusal.code(), Code::InvalidArgument, "{refusal}");
            reasons.push(refusal.message().to_owned());
        }
        let late = pod.create(&config("late")).await.unwrap_err();
        reasons.push(late.message().to_owned());
        reasons.dedup();
        assert_eq!(reasons.len(), 1, "{reasons:?}");
        assert!(
            reasons[0].contains("not a WebAssembly program"),
            "{reasons:?}"
        );
        assert_eq!(compilers(&daemon) - before, 1);
        // The module beside it is none of this.
        let (status, out) = pod
            .finish(&daemon, &container(&fresh("good"), &image, &[]))
            .await;
        assert_eq!((status.exit_code, out.as_str()), (0, "hello\n"));
        daemon.restart().await.unwrap();
    }
    daemon.finish().await.unwrap();
}
