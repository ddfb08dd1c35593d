//! The series of the image store.
//!
//! Called by: `daemon`; the image store, which reports each layer that it has unpacked. Invariant: the cost does not depend on
//! the size of images. Must not know: registries.

use coracle_images::Images;
use coracle_lifecycle::HostCounts;
use coracle_metrics::{Family, Histograms, Kind, Metric, Text, Value};

static UNPACKED: Histograms<0> = Histograms::new(Family {
    name: "coracle_image_unpack_duration_seconds",
    help: "How long layers took to unpack, each by itself, and to be stored.",
    kind: Kind::Histogram,
    labels: &[],
});
const IMAGES: Family = Family {
    name: "coracle_images",
    help: "Images on this node.",
    kind: Kind::Gauge,
    labels: &[],
};
const RECEIVED: Family = Family {
    name: "coracle_image_received_bytes_total",
    help: "Bytes of configs and layers of images that have come from registries, their mirrors and archives.",
    kind: Kind::Counter,
    labels: &["source"],
};
const STORE: Family = Family {
    name: "coracle_store_bytes",
    help: "Disk space of images, of code compiled from them, and of writable layers as they were measured last.",
    kind: Kind::Gauge,
    labels: &["part"],
};
const STORE_FREE: Family = Family {
    name: "coracle_store_free_bytes",
    help: "Free space of the file system that holds images and writable layers.",
    kind: Kind::Gauge,
    labels: &[],
};
const LAYERS: Family = Family {
    name: "coracle_image_layers_total",
    help: "Layers of images that were pulled or imported, by whether they were here already.",
    kind: Kind::Counter,
    labels: &["source"],
};

/// Counts from now on how long the store takes to unpack layers. Returns what is to be shown of it.
pub fn observe_unpacking(images: &Images) -> &'static dyn Metric {
    images.observe_unpacking(|took| UNPACKED.observe([], took));
    &UNPACKED
}

/// Blocks for a look at the file system.
pub(crate) fn write(images: &Images, host: &HostCounts, text: &mut Text) {
    let facts = images.fs_info();
    let count = u64::try_from(images.list().len()).unwrap_or(u64::MAX);
    let free = rustix::fs::statvfs(&facts.mountpoint).ok();
    let free = free.map(|facts| facts.f_bavail.saturating_mul(facts.f_frsize));
    for (family, value) in [(&IMAGES, Some(count)), (&STORE_FREE, free)] {
        let Some(value) = value else { continue };
        text.family(family);
        text.sample(family, &[], Value::Whole(value));
    }
    text.family(&STORE);
    for (part, bytes) in [
        ("blobs", facts.used_bytes.saturating_sub(facts.layer_bytes)),
        ("layers", facts.layer_bytes),
        ("compiled", host.compiled_bytes),
        ("writable", host.writable_bytes),
    ] {
        text.sample(&STORE, &[part], Value::Whole(bytes));
    }
    let counts = images.transfer_counts();
    for (family, values) in [
        (
            &RECEIVED,
            &[
                ("registry", counts.from_registries),
                ("mirror", counts.from_mirrors),
                ("archive", counts.from_archives),
            ][..],
        ),
        (
            &LAYERS,
            &[
                ("fetched", counts.unpacked_layers),
                ("reused", counts.reused_layers),
            ][..],
        ),
    ] {
        text.family(family);
        for (source, value) in values {
            text.sample(family, &[*source], Value::Whole(*value));
        }
    }
}
