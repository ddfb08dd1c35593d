//! Filters of lists: read once, then applied to snapshots.
//!
//! Called by `pods` and `containers`. Invariants: all conditions of a filter must hold; an id may be given as a prefix
//! of exactly one object's id, as `crictl` sends it; an ambiguous or unknown prefix selects nothing.
//! Must not know: how the selected objects are rendered.

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_lifecycle::{ContainerState, ContainerView, PodView};
use coracle_proto::runtime::v1 as cri;

use super::BadRequest;

/// The sandboxes that a list shows.
#[derive(Debug, Default)]
pub(crate) struct PodFilter {
    id: String,
    ready: Option<bool>,
    labels: BTreeMap<String, String>,
}

impl PodFilter {
    /// Reads the filter of a list; without a filter all are shown. Errors: an unknown state.
    pub(crate) fn read(filter: Option<cri::PodSandboxFilter>) -> Result<Self, BadRequest> {
        let filter = filter.unwrap_or_default();
        let ready = match filter
            .state
            .map(|value| (value.state, cri::PodSandboxState::try_from(value.state)))
        {
            None => None,
            Some((_, Ok(cri::PodSandboxState::SandboxReady))) => Some(true),
            Some((_, Ok(cri::PodSandboxState::SandboxNotready))) => Some(false),
            Some((value, Err(_))) => return Err(no_state(value)),
        };
        Ok(Self {
            id: filter.id,
            ready,
            labels: filter.label_selector,
        })
    }

    /// The sandboxes among `all` that match, in their order.
    pub(crate) fn select(&self, mut all: Vec<Arc<PodView>>) -> Vec<Arc<PodView>> {
        let id = Wanted::among(&self.id, all.iter().map(|pod| pod.id.as_str()));
        all.retain(|pod| {
            id.is(pod.id.as_str())
                && self.ready.is_none_or(|ready| pod.ready == ready)
                && has_labels(&pod.config.labels, &self.labels)
        });
        all
    }
}

/// The containers that a list shows.
#[derive(Debug, Default)]
pub(crate) struct ContainerFilter {
    id: String,
    pod: String,
    state: Option<ContainerState>,
    labels: BTreeMap<String, String>,
}

impl ContainerFilter {
    /// Reads the filter of a list; without a filter all are shown. Errors: an unknown state.
    pub(crate) fn read(filter: Option<cri::ContainerFilter>) -> Result<Self, BadRequest> {
        let filter = filter.unwrap_or_default();
        let state = match filter
            .state
            .map(|value| (value.state, cri::ContainerState::try_from(value.state)))
        {
            None => None,
            Some((_, Ok(cri::ContainerState::ContainerCreated))) => Some(ContainerState::Created),
            Some((_, Ok(cri::ContainerState::ContainerRunning))) => Some(ContainerState::Running),
            Some((_, Ok(cri::ContainerState::ContainerExited))) => Some(ContainerState::Exited),
            Some((_, Ok(cri::ContainerState::ContainerUnknown))) => Some(ContainerState::Unknown),
            Some((value, Err(_))) => return Err(no_state(value)),
        };
        Ok(Self {
            id: filter.id,
            pod: filter.pod_sandbox_id,
            state,
            labels: filter.label_selector,
        })
    }

    /// The containers among `all` that match, in their order.
    pub(crate) fn select(&self, mut all: Vec<Arc<ContainerView>>) -> Vec<Arc<ContainerView>> {
        let id = Wanted::among(&self.id, all.iter().map(|container| container.id.as_str()));
        let pod = Wanted::among(
            &self.pod,
            all.iter().map(|container| container.pod.as_str()),
        );
        all.retain(|container| {
            id.is(container.id.as_str())
                && pod.is(container.pod.as_str())
                && self.state.is_none_or(|state| container.state == state)
                && has_labels(&container.config.labels, &self.labels)
        });
        all
    }
}

/// The object that an id in a filter selects.
enum Wanted {
    /// No id was given.
    Any,
    /// The object with this id.
    One(Box<str>),
    /// None: no object or several objects have that prefix.
    Nothing,
}

impl Wanted {
    /// Completes `text`, a whole id or a prefix, from `ids`, which may contain an id more than once.
    fn among<'a>(text: &str, ids: impl Iterator<Item = &'a str>) -> Self {
        if text.is_empty() {
            return Self::Any;
        }
        let mut found: Option<&str> = None;
        for id in ids.filter(|id| id.starts_with(text)) {
            match found {
                Some(other) if other != id => return Self::Nothing,
                _ => found = Some(id),
            }
        }
        found.map_or(Self::Nothing, |id| Self::One(id.into()))
    }

    fn is(&self, id: &str) -> bool {
        match self {
            Self::Any => true,
            Self::One(wanted) => &**wanted == id,
            Self::Nothing => false,
        }
    }
}

