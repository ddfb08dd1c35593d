//! Changes of other containers that plugins request: new limits, and evictions.
//!
//! Called by: [`super::events`] for those in answers, [`super::listener`] for those that plugins send by themselves.
//! Calls: the lifecycle. Invariant: a change that fails fails the request that it came with, unless the plugin says
//! otherwise. Must not know: where a change came from.

use std::time::Duration;

use coracle_lifecycle::{Error, Kind, Resources};
use coracle_proto::nri::v1 as nri;

use super::Nri;
use super::adjust::{add_limits, check_number, merge_limits};
use super::owners::Owners;

/// How long an evicted container may take to end.
const GRACE: Duration = Duration::from_secs(30);

/// One change of a container.
pub struct Change {
    /// The plugin.
    plugin: String,
    /// The container, and its limits.
    pub update: nri::ContainerUpdate,
    /// The container is to be stopped.
    pub is_eviction: bool,
}

impl Change {
    /// What a plugin's answer requests.
    pub fn all(
        plugin: &str,
        updates: Vec<nri::ContainerUpdate>,
        evictions: Vec<nri::ContainerEviction>,
    ) -> impl Iterator<Item = Change> {
        let plugin = plugin.to_owned();
        let change = move |update, is_eviction| Change {
            plugin: plugin.clone(),
            update,
            is_eviction,
        };
        let updates = updates.into_iter().map(|update| (update, false));
        let evictions = evictions.into_iter().map(|eviction| {
            let update = nri::ContainerUpdate {
                container_id: eviction.container_id,
                ..nri::ContainerUpdate::default()
            };
            (update, true)
        });
        updates
            .chain(evictions)
            .map(move |(update, is_eviction)| change(update, is_eviction))
    }

    /// The same change, but one that fails does not keep others from being made.
    pub fn alone(mut self) -> Change {
        self.update.ignore_failure = true;
        self
    }
}

impl Nri {
    /// Carries out changes, one after the other. Errors: the first that fails and is not to be ignored.
    pub(crate) async fn apply(&self, changes: Vec<Change>) -> Result<(), Error> {
        check_number("updates", changes.len()).map_err(|why| {
            let plugin = changes.first().map_or("", |change| change.plugin.as_str());
            Error::new(Kind::Invalid, format!("NRI plugin {plugin}: {why}"))
        })?;
        for change in changes {
            let ignore = change.update.ignore_failure || change.is_eviction;
            let (plugin, id) = (change.plugin.clone(), change.update.container_id.clone());
            if let Err(error) = self.change(change).await {
                let text = format!("NRI plugin {plugin}: change container {id}");
                if !ignore {
                    return Err(Error::because(error.kind(), text, error));
                }
                tracing::warn!(
                    plugin,
                    container = id,
                    error = error.chain(),
                    "a change by an NRI plugin failed"
                );
            }
        }
        Ok(())
    }

    /// Carries out the updates of a plugin's own request; those that failed.
    pub(crate) async fn apply_request(
        &self,
        plugin: &str,
        request: nri::UpdateContainersRequest,
    ) -> Vec<nri::ContainerUpdate> {
        let number = request.update.len() + request.evict.len();
        if let Err(why) = check_number("updates", number) {
            tracing::warn!(plugin, why, "changes by an NRI plugin were refused");
            return request.update;
        }
        let mut failed = Vec::new();
        let changes: Vec<Change> = Change::all(plugin, request.update, request.evict).collect();
        for change in changes {
            let (update, is_eviction) = (change.update.clone(), change.is_eviction);
            if let Err(error) = self.change(change).await {
                let id = &update.container_id;
                tracing::warn!(
                    plugin,
                    container = id,
                    error = error.chain(),
                    "a change by an NRI plugin failed"
                );
                if !is_eviction && !update.ignore_failure {
                    failed.push(update);
                }
            }
        }
        failed
    }

    async fn change(&self, change: Change) -> Result<(), Error> {
        let Some(pods) = self.pods.get() else {
            return Err(Error::new(Kind::WrongPhase, "the daemon has just begun"));
        };
        let invalid = |why| Error::new(Kind::Invalid, why);
        if self.settings.reject.iter().any(|field| field == "updates") {
            return Err(invalid(
                "updates: the operator refuses them (nri.reject)".to_owned(),
            ));
        }
        let id = change.update.container_id.parse();
        let id = id.map_err(|_| invalid("that is no id of a container".to_owned()))?;
        if change.is_eviction {
            tracing::info!(plugin = change.plugin, %id, "an NRI plugin evicts a container");
            return pods.stop_container(&id, GRACE).await;
        }
        let set = change.update.linux.and_then(|linux| linux.resources);
        let (mut all, mut owners) = (nri::LinuxResources::default(), Owners::default());
        add_limits(
            &mut all,
            set.unwrap_or_default(),
            &change.plugin,
            &mut owners,
        )
        .map_err(invalid)?;
        let (resources, pids) = merge_limits(&Resources::default(), &all).map_err(invalid)?;
        if pids.is_some() {
            return Err(invalid(
                "the number of processes is set when a container is created".to_owned(),
            ));
        }
        // A change that waits for another's plugins must not wait for ever: those may wait for this one.
        let limit = self.settings.request_timeout;
        let changed = tokio::time::timeout(limit, pods.update_for_plugin(&id, resources)).await;
        changed.unwrap_or_else(|_| {
            let text = format!(
                "another change of it did not end within {} s",
                limit.as_secs()
            );
            Err(Error::new(Kind::Exhausted, text))
        })
    }
}
