//! Collects the adjustments of all plugins for one container that is being created.
//!
//! Called by: [`super::events`], with one plugin's answer after the other. Pure.
//! Invariants: what cannot be adjusted here is refused with its name, never left out; a field that one plugin has set is
//! refused to the next, unless that removes it; each plugin sees what those before it adjusted.
//! Must not know: how an adjustment is made.

mod limits;
mod refuse;
pub mod scheduling;

use std::collections::BTreeMap;

use coracle_lifecycle::NetDevice;
use coracle_proto::nri::v1 as nri;

pub use limits::{add as add_limits, merge as merge_limits, show as show_limits};
pub use refuse::{FIELDS, Rules, check_number};

use super::owners::{Field, Owners};

/// What plugins adjusted so far.
pub struct Adjustments {
    /// The container as the next plugin sees it.
    pub container: nri::Container,
    /// Who set what.
    pub owners: Owners,
    /// Annotations to set, or to remove where there is no value.
    pub annotations: BTreeMap<String, Option<String>>,
    /// Mounts to add, or to remove, by destination.
    pub mounts: BTreeMap<String, Option<nri::Mount>>,
    /// Destinations of mounts that were removed, also of those that are added again.
    pub removed_mounts: Vec<String>,
    /// Devices to add, or to remove, by path.
    pub devices: BTreeMap<String, Option<nri::LinuxDevice>>,
    /// Variables to set or to remove.
    pub env: BTreeMap<String, Option<String>>,
    /// Arguments.
    pub args: Option<Vec<String>>,
    /// Names of CDI devices to add.
    pub cdi_devices: Vec<String>,
    /// Limits of its process, by resource.
    pub rlimits: BTreeMap<String, nri::PosixRlimit>,
    /// Limits of its cgroup.
    pub resources: nri::LinuxResources,
    /// OOM score.
    pub oom_score_adj: Option<i64>,
    /// I/O priority.
    pub io_priority: Option<nri::LinuxIoPriority>,
    /// CPU policy.
    pub scheduler: Option<nri::LinuxScheduler>,
    /// Memory policy.
    pub memory_policy: Option<nri::LinuxMemoryPolicy>,
    /// Network devices of the node to add, by their names there.
    pub net_devices: BTreeMap<String, nri::LinuxNetDevice>,
}

/// A key that is marked for removal, without the mark.
fn removed(key: &str) -> Option<&str> {
    key.strip_prefix('-')
}

impl Adjustments {
    /// None yet.
    pub fn new(container: nri::Container) -> Self {
        Adjustments {
            container,
            owners: Owners::default(),
            annotations: BTreeMap::new(),
            mounts: BTreeMap::new(),
            removed_mounts: Vec::new(),
            devices: BTreeMap::new(),
            env: BTreeMap::new(),
            args: None,
            cdi_devices: Vec::new(),
            rlimits: BTreeMap::new(),
            resources: nri::LinuxResources::default(),
            oom_score_adj: None,
            io_priority: None,
            scheduler: None,
            memory_policy: None,
            net_devices: BTreeMap::new(),
        }
    }

