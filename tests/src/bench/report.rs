//! Puts the outcomes of all contenders into one table, and into JSON for those who compare runs.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

use super::measure::{Outcomes, STEPS};

/// One line of the table: what it is, and its value for a contender.
struct Row {
    label: String,
    values: Vec<f64>,
    /// Whether a larger value is the better one.
    more_is_better: bool,
}

/// The table, with a column of ratios for each contender against the last: above 1 is better than it.
pub fn table(outcomes: &[Outcomes]) -> String {
    let mut text = format!("{:<40}", "");
    for outcome in outcomes {
        let _ = write!(text, "{:>18}", outcome.name);
    }
    for outcome in &outcomes[..outcomes.len().saturating_sub(1)] {
        let _ = write!(text, "{:>25}", format!("{} better", outcome.name));
    }
    text.push('\n');
    for row in rows(outcomes) {
        let _ = write!(text, "{:<40}", row.label);
        for value in &row.values {
            let shown = match value.is_nan() {
                true => "-".to_owned(),
                false => format!("{value:.2}"),
            };
            let _ = write!(text, "{shown:>18}");
        }
        let Some((reference, others)) = row.values.split_last() else {
            continue;
        };
        for value in others {
            let ratio = if row.more_is_better {
                value / reference
            } else {
                reference / value
            };
            let shown = if ratio.is_finite() && ratio > 0.0 {
                format!("{ratio:.1}x")
            } else {
                "-".into()
            };
            let _ = write!(text, "{shown:>25}");
        }
        text.push('\n');
    }
    text
}

impl Row {
    fn new(
        outcomes: &[Outcomes],
        label: impl Into<String>,
        more_is_better: bool,
        value: impl Fn(&Outcomes) -> f64,
    ) -> Row {
        Row {
            label: label.into(),
            values: outcomes.iter().map(value).collect(),
            more_is_better,
        }
    }
}

fn rows(outcomes: &[Outcomes]) -> Vec<Row> {
    let mut rows = latencies(outcomes);
    rows.extend(resources(outcomes));
    rows
}

/// How long the steps take, with and without network plugins.
fn latencies(outcomes: &[Outcomes]) -> Vec<Row> {
    let row =
        |label: String, value: &dyn Fn(&Outcomes) -> f64| Row::new(outcomes, label, false, value);
    let mut rows = Vec::new();
    for step in STEPS {
        for (name, share) in [("median", 0.5), ("p99", 0.99)] {
            rows.push(row(format!("{step}, {name} ms"), &|o| {
                quantile(&o.times_ms[step], share)
            }));
        }
    }
    rows.push(row("network plugins alone, ADD, median ms".into(), &|o| {
        plugins(o).0
    }));
    rows.push(row("RunPodSandbox beyond them, median ms".into(), &|o| {
        quantile(&o.times_ms["RunPodSandbox"], 0.5) - plugins(o).0
    }));
    rows.push(row("network plugins alone, DEL, median ms".into(), &|o| {
        plugins(o).1
    }));
    rows
}

/// How many pods a machine takes, and what they occupy.
fn resources(outcomes: &[Outcomes]) -> Vec<Row> {
    let row = |label: &str, more_is_better, value: fn(&Outcomes) -> f64| {
        Row::new(outcomes, label, more_is_better, value)
    };
    vec![
        row("pods started a second", true, |o| o.pods_per_s),
        row("PSS a pod, KiB", false, |o| o.pss_kib_per_pod),
        row("MemAvailable lost a pod, KiB", false, |o| {
            o.memavailable_kib_per_pod
        }),
        row("CPU while pods idle, % of a core", false, |o| {
            o.idle_cpu_percent
        }),
        row("daemon RSS idle, KiB", false, |o| o.daemon_rss_idle_kib),
        row("daemon RSS under pods, KiB", false, |o| {
            o.daemon_rss_pods_kib
        }),
    ]
}

/// One object a contender, by name.
pub fn json(outcomes: &[Outcomes]) -> Value {
    let object = |o: &Outcomes| {
        let (start, stop) = (&o.times_ms["whole start"], &o.times_ms["stop and remove"]);
        let (added, deleted) = plugins(o);
        json!({
            "plugins_add_ms_p50": added,
            "plugins_del_ms_p50": deleted,
            "run_beyond_plugins_ms_p50": quantile(&o.times_ms["RunPodSandbox"], 0.5) - added,
            "start_ms_p50": quantile(start, 0.5),
            "start_ms_p99": quantile(start, 0.99),
            "stop_ms_p50": quantile(stop, 0.5),
            "pods_per_s": o.pods_per_s,
            "pss_kib_per_pod": o.pss_kib_per_pod,
            "memavailable_kib_per_pod": o.memavailable_kib_per_pod,
            "idle_cpu_percent": o.idle_cpu_percent,
            "daemon_rss_idle_kib": o.daemon_rss_idle_kib,
            "daemon_rss_100_pods_kib": o.daemon_rss_pods_kib,
        })
    };
    let objects: BTreeMap<_, _> = outcomes.iter().map(|o| (o.name, object(o))).collect();
    json!(objects)
}

/// How long the plugins of a contender's network take by themselves, ADD and DEL, median ms; no number without plugins.
fn plugins(outcomes: &Outcomes) -> (f64, f64) {
    if outcomes.plugins_ms.is_empty() {
        return (f64::NAN, f64::NAN);
    }
    let (added, deleted): (Vec<f64>, Vec<f64>) = outcomes.plugins_ms.iter().copied().unzip();
    (quantile(&added, 0.5), quantile(&deleted, 0.5))
}

/// The value below which this share of the values lies (nearest rank); 0 of nothing.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_by_nearest_rank() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(
            (quantile(&values, 0.5), quantile(&values, 0.99)),
            (50.0, 99.0)
        );
        assert_eq!((quantile(&[], 0.5), quantile(&[7.0], 0.99)), (0.0, 7.0));
    }
}
