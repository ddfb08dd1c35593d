//! What the daemon is made of: the crates that are linked into it, their licences, and whether `.deny.toml` permits them.
//!
//! Called by the program `sbom`, which packages use, and by the architecture test. It reads `cargo metadata`, `Cargo.lock` and
//! `.deny.toml`, and needs cargo and the sources of the crates, no network.
//! Invariants: the order is that of names and versions, so that the same source gives the same text; a licence that is not
//! understood is a violation.
//! Must not know: advisories, which need a database of the day; cargo-deny has them.

mod license;
mod policy;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::Outcome;
pub use policy::{Policy, violations};

/// The crate whose binary is shipped.
const ROOT: &str = "coracle-shim";
/// The platform that packages are built for.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// A crate, as `cargo metadata` has it.
#[derive(Clone, Debug, Deserialize)]
pub struct Crate {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its licence as an SPDX expression, if it has one.
    pub license: Option<String>,
    /// One line about it.
    description: Option<String>,
    /// Where it comes from; none for our own.
    pub source: Option<String>,
    id: String,
    manifest_path: PathBuf,
}

impl Crate {
    /// Its package URL.
    fn purl(&self) -> String {
        format!("pkg:cargo/{}@{}", self.name, self.version)
    }
}

/// The resolved graph of a build.
#[derive(Debug)]
pub struct Graph {
    /// Every crate that is compiled for the workspace, by cargo's id.
    pub crates: BTreeMap<String, Crate>,
    /// What each depends on when it runs, by id.
    edges: BTreeMap<String, BTreeSet<String>>,
    top: PathBuf,
}

impl Graph {
    /// That of this workspace. Errors: cargo cannot tell, for example because a crate was never fetched.
    pub fn of_workspace() -> Outcome<Self> {
        let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let output = Command::new(cargo)
            .args(["metadata", "--format-version", "1", "--locked", "--offline"])
            .args(["--filter-platform", PLATFORM])
            .current_dir(&top)
            .output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("cargo metadata: {}\n{said}", output.status).into());
        }
        Self::read(&serde_json::from_slice(&output.stdout)?, top)
    }

    fn read(metadata: &Value, top: PathBuf) -> Outcome<Self> {
        let mut graph = Self {
            crates: BTreeMap::new(),
            edges: BTreeMap::new(),
            top,
        };
        for package in list(&metadata["packages"]) {
            let found: Crate = serde_json::from_value(package.clone())?;
            graph.crates.insert(found.id.clone(), found);
        }
        for node in list(&metadata["resolve"]["nodes"]) {
            let runs = |dependency: &&Value| {
                list(&dependency["dep_kinds"]).any(|kind| kind["kind"].is_null())
            };
            let needed = list(&node["deps"]).filter(runs);
            let needed = needed.filter_map(|dependency| dependency["pkg"].as_str());
            let id = node["id"].as_str().unwrap_or_default().to_owned();
            graph.edges.insert(id, needed.map(str::to_owned).collect());
        }
        Ok(graph)
    }

    /// What is linked into the daemon, itself first, the others by name and version.
    pub fn shipped(&self) -> Vec<&Crate> {
        let mut reached: BTreeSet<&str> = BTreeSet::new();
        let mut open: Vec<&str> = self
            .crates
            .values()
            .filter(|found| found.name == ROOT)
            .map(|found| found.id.as_str())
            .collect();
        while let Some(id) = open.pop() {
            if reached.insert(id) {
                open.extend(self.edges.get(id).into_iter().flatten().map(String::as_str));
            }
        }
        let mut shipped: Vec<&Crate> = reached
            .iter()
            .filter_map(|id| self.crates.get(*id))
            .collect();
        shipped.sort_by_key(|found| (found.name != ROOT, &found.name, &found.version));
        shipped
    }

    /// The crates that are linked in several versions: name, and the versions.
    pub fn duplicates(&self) -> BTreeMap<&str, Vec<&str>> {
        let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for found in self.shipped() {
            versions
                .entry(&found.name)
                .or_default()
                .push(&found.version);
        }
        versions.retain(|_, of| of.len() > 1);
        versions
    }

    /// The bill of materials, CycloneDX 1.5 as JSON. Errors: `Cargo.lock` cannot be read.
    pub fn bill(&self) -> Outcome<String> {
        let lock = std::fs::read_to_string(self.top.join("Cargo.lock"))?;
        let sums = checksums(&lock);
        let shipped = self.shipped();
        let components = shipped.iter().map(|found| component(found, &sums));
        let dependencies = shipped.iter().map(|found| {
            let needed = self.edges.get(&found.id).into_iter().flatten();
            let needed = needed.filter_map(|id| self.crates.get(id)).map(Crate::purl);
            json!({ "ref": found.purl(), "dependsOn": needed.collect::<Vec<_>>() })
        });
        let mut components: Vec<Value> = components.collect();
        let mut root = components.remove(0);
        root["type"] = json!("application");
        let bill = json!({
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "version": 1,
            "metadata": { "component": root },
            "components": components,
            "dependencies": dependencies.collect::<Vec<_>>(),
        });
        Ok(serde_json::to_string_pretty(&bill)?)
    }

    /// The licences of all that is linked and not ours, with the texts that the crates bring. Errors: a file cannot be read.
    pub fn licenses(&self) -> Outcome<String> {
        let mut notice = String::from("coracle contains these libraries.\n");
        for found in self.shipped() {
            if found.source.is_none() {
                continue;
            }
            let license = found.license.as_deref().unwrap_or("see below");
            write!(notice, "\n{} {} ({license})\n", found.name, found.version)?;
            let directory = found.manifest_path.parent().unwrap_or(Path::new("/"));
            for file in license_files(directory)? {
                let text = String::from_utf8_lossy(&std::fs::read(&file)?).into_owned();
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                write!(
                    notice,
                    "\n--- {} {name} ---\n{}\n",
                    found.name,
                    text.trim_end()
                )?;
            }
        }
        Ok(notice)
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn component(found: &Crate, sums: &BTreeMap<(&str, &str), &str>) -> Value {
    let mut component = json!({
        "type": "library",
        "bom-ref": found.purl(),
        "name": found.name,
        "version": found.version,
        "purl": found.purl(),
    });
    if let Some(license) = &found.license {
        component["licenses"] = json!([{ "expression": license.replace('/', " OR ") }]);
    }
    if let Some(text) = &found.description {
        component["description"] = json!(text.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    if let Some(sum) = sums.get(&(found.name.as_str(), found.version.as_str())) {
        component["hashes"] = json!([{ "alg": "SHA-256", "content": sum }]);
    }
    component
}

/// The checksums in a lock file, by name and version.
fn checksums(lock: &str) -> BTreeMap<(&str, &str), &str> {
    let mut sums = BTreeMap::new();
    for package in lock.split("[[package]]").skip(1) {
        let value = |key: &str| {
            let lines = package.lines();
            let mut values = lines.filter_map(|line| line.strip_prefix(key)?.strip_prefix(" = \""));
            values.next()?.strip_suffix('"')
        };
        if let (Some(name), Some(version), Some(sum)) =
            (value("name"), value("version"), value("checksum"))
        {
            sums.insert((name, version), sum);
        }
    }
    sums
}

/// The files of a crate that hold its licences, by name.
fn license_files(directory: &Path) -> Outcome<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = name.to_ascii_uppercase();
        let is_license = [
            "LICENSE",
            "LICENCE",
            "COPYING",
            "COPYRIGHT",
            "NOTICE",
            "UNLICENSE",
        ]
        .iter()
        .any(|begin| name.starts_with(begin));
        if is_license && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
