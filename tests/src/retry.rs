//! Calls as a kubelet repeats them: a repeat finds what was done before the daemon died or the reply was lost.
//!
//! Called by: the fault tests and [`crate::churn`]. Invariant: success means that the object is there exactly once.
//! Not here: how often and how long a caller tries; [`until_answered`] has the usual policy.

use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;
use tonic::{Code, Status};

use crate::client::Cri;

/// How long one call may take before the daemon counts as hung.
const CALL_LIMIT: Duration = Duration::from_secs(60);
/// How long between two tries.
const PAUSE: Duration = Duration::from_millis(30);
/// How long it is tried: a daemon that was killed has to be back by then.
const PATIENCE: Duration = Duration::from_secs(60);

/// Repeats `call` until it succeeds. Errors: no answer at all within a minute, or the last refusal after a
/// minute of tries.
pub async fn until_answered<T>(
    what: &str,
    call: impl AsyncFn() -> Result<T, Status>,
) -> Result<T, String> {
    let end = Instant::now() + PATIENCE;
    let mut last = String::new();
    while Instant::now() < end {
        match tokio::time::timeout(CALL_LIMIT, call()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(refusal)) => last = refusal.to_string(),
            Err(_) => {
                return Err(format!(
                    "{what}: no answer within {CALL_LIMIT:?}; before that: {last}"
                ));
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(format!("{what} never succeeded: {last}"))
}

/// RunPodSandbox, where a repeat finds in the list what a daemon that died had finished.
/// Errors: the refusal; a half-made sandbox is removed first, so that the next try begins anew.
pub async fn run_pod(cri: &Cri, config: &cri::PodSandboxConfig) -> Result<String, Status> {
    let refusal = match cri.run_pod(config).await {
        Ok(id) => return Ok(id),
        Err(refusal) => refusal,
    };
    if refusal.code() != Code::AlreadyExists {
        return Err(refusal);
    }
    let listed = cri.list_pods(None).await?;
    let Some(found) = listed
        .into_iter()
        .find(|pod| pod.metadata == config.metadata)
    else {
        return Err(refusal);
    };
    if found.state() == cri::PodSandboxState::SandboxReady {
        return Ok(found.id);
    }
    cri.stop_pod(&found.id).await?;
    cri.remove_pod(&found.id).await?;
    Err(refusal)
}

/// CreateContainer, likewise. Errors: the refusal.
pub async fn create(
    cri: &Cri,
    pod: &str,
    config: &cri::ContainerConfig,
    sandbox: &cri::PodSandboxConfig,
) -> Result<String, Status> {
    let refusal = match cri.create(pod, config, sandbox).await {
        Ok(id) => return Ok(id),
        Err(refusal) => refusal,
    };
    if refusal.code() != Code::AlreadyExists {
        return Err(refusal);
    }
    let mut listed = cri.list(None).await?.into_iter();
    let found =
        listed.find(|found| found.pod_sandbox_id == pod && found.metadata == config.metadata);
    found.map(|container| container.id).ok_or(refusal)
}

/// StartContainer, where a repeat finds that the first try was carried out after all. Errors: the refusal.
pub async fn start(cri: &Cri, id: &str) -> Result<(), Status> {
    let refusal = match cri.start(id).await {
        Ok(()) => return Ok(()),
        Err(refusal) => refusal,
    };
    match cri.status(id).await?.state() {
        cri::ContainerState::ContainerRunning | cri::ContainerState::ContainerExited => Ok(()),
        _ => Err(refusal),
    }
}
