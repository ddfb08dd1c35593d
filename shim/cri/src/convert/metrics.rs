//! Renders metrics. Source: cri-api v0.37 api.proto, messages `MetricDescriptor` and `PodSandboxMetrics`.
//!
//! Called by `metrics`. Invariants: each sample has as many label values as its descriptor has keys; every sample has
//! a value and timestamp 0, which the kubelet reads as now; a reply is never larger than its limit, whatever pods contain.
//! Must not know: how anything is measured.

use coracle_metrics::Kind;
use coracle_proto::runtime::v1 as cri;
use coracle_telemetry::{Group, Object, PodSamples, Sample, Series, Snapshot};
use prost::{Message as _, length_delimiter_len};

/// The descriptors of `series`.
pub(crate) fn metric_descriptors(
    series: impl Iterator<Item = &'static Series>,
) -> cri::ListMetricDescriptorsResponse {
    let descriptor = |series: &Series| cri::MetricDescriptor {
        name: series.family.name.to_owned(),
        help: series.family.help.to_owned(),
        label_keys: series
            .family
            .labels
            .iter()
            .map(|&key| key.to_owned())
            .collect(),
    };
    cri::ListMetricDescriptorsResponse {
        descriptors: series.map(descriptor).collect(),
    }
}

/// One reply, and what was left out of it.
pub(crate) struct Reply {
    /// The reply.
    pub message: cri::ListPodSandboxMetricsResponse,
    /// Groups that no object has in it.
    pub groups_left_out: Vec<Group>,
    /// How many sandboxes are not in it.
    pub pods_left_out: usize,
}

/// One reply of at most `limit` bytes. Groups of series are left out of it until the rest fits; where even the core does
/// not, the sandboxes with the most samples.
pub(crate) fn metrics_reply(snapshot: &Snapshot, limit: usize) -> Reply {
    const DROPPED_FIRST: [Group; 8] = [
        Group::Ulimits,
        Group::Spec,
        Group::Blkio,
        Group::OpenFiles,
        Group::Process,
        Group::DiskIo,
        Group::Hugetlb,
        Group::Pressure,
    ];
    let sizes: Vec<Sizes> = snapshot.pods.iter().map(Sizes::of).collect();
    let total = |least| sizes.iter().map(|pod| pod.without(least)).sum::<usize>();
    let (mut least, mut groups_left_out) = (None, Vec::new());
    for group in DROPPED_FIRST {
        if total(least) <= limit {
            break;
        }
        groups_left_out.push(group);
        least = Some(group);
    }
    let sizes: Vec<usize> = sizes.iter().map(|pod| pod.without(least)).collect();
    let fits = fitting(&sizes, limit);
    let pods = snapshot.pods.iter().zip(&fits).filter(|(_, fits)| **fits);
    let message = cri::ListPodSandboxMetricsResponse {
        pod_metrics: pods.map(|(pod, _)| pod_metrics(pod, least)).collect(),
    };
    Reply {
        pods_left_out: snapshot.pods.len() - message.pod_metrics.len(),
        message,
        groups_left_out,
    }
}

/// Which of the objects with these `sizes` fit into `limit` together, the small ones first.
fn fitting(sizes: &[usize], limit: usize) -> Vec<bool> {
    let mut by_size: Vec<usize> = (0..sizes.len()).collect();
    by_size.sort_by_key(|&at| sizes[at]);
    let (mut fits, mut sum) = (vec![false; sizes.len()], 0_usize);
    for at in by_size {
        sum = sum.saturating_add(sizes[at]);
        fits[at] = sum <= limit;
    }
    fits
}

/// Most bytes of a message's tag and length inside another message.
const ENVELOPE: usize = 1 + 5;

/// Most bytes of a sandbox and its containers in a reply.
struct Sizes {
    /// Without their metrics.
    bare: usize,
    /// Of the metrics of each [`Group`], in the order of groups.
    groups: [usize; Group::Core as usize + 1],
}

impl Sizes {
    fn of(pod: &PodSamples) -> Sizes {
        let (mut bare, mut groups) = (ENVELOPE, [0; Group::Core as usize + 1]);
        for object in std::iter::once(&pod.own).chain(&pod.containers) {
            bare += 2 * ENVELOPE + object.id.len();
            for sample in &object.samples {
                // Made and dropped one by one: the whole reply is made once it is known to fit.
                let size = metric(object, sample).encoded_len();
                groups[sample.series.group as usize] += 1 + length_delimiter_len(size) + size;
            }
        }
        Sizes { bare, groups }
    }

    /// Without the metrics of `left_out` and of groups before it.
    fn without(&self, left_out: Option<Group>) -> usize {
        let from = left_out.map_or(0, |group| group as usize + 1);
        self.bare + self.groups[from..].iter().sum::<usize>()
    }
}

