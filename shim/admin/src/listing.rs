//! Containers as an operator lists them.
//!
//! Called by: [`super::server`] and `explain`. Calls: snapshots in memory, the usage of the containers that are listed.
//! Must not know: the form in which it is printed.

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_lifecycle::{
    ContainerKind, ContainerState, ContainerUsage, ContainerView, Error, PodView, Pods,
};
use coracle_proto::admin::v1 as admin;

/// Containers by namespace, pod and age; with `all` also those that have ended, and sandboxes that are not ready. At most
/// `most`, and how many more there are; those are not measured.
pub(crate) async fn list(
    pods: &Pods,
    all: bool,
    most: usize,
) -> Result<(Vec<admin::Container>, usize), Error> {
    let sandboxes = pods.pods().into_iter().filter(|pod| all || pod.ready);
    let sandboxes: BTreeMap<_, _> = sandboxes.map(|pod| (pod.id.clone(), pod)).collect();
    let mut containers = pods.containers();
    containers.retain(|view| {
        sandboxes.contains_key(&view.pod) && (all || view.state != ContainerState::Exited)
    });
    let mut without: BTreeMap<_, _> = sandboxes.iter().collect();
    for view in &containers {
        without.remove(&view.pod);
    }
    let total = containers.len() + without.len();
    containers.sort_by_cached_key(|view| {
        let pod = sandboxes.get(&view.pod);
        let name = pod.map(|pod| {
            (
                pod.config.name.namespace.clone(),
                pod.config.name.name.clone(),
            )
        });
        (name, view.created_at)
    });
    containers.truncate(most);
    // Measured together: each measurement looks at all pods once.
    let measured = pods.container_usage(containers).await?;
    let mut lines = Vec::new();
    for usage in &measured {
        if let Some(pod) = sandboxes.get(&usage.view.pod) {
            lines.push(container(pod, usage, pods.container_kind(&usage.view.id)));
        }
    }
    lines.extend(without.into_values().map(|pod| sandbox(pod)));
    lines.sort_by_cached_key(|line| (line.namespace.clone(), line.pod.clone(), line.created_at));
    lines.truncate(most);
    let left_out = total - lines.len();
    Ok((lines, left_out))
}

/// The containers of one pod, with what they use.
pub(crate) async fn of(
    pods: &Pods,
    pod: &PodView,
    containers: Vec<Arc<ContainerView>>,
) -> Result<Vec<admin::Container>, Error> {
    let measured = pods.container_usage(containers).await?;
    let measured = measured.iter();
    let lines = measured.map(|usage| container(pod, usage, pods.container_kind(&usage.view.id)));
    Ok(lines.collect())
}

fn sandbox(pod: &PodView) -> admin::Container {
    admin::Container {
        namespace: pod.config.name.namespace.clone(),
        pod: pod.config.name.name.clone(),
        sandbox: pod.id.to_string(),
        handler: pod.config.shown_handler().to_owned(),
        state: if pod.ready { "ready" } else { "notready" }.to_owned(),
        attempt: pod.config.name.attempt,
        created_at: pod.created_at,
        ..admin::Container::default()
    }
}

fn container(
    pod: &PodView,
    measured: &ContainerUsage,
    kind: Option<ContainerKind>,
) -> admin::Container {
    let view = &measured.view;
    let usage = measured.usage.as_ref();
    let images = [&view.config.user_specified_image, &view.config.image];
    let image = images.into_iter().find(|image| !image.is_empty());
    admin::Container {
        name: view.config.name.name.clone(),
        id: view.id.to_string(),
        kind: kind.map_or("", ContainerKind::name).to_owned(),
        state: state_name(view.state).to_owned(),
        attempt: view.config.name.attempt,
        created_at: view.created_at,
        started_at: view.started_at,
        finished_at: view.finished_at,
        exit_code: view.exit_code,
        reason: view.reason.clone(),
        message: view.message.clone(),
        image: image.cloned().unwrap_or_default(),
        memory_bytes: usage.map_or(0, |usage| usage.stats.working_set_bytes()),
        nano_cores: usage.and_then(|usage| usage.nano_cores).unwrap_or(0),
        log_path: view.log_path.clone(),
        cgroup: view.cgroup.clone(),
        ..sandbox(pod)
    }
}

/// The name of a state.
pub(crate) fn state_name(state: ContainerState) -> &'static str {
    match state {
        ContainerState::Created => "created",
        ContainerState::Running => "running",
        ContainerState::Exited => "exited",
        ContainerState::Unknown => "unknown",
    }
}
