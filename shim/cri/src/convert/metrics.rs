//! Renders metrics. Source: cri-api v0.37 api.proto, messages `MetricDescriptor` and `PodSandboxMetrics`.
//!
//! Called by `metrics`. Invariants: each sample has as many label values as its descriptor has keys; every sample has
//! a value and timestamp 0, which the kubelet reads as now.
//! Must not know: how anything is measured.

use coracle_metrics::Kind;
use coracle_proto::runtime::v1 as cri;
use coracle_telemetry::{Group, Object, PodSamples, Sample, Series, Snapshot};
use prost::Message as _;

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

/// One reply of at most `limit` bytes, and the groups that were left out for that.
pub(crate) fn metrics_reply(
    snapshot: &Snapshot,
    limit: usize,
) -> (cri::ListPodSandboxMetricsResponse, Vec<Group>) {
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
    let reply = |least| cri::ListPodSandboxMetricsResponse {
        pod_metrics: snapshot
            .pods
            .iter()
            .map(|pod| pod_metrics(pod, least))
            .collect(),
    };
    let (mut rendered, mut left_out) = (reply(None), Vec::new());
    for group in DROPPED_FIRST {
        if rendered.encoded_len() <= limit {
            break;
        }
        left_out.push(group);
        rendered = reply(Some(group));
    }
    (rendered, left_out)
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
    let metric = |sample: &Sample| cri::Metric {
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
    };
    object.samples.iter().filter(stays).map(metric).collect()
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
        let (whole, nothing) = metrics_reply(&snapshot, usize::MAX);
        assert_eq!(nothing, []);
        let size = whole.encoded_len();
        let (smaller, left_out) = metrics_reply(&snapshot, size - 1);
        assert_eq!(left_out, [Group::Ulimits]);
        assert!(smaller.encoded_len() < size);
        let (least, left_out) = metrics_reply(&snapshot, 0);
        assert_eq!(left_out.last(), Some(&Group::Pressure));
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
    fn samples_fit_their_descriptors_and_times_are_whole_seconds() {
        let described = metric_descriptors(Series::all(true)).descriptors;
        let (reply, _) = metrics_reply(&snapshot(1), usize::MAX);
        for metric in &reply.pod_metrics[0].container_metrics[0].metrics {
            let found = described.iter().find(|known| known.name == metric.name);
            let keys = found.map(|known| known.label_keys.len());
            assert_eq!(keys, Some(metric.label_values.len()), "{}", metric.name);
            let value = metric.value.as_ref().map(|value| value.value);
            assert_eq!((value, metric.timestamp), (Some(2), 0), "{}", metric.name);
        }
    }
}
