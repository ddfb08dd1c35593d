//! Ends an unrecovered pod, or something of it, one after the other, each in a task.
//!
//! Called by: [`super::UnrecoveredPod`], on requests and once its recovery found it dead. Calls: the host's effects on
//! such pods. Invariants: one thing ends at a time, in the order of the requests; whoever waits is answered when it has
//! ended; names, host ids and snapshots are released only after that. Must not know: recovery, its pauses.

use std::collections::HashSet;
use std::sync::Arc;

use coracle_spec::id::ContainerId;
use tokio::task::JoinHandle;

use super::UnrecoveredPod;
use crate::blocking::blocking;
use crate::clock;
use crate::driver::Reply;
use crate::error::{Error, Kind};
use crate::host_ids;
use crate::view::EventKind;

/// Something of the pod that is to end, which may take long.
pub(super) enum Ending {
    /// Its processes and its network.
    Pod(Reply<()>),
    /// One container.
    Container(ContainerId, Reply<()>),
    /// All of it, with its records.
    Removal(Reply<()>),
    /// Remains without a record.
    Remains,
}

/// The result of what is being ended; never returns while nothing is.
pub(super) async fn ended(
    ending: &mut Option<(Ending, JoinHandle<Result<(), Error>>)>,
) -> Result<(), Error> {
    match ending {
        None => std::future::pending().await,
        Some((_, task)) => task.await.unwrap_or_else(|error| {
            Err(Error::because(
                Kind::Bug,
                "end an unrecovered sandbox",
                error,
            ))
        }),
    }
}

impl UnrecoveredPod {
    /// Ends something, once what is to end before it has.
    pub(super) fn push(&mut self, ending: Ending) {
        self.endings.push_back(ending);
        self.end_next();
    }

    fn end_next(&mut self) {
        if self.ending.is_some() {
            return;
        }
        let Some(ending) = self.endings.pop_front() else {
            return;
        };
        let task = match &ending {
            Ending::Pod(_) | Ending::Remains => tokio::spawn(self.stop()),
            Ending::Removal(_) => tokio::spawn(self.remove()),
            Ending::Container(id, _) => tokio::spawn(self.end_container(id)),
        };
        self.ending = Some((ending, task));
    }

    /// Answers whoever waits for what has ended; returns whether the pod is gone.
    pub(super) fn finish(&mut self, result: Result<(), Error>) -> bool {
        let Some((ending, _)) = self.ending.take() else {
            return false;
        };
        let is_gone = match ending {
            Ending::Pod(reply) | Ending::Container(_, reply) => {
                let _ = reply.send(result);
                false
            }
            Ending::Removal(reply) => {
                let is_gone = result.is_ok();
                if is_gone {
                    self.end();
                }
                let _ = reply.send(result);
                is_gone
            }
            Ending::Remains => {
                if let Err(error) = result {
                    tracing::error!(pod = %self.id, error = error.chain(), "the remains of a sandbox stay until the next start");
                }
                self.end();
                true
            }
        };
        if !is_gone {
            self.end_next();
        }
        is_gone
    }

    /// The parent of its cgroups, or the default when unknown.
    fn cgroup_parent(&self) -> Option<String> {
        let known = self.known.cgroup_parent();
        known.or_else(|| Some(self.shared.host.default_cgroup_parent()))
    }

    fn end_container(
        &self,
        id: &ContainerId,
    ) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        let (host, parent) = (self.shared.host(), self.cgroup_parent());
        let ids = HashSet::from([id.as_str().to_owned()]);
        host.end_processes(ids, parent)
    }

    fn stop(&self) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        let (host, id) = (self.shared.host(), self.id.clone());
        let (ids, parent) = (self.ids(), self.cgroup_parent());
        async move {
            host.end_unreadable(&id, ids, parent).await?;
            tracing::info!(pod = %id, "an unreadable sandbox was stopped");
            Ok(())
        }
    }

    fn remove(&self) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        let (host, id) = (Arc::clone(&self.shared.host), self.id.clone());
        let (stopped, containers) = (self.stop(), self.known.containers.clone());
        async move {
            stopped.await?;
            blocking("forgetting an unreadable sandbox", move || {
                host.forget_unreadable(&id, &containers)
            })
            .await
        }
    }

    /// Releases everything of the pod, which is gone.
    fn end(&mut self) {
        self.mailbox.close();
        let cache = &self.shared.cache;
        if let Some(record) = &self.known.record {
            host_ids::release(self.shared.host.as_ref(), record);
        } else if let Some(range) = self.known.range() {
            self.shared.host.release_ids(range);
        }
        self.shared.host.release_level(self.id.as_str());
        for container in &self.known.containers {
            cache.hide_container(container);
        }
        if let Some(last) = cache.hide_pod(&self.id) {
            self.shared.registry.release(&last.config.name, &self.id);
            cache.publish(EventKind::Deleted, self.id.as_str(), clock::wall(), last);
        }
        tracing::info!(pod = %self.id, "sandbox gone");
    }
}
