//! Puts what was measured into one table with ratios, and into JSON for those who compare runs.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::cold::Cold;
use super::load::{CONNECTIONS, Run, Runs};
use crate::bench::report::quantile;

/// What Coracle is measured against: its server, the other, and what is said of the two.
const RATIOS: [(&str, &str); 4] = [
    ("coracle-http", "wasmtime-serve"),
    ("coracle-http-reuse", "wasmtime-serve-reuse"),
    ("coracle-http", "containerd-native"),
    ("coracle-http-reuse", "containerd-native"),
];

/// One server's name and runs.
pub type Named = (&'static str, Runs);

/// The median of one quantity over all rounds; no number without a run.
fn median(runs: &Runs, connections: u32, value: impl Fn(&Run) -> f64) -> f64 {
    let values: Vec<f64> = runs
        .get(&connections)
        .into_iter()
        .flatten()
        .map(value)
        .collect();
    match values.is_empty() {
        true => f64::NAN,
        false => quantile(&values, 0.5),
    }
}

/// One quantity: its label, and how a run has it.
type Row = (&'static str, fn(&Run) -> f64);

const ROWS: [Row; 5] = [
    ("requests/s", |run| run.rps),
    ("p50 ms", |run| run.p50_ms),
    ("p99 ms", |run| run.p99_ms),
    ("CPU us a request", |run| run.cpu_us),
    ("PSS after, KiB", |run| run.pss_kib),
];

/// The table: a row for each quantity and number of connections, a column for each server; the ratios of requests a
/// second below it, above 1 where the first of the two is better.
pub fn table(servers: &[Named], cold: &Cold) -> String {
    let mut text = format!("{:<28}", "");
    for (name, _) in servers {
        let _ = write!(text, "{name:>22}");
    }
    text.push('\n');
    for (label, value) in ROWS {
        for connections in CONNECTIONS {
            let _ = write!(text, "{:<28}", format!("{label}, c={connections}"));
            for (_, runs) in servers {
                let _ = write!(text, "{:>22.2}", median(runs, connections, value));
            }
            text.push('\n');
        }
    }
    ratios(&mut text, servers);
    for (label, values) in cold_rows(cold) {
        let (median, p99) = (quantile(values, 0.5), quantile(values, 0.99));
        let _ = writeln!(
            text,
            "{label}: median {median:.2} ms, p99 {p99:.2} ms, {} times",
            values.len()
        );
    }
    if cold.idle_functions > 0 {
        let (kib, many) = (cold.idle_pss_kib, cold.idle_functions);
        let _ = writeln!(
            text,
            "PSS of a sleeping function's pod: {kib:.0} KiB, {many} at a time"
        );
    }
    text
}

fn ratios(text: &mut String, servers: &[Named]) {
    let find = |wanted: &str| servers.iter().find(|(name, _)| *name == wanted);
    for (own, other) in RATIOS {
        let (Some((_, own_runs)), Some((_, other_runs))) = (find(own), find(other)) else {
            continue;
        };
        let _ = write!(text, "{own} / {other}, requests/s:");
        for connections in CONNECTIONS {
            let rps = |runs| median(runs, connections, |run| run.rps);
            let _ = write!(
                text,
                "  c={connections} {:.2}x",
                rps(own_runs) / rps(other_runs)
            );
        }
        text.push('\n');
    }
}

fn cold_rows(cold: &Cold) -> Vec<(&'static str, &[f64])> {
    let rows = [
        (
            "RunPodSandbox to the end of StartContainer",
            &cold.pod_to_started_ms[..],
        ),
        (
            "RunPodSandbox to the first 200",
            &cold.pod_to_first_200_ms[..],
        ),
        (
            "connection to a sleeping function to its 200",
            &cold.wake_ms,
        ),
        ("the same of one in Python", &cold.python_wake_ms),
    ];
    rows.into_iter()
        .filter(|(_, values)| !values.is_empty())
        .collect()
}

/// One object for each server, and `cold`. A quantity that was not measured has no key.
pub fn json(servers: &[Named], cold: &Cold) -> Value {
    let mut all = Map::new();
    for (name, runs) in servers {
        let mut object = Map::new();
        for connections in CONNECTIONS {
            for (key, value) in KEYS {
                let value = median(runs, connections, value);
                object.insert(format!("{key}_c{connections}"), json!(value));
            }
        }
        all.insert((*name).to_owned(), Value::Object(object));
    }
    let mut object = Map::new();
    let mut put = |key: &str, values: &[f64], share| {
        if !values.is_empty() {
            object.insert(key.to_owned(), json!(quantile(values, share)));
        }
    };
    put("pod_to_started_ms_p50", &cold.pod_to_started_ms, 0.5);
    put("pod_to_first_200_ms_p50", &cold.pod_to_first_200_ms, 0.5);
    put("pod_to_first_200_ms_p99", &cold.pod_to_first_200_ms, 0.99);
    put("wake_ms_p50", &cold.wake_ms, 0.5);
    put("wake_ms_p99", &cold.wake_ms, 0.99);
    put("python_wake_ms_p50", &cold.python_wake_ms, 0.5);
    if cold.idle_functions > 0 {
        object.insert("idle_pss_kib".to_owned(), json!(cold.idle_pss_kib));
    }
    all.insert("cold".to_owned(), Value::Object(object));
    Value::Object(all)
}

const KEYS: [Row; 5] = [
    ("rps", |run| run.rps),
    ("p50_ms", |run| run.p50_ms),
    ("p99_ms", |run| run.p99_ms),
    ("cpu_us", |run| run.cpu_us),
    ("pss_kib", |run| run.pss_kib),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_are_those_that_others_read() {
        let run = |rps| Run {
            rps,
            p50_ms: 1.0,
            p99_ms: 2.0,
            cpu_us: 3.0,
            pss_kib: 4.0,
        };
        let runs: Runs = CONNECTIONS
            .iter()
            .map(|c| (*c, vec![run(5.0), run(7.0), run(6.0)]))
            .collect();
        let servers = [("coracle-http", runs.clone()), ("wasmtime-serve", runs)];
        let cold = Cold {
            pod_to_first_200_ms: vec![9.0],
            ..Cold::default()
        };
        let json = json(&servers, &cold);
        for key in ["rps_c1", "rps_c8", "rps_c32", "rps_c128"] {
            assert_eq!(json["coracle-http"][key], 6.0, "{key}");
        }
        assert_eq!(json["wasmtime-serve"]["p99_ms_c32"], 2.0);
        assert_eq!(json["cold"]["pod_to_first_200_ms_p50"], 9.0);
        for absent in ["wake_ms_p50", "idle_pss_kib", "python_wake_ms_p50"] {
            assert!(json["cold"].get(absent).is_none(), "{absent}");
        }
        assert!(
            table(&servers, &cold)
                .contains("coracle-http / wasmtime-serve, requests/s:  c=1 1.00x")
        );
    }
}
