//! Known flaws of Wasm engines, tried on this one, and a component that exports instead of running: T62, T65.

use super::canary::{Canary, Fate};
use super::wasm::fate;
use crate::linux::shell::on_peer;
use crate::site::{Pod, daemon};

/// A program that exits 0 if `check` leaves something else than 0, and 9 otherwise.
fn checking(check: &str) -> String {
    format!(
        "(module
           (import \"wasi_snapshot_preview1\" \"proc_exit\" (func $exit (param i32)))
           (import \"wasi_snapshot_preview1\" \"fd_close\" (func $close (param i32) (result i32)))
           (import \"wasi_snapshot_preview1\" \"fd_renumber\" (func $renumber (param i32 i32) (result i32)))
           (import \"wasi_snapshot_preview1\" \"path_open\" (func $open
             (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
           (memory (export \"memory\") 1 1)
           (table 4 funcref)
           (func $try_open (result i32)
             (i32.store8 (i32.const 0) (i32.const 120))
             (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0)
               (i64.const 0) (i64.const 0) (i32.const 0) (i32.const 64)))
           (func (export \"_start\") (local $at i32) (local $v v128)
             (local.set $at (i32.load (i32.const 128)))
             (call $exit (select (i32.const 0) (i32.const 9) {check}))))"
    )
}

/// The last eight bytes of memory are -2.0, behind them lies what no access may touch; a read of more than is asked for
/// ends the program. Source: the engine's advisories, by class.
const LAST: &str = "(f64.store (i32.const 65528) (f64.const -2))";

/// Accesses beyond the end by any number of bytes, whatever the operation.
const TRAPS: [(&str, &str); 8] = [
    (
        "splat-beyond",
        "(f64.eq (f64x2.extract_lane 1 (f64x2.splat (f64.load (i32.const 65529)))) (f64.const 0))",
    ),
    (
        "lane-beyond",
        "(i64.eqz (i64x2.extract_lane 0 (v128.load64_lane 1 (i32.const 65529) (local.get $v))))",
    ),
    (
        "address-wraps",
        "(i32.eqz (i32.load offset=0xffffffff (i32.const 0xffffffff)))",
    ),
    (
        "copy-wraps",
        "(block (result i32) (memory.copy (i32.const 0) (i32.const 1) (i32.const 0xffffffff)) (i32.const 1))",
    ),
    (
        "fill-wraps",
        "(block (result i32) (memory.fill (i32.const 0xffffffff) (i32.const 0) (i32.const 2)) (i32.const 1))",
    ),
    (
        "table-wraps",
        "(block (result i32) (table.copy (i32.const 0xffffffff) (i32.const 1) (i32.const 2)) (i32.const 1))",
    ),
    (
        "table-filled",
        "(block (result i32) (table.fill (i32.const 3) (ref.null func) (i32.const 0xffffffff)) (i32.const 1))",
    ),
    (
        "call-beyond",
        "(block (result i32) (call_indirect (i32.const 0xffffffff)) (i32.const 1))",
    ),
];

/// Checks that hold, by name, of operations that engines got wrong.
fn right_programs() -> [(&'static str, String); 19] {
    let last = |check: &str| format!("(block (result i32) {LAST} {check})");
    let load = "(f64.load (i32.const 65528))";
    [
        // Scalars that are loaded for a vector operation (f64x2.splat, CVE-2026-24116 f64.copysign and their kin).
        ("splat", last(&format!("(f64.eq (f64x2.extract_lane 1 (f64x2.splat {load})) (f64.const -2))"))),
        ("copysign", last(&format!("(f64.eq (f64.copysign (f64.const 1) {load}) (f64.const -1))"))),
        ("copysign-of", last(&format!("(f64.eq (f64.copysign {load} (f64.const 1)) (f64.const 2))"))),
        ("sqrt", last(&format!("(f64.eq (f64.sqrt (f64.mul {load} {load})) (f64.const 2))"))),
        ("ceil", last(&format!("(f64.eq (f64.ceil {load}) (f64.const -2))"))),
        ("abs", last(&format!("(f64.eq (f64.abs {load}) (f64.const 2))"))),
        ("neg", last(&format!("(f64.eq (f64.neg {load}) (f64.const 2))"))),
        ("min", last(&format!("(f64.eq (f64.min (f64.const 0) {load}) (f64.const -2))"))),
        ("promote", last("(f64.eq (f64.promote_f32 (f32.load (i32.const 65532))) (f64.const -2))")),
        ("splat-8", last("(i32.eq (i8x16.extract_lane_u 15 (i8x16.splat (i32.load8_u (i32.const 65535)))) (i32.const 192))")),
        ("zero-extended", last("(f64.eq (f64x2.extract_lane 0 (v128.load64_zero (i32.const 65528))) (f64.const -2))")),
        ("load-splat", last("(f64.eq (f64x2.extract_lane 1 (v128.load64_splat (i32.const 65528))) (f64.const -2))")),
        ("widened", last("(i32.eq (i32x4.extract_lane 3 (v128.load16x4_u (i32.const 65528))) (i32.const 49152))")),
        ("replaced", last(&format!("(f64.eq (f64x2.extract_lane 1 (f64x2.replace_lane 1 (local.get $v) {load})) (f64.const -2))"))),
        // CVE-2023-26489: a shifted address is one of 32 bits.
        ("shifted-address", "(block (result i32) (i32.store (i32.const 8) (i32.const 77)) (i32.store (i32.const 128) \
           (i32.const 0x20000001)) (i32.eq (i32.load (i32.shl (i32.load (i32.const 128)) (i32.const 3))) (i32.const 77)))"
            .replace("\\\n", "")),
        // CVE-2023-41880 and CVE-2023-27477: shifts and selections of lanes.
        ("lane-shift", "(i64.eq (i64x2.extract_lane 0 (i64x2.shr_s (v128.const i64x2 0x8000000000000000 1) (i32.const 40))) \
           (i64.const -8388608))".replace("\\\n", "")),
        ("lane-choice", "(i32.eq (i8x16.extract_lane_u 0 (v128.bitselect (v128.const i32x4 7 7 7 7) \
           (v128.const i32x4 7 7 7 7) (local.get $v))) (i32.const 7))".replace("\\\n", "")),
        // CVE-2025-53901: descriptors that are renumbered to themselves or to closed ones.
        ("renumbered", "(block (result i32) (drop (call $renumber (i32.const 1) (i32.const 1))) (i32.ne (call $try_open) (i32.const 0)))".to_owned()),
        ("renumbered-closed", "(block (result i32) (drop (call $close (i32.const 2))) \
           (drop (call $renumber (i32.const 1) (i32.const 2))) (i32.ne (call $try_open) (i32.const 0)))"
            .replace("\\\n", "")),
    ]
}

#[tokio::test]
async fn what_once_broke_engines_is_right_or_a_trap() {
    if on_peer() {
        return; // It runs no WebAssembly.
    }
    let daemon = daemon().await;
    let canary = Canary::plant(&daemon);
    let pod = Pod::run(&daemon, "engine").await;
    for (name, check) in right_programs() {
        let fate = fate(&daemon, &pod, &checking(&check)).await;
        assert!(matches!(fate, Fate::Ran(0, _)), "{name}: {fate:?}");
    }
    for (name, check) in TRAPS {
        let fate = fate(&daemon, &pod, &checking(check)).await;
        assert!(matches!(fate, Fate::Ran(134, _)), "{name}: {fate:?}");
    }
    canary.is_untouched(&daemon).await;
    daemon.finish().await.unwrap();
}

/// What exports these interfaces, each with a function of this name and result.
fn exporting(interfaces: &[(&str, &str, &str)]) -> String {
    let mut text = "(component (core module $m (func (export \"none\")) \
         (func (export \"ok\") (result i32) (i32.const 0))) (core instance $m (instantiate $m))"
        .to_owned();
    for (number, (interface, function, result)) in interfaces.iter().enumerate() {
        let core = if result.is_empty() { "none" } else { "ok" };
        text += &format!(
            "(func $f{number} {result} (canon lift (core func $m \"{core}\")))
             (instance $i{number} (export \"{function}\" (func $f{number})))
             (export \"{interface}\" (instance $i{number}))"
        );
    }
    text + ")"
}

/// T62: an HTTP handler of another type is refused before it runs, and a command gets no requests.
#[tokio::test]
async fn a_handler_of_another_type_is_refused_and_a_command_gets_no_requests() {
    if on_peer() {
        return; // It runs no WebAssembly.
    }
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "handler").await;
    let handler = ("wasi:http/incoming-handler@0.2.0", "handle", "");
    let refused = fate(&daemon, &pod, &exporting(&[handler])).await;
    refused.is_refused(&["wasi:http/incoming-handler", "cannot handle requests"]);
    // Beside a program it is not called, and nothing listens for it.
    let run = ("wasi:cli/run@0.2.0", "run", "(result (result))");
    let ran = fate(&daemon, &pod, &exporting(&[handler, run])).await;
    assert!(matches!(ran, Fate::Ran(0, _)), "{ran:?}");
    daemon.finish().await.unwrap();
}
