//! Puts what was measured into one table with ratios, and into JSON for those who compare runs.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::watch::Cost;
use super::{Figures, RUNTIMES, Round};
use crate::bench::report::quantile;

type Part = fn(&Round) -> &Cost;
const PARTS: [(&str, Part); 4] = [
    ("large image", |round| &round.big),
    ("small images at once", |round| &round.small),
    ("large image by another tag", |round| &round.retag),
    ("component", |round| &round.component),
];

type Quantity = fn(&Cost) -> f64;
const QUANTITIES: [(&str, Quantity); 4] = [
    ("seconds", |cost| cost.seconds),
    ("CPU seconds", |cost| cost.cpu_s),
    ("peak memory, MiB", |cost| cost.peak_mib),
    ("written, MiB", |cost| cost.written_mib),
];

fn median(rounds: &[Round], part: Part, quantity: Quantity) -> f64 {
    let values: Vec<f64> = rounds.iter().map(|round| quantity(part(round))).collect();
    quantile(&values, 0.5)
}

/// The table: medians over the rounds, the ratio above 1 where Coracle needs less, and for the large image what the bytes
/// alone need.
pub fn table(figures: &Figures) -> String {
    let [sent, unpacked] = figures.big_bytes.map(|bytes| bytes >> 20);
    let component = figures.component_bytes >> 20;
    let mut text = format!(
        "large image: {sent} MiB sent, {unpacked} MiB unpacked; component: {component} MiB, compiled by Coracle only\n{:<46}",
        ""
    );
    for name in [RUNTIMES[0].0, RUNTIMES[1].0, "ratio", "bytes alone"] {
        let _ = write!(text, "{name:>14}");
    }
    text.push('\n');
    for (at, (part_name, part)) in PARTS.into_iter().enumerate() {
        for (name, quantity) in QUANTITIES {
            let [own, peer] = figures
                .rounds
                .each_ref()
                .map(|all| median(all, part, quantity));
            let label = format!("{part_name}, {name}");
            let _ = write!(
                text,
                "{label:<46}{own:>14.3}{peer:>14.3}{:>13.1}x",
                peer / own
            );
            let floor: Vec<f64> = figures.floor.iter().map(quantity).collect();
            if at == 0 && !floor.iter().any(|value| value.is_nan()) {
                let _ = write!(text, "{:>14.3}", quantile(&floor, 0.5));
            }
            text.push('\n');
        }
    }
    text
}

/// The objects `coracle`, `containerd` and `floor`.
pub fn json(figures: &Figures) -> Value {
    let mut all = Map::new();
    for ((name, _), rounds) in RUNTIMES.iter().zip(&figures.rounds) {
        let of = |part: Part, quantity: Quantity| median(rounds, part, quantity);
        let [(_, big), (_, small), (_, retag), (_, component)] = PARTS;
        let [(_, seconds), (_, cpu), (_, peak), (_, written)] = QUANTITIES;
        let values = json!({
            "big_s": of(big, seconds), "big_cpu_s": of(big, cpu),
            "big_peak_mib": of(big, peak), "big_written_mib": of(big, written),
            "small100_s": of(small, seconds), "small100_cpu_s": of(small, cpu),
            "small100_peak_mib": of(small, peak),
            "retag_ms": of(retag, seconds) * 1e3,
            "component_s": of(component, seconds), "component_cpu_s": of(component, cpu),
            "component_peak_mib": of(component, peak),
        });
        all.insert((*name).to_owned(), values);
    }
    let floor = |quantity: Quantity| {
        let values: Vec<f64> = figures.floor.iter().map(quantity).collect();
        quantile(&values, 0.5)
    };
    let [(_, seconds), (_, cpu), _, (_, written)] = QUANTITIES;
    let values = json!({"big_s": floor(seconds), "big_cpu_s": floor(cpu), "big_written_mib": floor(written)});
    all.insert("floor".to_owned(), values);
    Value::Object(all)
}
