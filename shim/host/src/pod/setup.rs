//! What a pod has before its keeper: namespaces with their network, and the keeper's cgroup, directories and socket.
//!
//! Called by the effects on one pod, on a thread that may block. Invariant: what was made when a step fails is undone by the
//! caller, who is told of the network in any case.
//! Must not know: keepers.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use coracle_cgroup::systemd;
use coracle_control::keeper;
use coracle_lifecycle::{
    Error, IdMapping, Kind, NamespaceMode, PodRecord, SandboxConfig, counters,
};
use coracle_network::{self as network, Attachment, IdMaps, NamespaceConfig, Namespaces};
use tracing::info_span;

use super::plugins::network_config;
use super::{KeeperSetup, named};
use crate::errors::{cni_error, network_error};
use crate::{Host, egress, io_error, make_private, pass, runtime_error};

/// The first port that needs no privilege, below `/proc/sys`.
const FIRST_FREE_PORT: &str = "net/ipv4/ip_unprivileged_port_start";

impl Host {
    /// Two halves that do not need each other are made at a time: namespaces with their network, and the keeper's place.
    pub(super) fn setup(
        self: &Arc<Self>,
        record: &PodRecord,
        attached: &mut Option<Attachment>,
    ) -> Result<KeeperSetup, Error> {
        egress::check(record)?;
        self.check_name_servers(&record.config)?;
        pass("run.netns")?;
        let cni_plan = self.plan_cni(record)?;
        let (namespaces, place) = thread::scope(|scope| {
            let place = thread::Builder::new().name("keeper-place".to_owned());
            let place = place.spawn_scoped(scope, || self.keeper_place(record));
            let namespaces = self.connected_namespaces(record, cni_plan.is_some(), attached);
            let place = place.map(|place| {
                let ended = place.join();
                ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            (namespaces, place)
        });
        let namespaces = namespaces?;
        let place = place.map_err(|error| io_error("start a thread".to_owned(), error))?;
        let (entrance, cgroup_procs, listener) = place?;
        if let Some(cni_plan) = &cni_plan {
            let begun = self.parts.network.cni().begin(cni_plan);
            begun.map_err(|error| cni_error(named("record the network", record), error))?;
        }
        Ok(KeeperSetup {
            namespaces,
            attachment: attached.clone(),
            cni_plan,
            entrance,
            cgroup_procs,
            listener,
        })
    }

    /// Creates the pod's namespaces and, unless plugins do, connects the pod.
    fn connected_namespaces(
        &self,
        record: &PodRecord,
        has_plugins: bool,
        attached: &mut Option<Attachment>,
    ) -> Result<Namespaces, Error> {
        let began = Instant::now();
        let namespaces = self.create_namespaces(record)?;
        pass("run.network")?;
        if let Some(netns) = namespaces.net.as_ref().filter(|_| !has_plugins) {
            let network = &self.parts.network;
            let _span =
                info_span!(target: "otel", "network.attach", cni.network = "builtin").entered();
            let attaching = Instant::now();
            let made = network.attach(&network_config(record), netns.as_fd());
            crate::counters::builtin("add", attaching.elapsed(), made.is_ok());
            let made =
                made.map_err(|error| network_error(named("attach the network", record), error))?;
            self.close_control_ports(record, attached.insert(made))?;
            counters::sandbox_connected(record.config.handler, began.elapsed());
        }
        Ok(namespaces)
    }

    /// Creates the keeper's cgroup, directories and control socket.
    fn keeper_place(
        &self,
        record: &PodRecord,
    ) -> Result<(Option<OwnedFd>, Vec<PathBuf>, OwnedFd), Error> {
        pass("run.cgroup")?;
        let (entrance, cgroup_procs) = self.keeper_entrance(record)?;
        Ok((entrance, cgroup_procs, self.bind_control(record)?))
    }

    /// Creates the pod's namespaces, pins the network namespace and applies the pod's egress list.
    fn create_namespaces(&self, record: &PodRecord) -> Result<Namespaces, Error> {
        let own_net = record.config.namespaces.network != NamespaceMode::Node;
        let pin = self.pin(&record.id);
        let namespaces = network::create_namespaces(
            self.namespaces_of(record),
            own_net.then_some(pin.as_path()),
        );
        let namespaces = namespaces.map_err(|error| {
            Error::because(Kind::Io, named("make the namespaces", record), error)
        })?;
        if let Some(netns) = &namespaces.net {
            self.apply_egress(record, netns.as_fd())?;
        }
        Ok(namespaces)
    }

    /// Creates the keeper's directories and listens on its control socket.
    fn bind_control(&self, record: &PodRecord) -> Result<OwnedFd, Error> {
        make_private(&self.run_directory().join(record.id.as_str()))?;
        make_private(&self.layout.exits_directory(&record.id))?;
        let listener = keeper::bind_control(&self.control_socket(&record.id));
        listener.map_err(|error| runtime_error(named("bind the control socket", record), error))
    }

    fn namespaces_of(&self, record: &PodRecord) -> NamespaceConfig {
        let config = &record.config;
        let own_net = config.namespaces.network != NamespaceMode::Node;
        NamespaceConfig {
            net: own_net,
            ipc: config.namespaces.ipc != NamespaceMode::Node,
            uts: (own_net && !config.hostname.is_empty()).then(|| config.hostname.clone()),
            user: config.userns.map(|userns| IdMaps {
                users: block(userns.uid),
                groups: block(userns.gid),
            }),
            ipv6_off: self.config.ipv6_off,
            sysctls: sysctls(config, own_net),
        }
    }

    /// The keeper's cgroup, into which it is forked. None where systemd creates the pod's scope around the keeper.
    fn keeper_entrance(
        &self,
        record: &PodRecord,
    ) -> Result<(Option<OwnedFd>, Vec<PathBuf>), Error> {
        if systemd::is_scope(&record.cgroup_parent) {
            return Ok((None, Vec::new()));
        }
        let path = self.keeper_cgroup(record);
        let cgroup = self.parts.cgroups.create(&path, &Default::default());
        let opened = cgroup.and_then(|cgroup| Ok((cgroup.clone_into_fd()?, cgroup.task_files())));
        opened.map_err(|error| {
            let what = format!("make the keeper's cgroup of sandbox {}", record.id);
            Error::because(Kind::Io, what, error)
        })
    }
}

/// The pod's sysctls. In a network of its own every user may listen on every port, unless the pod says otherwise: there
/// is no other user whose ports need protection, and a container process without capabilities could not serve HTTP.
fn sysctls(config: &SandboxConfig, own_net: bool) -> Vec<(String, String)> {
    let mut values = config.sysctls.clone();
    if own_net {
        values
            .entry(FIRST_FREE_PORT.to_owned())
            .or_insert_with(|| "0".to_owned());
    }
    values.into_iter().collect()
}

fn block(ids: IdMapping) -> (u32, u32, u32) {
    (ids.inside, ids.outside, ids.count)
}
