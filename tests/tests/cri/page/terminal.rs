//! What the commands show on a terminal, and the pictures of it in the documentation.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use coracle_tests::client::container;
use coracle_tests::daemon::{self, Daemon};

use super::browser;
use crate::admin::said;
use crate::metrics::listening;
use crate::site::{Pod, tool};

/// What `coracle ARGUMENTS` prints on a terminal of 118 columns.
fn on_terminal(daemon: &Daemon, arguments: &str, environment: &[(&str, &str)]) -> String {
    let program = daemon::binary().unwrap();
    let config = daemon.config_path();
    let (program, config) = (program.display(), config.display());
    let line = format!("stty cols 118; exec {program} {arguments} --config {config}");
    let mut script = Command::new("script");
    script.args(["-qec", &line, "/dev/null"]);
    script.env_remove("NO_COLOR").env("TERM", "xterm");
    script.envs(environment.iter().copied());
    let output = script.output().expect("script runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().replace('\r', "")
}

#[tokio::test]
async fn a_terminal_gets_colours_and_nobody_else() {
    let daemon = listening().await;
    let pod = Pod::run(&daemon, "coloured").await;
    pod.start(&container("sleep", tool(), &["sleep"])).await;
    let shown = on_terminal(&daemon, "ps", &[]);
    assert!(shown.contains("\u{1b}[32mrunning\u{1b}[0m"), "{shown:?}");
    let shown = on_terminal(&daemon, "status", &[]);
    assert!(shown.starts_with("\u{1b}[3"), "{shown:?}");
    for environment in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let shown = on_terminal(&daemon, "ps", &[environment]);
        assert!(
            shown.contains("running") && !shown.contains('\u{1b}'),
            "{shown:?}"
        );
    }
    let piped = said(&daemon, &["ps"]);
    assert!(!piped.contains('\u{1b}'), "{piped:?}");
    daemon.finish().await.unwrap();
}

/// `text` with its colours as a page for a browser.
fn page(text: &str) -> String {
    let escaped = text.replace('&', "&amp;").replace('<', "&lt;");
    let mut shown = escaped.replace("\u{1b}[0m", "</span>");
    for (code, style) in [
        (1, "font-weight:bold"),
        (2, "opacity:.6"),
        (31, "color:#e06c75"),
        (32, "color:#98c379"),
        (33, "color:#e5c07b"),
    ] {
        let code = format!("\u{1b}[{code}m");
        shown = shown.replace(&code, &format!("<span style=\"{style}\">"));
    }
    assert!(!shown.contains('\u{1b}'), "{shown:?}");
    format!(
        "<!doctype html><body style=\"margin:0;background:#1e222a;color:#d7dae0\">\
         <pre style=\"margin:16px;font:14px/1.45 'DejaVu Sans Mono'\">{shown}</pre>"
    )
}

/// Takes the picture of `text` into `file`.
fn take_picture(daemon: &Daemon, text: &str, file: &Path) {
    let source = daemon.scratch().dir().join("terminal.html");
    std::fs::write(&source, page(text)).unwrap();
    // The browser's own frame takes 87 of them.
    let height = 119 + 21 * text.lines().count();
    let options = [
        format!("--screenshot={}", file.display()),
        format!("--window-size=1030,{height}"),
    ];
    browser::browse(daemon, &options, &format!("file://{}", source.display()));
    let taken = std::fs::read(file).unwrap();
    assert!(taken.starts_with(b"\x89PNG"), "{} bytes", taken.len());
}

/// `make page` runs it.
#[tokio::test]
#[ignore = "needs Chromium; see `make page`"]
async fn pictures_of_status_and_ps_are_taken() {
    let daemon = listening().await;
    let mut pods = Vec::new();
    for (name, verbs) in [
        ("web-7f9c", vec!["sleep"]),
        ("worker-0", vec!["exit", "3"]),
        ("job-x2k", vec!["show"]),
    ] {
        let pod = Pod::run(&daemon, name).await;
        match verbs[0] {
            "show" => drop(
                pod.finish(&daemon, &container("main", tool(), &verbs))
                    .await,
            ),
            _ => drop(pod.start(&container("main", tool(), &verbs)).await),
        }
        pods.push(pod);
    }
    let directory = daemon.scratch().dir().to_owned();
    let directory = std::env::var_os("CORACLE_PICTURES").map_or(directory, Into::into);
    for (name, arguments) in [("status", "status"), ("ps", "ps -a")] {
        let mut text = String::new();
        let _ = writeln!(text, "\u{1b}[2m#\u{1b}[0m coracle {arguments}");
        text += &on_terminal(&daemon, arguments, &[]);
        take_picture(&daemon, &text, &directory.join(format!("{name}.png")));
    }
    daemon.finish().await.unwrap();
}
