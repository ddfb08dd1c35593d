//! What is shipped for Prometheus and Grafana, and documented, names series that exist.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;

use super::{limited, samples, scrape};
use crate::functions::{self, functions_with};
use crate::site::{Pod, tool};

/// The examples for Prometheus and Grafana, by file name.
fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples/metrics")
}

/// The names in `text` that begin as those of our series do.
fn names_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let ours = words.filter(|word| {
        let prefixes = ["coracle_", "container_", "process_"];
        prefixes.iter().any(|prefix| word.starts_with(prefix))
    });
    ours.map(str::to_owned).collect()
}

#[tokio::test]
async fn dashboards_and_alerts_name_series_that_exist() {
    let config = "[metrics]\naddress = \"127.0.0.1:0\"\n[handlers.coracle.http]\nidle_s = 60\n";
    let (daemon, function) = functions_with(config).await;
    let pod = Pod::run(&daemon, "named").await;
    functions::start(
        Pod::run(&daemon, "function").await,
        &container("function", &function, &[]),
        8080,
    )
    .await;
    pod.finish(&daemon, &container("show", tool(), &["show"]))
        .await;
    let id = pod.start(&limited("limited", &["sleep"])).await;
    let probe = cri::ExecSyncRequest {
        container_id: id,
        cmd: ["/tool", "show"].map(str::to_owned).to_vec(),
        timeout: 60,
    };
    let mut runtime = pod.cri.runtime.clone();
    runtime.exec_sync(probe).await.unwrap();
    let text = scrape(&daemon, "/metrics") + &scrape(&daemon, "/metrics/cadvisor");
    let there: BTreeSet<&str> = samples(&text).into_iter().map(|(name, ..)| name).collect();
    let mut named = 0;
    for file in ["coracle.rules.yml", "coracle.dashboard.json"] {
        let example = std::fs::read_to_string(examples().join(file)).unwrap();
        for name in names_in(&example) {
            assert!(
                there.contains(name.as_str()),
                "{file} names {name}, which no scrape has"
            );
            named += 1;
        }
    }
    assert!(named > 15, "only {named} names were found");
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/metrics.md");
    let page = std::fs::read_to_string(page).unwrap();
    for (name, ..) in samples(&text) {
        let family = ["_bucket", "_sum", "_count"];
        let family = family.iter().find_map(|suffix| name.strip_suffix(suffix));
        let family = family
            .filter(|_| name.starts_with("coracle_"))
            .unwrap_or(name);
        assert!(
            page.contains(&format!("`{family}`")),
            "docs/reference/metrics.md lacks {family}"
        );
    }
    promtool(&text);
    daemon.finish().await.unwrap();
}

/// Has Prometheus' own tool look at the examples and at a scrape, if it is installed (Debian's `prometheus`).
fn promtool(scraped: &str) {
    let tool = std::env::var("PROMTOOL").unwrap_or_else(|_| "promtool".into());
    if Command::new(&tool).arg("--version").output().is_err() {
        return;
    }
    let run = |args: &[&str]| {
        let output = Command::new(&tool)
            .args(args)
            .current_dir(examples())
            .output();
        let output = output.unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
    };
    run(&["check", "rules", "coracle.rules.yml"]);
    run(&["check", "config", "scrape.yml"]);
    run(&["test", "rules", "coracle.rules.test.yml"]);
    let mut check = Command::new(&tool);
    check.args(["check", "metrics", "--extended"]);
    check
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped());
    check.stderr(std::process::Stdio::piped());
    let mut check = check.spawn().unwrap();
    check
        .stdin
        .take()
        .unwrap()
        .write_all(scraped.as_bytes())
        .unwrap();
    let output = check.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // It calls names bad that cAdvisor has coined; what does not parse is worse.
    assert_ne!(output.status.code(), Some(1), "{said}");
}
