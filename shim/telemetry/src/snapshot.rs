//! The samples of one measurement, by pod and container, and their text.
//!
//! Called by: `containers`, which makes it; [`super::Scrapes`] and the CRI services, which show it. Invariants: two samples
//! never have the same name and labels; an object's samples are in the order of the series, so that the text, which is made
//! series by series, finds them without a look at all others.
//! Must not know: how numbers are measured.

use std::sync::Arc;

use coracle_lifecycle::{ContainerView, PodView};
use coracle_metrics::listener::Chunks;
use coracle_metrics::{Format, Text, Value, push_label};

use super::series::Series;

/// All samples of one measurement.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Ready sandboxes.
    pub pods: Vec<PodSamples>,
}

/// The samples of one pod.
#[derive(Debug)]
pub struct PodSamples {
    /// Its own: its network.
    pub own: Object,
    /// Of its running containers.
    pub containers: Vec<Object>,
}

/// A container or a sandbox and its samples.
#[derive(Debug)]
pub struct Object {
    /// Its id.
    pub id: String,
    /// The values of the labels of every series: container, id, image, namespace, pod.
    pub labels: [String; 5],
    /// Its samples, in the order of [`Series::all`].
    pub samples: Vec<Sample>,
}

/// One sample.
#[derive(Debug)]
pub struct Sample {
    /// Its series.
    pub series: &'static Series,
    /// The values of the labels that only this series has.
    pub labels: Vec<String>,
    /// Its value.
    pub value: Value,
}

impl Object {
    /// A sandbox without samples.
    pub(crate) fn pod(view: &PodView) -> Object {
        Self::new(view.id.to_string(), [String::new(), String::new()], view)
    }

    /// A container of `pod` without samples.
    pub(crate) fn container(view: &ContainerView, pod: &PodView) -> Object {
        // Rules select containers by an image that is not empty.
        let images = [
            &view.config.user_specified_image,
            &view.config.image,
            &view.image_id,
        ];
        let image = images.into_iter().find(|image| !image.is_empty());
        let name = view.config.name.name.clone();
        let own = [name, image.cloned().unwrap_or_default()];
        Self::new(view.id.to_string(), own, pod)
    }

    fn new(id: String, [container, image]: [String; 2], pod: &PodView) -> Object {
        let name = &pod.config.name;
        let (namespace, pod) = (name.namespace.clone(), name.name.clone());
        Object {
            labels: [container, id.clone(), image, namespace, pod],
            id,
            samples: Vec::new(),
        }
    }

    /// Adds a sample.
    pub(crate) fn add(&mut self, series: &'static Series, value: Value) {
        self.add_labelled(series, &[], value);
    }

    /// Adds a sample if there is a value.
    pub(crate) fn add_known(&mut self, series: &'static Series, value: Option<Value>) {
        if let Some(value) = value {
            self.add(series, value);
        }
    }

    /// Adds a sample with the values of the series' own labels.
    pub(crate) fn add_labelled(&mut self, series: &'static Series, labels: &[&str], value: Value) {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        self.samples.push(Sample {
            series,
            labels,
            value,
        });
    }

    /// Puts the samples into the order of the series. To be called once all are added.
    pub(crate) fn sort(&mut self) {
        self.samples.sort_by_key(|sample| sample.series.place);
    }

    /// The samples of `series`.
    fn of(&self, series: &Series) -> &[Sample] {
        let place = |sample: &Sample| sample.series.place;
        let from = self
            .samples
            .partition_point(|sample| place(sample) < series.place);
        let rest = &self.samples[from..];
        &rest[..rest.partition_point(|sample| place(sample) == series.place)]
    }
}

/// The text of `snapshot`, a chunk a series.
pub(crate) fn text(snapshot: Arc<Snapshot>, format: Format) -> Chunks {
    let last = std::iter::once_with(move || {
        let mut text = Text::new(format);
        text.end();
        text.take()
    });
    let chunks = Series::all(true).map(move |series| {
        let mut text = Text::new(format);
        write_series(&snapshot, series, &mut text);
        text.take()
    });
    Box::new(chunks.chain(last).filter(|chunk| !chunk.is_empty()))
}

fn write_series(snapshot: &Snapshot, series: &'static Series, text: &mut Text) {
    let mut is_first = true;
    let objects = snapshot
        .pods
        .iter()
        .flat_map(|pod| std::iter::once(&pod.own).chain(&pod.containers));
    for object in objects {
        for sample in object.of(series) {
            if std::mem::take(&mut is_first) {
                text.family(&series.family);
            }
            let mut labels = String::new();
            let values = object.labels.iter().chain(&sample.labels);
            for (name, value) in series.family.labels.iter().zip(values) {
                push_label(&mut labels, name, value);
            }
            text.line(series.family.name, &labels, sample.value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series;

    fn object(id: &str) -> Object {
        Object {
            id: id.to_owned(),
            labels: [id, id, "", "ns", "pod"].map(str::to_owned),
            samples: Vec::new(),
        }
    }

    #[test]
    fn a_chunk_has_all_samples_of_one_series_in_whatever_order_they_were_added() {
        let mut container = object("c");
        container.add(&series::LAST_SEEN, Value::Whole(3));
        container.add_labelled(&series::FS_USAGE, &["/dev/a"], Value::Whole(1));
        container.add(&series::CPU_USER, Value::Whole(4));
        container.add_labelled(&series::FS_USAGE, &["/dev/b"], Value::Whole(2));
        container.sort();
        let pod = PodSamples {
            own: object(""),
            containers: vec![container],
        };
        let snapshot = Snapshot { pods: vec![pod] };
        let chunks: Vec<String> = text(Arc::new(snapshot), Format::Prometheus).collect();
        let names = [
            "container_cpu_user_seconds_total",
            "container_fs_usage_bytes",
            "container_last_seen",
        ];
        assert_eq!(chunks.len(), names.len());
        for (chunk, name) in chunks.iter().zip(names) {
            assert!(chunk.starts_with(&format!("# HELP {name} ")), "{chunk}");
        }
        let lines: Vec<&str> = chunks[1].lines().skip(2).collect();
        let line = |device, value| {
            format!(
                "container_fs_usage_bytes{{container=\"c\",id=\"c\",image=\"\",namespace=\"ns\",pod=\"pod\",device=\"{device}\"}} {value}"
            )
        };
        assert_eq!(lines, [line("/dev/a", 1), line("/dev/b", 2)]);
    }
}
