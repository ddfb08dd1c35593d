//! Operations on a network: invokes its plugins one after the other, in the order of the specification.
//!
//! Called by: [`super::Cni`] and [`super::readiness`]. Calls: [`super::exec`], once per plugin.
//! Source: CNI specification 1.1.0, "Lifecycle & Ordering" and "Execution of Network Configurations".
//! Invariants: ADD, CHECK, STATUS and GC go from first to last, DEL from last to first; ADD, CHECK and STATUS end with
//! the first failure; DEL and GC invoke every plugin and return the first failure, so that a broken plugin does not
//! keep the others from releasing resources.
//! Not here: undoing a failed ADD, the cache.

use std::net::IpAddr;

use serde_json::Value;

use super::cache::Entry;
use super::error::Error;
use super::exec::{Invocation, Runner, Subject};
use super::list::{Extra, NetworkList, Plugin, Version};
use super::result;
use super::verb::Verb;

/// ADD. Returns the last plugin's result and the pod's addresses in it.
pub async fn add(runner: &Runner, entry: &Entry) -> Result<(Value, Vec<IpAddr>), Error> {
    let subject = subject(entry, entry.netns.display().to_string());
    let mut result: Option<Value> = None;
    let mut last = "";
    for plugin in &entry.list.plugins {
        let extra = Extra {
            previous: result.as_ref(),
            capabilities: Some(&entry.capabilities),
            valid_attachments: None,
        };
        let invocation = invocation(Verb::Add, &entry.list, plugin, extra).of(&subject);
        let answer = runner.run(&invocation).await?;
        result = Some(result::result(&answer).map_err(|what| useless(&invocation, what))?);
        last = &plugin.kind;
    }
    let result = result.unwrap_or_default();
    let addresses = result::addresses(&result, &entry.interface).map_err(|what| Error::Answer {
        verb: Verb::Add,
        plugin: last.to_owned(),
        network: entry.list.name.clone(),
        what,
    })?;
    Ok((result, addresses))
}

/// DEL; `netns` is empty when the namespace is gone.
pub async fn del(runner: &Runner, entry: &Entry, netns: String) -> Result<(), Error> {
    let subject = subject(entry, netns);
    let mut result = Ok(());
    for plugin in entry.list.plugins.iter().rev() {
        let extra = Extra {
            previous: result_of(entry),
            capabilities: Some(&entry.capabilities),
            valid_attachments: None,
        };
        let invocation = invocation(Verb::Del, &entry.list, plugin, extra).of(&subject);
        let deleted = runner.run(&invocation).await.map(drop);
        result = result.and(deleted);
    }
    result
}

/// CHECK. Does nothing if the network's version has no CHECK or its list disables it.
pub async fn check(runner: &Runner, entry: &Entry) -> Result<(), Error> {
    let list = &entry.list;
    if list.version < Version::V0_4_0 || list.disable_check || entry.result.is_none() {
        return Ok(());
    }
    let subject = subject(entry, entry.netns.display().to_string());
    let checked = async {
        for plugin in &list.plugins {
            let extra = Extra {
                previous: result_of(entry),
                capabilities: Some(&entry.capabilities),
                valid_attachments: None,
            };
            let invocation = invocation(Verb::Check, list, plugin, extra).of(&subject);
            runner.run(&invocation).await?;
        }
        Ok(())
    };
    runner.observed(Verb::Check, checked).await
}

/// STATUS: whether ADD would work. Does nothing before version 1.1.0.
pub async fn status(runner: &Runner, list: &NetworkList) -> Result<(), Error> {
    if !has_status(list) {
        return Ok(());
    }
    for plugin in &list.plugins {
        runner
            .run(&invocation(Verb::Status, list, plugin, Extra::default()))
            .await?;
    }
    Ok(())
}

/// Whether this network's version has STATUS.
pub fn has_status(list: &NetworkList) -> bool {
    list.version >= Version::V1_1_0
}

/// Whether this network's version has GC and its list does not disable it.
pub fn has_gc(list: &NetworkList) -> bool {
    list.version >= Version::V1_1_0 && !list.disable_gc
}

/// GC: plugins release what no attachment in `valid` owns, a list of `{containerID, ifname}`.
pub async fn gc(runner: &Runner, list: &NetworkList, valid: &Value) -> Result<(), Error> {
    if !has_gc(list) {
        return Ok(());
    }
    let mut result = Ok(());
    for plugin in &list.plugins {
        let extra = Extra {
            valid_attachments: Some(valid),
            ..Extra::default()
        };
        let dropped = runner.run(&invocation(Verb::Gc, list, plugin, extra)).await;
        result = result.and(dropped.map(drop));
    }
    result
}

fn subject(entry: &Entry, netns: String) -> Subject {
    Subject {
        container: entry.pod.clone(),
        netns,
        interface: entry.interface.clone(),
        args: entry.args.clone(),
    }
}

/// The result that CHECK and DEL get: before 0.4.0, none.
fn result_of(entry: &Entry) -> Option<&Value> {
    let result = entry.result.as_ref();
    result.filter(|_| entry.list.version >= Version::V0_4_0)
}

fn invocation<'a>(
    verb: Verb,
    list: &'a NetworkList,
    plugin: &'a Plugin,
    extra: Extra<'_>,
) -> Invocation<'a> {
    Invocation {
        verb,
        plugin: &plugin.kind,
        network: &list.name,
        subject: None,
        input: list.input(plugin, extra),
    }
}

impl<'a> Invocation<'a> {
    fn of(mut self, subject: &'a Subject) -> Self {
        self.subject = Some(subject);
        self
    }
}

fn useless(invocation: &Invocation<'_>, what: String) -> Error {
    Error::Answer {
        verb: invocation.verb,
        plugin: invocation.plugin.to_owned(),
        network: invocation.network.to_owned(),
        what,
    }
}
