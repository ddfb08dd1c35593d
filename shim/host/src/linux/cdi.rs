//! Devices by name: resolves CDI names to what the node's specifications require of a container.
//!
//! Called by [`super`]. Source: the Container Device Interface specification 0.3 to 1.1. Specifications are files of
//! root, usually in `/etc/cdi` and `/var/run/cdi`, written by device plugins and DRA drivers.
//! Invariants: a name that cannot be resolved is refused; an edit that is not implemented (RDT)
//! and a hook that the operator has not listed is refused, never left out; the later directory wins.
//! Must not know: who requests a device, CRI.

mod document;
mod hooks;
mod listing;

use std::path::{Path, PathBuf};

use coracle_lifecycle::{Error, NetDevice};
use coracle_spec::{Device, DeviceKind, Hook, Mount, MountPropagation, NodeHooks};

use self::document::{Edits, MountEdit, Node};
use self::hooks::Moment;
pub use self::listing::{CdiDevice, CdiListing, cdi_devices};
use super::devices::{Grant, Owner, device_target, one};
use crate::config::DeviceSettings;
use crate::errors::invalid;
use crate::mounts::clean_target;
use crate::paths::{Lookup, Missing};

/// What devices add to a container.
#[derive(Debug, Default)]
pub(crate) struct Additions {
    /// Environment, in order.
    pub env: Vec<(String, String)>,
    /// Mounts.
    pub mounts: Vec<Mount>,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Programs of the node that run before it.
    pub hooks: Vec<Hook>,
    /// Programs of the node that run beside it.
    pub node_hooks: NodeHooks,
    /// Network devices of the node that its pod gets.
    pub net_devices: Vec<NetDevice>,
    /// Device nodes.
    pub(super) grants: Vec<Grant>,
}

/// The edits of all devices with these names (`vendor.com/class=name`), by the specifications in the directories of
/// `settings`, of which the later one wins; nodes belong to `owner` where a specification does not say. Errors: Invalid, naming the device and what is wrong with it.
pub(super) fn additions(
    names: &[String],
    settings: &DeviceSettings,
    owner: Owner,
    lookup: &Lookup<'_>,
) -> Result<Additions, Error> {
    if names.is_empty() {
        return Ok(Additions::default());
    }
    from(names, settings, owner, lookup)
}

fn from(
    names: &[String],
    settings: &DeviceSettings,
    owner: Owner,
    lookup: &Lookup<'_>,
) -> Result<Additions, Error> {
    let read = document::read_all(&settings.cdi_spec_dirs, lookup);
    let mut additions = Additions::default();
    let mut applied: Vec<&Path> = Vec::new();
    for name in names {
        let refused = |why: String| invalid(format!("CDI device {name:?}: {why}"));
        let (kind, device) = split(name).map_err(refused)?;
        let document = read.find(kind, device).map_err(refused)?;
        // The edits for all devices of a specification are applied once.
        if !applied.contains(&document.path.as_path()) {
            additions
                .apply(&document.edits, settings, owner, lookup)
                .map_err(refused)?;
            applied.push(&document.path);
        }
        if let Some(edits) = document.device(device) {
            additions
                .apply(edits, settings, owner, lookup)
                .map_err(refused)?;
        }
    }
    Ok(additions)
}

/// Splits `vendor.com/class=name` into kind and name.
fn split(name: &str) -> Result<(&str, &str), String> {
    let is_token = |text: &str, odd: &[u8]| {
        let good = |b: u8| b.is_ascii_alphanumeric() || odd.contains(&b);
        !text.is_empty() && text.bytes().all(good)
    };
    let parts = name.split_once('=').and_then(|(kind, device)| {
        let (vendor, class) = kind.split_once('/')?;
        let good = is_token(vendor, b"._-") && is_token(class, b"._-") && is_token(device, b"._-:");
        good.then_some((kind, device))
    });
    parts.ok_or_else(|| "that is not a name like vendor.com/class=name".to_owned())
}