    /// Adds the adjustment of `plugin`. Errors: the field, and why it cannot be adjusted.
    pub fn add(
        &mut self,
        plugin: &str,
        adjust: nri::ContainerAdjustment,
        rules: &Rules<'_>,
    ) -> Result<(), String> {
        rules.check(&adjust)?;
        self.annotations(plugin, adjust.annotations)?;
        self.mounts(plugin, adjust.mounts)?;
        self.env(plugin, adjust.env)?;
        self.args(plugin, adjust.args)?;
        for limit in adjust.rlimits {
            super::convert::to_rlimit(&limit).map_err(|why| format!("rlimits: {why}"))?;
            self.owners.claim(Field::Rlimits, &limit.r#type, plugin)?;
            let shown = &mut self.container.rlimits;
            shown.retain(|known| known.r#type != limit.r#type);
            shown.push(limit.clone());
            self.rlimits.insert(limit.r#type.clone(), limit);
        }
        for device in adjust.cdi_devices {
            self.owners.claim(Field::CdiDevices, &device.name, plugin)?;
            self.container.cdi_devices.push(device.clone());
            self.cdi_devices.push(device.name);
        }
        adjust
            .linux
            .map_or(Ok(()), |linux| self.linux(plugin, linux))
    }

    fn linux(&mut self, plugin: &str, linux: nri::LinuxContainerAdjustment) -> Result<(), String> {
        self.devices(plugin, linux.devices)?;
        self.net_devices(plugin, linux.net_devices)?;
        if let Some(resources) = linux.resources {
            limits::add(&mut self.resources, resources, plugin, &mut self.owners)?;
            let shown = self.container.linux.get_or_insert_default();
            limits::show(shown.resources.get_or_insert_default(), &self.resources);
        }
        if let Some(score) = linux.oom_score_adj {
            self.owners.claim(Field::OomScoreAdj, "", plugin)?;
            self.oom_score_adj = Some(score.value);
            self.container.linux.get_or_insert_default().oom_score_adj = Some(score);
        }
        if let Some(io) = linux.io_priority {
            scheduling::io(&io).map_err(|why| format!("io_priority: {why}"))?;
            self.owners.claim(Field::IoPriority, "", plugin)?;
            self.container.linux.get_or_insert_default().io_priority = Some(io);
            self.io_priority = Some(io);
        }
        if let Some(cpu) = linux.scheduler {
            scheduling::cpu(&cpu).map_err(|why| format!("scheduler: {why}"))?;
            self.owners.claim(Field::Scheduler, "", plugin)?;
            self.container.linux.get_or_insert_default().scheduler = Some(cpu.clone());
            self.scheduler = Some(cpu);
        }
        if let Some(memory) = linux.memory_policy {
            scheduling::memory(&memory).map_err(|why| format!("memory_policy: {why}"))?;
            self.owners.claim(Field::MemoryPolicy, "", plugin)?;
            self.memory_policy = Some(memory);
        }
        Ok(())
    }

    fn net_devices(
        &mut self,
        plugin: &str,
        devices: BTreeMap<String, nri::LinuxNetDevice>,
    ) -> Result<(), String> {
        for name in devices.keys().filter_map(|name| removed(name)) {
            self.owners.clear(Field::NetDevices, name);
            let shown = self.container.linux.get_or_insert_default();
            shown.net_devices.remove(name);
            self.net_devices.remove(name);
        }
        for (name, device) in devices {
            if removed(&name).is_some() {
                continue;
            }
            NetDevice::new(&name, &device.name).map_err(|why| format!("net_devices: {why}"))?;
            self.owners.claim(Field::NetDevices, &name, plugin)?;
            let shown = self.container.linux.get_or_insert_default();
            shown.net_devices.insert(name.clone(), device.clone());
            self.net_devices.insert(name, device);
        }
        Ok(())
    }

    fn annotations(
        &mut self,
        plugin: &str,
        annotations: BTreeMap<String, String>,
    ) -> Result<(), String> {
        for key in annotations.keys().filter_map(|key| removed(key)) {
            self.owners.clear(Field::Annotations, key);
            self.container.annotations.remove(key);
            self.annotations.insert(key.to_owned(), None);
        }
        for (key, value) in annotations {
            if removed(&key).is_some() {
                continue;
            }
            self.owners.claim(Field::Annotations, &key, plugin)?;
            self.container
                .annotations
                .insert(key.clone(), value.clone());
            self.annotations.insert(key, Some(value));
        }
        Ok(())
    }

    fn mounts(&mut self, plugin: &str, mounts: Vec<nri::Mount>) -> Result<(), String> {
        for path in mounts
            .iter()
            .filter_map(|mount| removed(&mount.destination))
        {
            self.owners.clear(Field::Mounts, path);
            let shown = &mut self.container.mounts;
            shown.retain(|known| known.destination != path);
            self.removed_mounts.push(path.to_owned());
            self.mounts.insert(path.to_owned(), None);
        }
        for mount in mounts {
            let path = mount.destination.clone();
            if removed(&path).is_some() {
                continue;
            }
            self.owners.claim(Field::Mounts, &path, plugin)?;
            self.container.mounts.push(mount.clone());
            self.mounts.insert(path, Some(mount));
        }
        Ok(())
    }

    fn devices(&mut self, plugin: &str, devices: Vec<nri::LinuxDevice>) -> Result<(), String> {
        for path in devices.iter().filter_map(|device| removed(&device.path)) {
            self.owners.clear(Field::Devices, path);
            let shown = self.container.linux.get_or_insert_default();
            shown.devices.retain(|known| known.path != path);
            self.devices.insert(path.to_owned(), None);
        }
        for device in devices {
            let path = device.path.clone();
            if removed(&path).is_some() {
                continue;
            }
            self.owners.claim(Field::Devices, &path, plugin)?;
            let shown = self.container.linux.get_or_insert_default();
            shown.devices.push(device.clone());
            self.devices.insert(path, Some(device));
        }
        Ok(())
    }

    fn env(&mut self, plugin: &str, env: Vec<nri::KeyValue>) -> Result<(), String> {
        let is = |entry: &str, name: &str| entry.split('=').next() == Some(name);
        for name in env.iter().filter_map(|variable| removed(&variable.key)) {
            self.owners.clear(Field::Env, name);
            self.container.env.retain(|entry| !is(entry, name));
            self.env.insert(name.to_owned(), None);
        }
        for nri::KeyValue { key: name, value } in env {
            if removed(&name).is_some() {
                continue;
            }
            self.owners.claim(Field::Env, &name, plugin)?;
            self.container.env.retain(|entry| !is(entry, &name));
            self.container.env.push(format!("{name}={value}"));
            self.env.insert(name, Some(value));
        }
        Ok(())
    }

    /// Arguments after an empty first one replace those of other plugins.
    fn args(&mut self, plugin: &str, mut args: Vec<String>) -> Result<(), String> {
        if args.first().is_some_and(String::is_empty) {
            self.owners.clear(Field::Args, "");
            args.remove(0);
        }
        if args.is_empty() {
            return Ok(());
        }
        self.owners.claim(Field::Args, "", plugin)?;
        self.container.args.clone_from(&args);
        self.args = Some(args);
        Ok(())
    }

    /// Whether nothing is adjusted.
    pub fn is_empty(&self) -> bool {
        self.annotations.is_empty()
            && self.mounts.is_empty()
            && self.devices.is_empty()
            && self.env.is_empty()
            && self.args.is_none()
            && self.cdi_devices.is_empty()
            && self.rlimits.is_empty()
            && self.oom_score_adj.is_none()
            && self.io_priority.is_none()
            && self.scheduler.is_none()
            && self.memory_policy.is_none()
            && self.net_devices.is_empty()
            && self.resources == nri::LinuxResources::default()
    }

    fn shown_linux(&self) -> nri::LinuxContainerAdjustment {
        let devices = self.devices.iter().map(|(path, device)| {
            device.clone().unwrap_or_else(|| nri::LinuxDevice {
                path: format!("-{path}"),
                ..nri::LinuxDevice::default()
            })
        });
        nri::LinuxContainerAdjustment {
            devices: devices.collect(),
            resources: Some(self.resources.clone()),
            oom_score_adj: self.oom_score_adj.map(|value| nri::OptionalInt64 { value }),
            io_priority: self.io_priority,
            scheduler: self.scheduler.clone(),
            memory_policy: self.memory_policy.clone(),
            net_devices: self.net_devices.clone(),
            ..nri::LinuxContainerAdjustment::default()
        }
    }

    /// All of it, as validators see it.
    pub fn shown(&self) -> nri::ContainerAdjustment {
        let mark = |key: &String| format!("-{key}");
        let annotations = self.annotations.iter().map(|(key, value)| match value {
            Some(value) => (key.clone(), value.clone()),
            None => (mark(key), String::new()),
        });
        let env = self.env.iter().map(|(key, value)| nri::KeyValue {
            key: if value.is_some() {
                key.clone()
            } else {
                mark(key)
            },
            value: value.clone().unwrap_or_default(),
        });
        let mounts = self.mounts.iter().map(|(path, mount)| {
            mount.clone().unwrap_or_else(|| nri::Mount {
                destination: mark(path),
                ..nri::Mount::default()
            })
        });
        let cdi = self.cdi_devices.iter();
        nri::ContainerAdjustment {
            annotations: annotations.collect(),
            mounts: mounts.collect(),
            env: env.collect(),
            hooks: None,
            linux: Some(self.shown_linux()),
            rlimits: self.rlimits.values().cloned().collect(),
            cdi_devices: cdi
                .map(|name| nri::CdiDevice { name: name.clone() })
                .collect(),
            args: self.args.clone().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
#[path = "adjust/tests.rs"]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests;
