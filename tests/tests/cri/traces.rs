//! Traces: what a collector gets of a kubelet's calls, and that nothing depends on it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::Write as _;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::{self, container};
use coracle_tests::collector::{Answer, Certificate, Collector, Span, attribute};
use coracle_tests::daemon::{Daemon, Options};
use coracle_tests::guests;
use coracle_tests::push::Image;
use coracle_tests::scratch::Scratch;
use tonic::Request;

use crate::metrics::{scrape, value};
use crate::site::{daemon_with, ended_soon, eventually, images, tool};

/// The trace of the kubelet, and its span.
const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
const PARENT: u64 = 0x00f0_67aa_0ba9_02b7;
/// What no span may contain.
const CANARY: &str = "canary-7f3a";

async fn traced(endpoint: &str, more: &str) -> Daemon {
    daemon_with(Options {
        config: format!(
            "[metrics]\naddress = \"127.0.0.1:0\"\n[tracing]\nendpoint = \"{endpoint}\"\n{more}"
        ),
        ..Options::default()
    })
    .await
}

/// `message` as a kubelet sends it that traces; `flags` say whether it records.
fn in_trace<T>(message: T, trace: u128, flags: u8) -> Request<T> {
    let mut request = Request::new(message);
    let parent = format!("00-{trace:032x}-{PARENT:016x}-{flags:02x}");
    request
        .metadata_mut()
        .insert("traceparent", parent.parse().unwrap());
    request
}

/// Pulls an image, runs a pod and starts a container, all in one trace. Gives the sandbox's id.
async fn start_pod(daemon: &Daemon, reference: &str, trace: u128, flags: u8) -> String {
    let mut cri = daemon.cri();
    let pull = cri::PullImageRequest {
        image: Some(client::image(reference)),
        ..Default::default()
    };
    let pulled = cri.images.pull_image(in_trace(pull, trace, flags)).await;
    pulled.unwrap();
    let config = daemon.pod(&format!("traced-{flags}"));
    let run = cri::RunPodSandboxRequest {
        config: Some(config.clone()),
        ..Default::default()
    };
    let run = cri.runtime.run_pod_sandbox(in_trace(run, trace, flags));
    let sandbox = run.await.unwrap().into_inner().pod_sandbox_id;
    let mut wanted = container("main", reference, &["sleep", CANARY]);
    wanted.envs.push(cri::KeyValue {
        key: "SECRET".into(),
        value: CANARY.into(),
    });
    let create = cri::CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(wanted),
        sandbox_config: Some(config),
    };
    let create = cri.runtime.create_container(in_trace(create, trace, flags));
    let container_id = create.await.unwrap().into_inner().container_id;
    let start = cri::StartContainerRequest { container_id };
    let start = cri.runtime.start_container(in_trace(start, trace, flags));
    start.await.unwrap();
    sandbox
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let found = spans.iter().find(|span| span.name == name);
    found.unwrap_or_else(|| panic!("no {name}: {spans:#?}"))
}