impl Additions {
    fn apply(
        &mut self,
        edits: &Edits,
        settings: &DeviceSettings,
        owner: Owner,
        lookup: &Lookup<'_>,
    ) -> Result<(), String> {
        for hook in &edits.hooks {
            let (moment, hook) = hooks::allowed(hook, settings, lookup)?;
            match moment {
                Moment::Created => self.hooks.push(hook),
                Moment::Started => self.node_hooks.started.push(hook),
                Moment::Stopped => self.node_hooks.stopped.push(hook),
            }
        }
        let beside = self.node_hooks.started.len() + self.node_hooks.stopped.len();
        if self.hooks.len() + beside > hooks::MOST {
            return Err(format!("there are more than {} hooks", hooks::MOST));
        }
        if edits.intel_rdt.is_some() {
            return Err("its specification wants RDT, which is not built".to_owned());
        }
        for edit in &edits.net_devices {
            let device = NetDevice::new(&edit.host_interface_name, &edit.name)?;
            self.net_devices.push(device);
        }
        for entry in &edits.env {
            let (name, value) = entry
                .split_once('=')
                .ok_or_else(|| format!("its variable {entry:?} has no `=`"))?;
            self.env.push((name.to_owned(), value.to_owned()));
        }
        for node in &edits.device_nodes {
            self.grants.push(grant(node, owner, lookup)?);
        }
        for mount in &edits.mounts {
            self.mounts.push(bind(mount, lookup)?);
        }
        // 0 is the value of a field that was left out, and root of every container has that group.
        let groups = edits.additional_gids.iter().copied();
        self.groups.extend(groups.filter(|gid| *gid != 0));
        Ok(())
    }
}

fn grant(node: &Node, owner: Owner, lookup: &Lookup<'_>) -> Result<Grant, String> {
    let named = |why: String| format!("its node {:?}: {why}", node.path);
    let target = device_target(&node.path).map_err(named)?;
    let host = node.host_path.as_deref().unwrap_or(&node.path);
    if !host.starts_with('/') {
        return Err(named("the host path is not absolute".to_owned()));
    }
    let device = match (lookup.resolve(Path::new(host)), numbers(node)) {
        (Ok(found), stated) => {
            let device = one(&found.path, &target, &found.metadata).map_err(named)?;
            let device = owner.owns(device);
            let actual = (device.kind, device.major, device.minor);
            if stated.is_some_and(|stated| stated != actual) {
                return Err(named(
                    "it states other numbers than the host's node has".to_owned(),
                ));
            }
            device
        }
        (Err(error), _) => return Err(named(format!("the host has none: {error}"))),
    };
    let permissions = match node.permissions.as_deref() {
        None => "rwm",
        // The node exists, and nobody may open it.
        Some("none") => "",
        Some(given) if given.is_empty() || given.bytes().any(|b| !b"rwm".contains(&b)) => {
            return Err(named(
                "its permissions are neither none nor made of r, w and m".to_owned(),
            ));
        }
        Some(given) => given,
    };
    Ok(Grant {
        device: Device {
            mode: node.file_mode.map_or(device.mode, |mode| mode & 0o777),
            uid: node.uid.unwrap_or(device.uid),
            gid: node.gid.unwrap_or(device.gid),
            ..device
        },
        permissions: permissions.to_owned(),
    })
}

/// The numbers of a node in the specification, if it has all of them.
fn numbers(node: &Node) -> Option<(DeviceKind, u32, u32)> {
    let kind = match node.kind.as_deref()? {
        "b" => DeviceKind::Block,
        "c" | "u" => DeviceKind::Char,
        _ => return None,
    };
    Some((kind, node.major?, node.minor?))
}

fn bind(edit: &MountEdit, lookup: &Lookup<'_>) -> Result<Mount, String> {
    let named = |why: String| format!("its mount at {:?}: {why}", edit.container_path);
    let target = clean_target(&edit.container_path).map_err(named)?;
    if !matches!(edit.kind.as_deref(), None | Some("" | "bind" | "none")) {
        return Err(named("it is not a bind mount".to_owned()));
    }
    let source = PathBuf::from(&edit.host_path);
    if !source.is_absolute() {
        return Err(named("the host path is not absolute".to_owned()));
    }
    if let Err(error) = lookup.open(&source, Missing::Refuse) {
        return Err(named(format!("the host path cannot be used: {error}")));
    }
    let mut mount = Mount {
        source,
        target,
        ..Mount::default()
    };
    for option in &edit.options {
        match option.as_str() {
            "ro" => mount.readonly = true,
            "nosuid" => mount.nosuid = true,
            "nodev" => mount.nodev = true,
            "noexec" => mount.noexec = true,
            "slave" | "rslave" => mount.propagation = MountPropagation::Slave,
            "shared" | "rshared" => mount.propagation = MountPropagation::Shared,
            "bind" | "rbind" | "private" | "rprivate" | "rw" | "relatime" => {}
            other => return Err(named(format!("{other:?} is not a known option"))),
        }
    }
    Ok(mount)
}

#[cfg(test)]
#[path = "cdi/tests.rs"]
mod tests;
