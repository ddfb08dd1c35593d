//! Chromium without a window.

use std::process::Command;

use coracle_tests::daemon::Daemon;

/// Has Chromium open `url` with more `arguments`. Gives its standard output.
pub(super) fn browse(daemon: &Daemon, arguments: &[String], url: &str) -> String {
    let profile = daemon.scratch().dir().join("browser");
    let shown = Command::new("chromium")
        .args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
        ])
        .args([
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
        ])
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(arguments)
        .arg(url)
        .output();
    let shown = shown.expect("chromium runs");
    let _ = std::fs::remove_dir_all(profile);
    assert!(shown.status.success(), "{shown:?}");
    String::from_utf8(shown.stdout).unwrap()
}
