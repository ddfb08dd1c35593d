//! `churn [PODS]`: that many pods (10,000 unless said) with a kill -9 of daemon and spawner after every 200, then half
//! as many on one daemon; fails on anything that is left, and prints what the daemon held before and after.

use std::io::Write;

use coracle_tests::Outcome;
use coracle_tests::churn::{self, Plan};
use coracle_tests::registry::Registry;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let pods = match std::env::args().nth(1) {
        Some(text) => text
            .parse()
            .map_err(|e| format!("`{text}` is not a number of pods: {e}"))?,
        None => 10_000,
    };
    let plan = Plan {
        pods,
        undisturbed: pods / 2,
        in_flight: 8,
        kill_every: 200,
    };
    let report = churn::run(plan, &Registry::start()?).await?;
    write!(std::io::stdout(), "{report}")?;
    Ok(())
}
