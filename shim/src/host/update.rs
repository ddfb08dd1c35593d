//! Changes the limits of a container that exists.
//!
//! Called by: its pod's driver, on the blocking pool. Calls: cgroups.
//! Invariant: after a refusal the limits are those from before, which `Cgroup::set` sees to.
//! Not here: which limits were asked for, what differs, records.

use coracle_cgroup::{self as cgroup, Limits};
use coracle_lifecycle::{Error, Kind};

use super::Host;

impl Host {
    /// Sets what `change` names on the cgroup `path`. Blocks.
    /// Errors: Invalid for what the node cannot do; WrongPhase for a memory limit below what is in use; Missing when
    /// the cgroup is gone. The limits are then as they were.
    pub fn change_limits(&self, path: &str, change: &Limits) -> Result<(), Error> {
        let cgroup = self.parts.cgroups.open(path);
        let cgroup = cgroup.map_err(|error| refusal(path, error))?;
        if !cgroup.exists() {
            let text = format!("cgroup {path} is gone; its container has just ended");
            return Err(Error::new(Kind::Missing, text));
        }
        cgroup.set(change).map_err(|error| refusal(path, error))
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
