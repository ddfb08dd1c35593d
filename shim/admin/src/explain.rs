//! The life of one pod: what it is, what it waits for, what happened to it, and all of that in one sentence.
//!
//! Called by: [`super::server`]. Calls: snapshots, the history, the pod's driver, which is waited for
//! [`super::PATIENCE`] long. Invariants: a pod that is still being created is found by its name; one that is gone, as long as
//! the history has it.
//! Must not know: the form in which it is printed.

use std::collections::BTreeSet;

use coracle_lifecycle::{Error, HistoryEntry, Inspection, PodView, Pods};
use coracle_proto::admin::v1 as admin;

use super::server::{event, milliseconds};
use super::{PATIENCE, listing};

/// All sandboxes that `name` means: an id or the beginning of one, `NAMESPACE/POD`, or `POD`.
pub(crate) async fn explain(pods: &Pods, name: &str) -> Result<Vec<admin::Explained>, Error> {
    let history = pods.follow_history().0;
    let mut explained = Vec::new();
    for sandbox in meant(pods, name, &history) {
        let events = history.iter().filter(|entry| entry.sandbox == sandbox);
        let events: Vec<_> = events.map(|entry| event(entry)).collect();
        explained.push(one(pods, &sandbox, events).await?);
    }
    explained.sort_by_key(|pod| pod.created_at);
    Ok(explained)
}

/// The ids of the sandboxes that `name` means.
fn meant<'a>(
    pods: &Pods,
    name: &str,
    history: impl IntoIterator<Item = &'a std::sync::Arc<HistoryEntry>>,
) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    if name.is_empty() {
        return found;
    }
    for pod in pods.pods() {
        let of = &pod.config.name;
        if is_named(name, &of.namespace, &of.name) || pod.id.as_str().starts_with(name) {
            found.insert(pod.id.to_string());
        }
    }
    for container in pods.containers() {
        if container.id.as_str().starts_with(name) {
            found.insert(container.pod.to_string());
        }
    }
    for (namespace, pod, id) in pods.names() {
        if is_named(name, &namespace, &pod) {
            found.insert(id.to_string());
        }
    }
    if found.is_empty() {
        let entries = history.into_iter().filter(|entry| is_about(entry, name));
        found.extend(entries.map(|entry| entry.sandbox.clone()));
    }
    found
}

/// Whether `name` is that of the pod, with or without its namespace.
fn is_named(name: &str, namespace: &str, pod: &str) -> bool {
    match name.split_once('/') {
        Some(both) => both == (namespace, pod),
        None => name == pod,
    }
}

/// Whether `name` means the pod or the container of an entry.
fn is_about(entry: &HistoryEntry, name: &str) -> bool {
    let container = entry.container.as_ref();
    let is_container = container.is_some_and(|(_, id)| id.starts_with(name));
    let is_sandbox = is_named(name, &entry.pod.0, &entry.pod.1) || entry.sandbox.starts_with(name);
    is_sandbox || is_container
}

async fn one(
    pods: &Pods,
    sandbox: &str,
    events: Vec<admin::Event>,
) -> Result<admin::Explained, Error> {
    let mut explained = admin::Explained {
        sandbox: sandbox.to_owned(),
        events,
        ..admin::Explained::default()
    };
    let id = sandbox.parse().ok();
    let view = id.as_ref().and_then(|id| pods.pod(id));
    if let Some(view) = &view {
        add_view(&mut explained, view);
        explained.containers = listing::of(pods, view, pods.containers_of(&view.id)).await?;
    } else if let Some(last) = explained.events.last() {
        (explained.namespace, explained.pod) = (last.namespace.clone(), last.pod.clone());
    }
    if let Some(id) = &id {
        match tokio::time::timeout(PATIENCE, pods.inspect(id)).await {
            Ok(Ok(found)) => add_inspection(&mut explained, found),
            Ok(Err(_)) => explained.phase = "gone".to_owned(),
            Err(_) => {
                explained.phase = "unknown".to_owned();
                let text = format!("its driver has not answered for {} s", PATIENCE.as_secs());
                explained.waits.push(text);
            }
        }
    }
    explained.answer = answer(&explained);
    Ok(explained)
}

