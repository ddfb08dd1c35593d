//! Checks a node's CNI configuration without a daemon.
//!
//! Called by: `coracle check`. Invariant: it executes nothing and writes nothing.
//! Not here: the STATUS of plugins.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::error::Error;
use super::exec::Runner;
use super::readiness::Readiness;

/// The network to which new pods would be attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Its name.
    pub name: String,
    /// The `cniVersion` used with its plugins.
    pub version: &'static str,
    /// Its plugins' types, in the order of ADD.
    pub plugins: Vec<String>,
}

/// Reads the configuration in `conf_dir` and looks for its plugins in `bin_dirs`. Blocks on the disk.
/// Errors: the reason why every pod would be refused, as from [`super::Cni::plan`].
pub fn probe(conf_dir: &Path, bin_dirs: &[PathBuf]) -> Result<Probe, Error> {
    let runner = Runner {
        dirs: bin_dirs.to_vec(),
        limit: Duration::ZERO,
        observer: Arc::default(),
    };
    let list = Readiness::new(conf_dir, runner).network()?;
    Ok(Probe {
        name: list.name.clone(),
        version: list.version.as_str(),
        plugins: list
            .plugins
            .iter()
            .map(|plugin| plugin.kind.clone())
            .collect(),
    })
}
