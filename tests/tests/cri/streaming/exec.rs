//! Output and input of programs that are run over a stream.

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;
use coracle_tests::streaming::{Ends, MODERN, Part, Remote, WIRES, Wire};

use super::{BOTH, OUT, TTY, exec_url, open, run};
use crate::linux::shell;
use crate::metrics;
use crate::site::{self, Pod, tool};

#[tokio::test]
async fn every_wire_carries_output_errors_and_how_it_ended() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "wires").await;
    let id = pod.start(&shell::sh("main", "sleep 1000")).await;
    for wire in WIRES {
        let output = run(&pod, &id, "echo out; echo err >&2; exit 7", *wire).await;
        assert_eq!(
            (output.text().as_str(), output.err.as_slice()),
            ("out\n", &b"err\n"[..]),
            "{wire:?}"
        );
        if wire.has_json() {
            assert_eq!(output.code(), Ok(7), "{wire:?}");
        } else {
            assert!(output.status.contains('7'), "{wire:?}: {output:?}");
        }
        let output = run(&pod, &id, "true", *wire).await;
        if wire.has_json() {
            assert_eq!(output.code(), Ok(0), "{wire:?}");
        } else {
            assert_eq!(output.status, "", "{wire:?}");
        }
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn sessions_are_counted_while_they_are_open_and_by_how_they_ended() {
    let options = coracle_tests::daemon::Options {
        config: "[metrics]\naddress = \"127.0.0.1:0\"\n".into(),
        ..Default::default()
    };
    let daemon = shell::daemon_with(options).await;
    let pod = Pod::run(&daemon, "counted").await;
    let id = pod.start(&shell::sh("main", "sleep 1000")).await;
    let count = |name: &str, labels: &[&str]| {
        let text = metrics::scrape(&daemon, "/metrics");
        let there = text.lines().any(|line| {
            line.starts_with(&format!("{name}{{"))
                && labels.iter().all(|label| line.contains(label))
        });
        if there {
            metrics::value(&text, name, labels)
        } else {
            0.0
        }
    };
    for (wire, protocol) in MODERN.iter().zip(["spdy", "websocket"]) {
        let protocol = format!("protocol=\"{protocol}\"");
        let open_now = || count("coracle_streaming_sessions", &["kind=\"exec\"", &protocol]);
        let ended = |result: &str| {
            let result = format!("result=\"{result}\"");
            count(
                "coracle_streaming_sessions_total",
                &["kind=\"exec\"", &protocol, &result],
            )
        };
        let remote = open(&pod, &id, &["sleep", "1000"], *wire, OUT).await;
        site::eventually("it is open", || open_now() == 1.0).await;
        drop(remote);
        site::eventually("its client has left", || ended("left") == 1.0).await;
        assert_eq!(run(&pod, &id, "exit 7", *wire).await.code(), Ok(7));
        site::eventually("it has ended", || ended("ok") == 1.0).await;
        let absent = open(&pod, &id, &["/absent"], *wire, OUT).await;
        absent.finish().await.unwrap();
        site::eventually("it has failed", || ended("failed") == 1.0).await;
        site::eventually("none is open", || open_now() == 0.0).await;
    }
    let sessions = MODERN.len() as f64;
    for result in ["ok", "failed", "left"] {
        let result = format!("result=\"{result}\"");
        let name = "coracle_streaming_session_duration_seconds_count";
        assert_eq!(
            count(name, &["kind=\"exec\"", &result]),
            sessions,
            "{result}"
        );
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn input_arrives_and_its_end_is_an_end() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "input").await;
    let id = pod.start(&shell::sh("main", "sleep 1000")).await;
    for wire in WIRES {
        // A protocol that cannot say that no more comes needs a program that knows when it has enough.
        let cmd: &[&str] = if wire.half_closes() {
            &["cat"]
        } else {
            &["head", "-c", "11"]
        };
        let mut remote = open(&pod, &id, cmd, *wire, BOTH).await;
        let stdin = remote.stdin.take().unwrap();
        stdin.send(b"hello ").await.unwrap();
        stdin.send(b"world").await.unwrap();
        if wire.half_closes() {
            stdin.end().await.unwrap();
        }
        let output = remote.finish().await.unwrap();
        assert_eq!(output.text(), "hello world", "{wire:?}");
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_terminal_has_the_clients_size_and_follows_it() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "sizes").await;
    let id = pod.start(&shell::sh("main", "sleep 1000")).await;
    for wire in WIRES.iter().filter(|wire| wire.resizes()) {
        let script = "while :; do stty size; sleep 0.05; done";
        let mut remote = open(&pod, &id, &["/bin/sh", "-c", script], *wire, TTY).await;
        let sizes = remote.sizes.take().unwrap();
        sizes.send(b"{\"Width\":81,\"Height\":25}\n").await.unwrap();
        remote.wait_for("25 81\r\n").await.unwrap();
        sizes.send(b"{\"Width\":132,\"Height\":50}").await.unwrap();
        remote.wait_for("50 132\r\n").await.unwrap();
        // A flood of them, and nonsense, does nothing else.
        for width in 1..500 {
            let size = format!("{{\"Width\":{width},\"Height\":9}}garbage");
            sizes.send(size.as_bytes()).await.unwrap();
        }
        remote.wait_for("9 499\r\n").await.unwrap();
        // The terminal's own interrupt ends it.
        remote.stdin.as_ref().unwrap().send(b"\x03").await.unwrap();
        let output = remote.finish().await.unwrap();
        assert!(output.status.contains("130"), "{wire:?}: {}", output.status);
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn what_a_program_said_last_is_not_lost_on_a_slow_client() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "slow").await;
    let id = pod.start(&shell::sh("main", "sleep 1000")).await;
    for wire in MODERN {
        let script = "head -c 3000000 /dev/zero; echo the end; exit 3";
        let mut remote = open(&pod, &id, &["/bin/sh", "-c", script], *wire, OUT).await;
        tokio::time::sleep(std::time::Duration::from_millis(700)).await;
        let mut bytes = 0;
        // Some of it slowly, with the program long gone; the rest at once.
        for _ in 0..10 {
            if let Some(Part::Out(some)) = remote.next().await {
                bytes += some.len();
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        let output = remote.finish().await.unwrap();
        assert_eq!(
            bytes + output.out.len(),
            3_000_000 + "the end\n".len(),
            "{wire:?}"
        );
        assert_eq!(output.code(), Ok(3), "{wire:?}");
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_missing_program_is_reported_on_the_error_stream() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "absent").await;
    let id = pod.start(&shell::sh("main", "sleep 1000")).await;
    for wire in WIRES {
        let remote = open(&pod, &id, &["no-such-program"], *wire, OUT).await;
        let output = remote.finish().await.unwrap();
        assert!(
            output.status.contains("no-such-program"),
            "{wire:?}: {output:?}"
        );
        assert!(output.code().is_err(), "{wire:?}");
        assert_eq!((output.out, output.err), (vec![], vec![]), "{wire:?}");
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_container_that_exited_after_the_url_was_made_is_reported() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "ended").await;
    let id = pod.start(&shell::sh("main", "sleep 1000")).await;
    for wire in MODERN {
        let url = exec_url(&pod, &id, &["true"], OUT).await.unwrap();
        if *wire == MODERN[1] {
            pod.cri.stop(&id, 0).await.unwrap();
        }
        let output = Remote::open(&url, *wire, OUT)
            .await
            .unwrap()
            .finish()
            .await
            .unwrap();
        if *wire == MODERN[1] {
            assert!(output.status.contains("exited"), "{output:?}");
        } else {
            assert_eq!(output.code(), Ok(0));
        }
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn many_sessions_at_once_do_not_mix() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "many").await;
    let id = pod.start(&shell::sh("main", "sleep 1000")).await;
    let sessions = (0..40).map(|number: usize| {
        let (id, pod) = (
            id.clone(),
            Pod {
                cri: pod.cri.clone(),
                config: pod.config.clone(),
                id: pod.id.clone(),
            },
        );
        tokio::spawn(async move {
            let wire = MODERN[number % 2];
            let script = format!("cat; echo {number}; exit {number}");
            let mut remote = open(&pod, &id, &["/bin/sh", "-c", &script], wire, BOTH).await;
            let stdin = remote.stdin.take().unwrap();
            stdin
                .send(format!("in {number} ").as_bytes())
                .await
                .unwrap();
            stdin.end().await.unwrap();
            let output = remote.finish().await.unwrap();
            assert_eq!(output.text(), format!("in {number} {number}\n"));
            assert_eq!(output.code(), Ok(number as i32));
        })
    });
    for session in sessions.collect::<Vec<_>>() {
        session.await.unwrap();
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_wasm_container_streams_as_well() {
    let daemon = site::daemon().await;
    let pod = Pod::run(&daemon, "wasm").await;
    let id = pod.start(&container("main", tool(), &["sleep"])).await;
    for wire in WIRES {
        let written = open(
            &pod,
            &id,
            &["tool", "write", "/file", "streamed"],
            *wire,
            OUT,
        )
        .await;
        let written = written.finish().await.unwrap();
        let read = open(&pod, &id, &["tool", "read", "/file"], *wire, OUT).await;
        let read = read.finish().await.unwrap();
        assert!(
            read.text().contains("streamed"),
            "{wire:?}: {written:?} {read:?}"
        );
        let failed = open(&pod, &id, &["tool", "exit", "9"], *wire, OUT).await;
        let failed = failed.finish().await.unwrap();
        assert!(failed.status.contains('9'), "{wire:?}: {failed:?}");
    }
    assert_eq!(
        pod.cri.status(&id).await.unwrap().state(),
        cri::ContainerState::ContainerRunning
    );
    daemon.finish().await.unwrap();
}

/// What CRI did not ask for is not there, whatever the client opens.
#[tokio::test]
async fn only_the_streams_of_the_request_exist() {
    use coracle_tests::streaming::{Url, spdy::Session};
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "asked").await;
    let id = pod.start(&shell::sh("main", "sleep 1000")).await;
    let request = Ends {
        stderr: false,
        ..OUT
    };
    let url = exec_url(
        &pod,
        &id,
        &["/bin/sh", "-c", "echo out; echo err >&2; cat"],
        request,
    )
    .await;
    let url = Url::parse(&url.unwrap()).unwrap();
    let session = Session::open(&url, "v4.channel.k8s.io").await.unwrap();
    let mut refused = Vec::new();
    for name in ["stdin", "stderr", "resize"] {
        refused.push(
            session
                .stream(&[("streamtype", name)])
                .await
                .unwrap()
                .split(),
        );
    }
    assert!(session.stream(&[("streamtype", "other")]).await.is_err());
    assert!(session.stream(&[]).await.is_err());
    let (_, mut out) = session
        .stream(&[("StreamType", "stdout")])
        .await
        .unwrap()
        .split();
    let (_, mut second) = session
        .stream(&[("streamtype", "stdout")])
        .await
        .unwrap()
        .split();
    let (_, mut error) = session
        .stream(&[("streamtype", "error")])
        .await
        .unwrap()
        .split();
    assert_eq!(out.rest().await, b"out\n");
    for incoming in refused
        .iter_mut()
        .map(|(_, incoming)| incoming)
        .chain([&mut second])
    {
        assert_eq!(incoming.rest().await, b"");
    }
    let status = String::from_utf8(error.rest().await).unwrap();
    assert!(status.contains("Success"), "{status}");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn pings_come_back_while_a_program_runs() {
    use coracle_tests::streaming::{Url, spdy::Session, websocket::Socket};
    use std::sync::atomic::Ordering;
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "pings").await;
    let id = pod.start(&shell::sh("main", "sleep 1000")).await;
    let url = || async {
        let url = exec_url(&pod, &id, &["sleep", "1000"], OUT).await.unwrap();
        Url::parse(&url).unwrap()
    };
    let session = Session::open(&url().await, "v4.channel.k8s.io")
        .await
        .unwrap();
    for number in [1, 3, 5, 0x7fff_ffff] {
        session.ping(number).await.unwrap();
    }
    let socket = Socket::open(&url().await, "v5.channel.k8s.io")
        .await
        .unwrap();
    let seen = socket.seen();
    socket.ping().await.unwrap();
    let _reading = socket.forward(|_, _| async { true });
    site::eventually("the pong", || seen.pongs.load(Ordering::Acquire) == 1).await;
    daemon.finish().await.unwrap();
}

/// Wires whose client sends text in base64 must not be confused by bytes.
#[tokio::test]
async fn bytes_of_all_values_go_both_ways() {
    let daemon = shell::daemon().await;
    let pod = Pod::run(&daemon, "bytes").await;
    let id = pod.start(&shell::sh("main", "sleep 1000")).await;
    let all: Vec<u8> = (0..=255).cycle().take(100_001).collect();
    for wire in [
        Wire::Spdy("v4.channel.k8s.io"),
        Wire::WebSocket("v4.base64.channel.k8s.io"),
        Wire::WebSocket(""),
    ] {
        let mut remote = open(&pod, &id, &["head", "-c", "100001"], wire, BOTH).await;
        let stdin = remote.stdin.take().unwrap();
        let sent = all.clone();
        tokio::spawn(async move {
            for piece in sent.chunks(997) {
                stdin.send(piece).await.unwrap();
            }
        });
        let output = remote.finish().await.unwrap();
        assert!(output.out == all, "{wire:?}: {} bytes", output.out.len());
    }
    daemon.finish().await.unwrap();
}
