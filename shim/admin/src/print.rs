//! Prints replies for people: facts, tables, ages, sizes.
//!
//! Called by: [`super::client`]. Calls: [`super::screen`]. Invariant: what a pod wrote is printed without control characters.
//! Must not know: where replies come from.

use std::fmt::Write as _;

use coracle_proto::admin::v1 as admin;

use super::screen::{Colour, Screen, plain};

const SECOND: i64 = 1_000_000_000;

/// How long ago `at` was, or how long it took: `5s`, `12m`, `3h`, `4d`.
pub(crate) fn age(nanoseconds: i64) -> String {
    match nanoseconds.max(0) / SECOND {
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7200 => format!("{}m", seconds / 60),
        seconds @ 7200..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// Bytes with a binary unit.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1_048_576 => format!("{} KiB", bytes >> 10),
        1_048_576..10_737_418_240 => format!("{} MiB", bytes >> 20),
        _ => format!("{} GiB", bytes >> 30),
    }
}

/// The text of `coracle status`.
pub(crate) fn status(status: &admin::StatusReply, screen: Screen) -> String {
    let mut text = verdict(status, screen);
    for (name, value) in facts(status) {
        let _ = writeln!(text, "{name:<12}{value}");
    }
    text
}

/// Whether the node is ready, and each of its problems.
fn verdict(status: &admin::StatusReply, screen: Screen) -> String {
    let (line, colour) = match (status.ready, status.problems.as_slice()) {
        (true, []) => ("ready".to_owned(), Colour::Good),
        (true, [first, ..]) => (format!("ready, but {}", plain(first)), Colour::Doubtful),
        (false, [first, ..]) => (format!("not ready: {}", plain(first)), Colour::Bad),
        (false, []) => ("not ready".to_owned(), Colour::Bad),
    };
    let mut text = screen.painted(&line, colour) + "\n";
    for problem in status.problems.iter().skip(1) {
        let line = format!("also: {}", plain(problem));
        let _ = writeln!(text, "{}", screen.painted(&line, colour));
    }
    text
}

