//! Tells a new plugin what exists, so that it misses nothing.
//!
//! Called by: [`super::listener`], once a plugin is configured. Calls: the lifecycle for what exists, the plugin.
//! Invariant: a pod or container that is being created meanwhile reaches the plugin by one of two ways. The plugin is in
//! the list of those that are called before anything is looked at, with its turn taken: a creation that sees the list
//! waits for that turn; one that had read the list before is waited for here, and then is part of what exists, or else
//! told by the event that follows it. Later events of a pod are told, those of before are not.
//! Must not know: what a plugin does with it.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use coracle_lifecycle::{PodRecords, Pods};
use coracle_proto::nri::v1 as nri;
use coracle_spec::id::PodId;
use prost::Message as _;
use tokio::time::Instant;

use super::Nri;
use super::convert;
use super::session::{CallError, Session};
use super::updates::Change;
use super::wire::MAX_MESSAGE;

/// Pause before creations that had begun are looked at again.
const PAUSE: Duration = Duration::from_millis(5);
/// Most bytes of one part, with room for what surrounds it.
const PART: usize = MAX_MESSAGE - (64 << 10);
/// Bytes around an object in a message, at most.
const FRAME: usize = 8;

impl Nri {
    /// Synchronises a plugin, which is added to the list. Errors: why it cannot be kept.
    pub(crate) async fn synchronize(
        &self,
        pods: &Pods,
        session: &Arc<Session>,
    ) -> Result<(), String> {
        let turn = session.turn(self.settings.request_timeout).await;
        self.connected.add(session)?;
        let existing = self.existing(pods, session).await;
        let updates = send(session, &existing).await?;
        drop(turn);
        let name = session.name();
        let containers: usize = existing.iter().map(|pod| pod.containers.len()).sum();
        let pods = existing.len();
        tracing::info!(plugin = name, pods, containers, "NRI plugin synchronised");
        let changes = Change::all(name, updates, Vec::new());
        let changes = changes.map(Change::alone).collect();
        if let Err(error) = self.apply(changes).await {
            tracing::warn!(
                plugin = name,
                error = error.chain(),
                "an update by an NRI plugin failed"
            );
        }
        Ok(())
    }

    /// What exists, once creations that do not know of the plugin have ended, or have taken too long.
    async fn existing(&self, pods: &Pods, session: &Session) -> Vec<PodRecords> {
        let end = Instant::now() + self.settings.request_timeout;
        // All are asked at once: what one takes is not taken from the others.
        let names = pods.names().into_iter();
        let asked: Vec<_> = names
            .map(|(_, _, id)| settled(pods, session, id, end))
            .collect();
        let found = futures_util::future::join_all(asked).await;
        let mut found: Vec<PodRecords> = found.into_iter().flatten().collect();
        let pod = |records: &PodRecords| records.unborn.contains(&records.pod.id.to_string());
        found.retain(|records| !pod(records));
        for records in &found {
            session
                .known
                .learn(records.pod.id.as_str(), records.notified);
        }
        found
    }
}

/// What exists of a pod, once creations in it that do not know of the plugin have ended; at `end`, as it was found last.
/// `None` if it has just gone, or never answers: such a one meets the plugin later.
async fn settled(pods: &Pods, session: &Session, id: PodId, end: Instant) -> Option<PodRecords> {
    let mut last = None;
    while let Ok(answer) = tokio::time::timeout_at(end, pods.records(&id)).await {
        let records = answer.ok()?;
        let is_settled = waits_for(session, &records.unborn);
        last = Some(records);
        if is_settled || Instant::now() >= end {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    last
}

/// Whether everything that is being created waits for the plugin's turn.
fn waits_for(session: &Session, unborn: &[String]) -> bool {
    let waiting = session.waiting.lock();
    let waiting = waiting.unwrap_or_else(PoisonError::into_inner);
    unborn.iter().all(|id| waiting.contains(id))
}

/// Sends what exists, in parts that fit; the updates that the plugin requests.
async fn send(
    session: &Session,
    existing: &[PodRecords],
) -> Result<Vec<nri::ContainerUpdate>, String> {
    let mut updates = Vec::new();
    for part in parts(existing, PART) {
        let answer = call(session, &part).await?;
        if part.more && (!answer.more || !answer.update.is_empty()) {
            return Err("it does not take a synchronisation in parts".to_owned());
        }
        updates = answer.update;
    }
    Ok(updates)
}

/// What exists, as messages of at most `most` bytes each, unless one object alone has more; all but the last say that
/// there is more.
fn parts(existing: &[PodRecords], most: usize) -> Vec<nri::SynchronizeRequest> {
    let mut all = Vec::new();
    let mut part = nri::SynchronizeRequest::default();
    let mut bytes = 0;
    let mut room_for = |part: &mut nri::SynchronizeRequest, length: usize| {
        if bytes + length > most && bytes > 0 {
            part.more = true;
            all.push(std::mem::take(part));
            bytes = 0;
        }
        bytes += length + FRAME;
    };
    for records in existing {
        let pod = convert::pod(&records.pod);
        room_for(&mut part, pod.encoded_len());
        part.pods.push(pod);
    }
    for records in existing {
        for container in &records.containers {
            let container = convert::container(&records.pod, container);
            room_for(&mut part, container.encoded_len());
            part.containers.push(container);
        }
    }
    all.push(part);
    all
}

async fn call(
    session: &Session,
    part: &nri::SynchronizeRequest,
) -> Result<nri::SynchronizeResponse, String> {
    let answer = match session.call("Synchronize", part).await {
        Ok(answer) => answer,
        Err(CallError::Closed) => return Err("it was closed".to_owned()),
        Err(CallError::Unimplemented) => Vec::new(),
        Err(CallError::Answered(why)) => return Err(format!("it refuses to synchronise: {why}")),
        Err(CallError::TooLarge(bytes)) => {
            return Err(format!("one container alone has {bytes} bytes"));
        }
    };
    nri::SynchronizeResponse::decode(answer.as_slice())
        .map_err(|error| format!("its answer to Synchronize cannot be read: {error}"))
}
