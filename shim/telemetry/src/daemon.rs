//! The daemon's own series: what it is, what it has, what it counted.
//!
//! Called by: [`super::Scrapes`]. Calls: snapshots in memory, /proc/self. Invariant: the cost does not depend on what
//! containers do; labels have few values.
//! Must not know: usage of containers.

use std::collections::BTreeMap;

use coracle_images::Images;
use coracle_lifecycle::{ContainerKind, ContainerState, Handler, HostCounts, Pods};
use coracle_metrics::listener::Chunks;
use coracle_metrics::{Family, Format, Kind, Metric, Text, Value};

use super::{images, process};

const BUILD: Family = Family {
    name: "coracle_build_info",
    help: "1, with the build in its labels.",
    kind: Kind::Gauge,
    labels: &["version", "commit", "engine", "wasmtime"],
};
const SANDBOXES: Family = Family {
    name: "coracle_sandboxes",
    help: "Sandboxes, by state and handler.",
    kind: Kind::Gauge,
    labels: &["state", "handler"],
};
const CONTAINERS: Family = Family {
    name: "coracle_containers",
    help: "Containers, by state and kind.",
    kind: Kind::Gauge,
    labels: &["state", "kind"],
};
const CACHE_REQUESTS: Family = Family {
    name: "coracle_compile_cache_requests_total",
    help: "Requests for the compiled code of a module, by whether it was there.",
    kind: Kind::Counter,
    labels: &["result"],
};
const COMPILATIONS: Family = Family {
    name: "coracle_compilations_total",
    help: "Compilations of modules, by result.",
    kind: Kind::Counter,
    labels: &["result"],
};
const SPAWNER_RESTARTS: Family = Family {
    name: "coracle_spawner_restarts_total",
    help: "Spawners that were started in place of one that was gone.",
    kind: Kind::Counter,
    labels: &[],
};
const QUARANTINED: Family = Family {
    name: "coracle_quarantined_records",
    help: "Damaged records that were moved aside and lie there.",
    kind: Kind::Gauge,
    labels: &[],
};

const ADDRESSES: Family = Family {
    name: "coracle_network_addresses",
    help: "Addresses of pods in the built-in network, by family and whether a pod has them.",
    kind: Kind::Gauge,
    labels: &["family", "state"],
};
const OWED_RELEASES: Family = Family {
    name: "coracle_network_owed_releases",
    help: "Pods that CNI plugins have attached or begun to, and not detached; live ones included.",
    kind: Kind::Gauge,
    labels: &[],
};
const REFUSALS: Family = Family {
    name: "coracle_egress_refusals_total",
    help: "Packets of pods that their egress lists have refused by address; Wasm instances refuse by name themselves, uncounted.",
    kind: Kind::Counter,
    labels: &["by"],
};
const LOG_BYTES: Family = Family {
    name: "coracle_container_log_bytes_total",
    help: "Bytes written to logs of containers since the node's start.",
    kind: Kind::Counter,
    labels: &[],
};
const LOG_LINES_LOST: Family = Family {
    name: "coracle_container_log_lines_lost_total",
    help: "Lines that logs of containers lack, as the disk was full or broken, since the node's start.",
    kind: Kind::Counter,
    labels: &[],
};
const LOGS_STALLED: Family = Family {
    name: "coracle_container_logs_stalled",
    help: "Logs of containers whose disk has not taken a line for 5 s; their containers may wait for it.",
    kind: Kind::Gauge,
    labels: &[],
};
const HOST_PORTS: Family = Family {
    name: "coracle_host_ports",
    help: "Ports of the node that the built-in network leads to pods.",
    kind: Kind::Gauge,
    labels: &[],
};
const PORT_REPAIRS: Family = Family {
    name: "coracle_host_port_repairs_total",
    help: "Times that another program had changed the table of host ports, which was written again.",
    kind: Kind::Counter,
    labels: &[],
};

/// The version of this build.
#[derive(Clone, Debug)]
pub struct Build {
    /// The daemon's version.
    pub version: &'static str,
    /// The commit that was built.
    pub commit: &'static str,
    /// The hash of the engine that compiled code is for.
    pub engine: String,
    /// The version of wasmtime.
    pub wasmtime: &'static str,
}

/// The sources of the daemon's own series.
#[derive(Clone)]
pub struct Daemon {
    /// What runs.
    pub build: Build,
    /// Pods and containers.
    pub pods: Pods,
    /// The image store.
    pub images: Images,
    /// What the crates of the daemon count.
    pub counted: Vec<&'static dyn Metric>,
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Daemon")
            .field("build", &self.build)
            .finish_non_exhaustive()
    }
}

