//! Notifies plugins of what happens to pods and containers, by the trait of the lifecycle.
//!
//! Called by: the lifecycle, in effects and queues of each pod. Calls: sessions, one plugin after the other by index.
//! Invariants: a plugin that hangs or breaks the protocol is closed, and the request goes on without it; one that answers
//! an error, or an adjustment that cannot be made, fails the request, with its name; nothing is locked while one waits
//! but the turn of the plugin itself, and nobody waits for the turn of a plugin that answers nothing; of each change a
//! plugin learns once.
//! Must not know: how an adjustment is applied.

mod create;

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use coracle_lifecycle::{
    Adjusted, ContainerRecord, EffectFuture, Error, Kind, PluginEvent, PluginEventKind, Plugins,
    PodRecord, Resources,
};
use coracle_proto::nri::v1 as nri;
use futures_util::future::BoxFuture;
use prost::Message;
use tracing::{Instrument as _, info_span};

use super::Nri;
use super::adjust::merge_limits;
use super::convert;
use super::event::Event;
use super::session::{CallError, Session};
use super::subject::Subject;
use super::updates::Change;

/// A request waits for a plugin's turn, while it answers nothing, as long as so many calls may take.
const TURNS: u32 = 5;
/// A stop, or the answer to a request, waits until plugins are notified as long as so many calls may take.
const PATIENCE: u32 = 2;
/// And no longer than this.
const MOST_PATIENCE: Duration = Duration::from_secs(10);

impl Nri {
    /// Sends an event to one plugin, once it is its turn. `None` if it does not want it, or is out.
    /// Errors: the plugin's own, with its name.
    async fn send(
        &self,
        session: &Arc<Session>,
        event: Event,
        subject: &Subject,
        request: &impl Message,
    ) -> Result<Option<Vec<u8>>, Error> {
        if !session.wants(event) {
            subject.note(session, event);
            return Ok(None);
        }
        let waits = Waits::begin(session, &subject.id);
        let limit = self.settings.request_timeout * TURNS;
        let turn = session.turn(limit).await;
        drop(waits);
        let is_news = turn.is_some() && subject.is_news(session, event);
        subject.note(session, event);
        if !is_news {
            return Ok(None);
        }
        let name = session.name();
        let span = info_span!(
            target: "otel",
            "nri",
            otel.name = format!("nri.{}", event.method()),
            nri.plugin = name
        );
        let answer = session.event(event, request, &subject.request);
        let answer = answer.instrument(span).await;
        drop(turn);
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(CallError::Closed) => Ok(None),
            // A validator of before 0.12.
            Err(CallError::Unimplemented) => Ok(None),
            Err(CallError::Answered(why)) => Err(Error::new(
                Kind::Invalid,
                format!("NRI plugin {name} refuses {}: {why}", event.method()),
            )),
            Err(CallError::TooLarge(bytes)) => Err(Error::new(
                Kind::Invalid,
                format!(
                    "NRI plugin {name} cannot be sent {}: it has {bytes} bytes, more than the protocol allows",
                    event.method()
                ),
            )),
        }
    }

    /// The answer as a message; `None` closes a plugin whose answer is none.
    fn read<T: Message + Default>(session: &Session, event: Event, answer: &[u8]) -> Option<T> {
        match T::decode(answer) {
            Ok(answer) => Some(answer),
            Err(error) => {
                let method = event.method();
                session.close(format!("its answer to {method} cannot be read: {error}"));
                None
            }
        }
    }

    /// Sends an event to all, until one fails it.
    async fn send_all(&self, event: Event, subject: &Subject) -> Result<(), Error> {
        for session in self.connected.all().iter() {
            self.send(session, event, subject, &subject.request).await?;
        }
        Ok(())
    }

    async fn update(
        &self,
        pod: &PodRecord,
        container: &ContainerRecord,
        requested: Resources,
    ) -> Result<Resources, Error> {
        let subject = Subject::container(pod, container);
        let mut own = nri::LinuxResources::default();
        let (mut owners, mut others) = (super::owners::Owners::default(), Vec::new());
        let mut request = nri::UpdateContainerRequest {
            pod: subject.request.pod.clone(),
            container: subject.request.container.clone(),
            linux_resources: Some(convert::resources(&requested)),
        };
        for session in self.connected.all().iter() {
            let event = Event::UpdateContainer;
            let answer = self.send(session, event, &subject, &request).await?;
            let answer = answer.as_deref();
            let answer = answer
                .and_then(|answer| Self::read::<nri::UpdatesResponse>(session, event, answer));
            let Some(answer) = answer else { continue };
            let name = session.name();
            for change in Change::all(name, answer.update, answer.evict) {
                if change.update.container_id != subject.id || change.is_eviction {
                    others.push(change);
                    continue;
                }
                let set = change.update.linux.and_then(|linux| linux.resources);
                let refused = |why| {
                    Error::new(
                        Kind::Invalid,
                        format!("NRI plugin {name}: UpdateContainer: {why}"),
                    )
                };
                super::adjust::add_limits(&mut own, set.unwrap_or_default(), name, &mut owners)
                    .map_err(refused)?;
            }
            let shown = request.linux_resources.get_or_insert_default();
            super::adjust::show_limits(shown, &own);
        }
        self.apply(others).await?;
        let (resources, pids) = merge_limits(&requested, &own)
            .map_err(|why| Error::new(Kind::Invalid, format!("NRI: {why}")))?;
        // A plugin may answer with all limits that it was shown.
        match pids {
            Some(limit) if convert::pids(container) != Some(limit) => Err(Error::new(
                Kind::Invalid,
                "NRI: resources: the number of processes is set when a container is created",
            )),
            _ => Ok(resources),
        }
    }

    async fn update_pod(
        &self,
        pod: &PodRecord,
        overhead: &Resources,
        requested: &Resources,
    ) -> Result<(), Error> {
        let subject = Subject::pod(pod);
        let request = nri::UpdatePodSandboxRequest {
            pod: subject.request.pod.clone(),
            overhead_linux_resources: Some(convert::resources(overhead)),
            linux_resources: Some(convert::resources(requested)),
        };
        let sessions = self.connected.all();
        for session in sessions.iter() {
            let event = Event::UpdatePodSandbox;
            self.send(session, event, &subject, &request).await?;
        }
        for session in sessions.iter() {
            let event = Event::PostUpdatePodSandbox;
            let notified = self.send(session, event, &subject, &subject.request).await;
            if let Err(error) = notified {
                tracing::warn!(error = error.chain(), "an NRI plugin cannot prevent this");
            }
        }
        Ok(())
    }

    async fn notified(&self, event: &PluginEvent) {
        let subject = Subject::of(event);
        let event = match event.kind {
            PluginEventKind::PodStarted => Event::RunPodSandbox,
            PluginEventKind::PodStopped => Event::StopPodSandbox,
            PluginEventKind::PodRemoved => Event::RemovePodSandbox,
            PluginEventKind::ContainerCreated => Event::PostCreateContainer,
            PluginEventKind::ContainerStarted => Event::PostStartContainer,
            PluginEventKind::ContainerUpdated => Event::PostUpdateContainer,
            PluginEventKind::ContainerStopped => Event::StopContainer,
            PluginEventKind::ContainerRemoved => Event::RemoveContainer,
        };
        for session in self.connected.all().iter() {
            match self.send(session, event, &subject, &subject.request).await {
                Ok(Some(answer)) if event == Event::StopContainer => {
                    let answer = Self::read::<nri::UpdatesResponse>(session, event, &answer);
                    let Some(answer) = answer else { continue };
                    let changes = Change::all(session.name(), answer.update, answer.evict);
                    let changes = changes.map(Change::alone);
                    if let Err(error) = self.apply(changes.collect()).await {
                        tracing::warn!(error = error.chain(), "an update by an NRI plugin failed");
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(error = error.chain(), "an NRI plugin cannot prevent this");
                }
            }
        }
    }
}

