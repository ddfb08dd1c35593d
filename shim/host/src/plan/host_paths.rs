//! The paths of the node that a plan needs, which may hang: sources of mounts, devices, CDI specifications.
//!
//! Called by: [`super`]. Invariant: no path of a container is resolved on a thread of the runtime; a container without
//! such paths waits for no thread. Must not know: what is decided from them.

use std::sync::Arc;

use coracle_spec::Mount;

use super::Draft;
use crate::Host;
use crate::linux::Hardware;
use crate::paths::{Lookup, Missing};
use coracle_lifecycle::{ContainerConfig, Error};

impl Host {
    /// The mounts of a container, whose host paths are looked up on a thread that may hang.
    pub(super) async fn mounts(
        &self,
        draft: Draft,
        is_linux: bool,
    ) -> Result<(Draft, Vec<Mount>), Error> {
        if draft.config.mounts.is_empty() {
            return Ok((draft, Vec::new()));
        }
        let missing = match self.config.live.get().create_host_paths {
            true => Missing::Create,
            false => Missing::Refuse,
        };
        let config = Arc::clone(&draft.config);
        let what = move || {
            let host_paths = config.mounts.iter().map(|mount| &mount.host_path);
            let named: Vec<_> = host_paths
                .filter(|path| !path.as_os_str().is_empty())
                .take(3)
                .map(|path| path.display().to_string())
                .collect();
            format!("check the mounts of {}", named.join(", "))
        };
        let check = move |lookup: &Lookup<'_>| {
            let mounts = draft.mounts(is_linux, missing, lookup)?;
            Ok((draft, mounts))
        };
        let (draft, mounts) = self.paths.run(what, check).await?;
        // After the check: a missing path may have been created.
        self.relabel(&draft.pod, &draft.config).await?;
        Ok((draft, mounts))
    }

    /// The devices of a container, looked up on a thread that may hang.
    pub(super) async fn hardware(&self, config: &Arc<ContainerConfig>) -> Result<Hardware, Error> {
        if !Hardware::is_requested_by(config) {
            return Ok(Hardware::default());
        }
        let (named, config) = (Arc::clone(config), Arc::clone(config));
        let what = move || {
            let paths = named.devices.iter().map(|device| device.host_path.as_str());
            let names: Vec<_> = paths
                .chain(named.cdi_devices.iter().map(String::as_str))
                .take(3)
                .collect();
            format!("look at the node's devices {}", names.join(", "))
        };
        let settings = self.config.live.get().devices.clone();
        let find = move |lookup: &Lookup<'_>| Hardware::find(&config, &settings, lookup);
        self.paths.run(what, find).await
    }
}
