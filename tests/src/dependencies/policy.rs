//! What may be compiled into the daemon: the parts of `.deny.toml` that need no database of the day.
//!
//! Called by the program `sbom` and the architecture test. It reads the file of cargo-deny, so that there is one policy whoever
//! checks it: licences, banned crates, sources. Must not know: advisories.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

use super::{Graph, license};
use crate::Outcome;

/// crates.io, as Cargo names it.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// The parts of `.deny.toml` that are checked here.
#[derive(Debug, Deserialize)]
pub struct Policy {
    licenses: Licenses,
    bans: Bans,
}

#[derive(Debug, Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
struct Bans {
    deny: Vec<Banned>,
}

#[derive(Debug, Deserialize)]
struct Banned {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

impl Policy {
    /// That of this repository. Errors: the file cannot be read.
    pub fn of_workspace() -> Outcome<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.deny.toml");
        Ok(toml::from_str(&std::fs::read_to_string(path)?)?)
    }
}

/// What the policy does not permit among all crates of the workspace, those of tests included, one line each.
pub fn violations(graph: &Graph, policy: &Policy) -> Vec<String> {
    let mut found = Vec::new();
    for member in graph.crates.values() {
        let name = format!("{} {}", member.name, member.version);
        let license = member.license.as_deref().unwrap_or("none");
        if !license::is_permitted(license, &policy.licenses.allow) {
            found.push(format!(
                "{name} has the licence {license}, which is not allowed"
            ));
        }
        for banned in policy
            .bans
            .deny
            .iter()
            .filter(|ban| ban.name == member.name)
        {
            found.push(format!("{name} is banned: {}", banned.reason));
        }
        let source = member.source.as_deref().unwrap_or(REGISTRY);
        if source != REGISTRY {
            found.push(format!("{name} comes from {source}, not from crates.io"));
        }
    }
    found
}
