//! The host ids of a sandbox: a block of ours, or the range that the kubelet gives a pod with a user namespace of its own.
//!
//! Called by: RunPodSandbox, the end of a sandbox, recovery. Invariant: whatever a sandbox has is known to the host from
//! before its record is written until after that is gone.
//! Must not know: which ids are free.

use coracle_spec::IdRange;
use coracle_spec::id::PodId;

use crate::config::SandboxConfig;
use crate::error::Error;
use crate::host::Host;
use crate::record::PodRecord;

/// Takes ids for a new sandbox. Errors: there are none, or somebody else has those that the kubelet gives.
pub fn take(host: &dyn Host, pod: &PodId, config: &SandboxConfig) -> Result<IdRange, Error> {
    let Some(userns) = &config.userns else {
        return host.lease_ids();
    };
    let range = IdRange {
        base: userns.uid.outside,
        size: userns.uid.count,
    };
    host.give_ids(pod, &config.name.uid, range)?;
    Ok(range)
}

/// Reserves those of a record.
pub fn claim(host: &dyn Host, record: &PodRecord) {
    match &record.config.userns {
        None => host.claim_ids(record.range),
        Some(_) => host.adopt_ids(&record.id, &record.config.name.uid, record.range),
    }
}

/// Gives up those of a sandbox that is gone.
pub fn release(host: &dyn Host, record: &PodRecord) {
    match &record.config.userns {
        None => host.release_ids(record.range),
        Some(_) => host.take_back_ids(&record.id, record.range),
    }
}
