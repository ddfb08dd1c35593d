//! What `coracle version` says of the build: the target, the compiler and the engine's exact version, as environment
//! variables of the compilation of the binary.
//!
//! The commit is not here: a build script that looks at it would have the binary linked again after every commit.
//! `make build` passes it as `CORACLE_COMMIT`, which `src/version.rs` reads.
#![allow(
    clippy::print_stdout,
    reason = "this is how a build script talks to cargo"
)]

use std::error::Error;
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../Cargo.lock");
    let compiler = Command::new(std::env::var("RUSTC")?)
        .arg("--version")
        .output()?;
    let compiler = String::from_utf8(compiler.stdout)?;
    println!("cargo::rustc-env=CORACLE_RUSTC={}", compiler.trim());
    println!(
        "cargo::rustc-env=CORACLE_TARGET={}",
        std::env::var("TARGET")?
    );
    let lock = std::fs::read_to_string("../Cargo.lock")?;
    let wasmtime = version(&lock, "wasmtime").ok_or("Cargo.lock has no wasmtime")?;
    println!("cargo::rustc-env=CORACLE_WASMTIME={wasmtime}");
    Ok(())
}

/// The version of a package in the lock file, where the line after its name has it.
fn version<'a>(lock: &'a str, package: &str) -> Option<&'a str> {
    let name = format!("name = \"{package}\"");
    let mut lines = lock.lines().skip_while(|line| *line != name);
    let version = lines.nth(1)?.strip_prefix("version = \"")?;
    version.strip_suffix('"')
}
