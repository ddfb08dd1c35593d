//! `sbom`: what the daemon is made of, for packages and for whoever asks.
//!
//!   sbom bom         the bill of materials, CycloneDX 1.5
//!   sbom licenses    the licences of all that is linked
//!   sbom check       holds all crates to .deny.toml, and names those that are linked twice
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program of the command line"
)]

use std::process::ExitCode;

use coracle_tests::Outcome;
use coracle_tests::dependencies::{Graph, Policy, violations};

fn main() -> ExitCode {
    match run(std::env::args().nth(1).as_deref()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("sbom: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Option<&str>) -> Outcome<bool> {
    let graph = Graph::of_workspace()?;
    match command {
        Some("bom") => println!("{}", graph.bill()?),
        Some("licenses") => print!("{}", graph.licenses()?),
        Some("check") => {
            for (name, versions) in graph.duplicates() {
                println!("linked in several versions: {name} {}", versions.join(", "));
            }
            let found = violations(&graph, &Policy::of_workspace()?);
            for violation in &found {
                println!("{violation}");
            }
            println!(
                "{} crates, {} of them in the daemon, {} not permitted",
                graph.crates.len(),
                graph.shipped().len(),
                found.len()
            );
            return Ok(found.is_empty());
        }
        other => return Err(format!("{other:?} is none of bom, licenses, check").into()),
    }
    Ok(true)
}
