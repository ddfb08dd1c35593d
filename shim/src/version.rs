//! `coracle version`: what this binary is made of.
//!
//! Called by `main`. Invariant: one build always says the same; nothing is looked up on the node.
//! Must not know: how the parts work.

use std::error::Error;
use std::io::{self, Write as _};

use coracle_network::cni;
use coracle_wasm as wasm;
use serde::Serialize;

/// The version of the engine, e.g. `48.0.2`.
pub const WASMTIME: &str = env!("CORACLE_WASMTIME");
/// The commit that was built, `unknown` if the build was not told.
pub const COMMIT: &str = match option_env!("CORACLE_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};
/// The CRI API that the protocol was copied from.
const CRI_API: &str = "0.37";

/// All that is known about a build. Fields are only added.
#[derive(Debug, Serialize)]
struct Version {
    /// Of Coracle, e.g. `0.1.0`.
    version: &'static str,
    /// The commit that was built, `unknown` if the build was not told.
    commit: &'static str,
    /// When that commit was made, in RFC 3339, `unknown` likewise.
    commit_date: &'static str,
    /// The compiler, as it names itself.
    rustc: &'static str,
    /// What was compiled for, e.g. `x86_64-unknown-linux-gnu`.
    target: &'static str,
    /// The features of this build; a release has none.
    features: Vec<&'static str>,
    /// The hash of the engine, which compiled modules depend on.
    engine: String,
    /// The engine's version.
    wasmtime: &'static str,
    /// The version of the kubelet's protocol.
    cri: &'static str,
    /// The API that the protocol is that of.
    cri_api: &'static str,
    /// The versions of CNI configurations that are understood, oldest first.
    cni: Vec<&'static str>,
}

impl Version {
    /// That of this binary. Errors: the engine cannot be configured.
    fn of_this_build() -> Result<Self, Box<dyn Error>> {
        let features = [("failpoints", cfg!(feature = "failpoints"))];
        Ok(Self {
            version: env!("CARGO_PKG_VERSION"),
            commit: COMMIT,
            commit_date: option_env!("CORACLE_COMMIT_DATE").unwrap_or("unknown"),
            rustc: env!("CORACLE_RUSTC"),
            target: env!("CORACLE_TARGET"),
            features: features
                .into_iter()
                .filter_map(|(name, is_on)| is_on.then_some(name))
                .collect(),
            engine: wasm::engine_hash()?,
            wasmtime: WASMTIME,
            cri: "v1",
            cri_api: CRI_API,
            cni: cni::Version::ALL
                .iter()
                .map(|known| known.as_str())
                .collect(),
        })
    }
}

/// Prints it, as text or as one JSON object. Errors: the engine cannot be configured, or standard output fails.
pub fn print(json: bool) -> Result<(), Box<dyn Error>> {
    let build = Version::of_this_build()?;
    let mut out = io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(&build)?)?;
        return Ok(());
    }
    writeln!(
        out,
        "coracle {}\ncommit {} ({})\nbuilt by {} for {}\nengine {} (wasmtime {})\nCRI {} (API {}), CNI {}",
        build.version,
        build.commit,
        build.commit_date,
        build.rustc,
        build.target,
        build.engine,
        build.wasmtime,
        build.cri,
        build.cri_api,
        build.cni.join(", "),
    )?;
    Ok(())
}
