//! `bench-images [--quick]`: what it costs to get images, beside containerd, in one table.
//! With `BENCH_JSON=FILE` in the environment the same is written there as JSON.

use std::io::Write;

use coracle_tests::Outcome;
use coracle_tests::bench_images::{Plan, measure, report};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let plan = match std::env::args().any(|arg| arg == "--quick") {
        true => Plan::QUICK,
        false => Plan::FULL,
    };
    let figures = measure(plan).await?;
    write!(std::io::stdout(), "{}", report::table(&figures))?;
    if let Some(path) = std::env::var_os("BENCH_JSON") {
        std::fs::write(path, serde_json::to_vec_pretty(&report::json(&figures))?)?;
    }
    Ok(())
}