#[tokio::test]
async fn one_trace_leads_from_the_kubelets_call_to_the_containers_process() {
    let collector = Collector::start(Answer::Good).await.unwrap();
    let daemon = traced(&collector.endpoint(), "").await;
    let registry = images().registry.host();
    let module = guests::tool().unwrap();
    let fresh = Image::artifact(&module).push(registry, "traced", "v1");
    let sandbox = start_pod(&daemon, &fresh.unwrap().reference, TRACE, 1).await;
    // Calls that are in no trace, or in one that nobody records.
    daemon.cri().pull(tool()).await.unwrap();
    start_pod(&daemon, tool(), TRACE + 1, 0).await;
    eventually("the last span", || {
        let of = collector.spans(TRACE);
        let last = "runtime.v1.RuntimeService/StartContainer";
        of.iter().any(|span| span.name == last)
    })
    .await;
    let wanted = BTreeSet::from([
        "runtime.v1.ImageService/PullImage",
        "image.pull",
        "image.resolve",
        "image.verify",
        "image.fetch",
        "wasm.compile",
        "runtime.v1.RuntimeService/RunPodSandbox",
        "driver",
        "sandbox.prepare",
        "network.attach",
        "keeper.start",
        "keeper.fork",
        "runtime.v1.RuntimeService/CreateContainer",
        "container.plan",
        "runtime.v1.RuntimeService/StartContainer",
        "container.prepare",
        "container.spawn",
    ]);
    // What the driver does ends beside the call, and may be in the next message.
    eventually("all kinds of spans", || {
        let spans = collector.spans(TRACE);
        let names: BTreeSet<&str> = spans.iter().map(|span| span.name.as_str()).collect();
        names.is_superset(&wanted)
    })
    .await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let spans = collector.spans(TRACE);
    assert_eq!(collector.count(), spans.len(), "others are not recorded");
    let names: BTreeSet<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, wanted);
    assert_connected(&spans);
    let run = named(&spans, "runtime.v1.RuntimeService/RunPodSandbox");
    for (key, value) in [
        ("rpc.method", "RunPodSandbox"),
        ("rpc.grpc.status_code", "0"),
        ("k8s.pod.name", "traced-1"),
        ("coracle.sandbox.id", &sandbox),
        ("coracle.handler", "coracle"),
    ] {
        assert_eq!(attribute(run, key), value, "{key}");
    }
    assert!(!format!("{spans:?}").contains(CANARY));
    let senders = collector.senders();
    assert!(senders.contains(&("service.name".into(), "coracle".into())));
    let lines = daemon.log();
    for span in [
        "}:driver: ",
        " driver: ",
        "keeper.start:",
        "network.attach{",
        "rpc.method=",
    ] {
        assert!(!lines.contains(span), "{span} is in the log");
    }
    daemon.finish().await.unwrap();
}

/// Each span is below another one of the trace, at last below the kubelet's own; a child does not begin before its parent.
fn assert_connected(spans: &[Span]) {
    let by_id: HashMap<&[u8], &Span> = spans.iter().map(|span| (&span.span_id[..], span)).collect();
    assert_eq!(by_id.len(), spans.len(), "a span was sent twice");
    for span in spans {
        let is_call = span.name.starts_with("runtime.v1.");
        assert_eq!(
            is_call,
            span.parent_span_id == PARENT.to_be_bytes(),
            "{}",
            span.name
        );
        assert_eq!(is_call, span.kind == 2, "{}: a server's", span.name);
        let mut seen = HashSet::new();
        let mut at = span;
        while at.parent_span_id != PARENT.to_be_bytes() {
            assert!(
                seen.insert(&at.span_id),
                "{} is its own ancestor",
                span.name
            );
            let parent = by_id.get(&at.parent_span_id[..]);
            let parent = parent.unwrap_or_else(|| panic!("{} has no parent", at.name));
            assert!(parent.start_time_unix_nano <= at.start_time_unix_nano);
            at = parent;
        }
    }
}

#[tokio::test]
async fn a_failed_call_says_so_in_its_trace_and_its_lines_name_the_trace() {
    let collector = Collector::start(Answer::Good).await.unwrap();
    let daemon = traced(&collector.endpoint(), "samples_per_million = 1000000\n").await;
    let mut cri = daemon.cri();
    let start = |id: &str| cri::StartContainerRequest {
        container_id: id.to_owned(),
    };
    let request = in_trace(start("0123"), TRACE, 1);
    let refused = cri.runtime.start_container(request).await.unwrap_err();
    // Headers that are none of W3C's, and no header: the daemon begins traces of its own.
    for header in ["", "00-0-0-01", "ff-00-00", "00-\u{7f}"] {
        let mut request = Request::new(start("4567"));
        if let Ok(value) = header.parse() {
            request.metadata_mut().insert("traceparent", value);
        }
        cri.runtime.start_container(request).await.unwrap_err();
    }
    eventually("its span", || !collector.spans(TRACE).is_empty()).await;
    let spans = collector.spans(TRACE);
    let call = named(&spans, "runtime.v1.RuntimeService/StartContainer");
    let status = call.status.clone().unwrap();
    assert_eq!(
        (status.code, status.message.as_str()),
        (2, refused.message())
    );
    assert_eq!(attribute(call, "rpc.grpc.status_code"), "5");
    let line = format!("trace_id=\"{TRACE:032x}\"");
    assert!(daemon.log().contains(&line), "{}", daemon.log());
    eventually("traces of its own", || collector.count() >= 5).await;
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_collector_that_is_away_silent_or_lies_changes_nothing() {
    let refusing = Collector::start(Answer::Refused).await.unwrap();
    let huge = Collector::start(Answer::Huge).await.unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://{}", silent.local_addr().unwrap());
    for (endpoint, reason) in [
        ("http://127.0.0.1:9".to_owned(), "collector"),
        (silent, "collector"),
        (format!("http://127.0.0.1:{}", babbling()), "collector"),
        (refusing.endpoint(), "refused"),
        (huge.endpoint(), "collector"),
    ] {
        let daemon = traced(&endpoint, "").await;
        let began = Instant::now();
        start_pod(&daemon, tool(), TRACE, 1).await;
        ended_soon(began);
        let label = format!("reason=\"{reason}\"");
        let dropped = || {
            let text = scrape(&daemon, "/metrics");
            value(&text, "coracle_traces_dropped_total", &[&label])
        };
        let end = Instant::now() + client::TIMEOUT;
        while dropped() < 10.0 {
            assert!(Instant::now() < end, "{endpoint}: nothing was dropped");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let text = scrape(&daemon, "/metrics");
        assert_eq!(value(&text, "coracle_traces_sent_total", &[]), 0.0);
        daemon.finish().await.unwrap();
    }
}

/// The port of a server that says nonsense for as long as anybody reads it.
fn babbling() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut stream = stream;
                while stream.write_all(&[0x20; 64 << 10]).is_ok() {}
            });
        }
    });
    port
}

