//! Prints what a pod costs beside none and beside many, with the goals, and the JSON for those who compare runs.

use std::fmt::Write;

use serde_json::{Value, json};

use super::cpu::Cpu;
use super::{Cycles, Figures};
use crate::bench::report::quantile;

/// The steps of a cycle.
const STEPS: [&str; 4] = [
    "RunPodSandbox",
    "CreateContainer",
    "StartContainer to first line",
    "stop and remove",
];

type Part = fn(&Cpu) -> f64;
const PARTS: [(&str, Part); 7] = [
    ("CPU a pod, whole machine, ms", |cpu| cpu.all),
    ("  daemon", |cpu| cpu.daemon),
    ("  spawner", |cpu| cpu.spawner),
    ("  keepers", |cpu| cpu.keepers),
    ("  containers", |cpu| cpu.containers),
    ("  kernel threads", |cpu| cpu.kernel),
    ("  rest", |cpu| cpu.rest),
];

/// The table.
pub fn table(figures: &Figures) -> String {
    let mut text = heading(["none alive", &format!("{} alive", figures.pods)]);
    let cycles = [&figures.at_none, &figures.at_all];
    for (at, step) in STEPS.iter().enumerate() {
        let medians = cycles.map(|own: &Cycles| quantile(&own.steps[at], 0.5));
        row(&mut text, &format!("{step}, median ms"), &medians);
    }
    for (name, share) in [("median", 0.5), ("p99", 0.99)] {
        let values = cycles.map(|own| quantile(&own.whole, share));
        row(&mut text, &format!("whole start, {name} ms"), &values);
    }
    text += &heading(["the first 100", "all"]);
    row(&mut text, "pods started a second", &figures.pods_per_s);
    for (label, part) in PARTS {
        row(&mut text, label, &figures.cpu.each_ref().map(part));
    }
    text += "\n";
    add_node(&mut text, figures);
    text
}

/// Adds what the pods cost the node, and what all of them cost whoever handles them together.
fn add_node(text: &mut String, figures: &Figures) {
    let [idle, full, after] = figures.daemon_rss_kib.map(|kib| kib as f64);
    let median = |values: &[f64]| quantile(values, 0.5);
    let scrape = &figures.scrape;
    let rows: [(&str, &[f64]); 9] = [
        (
            "MemAvailable lost a pod, KiB",
            &[figures.memavailable_kib_per_pod],
        ),
        (
            "daemon RSS without, with, after the pods, KiB",
            &[idle, full, after],
        ),
        ("list, p99 ms", &[quantile(&figures.lists_ms, 0.99)]),
        (
            "ListContainerStats, median ms",
            &[median(&figures.container_stats_ms)],
        ),
        (
            "ListPodSandboxStats, median ms",
            &[median(&figures.sandbox_stats_ms)],
        ),
        (
            "scrape of all containers, slowest ms, MiB",
            &[scrape.ms, scrape.bytes as f64 / f64::from(1 << 20)],
        ),
        (
            "a scrape: CPU ms, memory of the daemon KiB",
            &[scrape.cpu_ms, scrape.rss_kib as f64],
        ),
        (
            "start after kill -9 until it answers, ms",
            &[figures.restart_ms],
        ),
        ("stop and remove all, s", &[figures.remove_all_s]),
    ];
    for (label, values) in rows {
        row(text, label, values);
    }
}

fn heading(names: [&str; 2]) -> String {
    format!("{:<46}{:>14}{:>14}\n", "", names[0], names[1])
}

fn row(text: &mut String, label: &str, values: &[f64]) {
    let _ = write!(text, "{label:<46}");
    for value in values {
        let _ = write!(text, "{value:>14.2}");
    }
    text.push('\n');
}

/// The object `scale`.
pub fn json(figures: &Figures) -> Value {
    let [idle, full, after] = figures.daemon_rss_kib;
    json!({"scale": {
        "pods": figures.pods,
        "start_ms_p50_at_0": quantile(&figures.at_none.whole, 0.5),
        "start_ms_p50_at_2000": quantile(&figures.at_all.whole, 0.5),
        "pods_per_s_first_100": figures.pods_per_s[0],
        "pods_per_s_all": figures.pods_per_s[1],
        "cpu_ms_per_pod_first_100": figures.cpu[0].all,
        "cpu_ms_per_pod_all": figures.cpu[1].all,
        "memavailable_kib_per_pod": figures.memavailable_kib_per_pod,
        "daemon_rss_idle_kib": idle,
        "daemon_kib_per_pod": full.saturating_sub(idle) as f64 / figures.pods as f64,
        "daemon_rss_after_kib": after,
        "list_ms_p99": quantile(&figures.lists_ms, 0.99),
        "container_stats_ms": quantile(&figures.container_stats_ms, 0.5),
        "sandbox_stats_ms": quantile(&figures.sandbox_stats_ms, 0.5),
        "scrape_ms": figures.scrape.ms,
        "scrape_bytes": figures.scrape.bytes,
        "scrape_cpu_ms": figures.scrape.cpu_ms,
        "scrape_rss_kib": figures.scrape.rss_kib,
        "restart_ms": figures.restart_ms,
        "remove_all_s": figures.remove_all_s,
    }})
}
