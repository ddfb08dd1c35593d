//! The devices of a node by name, and why some of them cannot be had.
//!
//! Called by: `coracle cdi list`. Invariant: a device without a problem is one that a container gets now.
//! Must not know: how the list is printed.

use std::path::PathBuf;

use serde::Serialize;

use super::{Owner, document, from};
use crate::config::DeviceSettings;
use crate::paths;

/// One device of one specification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CdiDevice {
    /// Its name, `vendor.com/class=name`.
    pub name: String,
    /// Its specification.
    pub specification: PathBuf,
    /// Why a container that requests it is refused, or gets it from another specification.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// All of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CdiListing {
    /// By specification, in the order of directories and files.
    pub devices: Vec<CdiDevice>,
    /// Files and directories that cannot be read, with the reason.
    pub broken: Vec<String>,
}

/// The devices that the specifications of `settings` have. Blocks on the disk.
#[must_use]
pub fn cdi_devices(settings: &DeviceSettings) -> CdiListing {
    paths::with_lookup(|lookup| {
        let read = document::read_all(&settings.cdi_spec_dirs, lookup);
        let problem = |name: &str, path: &PathBuf| {
            let (kind, device) = super::split(name).ok()?;
            match read.find(kind, device) {
                Ok(chosen) if chosen.path != *path => Some(format!(
                    "{} has it, too, and comes later",
                    chosen.path.display()
                )),
                Ok(_) => None,
                Err(why) => Some(why),
            }
        };
        let refusal = |name: &str| {
            let made = from(&[name.to_owned()], settings, Owner::default(), lookup);
            made.err().map(|error| error.to_string())
        };
        let devices = read.devices().map(|(name, path)| CdiDevice {
            problem: problem(&name, path).or_else(|| refusal(&name)),
            name,
            specification: path.clone(),
        });
        CdiListing {
            devices: devices.collect(),
            broken: read.broken.clone(),
        }
    })
}