#[tokio::test]
async fn a_collector_is_trusted_by_its_certificate_only() {
    let scratch = Scratch::new().unwrap();
    let make = |name: &str, host: &str| Certificate::make(scratch.dir(), name, host).unwrap();
    let [good, stranger, misnamed] = [
        make("good", "localhost"),
        make("stranger", "localhost"),
        make("misnamed", "collector.example"),
    ];
    let collector = Collector::start_tls(Answer::Good, &good).await.unwrap();
    let of_other_name = Collector::start_tls(Answer::Good, &misnamed).await.unwrap();
    let plain = Collector::start(Answer::Good).await.unwrap();
    for (ca, port, is_trusted) in [
        (&good, collector.port(), true),
        // Others than the operator's own have signed; the name is another; no TLS at all, or nonsense in its place.
        (&stranger, collector.port(), false),
        (&misnamed, of_other_name.port(), false),
        (&good, plain.port(), false),
        (&good, babbling(), false),
    ] {
        let ca = format!("ca = \"{}\"\n", ca.pem.display());
        let daemon = traced(&format!("https://localhost:{port}"), &ca).await;
        let before = collector.count();
        start_pod(&daemon, tool(), TRACE, 1).await;
        let name = match is_trusted {
            true => "coracle_traces_sent_total",
            false => "coracle_traces_dropped_total",
        };
        let labels: &[&str] = match is_trusted {
            true => &[],
            false => &["reason=\"collector\""],
        };
        let counted = || value(&scrape(&daemon, "/metrics"), name, labels);
        let end = Instant::now() + client::TIMEOUT;
        while counted() < 10.0 {
            assert!(Instant::now() < end, "{name} at {port}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(collector.count() > before, is_trusted);
        daemon.finish().await.unwrap();
    }
    assert_eq!(of_other_name.count() + plain.count(), 0);
    assert!(collector.spans(TRACE).len() >= 10);
}

#[tokio::test]
async fn spans_that_a_hanging_collector_does_not_take_are_bounded() {
    let collector = Collector::start(Answer::None).await.unwrap();
    let daemon = traced(&collector.endpoint(), "").await;
    let mut cri = daemon.cri();
    for _ in 0..3_000 {
        let request = in_trace(cri::VersionRequest::default(), TRACE, 1);
        cri.runtime.version(request).await.unwrap();
    }
    let text = scrape(&daemon, "/metrics");
    let dropped = |reason: &str| {
        let label = format!("reason=\"{reason}\"");
        value(&text, "coracle_traces_dropped_total", &[&label])
    };
    // One message is under way, and one queue is full; on a slow machine the first message is given up already.
    let (full, given_up) = (dropped("queue"), dropped("collector"));
    assert!(
        full <= 952.0 && full + given_up >= 400.0,
        "{full} {given_up}"
    );
    daemon.finish().await.unwrap();
}
