//! Components of WASI 0.3: refused or run as the handler says, and under the egress policy of those of 0.2.

use std::time::Instant;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::{TIMEOUT, container};
use coracle_tests::daemon::{Daemon, Options};
use coracle_tests::nameserver::Answer;
use coracle_tests::push::{Image, Packing, file};
use coracle_tests::{guests, log};
use tonic::Code;

use super::egress::{LISTED, REFUSED, listing};
use super::{addresses, ip, net, net_daemon_with, pod_with, server, with_nameserver};
use crate::functions::{curl, start};
use crate::site::{Pod, daemon_with, ended_soon, images, refused};

/// Has `daemon` pull the component of `p3.c`; its reference.
async fn p3(daemon: &Daemon) -> String {
    let guest = guests::p3().unwrap();
    let files = [file("p3.wasm", 0o755, &guest)];
    let image = Image::wasi(&files, Packing::Gzip, &["/p3.wasm"]).unwrap();
    let pushed = image.push(images().registry.host(), "p3", "v1").unwrap();
    daemon.cri().pull(&pushed.reference).await.unwrap();
    pushed.reference
}

async fn daemon_of(config: &str) -> (Daemon, String) {
    let mut daemon = daemon_with(Options {
        config: config.to_owned(),
        ..Options::default()
    })
    .await;
    let image = p3(&daemon).await;
    daemon.rebase();
    (daemon, image)
}

/// A pod's config that has its component serve.
fn serving(daemon: &Daemon, name: &str) -> cri::PodSandboxConfig {
    let mut config = daemon.pod(name);
    let serve = ("http.coracle.dev/serve".into(), "true".into());
    config.annotations.extend([serve]);
    config
}

