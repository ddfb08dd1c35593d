//! Background work: retries of DELs that the kubelet will not repeat, and GC and CHECK at the daemon's start.
//!
//! Called by: [`super::Cni`]'s users, at a failed start of a pod, at its removal, and at the daemon's start.
//! Invariants: at most [`AT_ONCE`] DELs run in the background, so that many leftovers do not overload the node; GC
//! never delays ADD or DEL; CHECK gives way to DEL; the pin of a pod's namespace is removed after its DEL has
//! succeeded, not while plugins may use it.
//! Not here: the DEL itself.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};
use std::path::Path;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::RwLockWriteGuard;

use super::exec::Runner;
use super::{Cni, INTERFACE, chain, invoke};
use crate::namespace::unpin;

/// How many DELs run in the background at a time.
pub const AT_ONCE: usize = 4;
/// How long a DEL may delay the daemon's start before it goes on in the background.
pub const START_TIMEOUT: Duration = Duration::from_secs(2);
/// First and longest pause between attempts at a DEL; up to half of it is added at random.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(10));
/// Time limit of one plugin for CHECK, and for GC, during which ADD and DEL wait.
const BACKGROUND_LIMIT: Duration = Duration::from_secs(10);
/// How long, and at which interval, GC tries to find a moment without ADD and DEL.
const GC_TIMEOUT: (Duration, Duration) = (Duration::from_mins(2), Duration::from_millis(50));
/// How long the DELs of pods without a record wait for GC to find that moment.
const GC_HEAD_START: Duration = Duration::from_secs(5);

impl Cni {
    /// As [`Cni::del`], but after 2 s, or a failure, it goes on in the background until it succeeds; the pod's
    /// namespace is unpinned then.
    pub async fn del_soon(self: &Arc<Self>, pod: &str) {
        let (network, pod) = (Arc::clone(self), pod.to_owned());
        let attempts = tokio::spawn(async move { network.del_until_done(&pod).await });
        let _ = tokio::time::timeout(START_TIMEOUT, attempts).await;
    }

    /// Retries a DEL that is still owed in the background, because no caller will repeat it, and then unpins the pod's
    /// namespace. To be called in a tokio runtime.
    pub fn abandon(self: &Arc<Self>, pod: &str) {
        if self.is_owed(pod) {
            let (network, pod) = (Arc::clone(self), pod.to_owned());
            tokio::spawn(async move { network.del_until_done(&pod).await });
        }
    }

    async fn del_until_done(self: &Arc<Self>, pod: &str) {
        if !self.lock_abandoned().insert(pod.to_owned()) {
            return;
        }
        let mut attempt = 0;
        let pin = loop {
            let deleted = {
                let _place = self.background.acquire().await;
                self.del_now(pod).await
            };
            let error = match deleted {
                Ok(pin) => break pin,
                Err(error) => error,
            };
            let pause = pause(attempt);
            attempt += 1;
            tracing::warn!(
                pod,
                error = chain(&error),
                again_in_s = pause.as_secs(),
                "cannot detach a removed pod; trying again"
            );
            tokio::time::sleep(pause).await;
        };
        if let Some(pin) = pin {
            let id = pod.to_owned();
            let _ = tokio::task::spawn_blocking(move || drop_pin(&id, &pin)).await;
        }
        self.lock_abandoned().remove(pod);
    }

    fn lock_abandoned(&self) -> MutexGuard<'_, HashSet<String>> {
        // No panic leaves the set half changed.
        self.abandoned
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called once in a tokio runtime, when the live pods are known: detaches all others, runs CHECK for the live
    /// ones, and, if CNI attaches new pods, runs GC. All of it happens in the background; failures are logged.
    pub fn resume(self: &Arc<Self>, live: &HashSet<String>, is_in_use: bool) {
        let (kept, gone): (Vec<String>, Vec<String>) = self
            .cache
            .pods()
            .into_iter()
            .partition(|pod| live.contains(pod));
        let network = Arc::clone(self);
        tokio::spawn(async move {
            if is_in_use {
                let collector = Arc::clone(&network);
                let garbage = tokio::spawn(async move { collector.collect_garbage().await });
                let _ = tokio::time::timeout(GC_HEAD_START, garbage).await;
            }
            for pod in gone {
                tracing::info!(pod, "detaching a pod that has no record");
                network.abandon(&pod);
            }
            network.check(kept).await;
        });
    }

