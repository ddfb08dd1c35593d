//! `bench-scale [PODS]`: what a pod costs beside none and beside PODS others (2,000 unless said), in one table.
//! With `BENCH_JSON=FILE` in the environment the same is written there as JSON.

use std::io::Write;

use coracle_tests::Outcome;
use coracle_tests::bench::contender;
use coracle_tests::registry::Registry;
use coracle_tests::scale::{self, Plan, report};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let pods = match std::env::args().nth(1) {
        Some(text) => text.parse()?,
        None => 2_000,
    };
    let registry = Registry::start()?;
    let image = contender::wasm_image(&registry)?;
    let figures = scale::measure(&image, Plan::of(pods)).await?;
    write!(std::io::stdout(), "{}", report::table(&figures))?;
    if let Some(path) = std::env::var_os("BENCH_JSON") {
        std::fs::write(path, serde_json::to_vec_pretty(&report::json(&figures))?)?;
    }
    Ok(())
}
