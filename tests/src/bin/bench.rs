//! `bench [--quick] [NAME...]`: measures the named contenders (all, unless named) in turn and prints one table.
//! With `BENCH_JSON=FILE` in the environment the same is written there as JSON.

use std::io::Write;

use coracle_tests::Outcome;
use coracle_tests::bench::{contender, measure, report};
use coracle_tests::registry::Registry;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let (flags, mut names): (Vec<_>, Vec<_>) = std::env::args()
        .skip(1)
        .partition(|arg| arg.starts_with("--"));
    let plan = if flags.iter().any(|flag| flag == "--quick") {
        measure::Plan::QUICK
    } else {
        measure::Plan::FULL
    };
    if names.is_empty() {
        names = contender::NAMES
            .iter()
            .map(|name| (*name).to_owned())
            .collect();
    }
    let registry = Registry::start()?;
    let mut outcomes = Vec::new();
    for name in &names {
        writeln!(std::io::stderr(), "measuring {name}")?;
        let running = contender::start(name, &registry).await?;
        outcomes.push(measure::measure(running.as_ref(), plan).await?);
    }
    write!(std::io::stdout(), "{}", report::table(&outcomes))?;
    if let Some(path) = std::env::var_os("BENCH_JSON") {
        std::fs::write(path, serde_json::to_vec_pretty(&report::json(&outcomes))?)?;
    }
    Ok(())
}
