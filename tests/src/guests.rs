//! The programs that run inside containers, built from `tests/guests/`.
//!
//! WAT files are assembled in process by `wat`; C files are compiled by clang for wasm32-wasi (and wrapped by
//! [`component`], when they are to be components), or by the system's C compiler for Linux. Each is built once a test
//! process. Go and Python files and SQLite are built once a machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::{Outcome, component, tools};

/// The compiler of WASI p1 modules, with the arguments that all of them need.
pub(crate) const WASI_CLANG: [&str; 5] = [
    "clang",
    "--target=wasm32-wasi",
    "--sysroot=/usr",
    "-O1",
    "-Wl,--strip-debug",
];

/// The multi-verb guest `tool.c`, a WASI p1 module with a name section. See that file for its verbs.
pub fn tool() -> Outcome<Vec<u8>> {
    static BUILT: OnceLock<Vec<u8>> = OnceLock::new();
    once(&BUILT, || compile("tool.c", &WASI_CLANG))
}

/// The multi-verb component `net.c`: sockets, names, HTTP, terminals. See that file for its verbs.
pub fn net() -> Outcome<Vec<u8>> {
    static BUILT: OnceLock<Vec<u8>> = OnceLock::new();
    once(&BUILT, || component::from_c("net.c"))
}

/// The component `function.c`, which handles HTTP requests. See that file for its paths.
pub fn function() -> Outcome<Vec<u8>> {
    static BUILT: OnceLock<Vec<u8>> = OnceLock::new();
    once(&BUILT, || component::function_from_c("function.c"))
}

/// The component `p3.c` for WASI 0.3, a program and a handler of requests. See that file for its verbs.
pub fn p3() -> Outcome<Vec<u8>> {
    static BUILT: OnceLock<Vec<u8>> = OnceLock::new();
    once(&BUILT, || component::p3_from_c("p3.c"))
}

/// The guest `hostile.c`, a WASI p1 module that tries to get out. See that file for its verbs.
pub fn hostile() -> Outcome<Vec<u8>> {
    static BUILT: OnceLock<Vec<u8>> = OnceLock::new();
    once(&BUILT, || compile("hostile.c", &WASI_CLANG))
}

/// The guest `programs.c`, a WASI p1 module. See that file for its verbs.
pub fn programs() -> Outcome<Vec<u8>> {
    static BUILT: OnceLock<Vec<u8>> = OnceLock::new();
    once(&BUILT, || compile("programs.c", &WASI_CLANG))
}

/// The same program as a component.
pub fn programs_component() -> Outcome<Vec<u8>> {
    static BUILT: OnceLock<Vec<u8>> = OnceLock::new();
    once(&BUILT, || component::from_c("programs.c"))
}

/// The guest `programs.go`, a WASI p1 module. See that file for its verbs.
pub fn programs_go() -> Outcome<Vec<u8>> {
    Ok(fs::read(tools::build("go-guest.sh", &["programs"])?)?)
}

/// The component made of `python/NAME.py` for a world of `wit/`, built by componentize-py unless it is there already.
/// Errors: PyPI cannot be reached, or the program is refused.
pub fn python(name: &str, world: &str) -> Outcome<Vec<u8>> {
    Ok(fs::read(tools::build("python.sh", &[name, world])?)?)
}

/// The program `sqlite.c` with SQLite in it, a WASI p1 module. Errors: crates.io cannot be reached, or clang refuses it.
pub fn sqlite() -> Outcome<Vec<u8>> {
    Ok(fs::read(tools::build("sqlite.sh", &[])?)?)
}

/// The module of this text.
pub fn module(text: &str) -> Outcome<Vec<u8>> {
    Ok(wat::parse_str(text)?)
}

/// The program `tool.c` for Linux, to prove the tests on a peer that runs no WebAssembly.
pub fn linux_tool() -> Outcome<Vec<u8>> {
    static BUILT: OnceLock<Vec<u8>> = OnceLock::new();
    once(&BUILT, || compile("tool.c", &["cc", "-static", "-O1"]))
}

/// The guest `NAME.wat`, a module or a component.
pub fn wat(name: &str) -> Outcome<Vec<u8>> {
    let path = source(&format!("{name}.wat"));
    wat::parse_file(&path).map_err(|e| format!("assemble {}: {e}", path.display()).into())
}

/// A module that holds nothing, for images that must differ only in their bytes: `salt` goes into a custom section.
pub fn nothing(salt: &str) -> Outcome<Vec<u8>> {
    let text = format!(
        "(module (@custom \"salt\" \"{salt}\") (memory (export \"memory\") 1) (func (export \"_start\")))"
    );
    Ok(wat::parse_str(text)?)
}

