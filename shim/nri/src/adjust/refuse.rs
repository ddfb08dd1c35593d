//! What no plugin may adjust: what is not built, what a kind of container does not have, what the operator refuses.
//!
//! Called by [`super`]. Invariant: every field of an adjustment is either adjusted or looked at here.
//! Must not know: values.

use coracle_proto::nri::v1 as nri;

/// The fields that `nri.reject` can name.
pub const FIELDS: [&str; 20] = [
    "annotations",
    "args",
    "cdi_devices",
    "cgroups_path",
    "devices",
    "env",
    "hooks",
    "io_priority",
    "memory_policy",
    "mounts",
    "namespaces",
    "net_devices",
    "oom_score_adj",
    "rdt",
    "resources",
    "rlimits",
    "scheduler",
    "seccomp",
    "sysctl",
    "updates",
];

/// Most entries of one field of an adjustment, and most updates that come with it. More take long to look at, as each is compared
/// with those before it, and no container has a use for them.
pub const MOST_ENTRIES: usize = 4096;

/// What may be adjusted of a container.
pub struct Rules<'a> {
    /// Fields that the operator refuses.
    pub reject: &'a [String],
    /// The container is WebAssembly.
    pub is_wasm: bool,
}

impl Rules<'_> {
    /// Errors: the first field that cannot be adjusted, and why.
    pub fn check(&self, adjust: &nri::ContainerAdjustment) -> Result<(), String> {
        for (field, is_set) in present(adjust) {
            if is_set {
                self.check_field(field)?;
            }
        }
        for (field, entries) in entries(adjust) {
            check_number(field, entries)?;
        }
        if self.is_wasm {
            adjust.rlimits.iter().try_for_each(fits_instances)?;
        }
        let linux = adjust.linux.as_ref();
        let limits = linux.and_then(|linux| linux.resources.as_ref());
        match limits {
            Some(limits) if self.is_wasm && limits.pids.is_some() => Err(
                "resources: the container is WebAssembly, whose number of processes is fixed"
                    .to_owned(),
            ),
            _ => Ok(()),
        }
    }

    fn check_field(&self, field: &str) -> Result<(), String> {
        if self.reject.iter().any(|rejected| rejected == field) {
            return Err(format!("{field}: the operator refuses it (nri.reject)"));
        }
        match field {
            "devices" | "cdi_devices" | "net_devices" | "io_priority" | "scheduler"
            | "memory_policy"
                if self.is_wasm =>
            {
                Err(format!(
                    "{field}: the container is WebAssembly, which has none"
                ))
            }
            "annotations" | "mounts" | "env" | "args" | "rlimits" | "cdi_devices" | "devices"
            | "resources" | "oom_score_adj" | "updates" | "net_devices" | "io_priority"
            | "scheduler" | "memory_policy" => Ok(()),
            _ => Err(format!("{field}: this runtime does not adjust it")),
        }
    }

    /// Errors: the operator refuses updates of other containers, or they are too many.
    pub fn check_updates(&self, updates: &[nri::ContainerUpdate]) -> Result<(), String> {
        check_number("updates", updates.len())?;
        match updates.is_empty() {
            true => Ok(()),
            false => self.check_field("updates"),
        }
    }
}

/// Errors: a limit that the process of an instance cannot have.
fn fits_instances(limit: &nri::PosixRlimit) -> Result<(), String> {
    let name = limit.r#type.trim_start_matches("RLIMIT_");
    match name {
        "NOFILE" | "FSIZE" | "CORE" => Ok(()),
        _ => Err(format!(
            "rlimits: {}: the container is WebAssembly, whose process has NOFILE, FSIZE and CORE to limit",
            limit.r#type
        )),
    }
}

/// Errors: a field has more entries than are looked at.
pub fn check_number(field: &str, entries: usize) -> Result<(), String> {
    if entries > MOST_ENTRIES {
        return Err(format!(
            "{field}: has {entries} entries, more than {MOST_ENTRIES}"
        ));
    }
    Ok(())
}

/// The fields that are lists, and how long they are.
fn entries(adjust: &nri::ContainerAdjustment) -> [(&'static str, usize); 7] {
    let linux = adjust.linux.as_ref();
    [
        ("annotations", adjust.annotations.len()),
        ("mounts", adjust.mounts.len()),
        ("env", adjust.env.len()),
        ("rlimits", adjust.rlimits.len()),
        ("cdi_devices", adjust.cdi_devices.len()),
        ("devices", linux.map_or(0, |linux| linux.devices.len())),
        (
            "net_devices",
            linux.map_or(0, |linux| linux.net_devices.len()),
        ),
    ]
}

/// Every field, and whether the adjustment has it.
fn present(adjust: &nri::ContainerAdjustment) -> [(&'static str, bool); 19] {
    let linux = adjust.linux.as_ref();
    let has = |is_set: fn(&nri::LinuxContainerAdjustment) -> bool| linux.is_some_and(is_set);
    [
        ("annotations", !adjust.annotations.is_empty()),
        ("mounts", !adjust.mounts.is_empty()),
        ("env", !adjust.env.is_empty()),
        ("args", !adjust.args.is_empty()),
        ("hooks", adjust.hooks.is_some()),
        ("rlimits", !adjust.rlimits.is_empty()),
        ("cdi_devices", !adjust.cdi_devices.is_empty()),
        ("devices", has(|linux| !linux.devices.is_empty())),
        ("resources", has(|linux| linux.resources.is_some())),
        ("cgroups_path", has(|linux| !linux.cgroups_path.is_empty())),
        ("oom_score_adj", has(|linux| linux.oom_score_adj.is_some())),
        ("io_priority", has(|linux| linux.io_priority.is_some())),
        ("seccomp", has(|linux| linux.seccomp_policy.is_some())),
        ("namespaces", has(|linux| !linux.namespaces.is_empty())),
        ("sysctl", has(|linux| !linux.sysctl.is_empty())),
        ("net_devices", has(|linux| !linux.net_devices.is_empty())),
        ("scheduler", has(|linux| linux.scheduler.is_some())),
        ("rdt", has(|linux| linux.rdt.is_some())),
        ("memory_policy", has(|linux| linux.memory_policy.is_some())),
    ]
}
