//! `bench-http [--quick] [--cold] [NAME...]`: measures the named servers (all, unless named) beside each other and prints
//! one table. With `--cold` it measures no requests a second, only what happens before a first answer.
//! With `BENCH_JSON=FILE` in the environment the same is written there as JSON.

use std::io::Write;

use coracle_tests::Outcome;
use coracle_tests::bench_http::{Plan, cold, load, report, server};
use coracle_tests::registry::Registry;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let (flags, mut names): (Vec<_>, Vec<_>) = std::env::args()
        .skip(1)
        .partition(|word| word.starts_with("--"));
    let is_quick = flags.iter().any(|flag| flag == "--quick");
    let plan = if is_quick { Plan::QUICK } else { Plan::FULL };
    let is_cold = flags.iter().any(|flag| flag == "--cold");
    if names.is_empty() && !is_cold {
        names = server::NAMES.map(str::to_owned).to_vec();
    }
    let registry = Registry::start()?;
    let mut servers = Vec::new();
    for name in &names {
        writeln!(std::io::stderr(), "starting {name}")?;
        servers.push(server::start(name, &registry).await?);
    }
    writeln!(std::io::stderr(), "measuring requests")?;
    let runs = load::measure(&servers, plan)?;
    let named = servers.iter().map(|server| server.name).zip(runs);
    let named: Vec<report::Named> = named.collect();
    drop(servers);
    writeln!(std::io::stderr(), "measuring cold starts")?;
    let cold = cold::measure(&registry, plan).await?;
    write!(std::io::stdout(), "{}", report::table(&named, &cold))?;
    if let Some(path) = std::env::var_os("BENCH_JSON") {
        std::fs::write(
            path,
            serde_json::to_vec_pretty(&report::json(&named, &cold))?,
        )?;
    }
    Ok(())
}
