//! Changes the limits of an existing container.
//!
//! Called by: its pod's driver, on the blocking pool. Calls: cgroups.
//! Invariant: after a refusal the limits are as before, which `Cgroup::set` ensures.
//! Must not know: which limits were requested, records.

use coracle_cgroup::{self as cgroup, Exposure, Limits};
use coracle_lifecycle::{Error, Kind, Plan};

use super::Host;

impl Host {
    /// Sets what `change` names on the cgroup of a container. Blocks.
    /// Errors: Invalid when the node cannot do it; WrongPhase for a memory limit below the current use; Missing when
    /// the cgroup is gone. The limits are then as before.
    pub fn change_limits(&self, plan: &Plan, change: &Limits) -> Result<(), Error> {
        let path = plan.cgroup.as_str();
        let cgroup = self.parts.cgroups.open(path);
        let cgroup = cgroup.map_err(|error| refusal(path, error))?;
        if !cgroup.exists() {
            let text = format!("cgroup {path} is gone; its container has just ended");
            return Err(Error::new(Kind::Missing, text));
        }
        let set = match plan.exposure() {
            Exposure::Inner => cgroup.set_with_inner(change),
            _ => cgroup.set(change),
        };
        let set = set.map_err(|error| refusal(path, error));
        self.meter.limits_changed(path);
        set
    }
}

fn refusal(path: &str, error: cgroup::Error) -> Error {
    let kind = match &error {
        cgroup::Error::BelowUsage { .. } => Kind::WrongPhase,
        _ if error.is_invalid() => Kind::Invalid,
        _ => Kind::Io,
    };
    Error::because(kind, format!("change the limits of cgroup {path}"), error)
}