/// A module that sleeps for an hour and is like no other with another salt.
pub fn sleeper(salt: &str) -> Outcome<Vec<u8>> {
    // One subscription of poll_oneoff: the monotonic clock (1) at 16, the time in nanoseconds at 24.
    let text = format!(
        "(module (@custom \"salt\" \"{salt}\")
           (import \"wasi_snapshot_preview1\" \"poll_oneoff\"
             (func $poll (param i32 i32 i32 i32) (result i32)))
           (memory (export \"memory\") 1)
           (func (export \"_start\")
             (i32.store (i32.const 16) (i32.const 1))
             (i64.store (i32.const 24) (i64.const 3600000000000))
             (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))))"
    );
    Ok(wat::parse_str(text)?)
}

/// The Linux workload of `workload.c`: prints "hello" and pauses. Static, 9 KiB.
pub fn linux_workload() -> Outcome<Vec<u8>> {
    static BUILT: OnceLock<Vec<u8>> = OnceLock::new();
    once(&BUILT, || {
        compile("workload.c", &["cc", "-static", "-nostdlib", "-O2"])
    })
}

/// The Linux pause program of `workload.c`: the same without the greeting.
pub fn linux_pause() -> Outcome<Vec<u8>> {
    static BUILT: OnceLock<Vec<u8>> = OnceLock::new();
    once(&BUILT, || {
        compile(
            "workload.c",
            &["cc", "-static", "-nostdlib", "-O2", "-DPAUSE"],
        )
    })
}

/// The probe of `probe.c`, static, for Linux images. See that file for its verbs.
pub fn probe() -> Outcome<Vec<u8>> {
    static BUILT: OnceLock<Vec<u8>> = OnceLock::new();
    once(&BUILT, || compile("probe.c", &["cc", "-static", "-O1"]))
}

/// The program of `inject.c`, which acts through another process: `PROGRAM PID ADDRESS PORT`.
pub fn inject() -> Outcome<Vec<u8>> {
    static BUILT: OnceLock<Vec<u8>> = OnceLock::new();
    once(&BUILT, || compile("inject.c", &["cc", "-static", "-O1"]))
}

/// The web server of `webserver.c`, static: `PROGRAM PORT`.
pub fn web_server() -> Outcome<Vec<u8>> {
    static BUILT: OnceLock<Vec<u8>> = OnceLock::new();
    once(&BUILT, || compile("webserver.c", &["cc", "-static", "-O1"]))
}

/// Both ends of SCTP of `sctp.c`, static. See that file for its verbs.
pub fn sctp() -> Outcome<Vec<u8>> {
    static BUILT: OnceLock<Vec<u8>> = OnceLock::new();
    once(&BUILT, || compile("sctp.c", &["cc", "-static", "-O1"]))
}

/// The program of `frames.c`, static, which sends what its arguments say.
pub fn frames() -> Outcome<Vec<u8>> {
    static BUILT: OnceLock<Vec<u8>> = OnceLock::new();
    once(&BUILT, || compile("frames.c", &["cc", "-static", "-O1"]))
}

/// The program of `nonewprivs.c`, static: prints its effective user id.
pub fn effective_uid() -> Outcome<Vec<u8>> {
    static BUILT: OnceLock<Vec<u8>> = OnceLock::new();
    once(&BUILT, || {
        compile("nonewprivs.c", &["cc", "-static", "-O1"])
    })
}

fn once(cell: &OnceLock<Vec<u8>>, build: impl FnOnce() -> Outcome<Vec<u8>>) -> Outcome<Vec<u8>> {
    if let Some(built) = cell.get() {
        return Ok(built.clone());
    }
    let built = build()?;
    Ok(cell.get_or_init(|| built).clone())
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("guests")
        .join(name)
}

/// Compiles one C file of `tests/guests/`. Errors: the compiler is missing, or refuses it.
pub(crate) fn compile(file: &str, compiler: &[&str]) -> Outcome<Vec<u8>> {
    let out = tempfile(file);
    let run = Command::new(compiler[0])
        .args(&compiler[1..])
        .arg("-o")
        .arg(&out)
        .arg(source(file))
        .output();
    let run = run.map_err(|e| format!("{}: {e}; is it installed?", compiler[0]))?;
    if !run.status.success() {
        return Err(format!("compile {file}: {}", String::from_utf8_lossy(&run.stderr)).into());
    }
    let bytes = fs::read(&out)?;
    let _ = fs::remove_file(&out);
    Ok(bytes)
}

fn tempfile(name: &str) -> PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!(
        "coracle-test-build-{}-{count}-{name}",
        std::process::id()
    ))
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]
mod tests {
    use super::*;

    #[test]
    fn every_guest_builds_to_a_module_or_component() {
        for name in [
            "hello",
            "missing-import",
            "big-memory",
            "component-hello",
            "component-exit",
            "component-sleep",
            "component-greets",
            "component-greeter",
            "component-length",
        ] {
            assert!(wat(name).unwrap().starts_with(b"\0asm"), "{name}");
        }
        assert!(tool().unwrap().starts_with(b"\0asm"));
        // Version 13, layer 1: a component.
        for component in [net(), function(), p3()] {
            assert!(component.unwrap().starts_with(b"\0asm\x0d\0\x01\0"));
        }
        assert!(linux_workload().unwrap().starts_with(b"\x7fELF"));
    }

    #[test]
    fn salted_modules_differ() {
        assert_ne!(nothing("a").unwrap(), nothing("b").unwrap());
    }
}
