//! What a call to a plugin is about, and whether the plugin knows it already.
//!
//! Called by: [`super::events`]. Invariant: an event is news to a plugin unless its synchronisation held it, or it was asked
//! before. Must not know: sessions' calls.

use coracle_lifecycle::{ContainerRecord, PluginEvent, PodRecord};
use coracle_proto::nri::v1 as nri;

use super::convert;
use super::event::Event;
use super::session::Session;

/// What a call is about.
pub struct Subject {
    /// The id of the pod or the container.
    pub id: String,
    /// Pod and container, as plugins are shown them.
    pub request: nri::EventRequest,
    /// The pod's id and the event's number, if plugins are notified of it afterwards.
    notified: Option<(String, Option<u64>)>,
}

impl Subject {
    /// A pod that plugins are asked about.
    pub fn pod(pod: &PodRecord) -> Self {
        Subject {
            id: pod.id.to_string(),
            request: nri::EventRequest {
                pod: Some(convert::pod(pod)),
                container: None,
            },
            notified: None,
        }
    }

    /// A container that plugins are asked about.
    pub fn container(pod: &PodRecord, container: &ContainerRecord) -> Self {
        Subject {
            id: container.id.to_string(),
            request: nri::EventRequest {
                pod: Some(convert::pod(pod)),
                container: Some(convert::container(pod, container)),
            },
            notified: None,
        }
    }

    /// Something that plugins are notified of.
    pub fn of(event: &PluginEvent) -> Self {
        let subject = match &event.container {
            Some(container) => Subject::container(&event.pod, container),
            None => Subject::pod(&event.pod),
        };
        Subject {
            notified: Some((event.pod.id.to_string(), event.number)),
            ..subject
        }
    }

    /// Whether a plugin, whose turn it is, does not know it yet.
    pub fn is_news(&self, session: &Session, event: Event) -> bool {
        match &self.notified {
            None => true,
            Some((_, None)) => session.known.last(&self.id).is_some(),
            Some((pod, Some(number))) => session
                .known
                .last(pod)
                .is_none_or(|known| event != Event::RunPodSandbox && known < *number),
        }
    }

    /// Keeps what the plugin knows up to date.
    pub fn note(&self, session: &Session, event: Event) {
        match (event, &self.notified) {
            (Event::RunPodSandbox | Event::CreateContainer, None) => {
                session.known.learn(&self.id, 0)
            }
            (Event::RunPodSandbox, Some((_, number))) => {
                session.known.learn(&self.id, number.unwrap_or_default());
            }
            (Event::PostCreateContainer | Event::RemoveContainer | Event::RemovePodSandbox, _) => {
                session.known.forget(&self.id);
            }
            _ => {}
        }
    }
}