fn has_labels(labels: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

fn no_state(value: i32) -> BadRequest {
    BadRequest::invalid(
        "filter.state.state",
        format!("is {value}, which is not a state"),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::super::render::samples;
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    fn containers() -> Vec<Arc<ContainerView>> {
        let with = |id: char, pod: char, state, pairs: &[(&str, &str)]| {
            let mut view = samples::container(id, pod);
            view.state = state;
            Arc::make_mut(&mut view.config).labels = labels(pairs);
            Arc::new(view)
        };
        vec![
            with(
                'a',
                '1',
                ContainerState::Running,
                &[("app", "web"), ("tier", "front")],
            ),
            with('b', '1', ContainerState::Exited, &[("app", "web")]),
            with('c', '2', ContainerState::Running, &[("app", "db")]),
        ]
    }

    fn selected(filter: cri::ContainerFilter) -> String {
        let chosen = ContainerFilter::read(Some(filter))
            .unwrap()
            .select(containers());
        chosen.iter().map(|view| &view.id.as_str()[..1]).collect()
    }

    #[test]
    fn each_condition_of_a_filter_selects() {
        let filter = cri::ContainerFilter::default;
        let state = |state| Some(cri::ContainerStateValue { state });
        assert_eq!(selected(filter()), "abc");
        assert_eq!(
            selected(cri::ContainerFilter {
                state: state(1),
                ..filter()
            }),
            "ac"
        );
        assert_eq!(
            selected(cri::ContainerFilter {
                pod_sandbox_id: "11".into(),
                ..filter()
            }),
            "ab"
        );
        let web = labels(&[("app", "web")]);
        assert_eq!(
            selected(cri::ContainerFilter {
                label_selector: web,
                ..filter()
            }),
            "ab"
        );
    }

    #[test]
    fn all_conditions_must_hold_at_once() {
        let filter = cri::ContainerFilter::default;
        let state = Some(cri::ContainerStateValue { state: 2 });
        let web = labels(&[("app", "web")]);
        let both = cri::ContainerFilter {
            label_selector: web,
            state,
            ..filter()
        };
        assert_eq!(selected(both), "b");
        let exact = labels(&[("app", "web"), ("tier", "back")]);
        assert_eq!(
            selected(cri::ContainerFilter {
                label_selector: exact,
                ..filter()
            }),
            ""
        );
        let elsewhere = cri::ContainerFilter {
            id: "c".into(),
            pod_sandbox_id: "1".into(),
            ..filter()
        };
        assert_eq!(selected(elsewhere), "");
    }

    #[test]
    fn ids_are_completed_when_one_object_has_the_prefix() {
        let of = |id: &str| {
            selected(cri::ContainerFilter {
                id: id.into(),
                ..Default::default()
            })
        };
        assert_eq!(of(&"b".repeat(64)), "b");
        assert_eq!(of("bbb"), "b");
        assert_eq!(of("d"), "");
        assert_eq!(of(&"b".repeat(65)), "");
        let mut twins = containers();
        let id = format!("b{}", "0".repeat(63)).parse().unwrap();
        twins.push(Arc::new(ContainerView {
            id,
            ..samples::container('b', '2')
        }));
        let ambiguous = ContainerFilter {
            id: "b".into(),
            ..Default::default()
        };
        assert!(ambiguous.select(twins).is_empty());
    }

    #[test]
    fn sandboxes_are_selected_by_state_and_labels() {
        let mut stopped = samples::pod('2');
        stopped.ready = false;
        let all = vec![Arc::new(samples::pod('1')), Arc::new(stopped)];
        let of = |state| {
            let state = Some(cri::PodSandboxStateValue { state });
            let filter = cri::PodSandboxFilter {
                state,
                ..Default::default()
            };
            PodFilter::read(Some(filter)).map(|f| {
                f.select(all.clone())
                    .iter()
                    .map(|p| p.ready)
                    .collect::<Vec<_>>()
            })
        };
        assert_eq!(of(0).unwrap(), [true]);
        assert_eq!(of(1).unwrap(), [false]);
        assert_eq!(
            of(7).unwrap_err().to_string(),
            "filter.state.state is 7, which is not a state"
        );
    }
}
