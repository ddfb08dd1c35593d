//! The creation of a container, which plugins may adjust, refuse and validate.
//!
//! Called by: [`super`], for the lifecycle. Calls: plugins through [`super`], adjustments, updates.
//! Invariants: each plugin sees what those before it adjusted; nothing is applied before all have answered and none
//! rejects; no container is created while a required plugin is missing.
//! Must not know: how a call is made, turns and limits, how an adjustment is applied.

use std::sync::Arc;

use coracle_lifecycle::{Adjusted, ContainerRecord, Error, Kind, Payload, PodRecord};
use coracle_proto::nri::v1 as nri;

use crate::Nri;
use crate::adjust::{Adjustments, Rules};
use crate::adjusted::adjusted;
use crate::event::Event;
use crate::session::Session;
use crate::subject::Subject;
use crate::updates::Change;

impl Nri {
    /// Errors: a plugin is not connected that the operator requires.
    fn has_required(&self) -> Result<(), Error> {
        match self.connected.missing() {
            None => Ok(()),
            Some(missing) => Err(Error::new(
                Kind::WrongPhase,
                format!(
                    "NRI plugin {missing:?} is not connected, and nri.required_plugins names it"
                ),
            )),
        }
    }

    /// Has plugins adjust a container before it is created. `None` if none does.
    /// Errors: one refuses or rejects it, or a required one is not connected.
    pub(super) async fn create(
        &self,
        pod: &PodRecord,
        container: &ContainerRecord,
    ) -> Result<Option<Box<Adjusted>>, Error> {
        self.has_required()?;
        let mut subject = Subject::container(pod, container);
        let shown = subject.request.container.clone().unwrap_or_default();
        let mut adjustments = Adjustments::new(shown);
        let rules = Rules {
            reject: &self.settings.reject,
            is_wasm: matches!(container.plan.payload, Payload::Wasm(_)),
        };
        let (sessions, mut updates, mut by) = (self.connected.all(), Vec::new(), Vec::new());
        for session in sessions.iter() {
            let event = Event::CreateContainer;
            let answer = self
                .send(session, event, &subject, &subject.request)
                .await?;
            let answer = answer.as_deref();
            let answer = answer.and_then(|answer| {
                Self::read::<nri::CreateContainerResponse>(session, event, answer)
            });
            let Some(answer) = answer else { continue };
            let name = session.name();
            let refused = |why| {
                let text = format!(
                    "NRI plugin {name}: container {}: {why}",
                    container.config.name
                );
                Error::new(Kind::Invalid, text)
            };
            if let Some(adjust) = answer.adjust {
                adjustments.add(name, adjust, &rules).map_err(refused)?;
                subject.request.container = Some(adjustments.container.clone());
                by.push(name.to_owned());
            }
            rules.check_updates(&answer.update).map_err(refused)?;
            updates.extend(Change::all(name, answer.update, answer.evict));
        }
        self.validate(&sessions, &subject, &adjustments, &updates)
            .await?;
        // One may have been closed meanwhile.
        self.has_required()?;
        self.apply(updates).await?;
        if adjustments.is_empty() {
            return Ok(None);
        }
        let (record, by) = (container.clone(), by.join(", "));
        let made = tokio::task::spawn_blocking(move || adjusted(&record, &adjustments, by)).await;
        let made = made.map_err(|error| Error::because(Kind::Bug, "adjust a container", error))?;
        let made = made.map_err(|why| {
            Error::new(
                Kind::Invalid,
                format!("NRI: container {}: {why}", container.config.name),
            )
        })?;
        Ok(Some(Box::new(made)))
    }

    /// Has plugins look at what all of them adjusted. Errors: one rejects it.
    async fn validate(
        &self,
        sessions: &[Arc<Session>],
        subject: &Subject,
        adjustments: &Adjustments,
        updates: &[Change],
    ) -> Result<(), Error> {
        let event = Event::ValidateContainerAdjustment;
        if !sessions.iter().any(|session| session.wants(event)) {
            return Ok(());
        }
        let plugins = sessions.iter().filter_map(|session| {
            let (index, name) = session.name().split_once('-')?;
            Some(nri::PluginInstance {
                name: name.to_owned(),
                index: index.to_owned(),
            })
        });
        let request = nri::ValidateContainerAdjustmentRequest {
            pod: subject.request.pod.clone(),
            container: subject.request.container.clone(),
            adjust: Some(adjustments.shown()),
            update: updates.iter().map(|change| change.update.clone()).collect(),
            owners: Some(adjustments.owners.shown(&subject.id)),
            plugins: plugins.collect(),
        };
        for session in sessions {
            let answer = self.send(session, event, subject, &request).await?;
            let answer = answer.as_deref().and_then(|answer| {
                Self::read::<nri::ValidateContainerAdjustmentResponse>(session, event, answer)
            });
            if let Some(answer) = answer.filter(|answer| answer.reject) {
                let text = format!(
                    "NRI plugin {} rejects the adjustments of plugins: {}",
                    session.name(),
                    answer.reason
                );
                return Err(Error::new(Kind::Invalid, text));
            }
        }
        Ok(())
    }
}
