//! Drives servers with wrk, and reads what it says and what the servers cost meanwhile.

use std::collections::BTreeMap;
use std::process::Command;

use super::Plan;
use super::server::Server;
use crate::Outcome;
use crate::bench::memory;

/// How many connections wrk holds, run by run.
pub const CONNECTIONS: [u32; 4] = [1, 8, 32, 128];
/// Most threads of wrk: on a machine of two processors more would only take them from the servers.
const THREADS: u32 = 2;
/// What every server answers with a short text.
pub const PATH: &str = "/hello";

/// What one run told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Run {
    /// Requests a second.
    pub rps: f64,
    /// Median latency, ms.
    pub p50_ms: f64,
    /// The latency that one of a hundred requests exceeded, ms.
    pub p99_ms: f64,
    /// Processor time of the server for a request, microseconds.
    pub cpu_us: f64,
    /// Proportional memory of the server's processes right after the run, KiB.
    pub pss_kib: f64,
}

/// All runs of one server, by number of connections.
pub type Runs = BTreeMap<u32, Vec<Run>>;

/// Drives all servers, round by round. Errors: wrk is absent or a request failed.
pub fn measure(servers: &[Server], plan: Plan) -> Outcome<Vec<Runs>> {
    let mut all = vec![Runs::new(); servers.len()];
    for _ in 0..plan.rounds {
        for connections in CONNECTIONS {
            for (server, runs) in servers.iter().zip(&mut all) {
                let run = drive(server, connections, plan)?;
                runs.entry(connections).or_default().push(run);
            }
        }
    }
    Ok(all)
}

fn drive(server: &Server, connections: u32, plan: Plan) -> Outcome<Run> {
    let pids = server.pids();
    let before = memory::cpu_ns_of(&pids);
    let url = format!("http://{}{PATH}", server.at);
    let threads = connections.min(THREADS);
    let wrk = Command::new("wrk")
        .arg(format!("-t{threads}"))
        .arg(format!("-c{connections}"))
        .arg(format!("-d{}s", plan.run.as_secs()))
        .args(["--latency", &url])
        .output()
        .map_err(|e| format!("wrk: {e}; is it installed?"))?;
    let cpu_ns = memory::cpu_ns_of(&pids).saturating_sub(before);
    let pss_kib = memory::pss_kib_of(&pids) as f64;
    let text = String::from_utf8_lossy(&wrk.stdout);
    let failed = |why: &str| {
        format!(
            "wrk against {} at {connections} connections: {why}\n{text}",
            server.name
        )
    };
    if !wrk.status.success() {
        let stderr = String::from_utf8_lossy(&wrk.stderr);
        return Err(failed(&stderr).into());
    }
    if text.contains("Socket errors") || text.contains("Non-2xx") {
        return Err(failed("some requests failed").into());
    }
    let said = parse(&text).ok_or_else(|| failed("its words are not understood"))?;
    let cpu_us = cpu_ns as f64 / 1e3 / said.requests.max(1.0);
    Ok(Run {
        rps: said.rps,
        p50_ms: said.p50_ms,
        p99_ms: said.p99_ms,
        cpu_us,
        pss_kib,
    })
}

#[derive(Debug, PartialEq)]
struct Said {
    requests: f64,
    rps: f64,
    p50_ms: f64,
    p99_ms: f64,
}

/// What wrk prints with `--latency`.
fn parse(text: &str) -> Option<Said> {
    let after = |prefix: &str| {
        let line = text.lines().map(str::trim);
        line.filter_map(|line| line.strip_prefix(prefix))
            .find_map(|rest| rest.split_whitespace().next())
    };
    let requests = text.lines().find(|line| line.contains(" requests in "))?;
    Some(Said {
        requests: requests.split_whitespace().next()?.parse().ok()?,
        rps: after("Requests/sec:")?.parse().ok()?,
        p50_ms: milliseconds(after("50%")?)?,
        p99_ms: milliseconds(after("99%")?)?,
    })
}

fn milliseconds(text: &str) -> Option<f64> {
    let unit = text.find(|c: char| c.is_ascii_alphabetic())?;
    let factor = match &text[unit..] {
        "us" => 1e-3,
        "ms" => 1.0,
        "s" => 1e3,
        "m" => 60e3,
        _ => return None,
    };
    Some(text[..unit].parse::<f64>().ok()? * factor)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn wrks_words_are_understood() {
        let text = "Running 1s test @ http://10.0.0.2:8080/hello\n  2 threads and 8 connections\n  \
             Thread Stats   Avg      Stdev     Max   +/- Stdev\n    Latency   416.69us  178.98us   5.45ms   91.30%\n    \
             Req/Sec     9.52k   410.14    10.24k    72.73%\n  Latency Distribution\n     50%  402.00us\n     75%  463.00us\n     \
             90%  532.00us\n     99%    1.07ms\n  20834 requests in 1.10s, 2.42MB read\nRequests/sec:  18941.37\nTransfer/sec:      2.20MB\n";
        let said = parse(text).unwrap();
        assert_eq!(
            (said.requests, said.rps, said.p99_ms),
            (20_834.0, 18_941.37, 1.07)
        );
        assert!((said.p50_ms - 0.402).abs() < 1e-9);
        assert_eq!(milliseconds("1.5s"), Some(1_500.0));
        assert_eq!(parse("unable to connect"), None);
    }
}
