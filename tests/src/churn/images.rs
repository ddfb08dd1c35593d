//! The images that pods of a churn are made of.
//!
//! Called by: [`super`]. Not here: the pods.

use coracle_proto::runtime::v1 as cri;

use crate::push::{Image, Packing, file};
use crate::registry::Registry;
use crate::{Outcome, client, guests};

/// The images that pods are made of.
#[derive(Clone, Debug)]
pub(super) struct Images {
    /// The multi-verb guest for WASI.
    pub(super) wasm: String,
    /// The multi-verb guest for Linux, and a program that prints "hello" and waits.
    pub(super) linux: String,
}

impl Images {
    /// Builds the images and pushes them. Errors: a program does not build, or the registry refuses.
    pub(super) fn push(registry: &Registry) -> Outcome<Self> {
        let wasm = Image::wasi(
            &[file("tool.wasm", 0o755, &guests::tool()?)],
            Packing::Gzip,
            &["/tool.wasm"],
        )?;
        let linux = Image::linux(
            &[
                file("hello", 0o755, &guests::linux_workload()?),
                file("tool", 0o755, &guests::linux_tool()?),
            ],
            &["/hello"],
        )?;
        Ok(Self {
            wasm: wasm.push(registry.host(), "churn/wasm", "1")?.reference,
            linux: linux.push(registry.host(), "churn/linux", "1")?.reference,
        })
    }

    /// A container that exits 5 by itself.
    pub(super) fn job(&self, is_wasm: bool) -> cri::ContainerConfig {
        let mut config = client::container("job", &self.wasm, &["exit", "5"]);
        if !is_wasm {
            config.image = Some(client::image(&self.linux));
            config.command = vec!["/tool".into()];
        }
        config
    }

    /// A container that runs until it is stopped.
    pub(super) fn service(&self, is_wasm: bool) -> cri::ContainerConfig {
        if is_wasm {
            client::container("service", &self.wasm, &["sleep"])
        } else {
            client::container("service", &self.linux, &[])
        }
    }
}
