//! Who changed which field of a container: two plugins may not change the same.
//!
//! Called by: [`super::adjust`]. Source: NRI 0.12, `Field` of api.proto. Invariant: a field that a plugin removed can be
//! set again. Must not know: values.

use std::collections::BTreeMap;

use coracle_proto::nri::v1 as nri;

/// A field, by its number in what validators are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// By name.
    Annotations = 1,
    /// By destination.
    Mounts = 2,
    /// By path.
    Devices = 4,
    /// By name.
    CdiDevices = 5,
    /// By name.
    Env = 6,
    /// Arguments.
    Args = 7,
    /// Memory limit.
    MemLimit = 8,
    /// Memory and swap.
    MemSwapLimit = 10,
    /// CPU weight.
    CpuShares = 16,
    /// CPU quota.
    CpuQuota = 17,
    /// CPU period.
    CpuPeriod = 18,
    /// CPUs.
    CpusetCpus = 21,
    /// Memory nodes.
    CpusetMems = 22,
    /// Number of processes.
    PidsLimit = 23,
    /// By page size.
    HugepageLimits = 24,
    /// By file.
    CgroupsUnified = 27,
    /// OOM score.
    OomScoreAdj = 29,
    /// By resource.
    Rlimits = 30,
    /// I/O priority.
    IoPriority = 31,
    /// By name on the node.
    NetDevices = 35,
    /// CPU policy.
    Scheduler = 36,
    /// Memory policy.
    MemoryPolicy = 40,
}

impl Field {
    /// Its name in messages and in `nri.reject`.
    pub fn name(self) -> &'static str {
        match self {
            Field::Annotations => "annotations",
            Field::Mounts => "mounts",
            Field::Devices => "devices",
            Field::CdiDevices => "cdi_devices",
            Field::Env => "env",
            Field::Args => "args",
            Field::Rlimits => "rlimits",
            Field::OomScoreAdj => "oom_score_adj",
            Field::IoPriority => "io_priority",
            Field::NetDevices => "net_devices",
            Field::Scheduler => "scheduler",
            Field::MemoryPolicy => "memory_policy",
            _ => "resources",
        }
    }
}

/// The owners of one container's fields; a field without keys has the key "".
#[derive(Clone, Debug, Default)]
pub struct Owners(BTreeMap<(Field, String), String>);

impl Owners {
    /// Makes `plugin` the owner. Errors: another one is.
    pub fn claim(&mut self, field: Field, key: &str, plugin: &str) -> Result<(), String> {
        let owner = self.0.entry((field, key.to_owned()));
        let owner = owner.or_insert_with(|| plugin.to_owned());
        if owner == plugin {
            return Ok(());
        }
        let field = field.name();
        Err(format!(
            "{field} {key:?}: plugin {owner} has set it already"
        ))
    }

    /// Takes the field from its owner: it was removed.
    pub fn clear(&mut self, field: Field, key: &str) {
        self.0.remove(&(field, key.to_owned()));
    }

    /// The owner, for messages.
    pub fn of(&self, field: Field, key: &str) -> &str {
        let owner = self.0.get(&(field, key.to_owned()));
        owner.map_or("of unknown name", String::as_str)
    }

    /// As validators see them.
    pub fn shown(&self, container: &str) -> nri::OwningPlugins {
        let mut fields = nri::FieldOwners::default();
        for ((field, key), plugin) in &self.0 {
            if key.is_empty() {
                fields.simple.insert(*field as i32, plugin.clone());
            } else {
                let keys = fields.compound.entry(*field as i32).or_default();
                keys.owners.insert(key.clone(), plugin.clone());
            }
        }
        nri::OwningPlugins {
            owners: [(container.to_owned(), fields)].into(),
        }
    }
}
