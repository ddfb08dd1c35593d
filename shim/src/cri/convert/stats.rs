//! What is used, as messages. Source: cri-api v0.37 api.proto, messages `ContainerStats` and `PodSandboxStats`.
//!
//! Called by `stats`. Invariants: a number that is not known is left out, never 0; the working set is what is in use
//! less the page cache that the kernel would give back first, as kubelet and containerd have it.
//! Not here: measuring.

use std::path::Path;

use coracle_proto::runtime::v1 as cri;
use coracle_runtime::cgroup::Stats;

use super::render::{container_metadata, pod_metadata};
use super::{BadRequest, ContainerFilter, PodFilter};
use crate::host::{ContainerUsage, Interface, LayerUsage, PodUsage, Usage};

/// The interface that carries a pod's traffic.
const DEFAULT_INTERFACE: &str = "eth0";

macro_rules! reads_stats_filter {
    ($($request:ident),+ => $read:expr, $filter:ty) => {
        $(impl TryFrom<cri::$request> for $filter {
            type Error = BadRequest;

            fn try_from(request: cri::$request) -> Result<Self, BadRequest> {
                Self::read(request.filter.map($read))
            }
        })+
    };
}

reads_stats_filter!(ListContainerStatsRequest, StreamContainerStatsRequest => |filter| cri::ContainerFilter {
    id: filter.id,
    pod_sandbox_id: filter.pod_sandbox_id,
    label_selector: filter.label_selector,
    state: None,
}, ContainerFilter);

reads_stats_filter!(ListPodSandboxStatsRequest, StreamPodSandboxStatsRequest => |filter| cri::PodSandboxFilter {
    id: filter.id,
    label_selector: filter.label_selector,
    state: None,
}, PodFilter);

/// One container. `root` is the directory of all writable layers, which names their filesystem.
pub(in crate::cri) fn container_stats(measured: &ContainerUsage, root: &Path) -> cri::ContainerStats {
    let view = &measured.view;
    let attributes = cri::ContainerAttributes {
        id: view.id.to_string(),
        metadata: Some(container_metadata(view)),
        labels: view.wish.labels.clone(),
        annotations: view.wish.annotations.clone(),
    };
    let usage = measured.usage.as_ref();
    cri::ContainerStats {
        attributes: Some(attributes),
        cpu: usage.map(cpu),
        memory: usage.map(memory),
        writable_layer: measured.layer.map(|layer| writable_layer(layer, root)),
        swap: usage.map(swap),
        io: None,
    }
}

/// One sandbox with its containers.
pub(in crate::cri) fn pod_stats(measured: &PodUsage, root: &Path) -> cri::PodSandboxStats {
    let view = &measured.view;
    let attributes = cri::PodSandboxAttributes {
        id: view.id.to_string(),
        metadata: Some(pod_metadata(&view.wish.name)),
        labels: view.wish.labels.clone(),
        annotations: view.wish.annotations.clone(),
    };
    let usage = measured.usage.as_ref();
    let process = usage.map(|usage| cri::ProcessUsage {
        timestamp: usage.at,
        process_count: number(measured.processes),
    });
    let interfaces = measured.interfaces.as_deref();
    let linux = cri::LinuxPodSandboxStats {
        cpu: usage.map(cpu),
        memory: usage.map(memory),
        network: interfaces.map(|interfaces| network(interfaces, measured.network_at)),
        process,
        containers: measured
            .containers
            .iter()
            .map(|container| container_stats(container, root))
            .collect(),
        io: None,
    };
    cri::PodSandboxStats {
        attributes: Some(attributes),
        linux: Some(linux),
        windows: None,
    }
}

fn cpu(usage: &Usage) -> cri::CpuUsage {
    cri::CpuUsage {
        timestamp: usage.at,
        usage_core_nano_seconds: number(usage.stats.cpu_usage_ns),
        usage_nano_cores: usage.nano_cores.and_then(number),
        psi: None,
    }
}

/// Memory in use less the page cache that the kernel would give back first, in bytes.
fn working_set(stats: &Stats) -> u64 {
    stats
        .memory_usage_bytes
        .saturating_sub(stats.inactive_file_bytes)
}

fn memory(usage: &Usage) -> cri::MemoryUsage {
    let working_set = working_set(&usage.stats);
    let available = usage
        .memory_limit_bytes
        .map(|limit| limit.saturating_sub(working_set));
    cri::MemoryUsage {
        timestamp: usage.at,
        working_set_bytes: number(working_set),
        available_bytes: available.and_then(number),
        usage_bytes: number(usage.stats.memory_usage_bytes),
        ..Default::default()
    }
}

fn swap(usage: &Usage) -> cri::SwapUsage {
    cri::SwapUsage {
        timestamp: usage.at,
        ..Default::default()
    }
}

fn writable_layer(layer: LayerUsage, root: &Path) -> cri::FilesystemUsage {
    cri::FilesystemUsage {
        timestamp: layer.at,
        fs_id: Some(cri::FilesystemIdentifier {
            // It came from the configuration, which is text.
            mountpoint: root.to_string_lossy().into_owned(),
        }),
        used_bytes: number(layer.bytes),
        inodes_used: number(layer.inodes),
    }
}

fn network(interfaces: &[Interface], at: i64) -> cri::NetworkUsage {
    let (default, others): (Vec<_>, Vec<_>) = interfaces
        .iter()
        .partition(|interface| interface.name == DEFAULT_INTERFACE);
    cri::NetworkUsage {
        timestamp: at,
        default_interface: default.first().map(|found| interface(found)),
        interfaces: others.into_iter().map(interface).collect(),
    }
}

fn interface(found: &Interface) -> cri::NetworkInterfaceUsage {
    cri::NetworkInterfaceUsage {
        name: found.name.clone(),
        rx_bytes: number(found.received.bytes),
        rx_errors: number(found.received.errors),
        tx_bytes: number(found.sent.bytes),
        tx_errors: number(found.sent.errors),
    }
}

fn number(value: u64) -> Option<cri::UInt64Value> {
    Some(cri::UInt64Value { value })
}
