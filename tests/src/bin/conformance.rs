//! `conformance [--focus REGEX] [--skip REGEX]... [--spdy] [--websocket] [--peer NAME] [--handler NAME]`: runs critest
//! once for each transport (both unless one is named) and prints each failed spec, why others were skipped, and the
//! counts. Ends with 0 if none failed and nothing was left behind.

use std::io::Write;
use std::process::ExitCode;

use coracle_tests::Outcome;
use coracle_tests::conformance::{self, Plan, Transport, wasm};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<ExitCode> {
    let plan = plan(std::env::args().skip(1))?;
    let reports = conformance::run(&plan).await?;
    let mut out = std::io::stdout();
    if plan.is_wasm() && plan.focus.is_none() {
        for (reason, specs) in wasm::CANNOT {
            writeln!(out, "left out {}: {reason}", specs.len())?;
        }
    }
    for (transport, report) in plan.transports.iter().zip(&reports) {
        write!(out, "by {}:\n{}", transport.name(), report.render())?;
    }
    Ok(match reports.iter().all(|report| report.is_clean()) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn plan(mut args: impl Iterator<Item = String>) -> Outcome<Plan> {
    let mut plan = Plan::default();
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} wants a value"));
        match arg.as_str() {
            "--focus" => plan.focus = Some(value()?),
            "--skip" => plan.skip.push(value()?),
            "--handler" => plan.handler = Some(value()?),
            "--spdy" => plan.transports.push(Transport::Spdy),
            "--websocket" => plan.transports.push(Transport::WebSocket),
            "--peer" => match value()?.as_str() {
                "containerd" => plan.peer = true,
                other => return Err(format!("peer {other} is not known, containerd is").into()),
            },
            other => return Err(format!("{other} is no option of conformance").into()),
        }
    }
    if plan.transports.is_empty() {
        plan.transports.extend(Transport::ALL);
    }
    if plan.is_wasm() && plan.focus.is_none() {
        let cannot = wasm::CANNOT.iter().flat_map(|(_, specs)| specs.iter());
        plan.skip.extend(cannot.map(|spec| (*spec).to_owned()));
    }
    Ok(plan)
}