/// Adds what the snapshot of a pod shows.
fn add_view(explained: &mut admin::Explained, view: &PodView) {
    let config = &view.config;
    explained.namespace.clone_from(&config.name.namespace);
    explained.pod.clone_from(&config.name.name);
    config.shown_handler().clone_into(&mut explained.handler);
    explained.ready = view.ready;
    explained.created_at = view.created_at;
    explained.ips = view.ips.iter().map(ToString::to_string).collect();
    explained.cgroup_parent.clone_from(&view.cgroup_parent);
    explained.log_directory.clone_from(&config.log_directory);
}

/// Adds what the driver of a pod says.
fn add_inspection(explained: &mut admin::Explained, found: Inspection) {
    if explained.pod.is_empty() {
        (explained.namespace, explained.pod) = found.pod;
    }
    explained.phase = found.phase.to_owned();
    explained.phase_ms = milliseconds(found.since);
    explained.waits = found.waits;
    explained.keeper_pid = found.keeper_pid.unwrap_or(0);
    explained.keeper_answers = found.keeper_answers;
}

/// The answer in one sentence: what is wrong comes first.
fn answer(pod: &admin::Explained) -> String {
    let name = format!("{}/{}", pod.namespace, pod.pod);
    let failure = pod.events.iter().rfind(|event| event.failed);
    let failed = |container: &&admin::Container| {
        container.state == "unknown" || container.state == "exited" && container.exit_code != 0
    };
    let running = pod.containers.iter().filter(|one| one.state == "running");
    let (running, all) = (running.count(), pod.containers.len());
    if pod.phase == "gone" {
        return match failure {
            Some(failure) => format!("{name} is gone; its last failure: {}", subject(failure)),
            None => format!("{name} is gone, and nothing of it had failed"),
        };
    }
    if !pod.waits.is_empty() {
        return format!("{name} is {}: {}", pod.phase, pod.waits.join("; "));
    }
    if let Some(container) = pod.containers.iter().rfind(failed) {
        let message = match container.message.lines().next() {
            Some(line) if !line.is_empty() => format!(": {line}"),
            _ => String::new(),
        };
        return format!(
            "{name} is {}, {running} of {all} containers run; {} has ended with {} ({}){message}",
            pod.phase, container.name, container.exit_code, container.reason
        );
    }
    if let Some(failure) = failure {
        return format!(
            "{name} is {}, {running} of {all} containers run; its last failure: {}",
            pod.phase,
            subject(failure)
        );
    }
    if !pod.keeper_answers && pod.ready {
        return format!("{name} is {}, but its keeper does not answer", pod.phase);
    }
    format!("{name} is {}, {running} of {all} containers run", pod.phase)
}

fn subject(event: &admin::Event) -> String {
    match event.container.as_str() {
        "" => event.what.clone(),
        container => format!("container {container} {}", event.what),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_begins_with_what_is_wrong() {
        let mut pod = admin::Explained {
            namespace: "ns".to_owned(),
            pod: "web".to_owned(),
            phase: "ready".to_owned(),
            ready: true,
            keeper_answers: true,
            ..admin::Explained::default()
        };
        assert_eq!(answer(&pod), "ns/web is ready, 0 of 0 containers run");
        pod.keeper_answers = false;
        assert!(answer(&pod).ends_with("its keeper does not answer"));
        pod.events.push(admin::Event {
            container: "app".to_owned(),
            what: "was not created: no such image".to_owned(),
            failed: true,
            ..admin::Event::default()
        });
        let failed = "its last failure: container app was not created: no such image";
        assert!(answer(&pod).ends_with(failed), "{}", answer(&pod));
        pod.containers.push(admin::Container {
            name: "app".to_owned(),
            state: "exited".to_owned(),
            exit_code: 137,
            reason: "OOMKilled".to_owned(),
            ..admin::Container::default()
        });
        let ended = "0 of 1 containers run; app has ended with 137 (OOMKilled)";
        assert!(answer(&pod).ends_with(ended), "{}", answer(&pod));
        pod.waits
            .push("container app has been starting for 3 ms".to_owned());
        assert_eq!(
            answer(&pod),
            "ns/web is ready: container app has been starting for 3 ms"
        );
        pod.phase = "gone".to_owned();
        assert!(answer(&pod).starts_with("ns/web is gone; its last failure"));
    }
}