/// A pod or container whose creation waits for a plugin's turn: the plugin's synchronisation does not wait for it.
struct Waits<'a> {
    session: &'a Session,
    id: &'a str,
}

impl<'a> Waits<'a> {
    fn begin(session: &'a Session, id: &'a str) -> Self {
        let waiting = session.waiting.lock();
        waiting
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id.to_owned());
        Waits { session, id }
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let waiting = self.session.waiting.lock();
        waiting
            .unwrap_or_else(PoisonError::into_inner)
            .remove(self.id);
    }
}

impl Plugins for Nri {
    fn any(&self) -> bool {
        self.connected.any()
    }

    fn patience(&self) -> Duration {
        (self.settings.request_timeout * PATIENCE).min(MOST_PATIENCE)
    }

    fn run_pod<'a>(&'a self, pod: &'a PodRecord) -> EffectFuture<'a, ()> {
        Box::pin(async move {
            self.send_all(Event::RunPodSandbox, &Subject::pod(pod))
                .await
        })
    }

    fn create_container<'a>(
        &'a self,
        pod: &'a PodRecord,
        container: &'a ContainerRecord,
    ) -> EffectFuture<'a, Option<Box<Adjusted>>> {
        Box::pin(self.create(pod, container))
    }

    fn start_container<'a>(
        &'a self,
        pod: &'a PodRecord,
        container: &'a ContainerRecord,
    ) -> EffectFuture<'a, ()> {
        Box::pin(async move {
            let subject = Subject::container(pod, container);
            self.send_all(Event::StartContainer, &subject).await
        })
    }

    fn update_container<'a>(
        &'a self,
        pod: &'a PodRecord,
        container: &'a ContainerRecord,
        requested: Resources,
    ) -> EffectFuture<'a, Resources> {
        Box::pin(self.update(pod, container, requested))
    }

    fn update_pod<'a>(
        &'a self,
        pod: &'a PodRecord,
        overhead: &'a Resources,
        requested: &'a Resources,
    ) -> EffectFuture<'a, ()> {
        Box::pin(self.update_pod(pod, overhead, requested))
    }

    fn observe<'a>(&'a self, event: &'a PluginEvent) -> BoxFuture<'a, ()> {
        Box::pin(self.notified(event))
    }
}
