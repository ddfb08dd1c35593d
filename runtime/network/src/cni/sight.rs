//! A look at what a node has installed, for those who run no daemon.
//!
//! Called by: `coracle check`. Invariant: nothing is executed and nothing written.
//! Not here: whether plugins say of themselves that they are ready.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::Error;
use super::exec::Runner;
use super::readiness::Readiness;

/// A network that pods could be attached to now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sight {
    /// Its name.
    pub name: String,
    /// The version of the specification in which its plugins are spoken to.
    pub version: &'static str,
    /// Its plugins' types, in the order of ADD.
    pub plugins: Vec<String>,
}

/// Looks at directories of configurations and plugins, and executes nothing. Blocks on the disk.
/// Errors: why every pod would be refused, as [`super::Cni::plan`] says it.
pub fn look(conf_dir: &Path, bin_dirs: &[PathBuf]) -> Result<Sight, Error> {
    let runner = Runner {
        dirs: bin_dirs.to_vec(),
        limit: Duration::ZERO,
    };
    let list = Readiness::new(conf_dir, runner).network()?;
    Ok(Sight {
        name: list.name.clone(),
        version: list.version.as_str(),
        plugins: list
            .plugins
            .iter()
            .map(|plugin| plugin.kind.clone())
            .collect(),
    })
}
