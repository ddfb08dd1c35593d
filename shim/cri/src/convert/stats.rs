//! Renders usage. Source: cri-api v0.37 api.proto, messages `ContainerStats` and `PodSandboxStats`.
//!
//! Called by `stats`. Invariants: an unknown number is left out, never 0; the working set is the memory in use less the
//! page cache that the kernel would reclaim first, as in kubelet and containerd.
//! Must not know: how usage is measured.

use std::path::Path;

use coracle_cgroup::{Pressure, Stall};
use coracle_lifecycle::{ContainerUsage, Interface, LayerUsage, PodUsage, Usage};
use coracle_proto::runtime::v1 as cri;

use super::render::{container_metadata, pod_metadata};
use super::{BadRequest, ContainerFilter, PodFilter};

/// The interface for a pod's traffic.
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

/// One container. `root` is the directory of all writable layers, which identifies their file system.
pub(crate) fn container_stats(measured: &ContainerUsage, root: &Path) -> cri::ContainerStats {
    let view = &measured.view;
    let attributes = cri::ContainerAttributes {
        id: view.id.to_string(),
        metadata: Some(container_metadata(view)),
        labels: view.config.labels.clone(),
        annotations: view.config.annotations.echo(),
    };
    let usage = measured.usage.as_ref();
    cri::ContainerStats {
        attributes: Some(attributes),
        cpu: usage.map(cpu),
        memory: usage.map(memory),
        writable_layer: measured.layer.map(|layer| writable_layer(layer, root)),
        swap: usage.and_then(swap),
        io: usage.and_then(io),
    }
}

/// One sandbox with its containers.
pub(crate) fn pod_stats(measured: &PodUsage, root: &Path) -> cri::PodSandboxStats {
    let view = &measured.view;
    let attributes = cri::PodSandboxAttributes {
        id: view.id.to_string(),
        metadata: Some(pod_metadata(&view.config.name)),
        labels: view.config.labels.clone(),
        annotations: view.config.annotations.echo(),
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
        io: usage.and_then(io),
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
        psi: usage.stats.cpu_pressure.map(psi),
    }
}

fn memory(usage: &Usage) -> cri::MemoryUsage {
    let stats = &usage.stats;
    cri::MemoryUsage {
        timestamp: usage.at,
        working_set_bytes: number(stats.working_set_bytes()),
        available_bytes: stats.available_bytes().and_then(number),
        usage_bytes: number(stats.memory_usage_bytes),
        rss_bytes: number(stats.rss_bytes),
        page_faults: number(stats.page_faults),
        major_page_faults: number(stats.major_page_faults),
        psi: stats.memory_pressure.map(psi),
    }
}

fn swap(usage: &Usage) -> Option<cri::SwapUsage> {
    let swap = usage.stats.swap?;
    Some(cri::SwapUsage {
        timestamp: usage.at,
        swap_available_bytes: swap.available_bytes().and_then(number),
        swap_usage_bytes: number(swap.usage_bytes),
    })
}

fn io(usage: &Usage) -> Option<cri::IoUsage> {
    let pressure = usage.stats.io_pressure?;
    Some(cri::IoUsage {
        timestamp: usage.at,
        psi: Some(psi(pressure)),
    })
}

/// Stalls in percent, and the kernel's total in nanoseconds, as kubelet and cAdvisor show it.
fn psi(pressure: Pressure) -> cri::PsiStats {
    let data = |stall: Stall| cri::PsiData {
        total: stall.total_ns,
        avg10: stall.avg10,
        avg60: stall.avg60,
        avg300: stall.avg300,
    };
    cri::PsiStats {
        full: Some(data(pressure.full)),
        some: Some(data(pressure.some)),
    }
}

fn writable_layer(layer: LayerUsage, root: &Path) -> cri::FilesystemUsage {
    cri::FilesystemUsage {
        timestamp: layer.at,
        fs_id: Some(cri::FilesystemIdentifier {
            // The path comes from the configuration, which is UTF-8.
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