    pub(super) async fn collect_garbage(self: &Arc<Self>) {
        let readiness = Arc::clone(&self.readiness);
        let list = tokio::task::spawn_blocking(move || readiness.network()).await;
        let Ok(Ok(list)) = list else { return };
        if !invoke::has_gc(&list) {
            return;
        }
        let Some(_alone) = self.exclude_plugins().await else {
            tracing::warn!(network = %list.name, "cannot run GC: ADD or DEL ran all the time");
            return;
        };
        // The list of valid attachments must be built while no ADD runs.
        let attachments = self.cache.pods().into_iter();
        let valid: Vec<Value> = attachments
            .map(|pod| json!({"containerID": pod, "ifname": INTERFACE}))
            .collect();
        if let Err(error) = invoke::gc(&self.background_runner(), &list, &Value::Array(valid)).await
        {
            tracing::warn!(network = %list.name, error = chain(&error), "GC failed");
        }
    }

    /// Waits for a moment without ADD, DEL and CHECK, and blocks them from then on. It does not queue for the lock: an
    /// ADD would wait behind it for the slowest plugin. `None` if there is no such moment.
    async fn exclude_plugins(&self) -> Option<RwLockWriteGuard<'_, ()>> {
        let (begun, (timeout, pause)) = (Instant::now(), GC_TIMEOUT);
        while begun.elapsed() < timeout {
            if let Ok(alone) = self.gate.try_write() {
                return Some(alone);
            }
            tokio::time::sleep(pause).await;
        }
        None
    }

    /// Runs CHECK for one pod after the other, and cancels it when a DEL waits for the pod's lock.
    pub(super) async fn check(self: &Arc<Self>, pods: Vec<String>) {
        let runner = self.background_runner();
        for pod in pods {
            let pod_lock = self.pod_locks.acquire(&pod).await;
            let checked = async {
                let _gate = self.gate.read().await;
                let id = pod.clone();
                match self.on_disk(move |cache| cache.read(&id)).await {
                    Ok(Some(entry)) => invoke::check(&runner, &entry).await,
                    // Detached meanwhile, or broken, which DEL reports.
                    _ => Ok(()),
                }
            };
            let checked = tokio::select! {
                checked = checked => checked,
                () = pod_lock.is_contended() => continue,
            };
            if let Err(error) = checked {
                tracing::warn!(
                    pod,
                    error = chain(&error),
                    "CHECK of a pod's network failed"
                );
            }
        }
    }

    /// The runner for background work, with its own time limit.
    fn background_runner(&self) -> Runner {
        let mut runner = self.runner.clone();
        runner.limit = runner.limit.min(BACKGROUND_LIMIT);
        runner
    }
}

/// The pause after failed attempt `attempt`, counted from 0. It has a random part, so that pods that failed
/// together are not retried together.
fn pause(attempt: u32) -> Duration {
    let (first, longest) = RETRY;
    let pause = first
        .saturating_mul(2_u32.saturating_pow(attempt))
        .min(longest);
    let spread = RandomState::new().hash_one(attempt) % 512;
    // Below 512, so it fits.
    pause + pause * u32::try_from(spread).unwrap_or_default() / 1024
}

/// Unpins a pod's namespace, if `pin` has the pod's name; any other file stays.
fn drop_pin(pod: &str, pin: &Path) {
    if pin.file_name().is_none_or(|name| name != pod) {
        return;
    }
    if let Err(error) = unpin(pin) {
        tracing::warn!(
            pod,
            error = %error,
            "cannot unpin the network namespace of a removed pod"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_ten_minutes_and_are_spread() {
        for (attempt, least) in [
            (0, 1),
            (1, 2),
            (3, 8),
            (10, 600),
            (40, 600),
            (u32::MAX, 600),
        ] {
            let pauses: Vec<Duration> = (0..32).map(|_| pause(attempt)).collect();
            let least = Duration::from_secs(least);
            assert!(
                pauses
                    .iter()
                    .all(|pause| (least..least * 3 / 2).contains(pause)),
                "{attempt}: {pauses:?}"
            );
            assert!(pauses.iter().any(|pause| *pause != pauses[0]), "{attempt}");
        }
    }
}
