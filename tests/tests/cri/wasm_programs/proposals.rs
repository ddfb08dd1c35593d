//! Proposals beyond the first version of WebAssembly: those that are on, those that are refused, and what the GC's objects
//! count to.

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;
use coracle_tests::guests;
use coracle_tests::push::Image;

use super::run_module;
use crate::site::{Pod, daemon, images};

/// Programs of proposals that wasmtime has on by default; each exits 7 by what the proposal adds.
const PROPOSALS: [(&str, &str); 6] = [
    (
        "exceptions",
        r#"(tag $e (param i32))
           (func $f (result i32)
             (block $caught (result i32)
               (try_table (catch $e $caught) (throw $e (i32.const 7)))
               (i32.const 0)))"#,
    ),
    (
        "gc",
        r#"(type $pair (struct (field i32) (field (mut i32))))
           (type $list (array (mut i32)))
           (func $f (result i32)
             (local $p (ref $pair))
             (local.set $p (struct.new $pair (i32.const 3) (i32.const 0)))
             (struct.set $pair 1 (local.get $p) (array.len (array.new $list (i32.const 1) (i32.const 4))))
             (i32.add (struct.get $pair 0 (local.get $p)) (struct.get $pair 1 (local.get $p))))"#,
    ),
    (
        "memory64",
        r#"(memory $big i64 1)
           (func $f (result i32)
             (i32.store $big (i64.const 65000) (i32.const 7))
             (i32.load $big (i64.const 65000)))"#,
    ),
    (
        "function-references",
        r#"(type $seven (func (result i32)))
           (func $g (type $seven) (i32.const 7))
           (elem declare func $g)
           (func $f (result i32) (call_ref $seven (ref.func $g)))"#,
    ),
    (
        "tail-calls",
        r#"(func $g (param i32) (result i32)
             (if (result i32) (i32.eqz (local.get 0))
               (then (i32.const 7))
               (else (return_call $g (i32.sub (local.get 0) (i32.const 1))))))
           (func $f (result i32) (call $g (i32.const 1000000)))"#,
    ),
    (
        "atomics",
        r#"(memory $own 1)
           (func $f (result i32)
             (drop (i32.atomic.rmw.add $own (i32.const 8) (i32.const 7)))
             (i32.atomic.load $own (i32.const 8)))"#,
    ),
];

#[tokio::test]
async fn proposals_that_wasmtime_has_on_run_and_others_are_refused_by_name() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "proposals").await;
    for (name, text) in PROPOSALS {
        let text = format!(
            r#"(module
                 (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
                 {text}
                 (memory (export "memory") 1)
                 (func (export "_start") (call $exit (call $f))))"#
        );
        let status = run_module(&daemon, &pod, name, &text).await;
        assert_eq!(status.exit_code, 7, "{name}: {}", status.message);
    }
    let refused = [
        (
            "custom-page-sizes",
            r#"(memory (export "memory") 1 (pagesize 1)) (func (export "_start"))"#,
            "custom page sizes",
        ),
        (
            "stack-switching",
            r#"(type $f (func)) (type $c (cont $f)) (func (export "_start") (drop (ref.null $c)))"#,
            "stack switching",
        ),
        (
            "shared-memory",
            r#"(memory (export "memory") 1 1 shared) (func (export "_start"))"#,
            "shared memory",
        ),
    ];
    for (name, text, feature) in refused {
        let module = guests::module(&format!("(module {text})")).unwrap();
        let image = Image::artifact(&module);
        let pushed = image.push(images().registry.host(), name, "v1").unwrap();
        daemon.cri().pull(&pushed.reference).await.unwrap();
        crate::site::refused(
            pod.create(&container(name, &pushed.reference, &[])).await,
            tonic::Code::InvalidArgument,
            &[feature],
        );
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn objects_of_the_gc_count_to_the_memory_limit() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "gc-limit").await;
    let module = guests::module(
        r#"(module
             (type $list (array (mut i64)))
             (global $kept (mut (ref null $list)) (ref.null $list))
             (memory (export "memory") 1)
             (func (export "_start")
               (global.set $kept (array.new $list (i64.const 1) (i32.const 8000000)))))"#,
    )
    .unwrap();
    let image = Image::artifact(&module);
    let pushed = image
        .push(images().registry.host(), "gc-limit", "v1")
        .unwrap();
    daemon.cri().pull(&pushed.reference).await.unwrap();
    for (name, mib, code) in [("enough", 512_i64, 0), ("little", 32, 1)] {
        let mut config = container(name, &pushed.reference, &[]);
        config.linux = Some(cri::LinuxContainerConfig {
            resources: Some(cri::LinuxContainerResources {
                memory_limit_in_bytes: mib << 20,
                ..Default::default()
            }),
            ..Default::default()
        });
        let (status, _) = pod.finish(&daemon, &config).await;
        assert_eq!(status.exit_code.min(1), code, "{name}: {}", status.message);
        if code != 0 {
            assert!(
                status.message.contains("resources.limits.memory"),
                "{}",
                status.message
            );
        }
    }
    daemon.finish().await.unwrap();
}
