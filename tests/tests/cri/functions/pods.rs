//! What a pod can do for any container it does for a function: attach, stats, new limits, port-forward, volumes,
//! arguments, both address families, host ports, trailers, replacement by another.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::{TIMEOUT, container};
use coracle_tests::daemon::Options;
use coracle_tests::streaming::MODERN;

use super::{curl, functions, push, raw, run, start, variable};
use crate::attach::{OUTPUT, joined};
use crate::network::{addresses, free_ports, mapping, with_ports};
use crate::site::{Pod, daemon_with, eventually};
use crate::stats::{cpu_of, number, stats};
use crate::streaming::forward::{CARRIERS, pair, session};
use crate::update::{in_kernel, update};

#[tokio::test]
async fn a_client_that_attaches_sees_the_lines_of_requests() {
    let (daemon, image) = functions().await;
    let function = run(&daemon, &image, "attach", &[]).await;
    for wire in MODERN {
        let mut client = joined(&function.pod, &function.id, *wire, OUTPUT).await;
        assert_eq!(function.get("/log/q").0, 200);
        client.wait_for(&"q".repeat(100)).await.unwrap();
        assert_eq!(function.get("/trap").0, 500);
        client.wait_for("wasm backtrace").await.unwrap();
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn stats_are_those_of_the_requests() {
    let (daemon, image) = functions().await;
    let function = run(&daemon, &image, "stats", &[("deadline-seconds", "1")]).await;
    let before = stats(&function.pod, &function.id).await;
    assert_eq!(function.get("/spin").0, 504);
    let end = Instant::now() + TIMEOUT;
    loop {
        let after = stats(&function.pod, &function.id).await;
        if cpu_of(&after) - cpu_of(&before) > 100_000_000 {
            let memory = number(&after.memory.unwrap().working_set_bytes);
            assert!((1 << 18..256 << 20).contains(&memory), "{memory}");
            break;
        }
        assert!(Instant::now() < end, "a second of spinning is not seen");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn new_limits_hold_for_a_function_that_serves() {
    let (daemon, image) = functions().await;
    let function = run(&daemon, &image, "update", &[]).await;
    let asked = |linux: &mut cri::LinuxContainerResources| {
        (linux.cpu_quota, linux.cpu_period) = (50_000, 100_000);
        linux.memory_limit_in_bytes = 192 << 20;
    };
    update(&function.pod.cri, &function.id, asked)
        .await
        .unwrap();
    let (memory, quota, _) = in_kernel(&daemon, &function.id);
    assert_eq!(
        (memory, quota.as_str()),
        ((192_u64 << 20).to_string(), "50000")
    );
    assert_eq!(function.get("/alloc/20").0, 200);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn port_forward_reaches_a_function() {
    let (daemon, image) = functions().await;
    let function = run(&daemon, &image, "forward", &[]).await;
    for carrier in CARRIERS {
        let session = session(&function.pod, carrier).await;
        let client = pair(&session, 8080, "0").await;
        let request = b"GET /hello HTTP/1.1\r\nHost: f\r\nConnection: close\r\n\r\n";
        client.outgoing.send(request).await.unwrap();
        let mut incoming = client.incoming;
        let answer = String::from_utf8(incoming.rest().await).unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200 OK") && answer.contains("hello from a function"),
            "{carrier:?}: {answer}"
        );
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn trailers_go_both_ways() {
    let (daemon, image) = functions().await;
    let function = run(&daemon, &image, "trailers", &[]).await;
    let chunked = "Host: f\r\nConnection: close\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n\
                   3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n";
    for (path, answer) in [("/trailer/x-sum", "7"), ("/trailer/x-other", "none")] {
        let request = format!("POST {path} HTTP/1.1\r\n{chunked}");
        let (said, _) = raw(function.at, &request, TIMEOUT);
        assert!(said.starts_with("HTTP/1.1 200 OK"), "{said}");
        assert!(
            said.contains(&format!("\r\n{answer}\r\n")),
            "{path}: {said}"
        );
    }
    // No trailer at all.
    assert_eq!(
        curl(&["-d", "abc", &function.url("/trailer/x-sum")]),
        (200, "none".to_owned())
    );
    let url = function.url("/echo");
    let (_, said) = curl(&["--http2-prior-knowledge", "-D", "-", "-d", "abc", &url]);
    assert!(said.contains("x-bytes: 3"), "{said}");
    // A gRPC server is a message and a trailer: here the answer to a health probe.
    let url = function.url("/grpc.health.v1.Health/Check");
    let probe = ["-H", "te: trailers", "-H", "content-type: application/grpc"];
    let call = ["--http2-prior-knowledge", "-D", "-", "-d", "", &url];
    let (_, said) = curl(&[&probe[..], &call].concat());
    assert!(said.contains("content-type: application/grpc"), "{said}");
    assert!(
        said.contains("\u{8}\u{1}") && said.contains("grpc-status: 0"),
        "{said}"
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_function_has_arguments_and_volumes_and_keeps_to_read_only() {
    let (daemon, image) = functions().await;
    let data = daemon.scratch().dir().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("greeting"), "of the volume").unwrap();
    let pod = Pod::run(&daemon, "volumes").await;
    let mut config = container("function", &image, &["one", "two words"]);
    for (path, readonly) in [("/data", false), ("/fixed", true)] {
        config.mounts.push(cri::Mount {
            host_path: data.display().to_string(),
            container_path: path.into(),
            readonly,
            ..Default::default()
        });
    }
    config.envs = vec![variable("GREETING", "hello")];
    let function = start(pod, &config, 8080).await;
    let read = (200, "of the volume".to_owned());
    assert_eq!(function.get("/read/data/greeting"), read);
    assert_eq!(function.get("/read/fixed/greeting"), read);
    assert_eq!(function.get("/write/data/new").0, 200);
    assert_eq!(function.get("/write/fixed/other").0, 403);
    assert_eq!(
        std::fs::read_to_string(data.join("new")).unwrap(),
        "written"
    );
    assert!(!data.join("other").exists());
    let (status, arguments) = function.get("/arguments");
    assert_eq!(status, 200);
    assert!(arguments.ends_with("one\ntwo words\n"), "{arguments}");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_function_is_reached_by_both_families_and_a_host_port() {
    // Of this test alone.
    let options = Options {
        network: "subnet_v6 = \"fd00:c0:ac:1::/64\"".to_owned(),
        ..Options::default()
    };
    let mut daemon = daemon_with(options).await;
    let image = push("function", |_| ());
    daemon.cri().pull(&image).await.unwrap();
    daemon.rebase();
    let port = free_ports(&daemon);
    let mapping = cri::PortMapping {
        container_port: 8080,
        ..mapping(port, "")
    };
    let config = with_ports(&daemon, "families", vec![mapping]);
    let pod = Pod::run_config(&daemon, config).await;
    let function = start(pod, &container("function", &image, &[]), 8080).await;
    let ips = addresses(&function.pod).await;
    assert!(ips.len() == 2 && ips[1].contains(':'), "{ips:?}");
    for host in [
        format!("{}:8080", ips[0]),
        format!("[{}]:8080", ips[1]),
        format!("127.0.0.1:{port}"),
    ] {
        let answer = curl(&[&format!("http://{host}/hello")]);
        assert_eq!(
            answer,
            (200, "hello from a function\n".to_owned()),
            "{host}"
        );
    }
    daemon.finish().await.unwrap();
}

/// As a Deployment does it behind a Service: the new pod is ready, clients go there, the old one is stopped.
#[tokio::test]
async fn a_pod_is_replaced_by_another_without_a_failed_request() {
    let (daemon, image) = functions().await;
    let mut serving = run(&daemon, &image, "generation-0", &[]).await;
    // Where clients go, and how many have gone there.
    let at = Arc::new(std::sync::Mutex::new((serving.url("/sleep/200"), 0)));
    let over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let (at, over) = (at.clone(), over.clone());
            std::thread::spawn(move || {
                let mut answers = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    let url = {
                        let mut at = at.lock().unwrap();
                        at.1 += 1;
                        at.0.clone()
                    };
                    answers.push(curl(&[&url]).0);
                }
                answers
            })
        })
        .collect();
    for generation in 1..4 {
        let next = run(&daemon, &image, &format!("generation-{generation}"), &[]).await;
        let moved = (next.url("/sleep/200"), 0);
        let (_, gone) = std::mem::replace(&mut *at.lock().unwrap(), moved);
        let old = std::mem::replace(&mut serving, next);
        // What had the old address has connected by then, as with a kubelet that stops a pod a moment after its endpoint.
        eventually("all requests are under way", || {
            let said = daemon.output(old.name(), "function", "stdout").unwrap();
            said.matches("sleeping").count() == gone
        })
        .await;
        old.pod.cri.stop(&old.id, 60).await.unwrap();
        let status = old.pod.cri.status(&old.id).await.unwrap();
        assert_eq!(status.exit_code, 0, "{status:?}");
        old.pod.cri.remove_pod(&old.pod.id).await.unwrap();
    }
    over.store(true, Ordering::Relaxed);
    let answers: Vec<u16> = clients
        .into_iter()
        .flat_map(|client| client.join().unwrap())
        .collect();
    assert!(answers.len() >= 6, "{}", answers.len());
    assert!(answers.iter().all(|status| *status == 200), "{answers:?}");
    eventually("only the last pod serves", || {
        serving.get("/hello").0 == 200
    })
    .await;
    daemon.finish().await.unwrap();
}