impl Daemon {
    /// All series, in one chunk.
    #[must_use]
    pub fn text(&self, format: Format) -> Chunks {
        let daemon = self.clone();
        Box::new(std::iter::once_with(move || daemon.whole_text(format)))
    }

    /// Blocks for a few reads of /proc, a look at the file system and 100 ms for the rules of pods.
    fn whole_text(&self, format: Format) -> String {
        let mut text = Text::new(format);
        let Build {
            version,
            commit,
            engine,
            wasmtime,
        } = &self.build;
        let build = [*version, *commit, engine.as_str(), *wasmtime];
        text.family(&BUILD);
        text.sample(&BUILD, &build, Value::Whole(1));
        self.write_pods(&mut text);
        for metric in &self.counted {
            metric.write(&mut text);
        }
        let counts = self.pods.counts();
        images::write(&self.images, &counts, &mut text);
        write_host(&counts, &mut text);
        text.family(&REFUSALS);
        let refused = Value::Whole(self.pods.egress_refusals());
        text.sample(&REFUSALS, &["address"], refused);
        self.write_logs(&mut text);
        process::write(&mut text);
        text.end();
        text.take()
    }

    fn write_logs(&self, text: &mut Text) {
        let Some(logs) = self.pods.log_totals() else {
            return;
        };
        for (family, value) in [
            (&LOG_BYTES, logs.written_bytes),
            (&LOG_LINES_LOST, logs.lost_lines),
            (&LOGS_STALLED, logs.stalled),
        ] {
            text.family(family);
            text.sample(family, &[], Value::Whole(value));
        }
    }

    fn write_pods(&self, text: &mut Text) {
        let mut sandboxes: BTreeMap<[&str; 2], u64> = BTreeMap::new();
        for handler in Handler::ALL {
            for state in ["ready", "notready"] {
                sandboxes.insert([state, handler.shown()], 0);
            }
        }
        for pod in self.pods.pods() {
            let state = if pod.ready { "ready" } else { "notready" };
            let labels = [state, pod.config.handler.shown()];
            *sandboxes.entry(labels).or_default() += 1;
        }
        write_counts(&SANDBOXES, &sandboxes, text);
        let mut containers: BTreeMap<[&str; 2], u64> = BTreeMap::new();
        for state in ["created", "running", "exited"] {
            for kind in [ContainerKind::Wasm, ContainerKind::Linux] {
                containers.insert([state, kind.name()], 0);
            }
        }
        for container in self.pods.containers() {
            let kind = self.pods.container_kind(&container.id);
            let kind = kind.map_or("unknown", ContainerKind::name);
            let labels = [state_name(container.state), kind];
            *containers.entry(labels).or_default() += 1;
        }
        write_counts(&CONTAINERS, &containers, text);
    }
}

fn state_name(state: ContainerState) -> &'static str {
    match state {
        ContainerState::Created => "created",
        ContainerState::Running => "running",
        ContainerState::Exited => "exited",
        ContainerState::Unknown => "unknown",
    }
}

fn write_counts(family: &Family, counts: &BTreeMap<[&str; 2], u64>, text: &mut Text) {
    text.family(family);
    for (labels, count) in counts {
        text.sample(family, labels, Value::Whole(*count));
    }
}

/// Blocks for a list of one small directory.
fn write_host(counts: &HostCounts, text: &mut Text) {
    let entries = |place: &std::path::PathBuf| std::fs::read_dir(place).map_or(0, Iterator::count);
    let quarantined: usize = counts.quarantines.iter().map(entries).sum();
    write_network(counts, text);
    for (family, value) in [
        (&SPAWNER_RESTARTS, counts.spawner_restarts),
        (&QUARANTINED, u64::try_from(quarantined).unwrap_or(u64::MAX)),
    ] {
        text.family(family);
        text.sample(family, &[], Value::Whole(value));
    }
    for (family, by_result) in [
        (&CACHE_REQUESTS, &counts.cache_requests[..]),
        (&COMPILATIONS, &counts.compilations[..]),
    ] {
        text.family(family);
        for (result, value) in by_result {
            text.sample(family, &[*result], Value::Whole(*value));
        }
    }
}

fn write_network(counts: &HostCounts, text: &mut Text) {
    let network = &counts.network;
    text.family(&ADDRESSES);
    for family in ["ipv4", "ipv6"] {
        if family == "ipv6" && !network.has_v6 {
            continue;
        }
        for (state, value) in [("used", network.used), ("free", network.free)] {
            text.sample(&ADDRESSES, &[family, state], Value::Whole(value));
        }
    }
    for (family, value) in [
        (&OWED_RELEASES, counts.owed_releases),
        (&HOST_PORTS, network.host_ports),
        (&PORT_REPAIRS, network.port_repairs),
    ] {
        text.family(family);
        text.sample(family, &[], Value::Whole(value));
    }
}