/// The metrics of one sandbox and its containers, without those of `left_out` and of groups before it.
pub(crate) fn pod_metrics(pod: &PodSamples, left_out: Option<Group>) -> cri::PodSandboxMetrics {
    let container = |object: &Object| cri::ContainerMetrics {
        container_id: object.id.clone(),
        metrics: metrics(object, left_out),
    };
    cri::PodSandboxMetrics {
        pod_sandbox_id: pod.own.id.clone(),
        metrics: metrics(&pod.own, left_out),
        container_metrics: pod.containers.iter().map(container).collect(),
    }
}

fn metrics(object: &Object, left_out: Option<Group>) -> Vec<cri::Metric> {
    let stays = |sample: &&Sample| left_out.is_none_or(|group| sample.series.group > group);
    let samples = object.samples.iter().filter(stays);
    samples.map(|sample| metric(object, sample)).collect()
}

fn metric(object: &Object, sample: &Sample) -> cri::Metric {
    cri::Metric {
        name: sample.series.family.name.to_owned(),
        timestamp: 0,
        metric_type: match sample.series.family.kind {
            Kind::Counter => cri::MetricType::Counter as i32,
            Kind::Gauge | Kind::Histogram => cri::MetricType::Gauge as i32,
        },
        label_values: object
            .labels
            .iter()
            .chain(&sample.labels)
            .cloned()
            .collect(),
        value: Some(cri::UInt64Value {
            value: sample.value.whole(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use coracle_metrics::Value;

    use super::*;

    fn sample(series: &'static Series) -> Sample {
        let labels = series.family.labels.len() - 5;
        Sample {
            series,
            labels: vec!["x".to_owned(); labels],
            value: Value::Nanoseconds(2_500_000_000),
        }
    }

    fn snapshot(containers: usize) -> Snapshot {
        let object = |id: usize| Object {
            id: format!("{id:064}"),
            labels: ["c", "i", "r.example/image:1", "ns", "pod"].map(str::to_owned),
            samples: Series::all(true).map(sample).collect(),
        };
        Snapshot {
            pods: vec![PodSamples {
                own: object(0),
                containers: (0..containers).map(object).collect(),
            }],
        }
    }

    #[test]
    fn what_does_not_fit_is_left_out_by_groups_and_never_the_core() {
        let snapshot = snapshot(100);
        let whole = metrics_reply(&snapshot, usize::MAX);
        assert_eq!((whole.groups_left_out.len(), whole.pods_left_out), (0, 0));
        let size = whole.message.encoded_len();
        let smaller = metrics_reply(&snapshot, size - 1);
        assert_eq!(smaller.groups_left_out, [Group::Ulimits]);
        assert!(smaller.message.encoded_len() < size);
        let core = pod_metrics(&snapshot.pods[0], Some(Group::Pressure)).encoded_len();
        let least = metrics_reply(&snapshot, core + core / 100);
        assert_eq!(least.groups_left_out.last(), Some(&Group::Pressure));
        assert_eq!(least.pods_left_out, 0);
        let least = least.message;
        let names = |reply: &cri::ListPodSandboxMetricsResponse| {
            let containers = &reply.pod_metrics[0].container_metrics;
            let of = |container: &cri::ContainerMetrics| {
                let names = container.metrics.iter().map(|metric| metric.name.clone());
                names.collect::<Vec<_>>()
            };
            assert!(containers.iter().all(|one| of(one) == of(&containers[0])));
            of(&containers[0])
        };
        for core in [
            "container_cpu_usage_seconds_total",
            "container_memory_working_set_bytes",
            "container_oom_events_total",
            "container_network_receive_bytes_total",
        ] {
            assert!(names(&least).iter().any(|name| name == core), "{core}");
        }
        assert!(names(&least).iter().all(|name| !name.contains("pressure")));
    }

    #[test]
    fn a_pod_with_very_many_samples_takes_the_metrics_of_no_other_away() {
        let mut all = snapshot(1);
        let network = Series::all(true).filter(|series| series.family.name.contains("_network_"));
        for series in network {
            let own = &mut all.pods[0].own.samples;
            own.extend((0..1000).map(|_| sample(series)));
        }
        all.pods.extend((0..10).flat_map(|_| snapshot(1).pods));
        let limit = metrics_reply(&snapshot(1), usize::MAX)
            .message
            .encoded_len()
            * 12;
        let reply = metrics_reply(&all, limit);
        assert!(reply.message.encoded_len() <= limit);
        assert_eq!(reply.pods_left_out, 1);
        assert_eq!(reply.message.pod_metrics.len(), 10);
        assert!(metrics_reply(&all, 0).message.pod_metrics.is_empty());
    }

    #[test]
    fn samples_fit_their_descriptors_and_times_are_whole_seconds() {
        let described = metric_descriptors(Series::all(true)).descriptors;
        let reply = metrics_reply(&snapshot(1), usize::MAX).message;
        for metric in &reply.pod_metrics[0].container_metrics[0].metrics {
            let found = described.iter().find(|known| known.name == metric.name);
            let keys = found.map(|known| known.label_keys.len());
            assert_eq!(keys, Some(metric.label_values.len()), "{}", metric.name);
            let value = metric.value.as_ref().map(|value| value.value);
            assert_eq!((value, metric.timestamp), (Some(2), 0), "{}", metric.name);
        }
    }
}
