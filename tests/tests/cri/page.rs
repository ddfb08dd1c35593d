//! The node's page: what a browser gets, and what tenants cannot make of it.

mod browser;
mod terminal;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::{TIMEOUT, container};

use crate::metrics::{address, exchange, listening};
use crate::site::{Pod, tool};
use browser::browse;

/// What no text of a tenant may become.
const ELEMENTS: [&str; 5] = ["<script", "<img", "<svg", "<b ", "<iframe"];
const CANARY: &str = "canary-91c2";

#[tokio::test]
async fn the_page_shows_pods_and_problems_and_runs_nothing() {
    let daemon = listening().await;
    let mut config = daemon.pod("<script>alert(1)");
    config.hostname = "evil".into();
    config
        .annotations
        .insert("note".into(), format!("<img src={CANARY}>"));
    let pod = Pod::run_config(&daemon, config).await;
    let mut wanted = container("<img src=x onerror=alert(2)>", tool(), &["sleep", CANARY]);
    wanted.envs.push(cri::KeyValue {
        key: "SECRET".into(),
        value: CANARY.into(),
    });
    let evil = pod.create(&wanted).await;
    // A name that is refused must not show as an element either.
    if let Ok(id) = &evil {
        pod.cri.start(id).await.unwrap();
    }
    pod.start(&container("plain", tool(), &["sleep"])).await;
    let missing = container("<svg onload=alert(3)>", "<b onmouseover=alert(4)>", &[]);
    pod.create(&missing).await.unwrap_err();
    let (head, body) = exchange(&daemon, "GET / HTTP/1.0");
    assert!(head.starts_with("HTTP/1.0 200 "), "{head}");
    for header in [
        "content-type: text/html; charset=utf-8",
        "content-security-policy: default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
        "cache-control: no-store",
    ] {
        assert!(
            head.to_lowercase().contains(header),
            "no {header} in {head}"
        );
    }
    for element in ELEMENTS {
        assert!(!body.contains(element), "{element} in {body}");
    }
    assert!(body.contains("&lt;script&gt;alert(1)"), "{body}");
    for shown in ["plain", "running", "wasm", "ready", "sandbox"] {
        assert!(body.contains(shown), "no {shown} in {body}");
    }
    assert!(!body.contains(CANARY), "{body}");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn the_page_is_read_only_and_for_this_node_only() {
    let daemon = listening().await;
    let (head, _) = exchange(&daemon, "POST / HTTP/1.0\r\nContent-Length: 0");
    assert!(head.starts_with("HTTP/1.0 405 "), "{head}");
    let (head, body) = exchange(&daemon, "GET / HTTP/1.0\r\nHost: evil.example:9487");
    assert!(head.starts_with("HTTP/1.0 421 "), "{head}");
    assert!(!body.contains("<html"), "{body}");
    // A proxy that authenticates may pass its own name along.
    let (head, _) = exchange(&daemon, "GET /metrics HTTP/1.0\r\nHost: node.example");
    assert!(head.starts_with("HTTP/1.0 200 "), "{head}");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn many_readers_share_one_page() {
    let daemon = listening().await;
    let at = address(&daemon);
    let begun = Instant::now();
    let mut pages = Vec::new();
    for _ in 0..50 {
        let mut stream = TcpStream::connect(&at).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        write!(stream, "GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        pages.push(answer.split_once("\r\n\r\n").unwrap().1.to_owned());
    }
    let took = begun.elapsed();
    pages.dedup();
    // A page is kept for two seconds.
    let most = 1 + took.as_secs() / 2;
    assert!(pages.len() as u64 <= most, "{} in {took:?}", pages.len());
    daemon.finish().await.unwrap();
}

/// `make page` runs it: the browser is too large to be installed for every test run.
#[tokio::test]
#[ignore = "needs Chromium; see `make page`"]
async fn a_browser_shows_the_page_and_runs_nothing_of_a_tenants() {
    let daemon = listening().await;
    let mut pods = Vec::new();
    for (name, verbs) in [("web-7f9c", vec!["sleep"]), ("worker-0", vec!["exit", "3"])] {
        let pod = Pod::run(&daemon, name).await;
        pod.start(&container("main", tool(), &verbs)).await;
        pods.push(pod);
    }
    let url = format!("http://{}/", address(&daemon));
    if let Some(directory) = std::env::var_os("CORACLE_PICTURES") {
        let file = Path::new(&directory).join("node-page.png");
        let options = [
            format!("--screenshot={}", file.display()),
            "--window-size=1280,800".to_owned(),
        ];
        browse(&daemon, &options, &url);
    }
    let mut evil = daemon.pod("<img src=x onerror=document.title=1><script>document.title=2");
    evil.hostname = "evil".into();
    pods.push(Pod::run_config(&daemon, evil).await);
    // A page is kept for two seconds.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let dom = browse(&daemon, &["--dump-dom".to_owned()], &url);
    assert!(dom.contains("<title>coracle on "), "{dom}");
    assert!(
        dom.contains("web-7f9c") && dom.contains("&lt;script&gt;"),
        "{dom}"
    );
    for element in ELEMENTS {
        assert!(!dom.contains(element), "{element} in {dom}");
    }
    daemon.finish().await.unwrap();
}
