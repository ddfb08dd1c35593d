//! Effects on a pod's network where plugins make it: connecting while the keeper comes to life, letting go before the
//! namespace goes.
//!
//! Called by: the effects on one pod. Calls: [`cni`].
//! Invariants: what plugins may hold is on disk before they are asked; a pod that plugins connected is let go by them,
//! whatever the configuration says by then; a list of what a pod may reach knows the addresses that plugins gave the
//! node; nobody waits for a plugin whose pod nobody asks for any more.
//! Not here: the built-in network's calls, which are part of making the namespaces.

use std::os::fd::AsFd as _;
use std::sync::Arc;

use coracle_lifecycle::{CreatedSandbox, Error, Kind, NamespaceMode, PodRecord};
use coracle_network::{self as network, Attachment, NetworkConfig, Provider, Resolver, cni};
use coracle_spec::egress::Egress;

use super::{KeeperSetup, end_process};
use crate::host::{Host, blocking};

impl Host {
    /// What plugins will be asked, where they connect pods and the pod has a network of its own.
    pub(super) fn plan_cni(&self, record: &PodRecord) -> Result<Option<cni::Plan>, Error> {
        let own_net = record.config.namespaces.network != NamespaceMode::Node;
        if !own_net || self.parts.network.provider() != Provider::Cni {
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

    /// Brings the keeper to life and has plugins connect the pod meanwhile.
    pub(super) async fn start_keeper_with_plugins(
        self: &Arc<Self>,
        record: &PodRecord,
        mut setup: KeeperSetup,
    ) -> Result<CreatedSandbox, Error> {
        let Some(cni_plan) = setup.cni_plan.take() else {
            return self.start_keeper(record, setup).await;
        };
        let joined = async {
            let added = self.parts.network.cni().add(cni_plan).await;
            added.map_err(|error| {
                cni_error(
                    format!("attach the network of sandbox {}", record.id),
                    error,
                )
            })
        };
        match tokio::join!(joined, self.start_keeper(record, setup)) {
            (Ok(addresses), Ok(mut raised)) => {
                let attachment = Attachment::by_plugins(record.id.as_str(), addresses);
                raised.attachment = Some(attachment);
                match self.apply_egress_again(record).await {
                    Ok(()) => Ok(raised),
                    Err(error) => Err(end_keeper(raised, error).await),
                }
            }
            (Err(error), Ok(raised)) => Err(end_keeper(raised, error).await),
            (_, Err(error)) => Err(error),
        }
    }

    /// Plugins may have given the node addresses: a bridge is made with the first pod on it. A list is to deny those too.
    async fn apply_egress_again(self: &Arc<Self>, record: &PodRecord) -> Result<(), Error> {
        if record.config.reach() == Egress::Open {
            return Ok(());
        }
        let (host, record) = (Arc::clone(self), record.clone());
        blocking("holding a sandbox to its egress list", move || {
            let netns = network::open_pin(&host.pin(&record.id)).map_err(|error| {
                let what = format!("open the network namespace of sandbox {}", record.id);
                network_error(what, error)
            })?;
            host.apply_egress(&record, netns.as_fd())
        })
        .await
    }

    /// Why new pods get no network, for users to read; `None` if they do. Answers within 100 ms.
    pub async fn network_problem(&self) -> Option<String> {
        self.parts.network.problem().await
    }

    /// Has plugins let go of a pod, if they hold it. For one that never came to be nobody will ask again: that goes on
    /// in the background until it succeeds.
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

/// Ends the keeper of a pod that did not come to be because of `error`.
async fn end_keeper(raised: CreatedSandbox, error: Error) -> Error {
    drop(raised.lifeline);
    end_process(&raised.process, true).await;
    error
}

/// What a pod asks of its network.
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

/// A failure of the built-in network or of a namespace, with what was being done.
pub(in crate::host) fn network_error(what: String, error: network::Error) -> Error {
    let kind = match error {
        network::Error::Exhausted { .. } | network::Error::PortTaken { .. } => Kind::Exhausted,
        network::Error::PortFamily { .. } => Kind::Invalid,
        _ => Kind::Io,
    };
    Error::because(kind, what, error)
}

/// A failure of plugins, with what was being done.
pub(super) fn cni_error(what: String, error: cni::Error) -> Error {
    let kind = match error {
        cni::Error::InvalidName { .. } => Kind::Invalid,
        _ => Kind::Io,
    };
    Error::because(kind, what, error)
}