/// The facts about the node, by name.
pub(crate) fn facts(status: &admin::StatusReply) -> [(&'static str, String); 12] {
    let uptime = age(i64::try_from(status.uptime_s)
        .unwrap_or(0)
        .saturating_mul(SECOND));
    let daemon = format!(
        "coracle {}, wasmtime {}, pid {}, up {uptime}, {} resident",
        status.version,
        status.wasmtime,
        status.pid,
        size(status.resident_bytes)
    );
    let images = format!(
        "{}, {} on disk, {} free",
        status.images,
        size(status.store_bytes),
        size(status.store_free_bytes)
    );
    let cgroups = format!("v{}, {}", status.cgroup_version, status.cgroup_driver);
    let metrics = match status.metrics_address.as_str() {
        "" => "off".to_owned(),
        address => format!("http://{address}/metrics"),
    };
    [
        ("daemon", daemon),
        ("started", started(status)),
        ("keepers", keepers(status)),
        ("sandboxes", counts(&status.sandboxes)),
        ("containers", counts(&status.containers)),
        ("images", images),
        ("compiled", compiled(status)),
        ("network", network(status)),
        ("cgroups", cgroups),
        ("socket", status.socket.clone()),
        ("directories", format!("{}, {}", status.root, status.run)),
        ("metrics", metrics),
    ]
}

/// What the daemon found when it started.
fn started(status: &admin::StatusReply) -> String {
    format!(
        "{} sandboxes adopted, {} undone, in {} ms; {} spawners replaced since",
        status.adopted_sandboxes,
        status.dead_sandboxes,
        status.recovery_ms,
        status.spawner_restarts
    )
}

fn keepers(status: &admin::StatusReply) -> String {
    let (own, older) = (status.own_keepers, status.older_keepers);
    format!("{own} of this build, {older} of another")
}

fn compiled(status: &admin::StatusReply) -> String {
    let (files, bytes) = (status.compiled_files, size(status.compiled_bytes));
    format!("{files} files, {bytes} on disk")
}

/// What connects pods, and what there is of it.
fn network(status: &admin::StatusReply) -> String {
    let mut text = status.network_mode.clone();
    if status.used_addresses > 0 {
        let _ = write!(
            text,
            ", {} addresses used, {} free",
            status.used_addresses, status.free_addresses
        );
    }
    if status.owed_releases > 0 {
        let _ = write!(text, ", {} pods attached by plugins", status.owed_releases);
    }
    text
}

fn counts(counts: &[admin::Count]) -> String {
    if counts.is_empty() {
        return "none".to_owned();
    }
    let one = |count: &admin::Count| format!("{} {} ({})", count.count, count.state, count.kind);
    counts.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// The rows of `coracle ps`, heads first. `now` is in nanoseconds since 1970 UTC.
pub(crate) fn containers(containers: &[admin::Container], now: i64) -> Vec<Vec<String>> {
    let heads = [
        "NAMESPACE/POD",
        "CONTAINER",
        "ID",
        "KIND",
        "STATE",
        "AGE",
        "MEMORY",
        "CPU",
        "IMAGE",
    ];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    rows.extend(containers.iter().map(|line| container_row(line, now)));
    rows
}

/// The row of a container, or of a sandbox that has none.
pub(crate) fn container_row(line: &admin::Container, now: i64) -> Vec<String> {
    let id = if line.id.is_empty() {
        &line.sandbox
    } else {
        &line.id
    };
    let state = match line.state.as_str() {
        "exited" => format!("exited {} ({})", line.exit_code, line.reason),
        other => other.to_owned(),
    };
    let since = [line.finished_at, line.started_at, line.created_at];
    let since = since.into_iter().find(|at| *at > 0).unwrap_or(now);
    let (memory, cpu) = if line.state == "running" {
        let cpu = format!("{}m", line.nano_cores / 1_000_000);
        (size(line.memory_bytes), cpu)
    } else {
        (or_dash(""), or_dash(""))
    };
    vec![
        format!("{}/{}", line.namespace, line.pod),
        or_dash(&line.name),
        id.chars().take(13).collect(),
        or_dash(&line.kind),
        state,
        age(now - since),
        memory,
        cpu,
        or_dash(&line.image),
    ]
}

/// The text of a cell that is never empty.
fn or_dash(text: &str) -> String {
    let shown = if text.is_empty() { "-" } else { text };
    shown.to_owned()
}

/// The text of `coracle why`.
pub(crate) fn explained(pods: &[admin::Explained], now: i64, screen: Screen) -> String {
    let mut text = String::new();
    for (at, pod) in pods.iter().enumerate() {
        if at > 0 {
            text.push('\n');
        }
        let _ = writeln!(text, "{}", plain(&pod.answer));
        for (name, value) in pod_facts(pod, now) {
            let _ = writeln!(text, "{name:<12}{}", plain(&value));
        }
        for container in &pod.containers {
            text.push_str(&container_lines(container, now));
        }
        if !pod.events.is_empty() {
            text.push_str(&screen.table(&events(&pod.events, now)));
        }
    }
    text
}

/// The facts about a pod, by name; just its id for one that is gone.
fn pod_facts(pod: &admin::Explained, now: i64) -> Vec<(&'static str, String)> {
    let mut facts = vec![("sandbox", pod.sandbox.clone())];
    if pod.created_at > 0 {
        let keeper = match (pod.keeper_pid, pod.keeper_answers) {
            (0, _) => "none".to_owned(),
            (pid, true) => format!("pid {pid}"),
            (pid, false) => format!("pid {pid}, does not answer"),
        };
        facts.extend([
            ("created", format!("{} ago", age(now - pod.created_at))),
            ("handler", pod.handler.clone()),
            ("addresses", pod.ips.join(", ")),
            ("keeper", keeper),
            ("cgroup", pod.cgroup_parent.clone()),
            ("logs", pod.log_directory.clone()),
        ]);
    }
    facts
}

/// The state of a container, and the beginning of its message.
fn container_lines(container: &admin::Container, now: i64) -> String {
    let state = match container.state.as_str() {
        "exited" => format!(
            "exited {} ({}) {} ago",
            container.exit_code,
            container.reason,
            age(now - container.finished_at)
        ),
        "running" => format!(
            "running for {}, {}",
            age(now - container.started_at),
            size(container.memory_bytes)
        ),
        other => other.to_owned(),
    };
    let (name, kind) = (plain(&container.name), &container.kind);
    let mut text = format!("{:<12}{name} {kind}, {state}\n", "container");
    for line in container.message.lines().take(20) {
        let _ = writeln!(text, "{:<12}{}", "", plain(line));
    }
    text
}

/// The rows of events, heads first.
pub(crate) fn events(events: &[admin::Event], now: i64) -> Vec<Vec<String>> {
    let heads = ["AGO", "NAMESPACE/POD", "CONTAINER", "WHAT", "TOOK"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    rows.extend(events.iter().map(|event| {
        vec![
            age(now - event.at),
            format!("{}/{}", event.namespace, event.pod),
            or_dash(&event.container),
            event.what.clone(),
            format!("{} ms", event.took_ms),
        ]
    }));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_sizes_are_short() {
        let ages = [0, 59, 119, 120, 7199, 7200, 172_799, 172_800].map(|s| age(s * SECOND));
        assert_eq!(ages, ["0s", "59s", "119s", "2m", "119m", "2h", "47h", "2d"]);
        assert_eq!(
            [0, 1 << 20, 20 << 30].map(size),
            ["0 KiB", "1 MiB", "20 GiB"]
        );
    }
}