#[tokio::test]
async fn a_component_of_wasi_03_runs_where_its_handler_has_that_on() {
    let (daemon, image) = daemon_of("[handlers.coracle]\nwasi_p3 = true\n").await;
    for (name, handler, setting) in [
        (
            "wasm",
            "coracle-wasm",
            "handlers.coracle-wasm.wasi_p3 = true",
        ),
        (
            "strict",
            "coracle-strict",
            "handlers.coracle-strict.wasi_p3 = true",
        ),
    ] {
        let pod = pod_with(&daemon, daemon.pod(name), handler).await;
        let created = pod.create(&container("p3", &image, &["env", "X"])).await;
        refused(created, Code::InvalidArgument, &["WASI 0.3", setting]);
    }
    let pod = Pod::run(&daemon, "on").await;
    let mut config = container("env", &image, &["env", "X"]);
    config.envs.push(crate::functions::variable("X", "a value"));
    let (status, said) = pod.finish(&daemon, &config).await;
    assert_eq!(
        (status.exit_code, said.as_str()),
        (0, "a value\n"),
        "{status:?}"
    );
    let output = net(&daemon, &pod, &image, &["random", "256"]).await;
    assert_eq!(output.1, "random\n", "{output:?}");
    let output = net(&daemon, &pod, &image, &["nothing"]).await;
    assert_eq!((output.0, output.2.as_str()), (1, "unknown verb nothing\n"));
    let id = pod.start(&container("spin", &image, &["spin"])).await;
    let begun = Instant::now();
    pod.cri.stop(&id, 100).await.unwrap();
    ended_soon(begun);
    assert_eq!(pod.cri.status(&id).await.unwrap().exit_code, 143);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_handler_of_wasi_03_serves() {
    let config = "[handlers.coracle]\nwasi_p3 = true\n[handlers.coracle-strict]\nwasi_p3 = true\n";
    let (daemon, image) = daemon_of(config).await;
    let pod = Pod::run_config(&daemon, serving(&daemon, "serving")).await;
    let function = start(pod, &container("p3", &image, &[]), 8080).await;
    let (status, answer) = curl(&["-i", &function.url("/hello")]);
    assert_eq!(status, 200, "{answer}");
    assert!(answer.contains("x-function: p3"), "{answer}");
    let (status, answer) = curl(&["--http2-prior-knowledge", &function.url("/nothing")]);
    assert_eq!(status, 404, "{answer}");
    assert_eq!(function.get("/trap").0, 500);
    // The answer does not wait for the line.
    let log = daemon.container_log("serving", "p3");
    assert!(log::wait_for(&log, "unreachable", TIMEOUT).await);
    // Its own address is one that it may reach.
    let fetched = function.get(&format!("/fetch/{}", function.at)).0;
    assert_eq!(fetched, 200);
    // Nothing is, where nothing is listed.
    let pod = pod_with(&daemon, serving(&daemon, "closed"), "coracle-strict").await;
    let closed = start(pod, &container("p3", &image, &[]), 8080).await;
    assert_eq!(closed.get(&format!("/fetch/{}", function.at)).0, 502);
    let log = daemon.container_log("closed", "p3");
    assert!(log::wait_for(&log, ": HTTP-request-denied\n", TIMEOUT).await);
    function.pod.cri.stop(&function.id, 5).await.unwrap();
    let status = function.pod.cri.status(&function.id).await.unwrap();
    assert_eq!(status.exit_code, 0, "{status:?}");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_strict_pod_without_a_list_has_no_network_by_wasi_03_either() {
    let (daemon, image) = daemon_of("[handlers.coracle-strict]\nwasi_p3 = true\n").await;
    let pod = pod_with(&daemon, daemon.pod("closed"), "coracle-strict").await;
    for (args, expected) in [
        (
            &["tcp-connect", "127.0.0.1", "80"][..],
            "connect 127.0.0.1: access-denied\n",
        ),
        (
            &["udp-ask", "127.0.0.1", "53"],
            "udp 127.0.0.1: access-denied\n",
        ),
        (
            &["resolve", "localhost"],
            "resolve localhost: access-denied\n",
        ),
        (
            &["http-get", "http://127.0.0.1/"],
            "http-get http://127.0.0.1/: HTTP-request-denied\n",
        ),
    ] {
        let output = net(&daemon, &pod, &image, args).await;
        assert_eq!((output.0, output.2.as_str()), (1, expected), "{args:?}");
    }
    daemon.finish().await.unwrap();
}

/// What holds for 0.2, by the same table.
#[tokio::test]
async fn only_what_is_listed_is_reached_by_wasi_03() {
    let config = "[handlers.coracle-strict]\nwasi_p3 = true\negress = [\".example.com\", \".svc.cluster.local\", \"203.0.113.0/24\"]\n";
    let (daemon, image) = net_daemon_with(config).await;
    let guest = p3(&daemon).await;
    let other = Pod::run(&daemon, "target").await;
    let target = ip(&other).await;
    for port in ["8080", "8081"] {
        server(&daemon, &other, &image, &["tcp-serve", port]).await;
    }
    let zone = move |name: &str, _: usize| match name {
        "inner.example.com" => Answer::Addresses(addresses(&["169.254.169.254"])),
        "absent.example.com" => Answer::Absent,
        _ => Answer::Addresses(vec![target]),
    };
    let config = listing(&daemon, "listed", LISTED);
    let (pod, names) = with_nameserver(&daemon, &image, (config, "coracle-strict"), zone).await;
    let run = |args: &'static str| {
        let args = args.replace("TARGET", &target.to_string());
        let (daemon, pod, guest) = (&daemon, &pod, &guest);
        async move {
            let args: Vec<&str> = args.split(' ').collect();
            net(daemon, pod, guest, &args).await
        }
    };
    for (args, expected) in [
        ("tcp-connect api.example.com 8080", "connected\n"),
        ("tcp-connect db.team.svc 8080", "connected\n"),
        ("http-get http://api.example.com:8080/", "status 200\n"),
    ] {
        let output = run(args).await;
        assert_eq!((output.0, output.1.as_str()), (0, expected), "{output:?}");
    }
    for (args, expected) in REFUSED {
        let output = run(args).await;
        assert_eq!(output.0, 1, "{args}: {output:?}");
        assert!(
            output.2.ends_with(&format!(": {expected}\n")),
            "{args}: {output:?}"
        );
    }
    // What is not listed was not even looked up.
    let queries = names.queries();
    let all = queries.iter().all(|name| LISTED.contains(name.as_str()));
    assert!(all && !queries.is_empty(), "{queries:?}");
    drop(names);
    daemon.finish().await.unwrap();
}
