//! Effects on a pod's network where plugins make it: attach while the keeper starts, detach before the namespace goes.
//!
//! Called by: the effects on one pod. Calls: [`cni`].
//! Invariants: what plugins may hold is on disk before they are called; a pod that plugins attached is detached by
//! them, even if the configuration has changed; an egress list also denies addresses that plugins gave the node; nobody
//! waits for a plugin of a pod that no client waits for.
//! Must not know: the built-in network, which is attached when the namespaces are created.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Instant;

use coracle_lifecycle::{CreatedSandbox, Error, NamespaceMode, PodRecord, counters};
use coracle_network::{self as network, Attachment, NetworkConfig, Provider, Resolver, cni};
use coracle_spec::egress::Egress;
use tracing::{Instrument as _, info_span};

use super::{KeeperSetup, end_process};
use crate::errors::{cni_error, network_error};
use crate::{Host, blocking};

impl Host {
    /// The calls of plugins for a pod, where plugins connect pods and the pod has a network of its own.
    pub(super) fn plan_cni(&self, record: &PodRecord) -> Result<Option<cni::Plan>, Error> {
        if record.config.namespaces.network == NamespaceMode::Node {
            return Ok(None);
        }
        let provider = self.parts.network.decide();
        let provider = provider.map_err(|error| {
            network_error(
                format!("attach the network of sandbox {}", record.id),
                error,
            )
        })?;
        if provider != Provider::Cni {
            return Ok(None);
        }
        let (network, config) = (self.parts.network.cni(), network_config(record));
        let plan = network.plan(&config, &self.pin(&record.id));
        plan.map(Some).map_err(|error| {
            cni_error(
                format!("attach the network of sandbox {}", record.id),
                error,
            )
        })
    }

    /// Starts the keeper while plugins attach the pod.
    pub(super) async fn start_keeper_with_plugins(
        self: &Arc<Self>,
        record: &PodRecord,
        mut setup: KeeperSetup,
    ) -> Result<CreatedSandbox, Error> {
        let Some(cni_plan) = setup.cni_plan.take() else {
            let span = info_span!(target: "otel", "keeper.start");
            return self.start_keeper(record, setup).instrument(span).await;
        };
        let joined = async {
            let began = Instant::now();
            let added = self.parts.network.cni().add(cni_plan).await;
            if added.is_ok() {
                counters::sandbox_connected(record.config.handler, began.elapsed());
            }
            added.map_err(|error| {
                cni_error(
                    format!("attach the network of sandbox {}", record.id),
                    error,
                )
            })
        };
        let attach = info_span!(target: "otel", "network.attach", cni.network = "cni");
        let keeper = info_span!(target: "otel", "keeper.start");
        let keeper = self.start_keeper(record, setup).instrument(keeper);
        match tokio::join!(joined.instrument(attach), keeper) {
            (Ok(addresses), Ok(mut created)) => {
                let attachment = Attachment::by_plugins(record.id.as_str(), addresses);
                match self.apply_egress_again(record, attachment).await {
                    Ok(attachment) => {
                        created.attachment = Some(attachment);
                        Ok(created)
                    }
                    Err(error) => Err(end_keeper(created, error).await),
                }
            }
            (Err(error), Ok(created)) => Err(end_keeper(created, error).await),
            (_, Err(error)) => Err(error),
        }
    }

    /// Plugins may have given the node addresses: a bridge is created with its first pod. A list must deny those, too.
    async fn apply_egress_again(
        self: &Arc<Self>,
        record: &PodRecord,
        mut attachment: Attachment,
    ) -> Result<Attachment, Error> {
        let (host, record) = (Arc::clone(self), record.clone());
        blocking("holding a sandbox to its egress list", move || {
            if record.config.reach() != Egress::Open {
                let netns = network::open_pin(&host.pin(&record.id)).map_err(|error| {
                    let what = format!("open the network namespace of sandbox {}", record.id);
                    network_error(what, error)
                })?;
                host.apply_egress(&record, netns.as_fd())?;
            }
            // Last: what fails here has closed nothing.
            host.close_control_ports(&record, &mut attachment)?;
            Ok(attachment)
        })
        .await
    }

    /// Why new pods get no network, for users to read; `None` if they do. Answers within 100 ms.
    pub async fn network_problem(&self) -> Option<String> {
        self.parts.network.problem().await
    }

    /// Has plugins detach a pod, if they attached it. For a pod that never became ready no client will ask again: the
    /// detaching then continues in the background until it succeeds.
    pub(super) async fn detach_plugins(&self, record: &PodRecord) -> Result<(), Error> {
        let (network, pod) = (self.parts.network.cni(), record.id.as_str());
        if !network.is_owed(pod) {
            return Ok(());
        }
        if record.phase.live().is_none() {
            network.del_soon(pod).await;
            return Ok(());
        }
        let left = network.del(pod).await;
        left.map_err(|error| cni_error(format!("detach the network of sandbox {pod}"), error))
    }
}

/// Ends the keeper of a pod whose creation failed with `error`.
async fn end_keeper(created: CreatedSandbox, error: Error) -> Error {
    drop(created.lifeline);
    end_process(&created.process, true).await;
    error
}

/// The network config of a pod.
pub(super) fn network_config(record: &PodRecord) -> NetworkConfig {
    let (config, name) = (&record.config, &record.config.name);
    NetworkConfig {
        pod: record.id.to_string(),
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        uid: name.uid.clone(),
        ports: config.ports.clone(),
        bandwidth: config.bandwidth,
        resolver: Resolver {
            servers: config.dns.servers.clone(),
            searches: config.dns.searches.clone(),
            options: config.dns.options.clone(),
        },
        ips: config.ips.clone(),
        mac: config.mac.clone(),
    }
}
