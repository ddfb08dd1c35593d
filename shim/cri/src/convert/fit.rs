//! Makes a reply fit into one message: leaves out texts that images and tenants gave, the longest first.
//!
//! Called by: `lists` and `events`. One message carries the objects of all tenants, and a client that gets none because
//! one of them is large cannot do its work for the others.
//! Invariants: ids, names, states and sizes stay, and the labels and annotations by which the kubelet knows what is
//! whose; a reply that fits is not changed.
//! Must not know: what the texts mean.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use coracle_proto::runtime::v1 as cri;
use prost::Message;

/// Bytes of one reply: a little less than the 16 MiB that the kubelet's client takes.
pub(super) const MAX_REPLY_BYTES: usize = 15 << 20;
/// The longest labels and annotations that are shown, step by step, until the reply fits.
const STEPS: [usize; 3] = [64 << 10, 4 << 10, 256];
/// Names of an image that the last step leaves: what the kubelet reports of each.
const NAMES: usize = 5;
/// Labels and annotations that the kubelet reads in a list. Source: kubelet v1.37, `pkg/kubelet/kuberuntime/labels.go`.
const KUBELET_KEYS: [&str; 8] = [
    "io.kubernetes.pod.name",
    "io.kubernetes.pod.namespace",
    "io.kubernetes.pod.uid",
    "io.kubernetes.container.name",
    "io.kubernetes.container.hash",
    "io.kubernetes.container.restartCount",
    "io.kubernetes.pod.terminationGracePeriod",
    "io.kubernetes.pod.deletionGracePeriod",
];

/// What to leave out.
#[derive(Clone, Copy)]
pub(crate) enum Cut {
    /// Labels and annotations with a longer value.
    LongerThan(usize),
    /// All that the kubelet does not need.
    Most,
}

impl Cut {
    fn texts(self, texts: &mut BTreeMap<String, String>) {
        match self {
            Self::LongerThan(bytes) => texts.retain(|_, value| value.len() <= bytes),
            Self::Most => texts.retain(|key, _| KUBELET_KEYS.contains(&key.as_str())),
        }
    }

    fn names(self, names: &mut Vec<String>) {
        if let Self::Most = self {
            names.truncate(NAMES);
        }
    }
}

/// An object with texts that may be left out.
pub(crate) trait Cuttable: Message {
    /// Leaves them out.
    fn cut(&mut self, cut: Cut);
}

macro_rules! has_labels {
    ($($message:ident),+) => {
        $(impl Cuttable for cri::$message {
            fn cut(&mut self, cut: Cut) {
                cut.texts(&mut self.labels);
                cut.texts(&mut self.annotations);
            }
        })+
    };
}

has_labels!(PodSandbox, Container, PodSandboxStatus, ContainerStatus);

impl Cuttable for cri::Image {
    fn cut(&mut self, cut: Cut) {
        self.spec
            .iter_mut()
            .for_each(|spec| cut.texts(&mut spec.annotations));
        cut.names(&mut self.repo_tags);
        cut.names(&mut self.repo_digests);
    }
}

impl Cuttable for cri::ContainerStats {
    fn cut(&mut self, cut: Cut) {
        if let Some(attributes) = &mut self.attributes {
            cut.texts(&mut attributes.labels);
            cut.texts(&mut attributes.annotations);
        }
    }
}

impl Cuttable for cri::PodSandboxStats {
    fn cut(&mut self, cut: Cut) {
        if let Some(attributes) = &mut self.attributes {
            cut.texts(&mut attributes.labels);
            cut.texts(&mut attributes.annotations);
        }
        let containers = self.linux.iter_mut();
        let containers = containers.flat_map(|linux| &mut linux.containers);
        containers.for_each(|container| container.cut(cut));
    }
}

impl Cuttable for cri::ContainerEventResponse {
    fn cut(&mut self, cut: Cut) {
        self.pod_sandbox_status
            .iter_mut()
            .for_each(|status| status.cut(cut));
        self.containers_statuses
            .iter_mut()
            .for_each(|status| status.cut(cut));
    }
}

/// Cuts `items` until they fit into one reply.
pub(super) fn fit<T: Cuttable>(items: &mut [T]) {
    static HAS_WARNED: AtomicBool = AtomicBool::new(false);
    let size = |items: &[T]| {
        items
            .iter()
            .map(|item| item.encoded_len() + 8)
            .sum::<usize>()
    };
    let whole = size(items);
    let steps = STEPS.map(Cut::LongerThan).into_iter().chain([Cut::Most]);
    for cut in steps {
        if size(items) <= MAX_REPLY_BYTES {
            break;
        }
        items.iter_mut().for_each(|item| item.cut(cut));
    }
    if whole > MAX_REPLY_BYTES && !HAS_WARNED.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            bytes = whole,
            sent = size(items),
            limit = MAX_REPLY_BYTES,
            "labels, annotations and names do not all fit into one reply: the longest are left out of lists and events"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(pairs: &[(&str, usize)]) -> BTreeMap<String, String> {
        let pairs = pairs.iter();
        pairs
            .map(|(key, bytes)| ((*key).to_owned(), "x".repeat(*bytes)))
            .collect()
    }

    fn container(number: usize, own: &[(&str, usize)]) -> cri::Container {
        let mut annotations = texts(own);
        annotations.insert("io.kubernetes.container.hash".to_owned(), "ab12".to_owned());
        cri::Container {
            id: format!("c{number}"),
            annotations,
            ..Default::default()
        }
    }

    #[test]
    fn what_fits_is_not_changed() {
        let mut items: Vec<_> = (0..14).map(|at| container(at, &[("a", 1 << 20)])).collect();
        let before = items.clone();
        fit(&mut items);
        assert_eq!(items, before);
    }

    #[test]
    fn the_longest_texts_of_one_tenant_go_and_those_of_others_stay() {
        let mut items: Vec<_> = (0..20).map(|at| container(at, &[("a", 1 << 20)])).collect();
        let neighbour = container(20, &[("note", 1000)]);
        items.push(neighbour.clone());
        fit(&mut items);
        assert_eq!(items[20], neighbour);
        assert_eq!(items[0].annotations.len(), 1, "{:?}", items[0].id);
        assert!(items.iter().all(|item| !item.id.is_empty()));
    }

    #[test]
    fn many_short_texts_and_names_go_last_and_what_the_kubelet_needs_stays() {
        let many: Vec<(String, usize)> = (0..40_000).map(|at| (format!("k{at}"), 40)).collect();
        let many: Vec<_> = many
            .iter()
            .map(|(key, bytes)| (key.as_str(), *bytes))
            .collect();
        let mut items: Vec<_> = (0..12).map(|at| container(at, &many)).collect();
        fit(&mut items);
        let kept = &items[0].annotations;
        assert_eq!(
            (kept.len(), kept["io.kubernetes.container.hash"].as_str()),
            (1, "ab12")
        );
        let image = cri::Image {
            id: "i".to_owned(),
            repo_tags: (0..1000)
                .map(|at| format!("{at}{}", "n".repeat(1000)))
                .collect(),
            ..Default::default()
        };
        let mut images = vec![image; 20];
        fit(&mut images);
        assert_eq!(images[0].repo_tags.len(), NAMES);
    }
}
