//! Requests that go well, and those that harm nobody but themselves.

use std::time::Duration;

use coracle_tests::client::{TIMEOUT, container};
use coracle_tests::procs::Role;

use super::{curl, functions, raw, run, start, variable};
use crate::exec::exec;
use crate::site::{Pod, eventually};
use crate::wasm::{switches, wakes};

#[tokio::test]
async fn a_function_answers_http_1_and_2_with_bodies_headers_and_trailers() {
    let (daemon, image) = functions().await;
    let function = run(&daemon, &image, "serving", &[]).await;
    let hello = (200, "hello from a function\n".to_owned());
    assert_eq!(function.get("/hello"), hello);
    let url = function.url("/hello");
    // Without an upgrade, as a gRPC client or a service mesh speaks it.
    assert_eq!(curl(&["--http2-prior-knowledge", &url]), hello);
    assert_eq!(function.get("/nowhere"), (404, "not here\n".to_owned()));
    let sent = "x".repeat(300_000);
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let file = daemon.scratch().dir().join("body");
        std::fs::write(&file, &sent).unwrap();
        let at = format!("@{}", file.display());
        let (status, back) = curl(&[version, "--data-binary", &at, &function.url("/echo")]);
        assert_eq!((status, back.len()), (200, sent.len()), "{version}");
        assert!(back == sent, "{version} changed the body");
    }
    // Two requests on one connection, then chunks with a trailer.
    let request = "GET /hello HTTP/1.1\r\nHost: f\r\n\r\n";
    let last = "POST /echo HTTP/1.1\r\nHost: f\r\nTE: trailers\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc";
    let (said, closed) = raw(function.at, &format!("{request}{request}{last}"), TIMEOUT);
    assert_eq!(said.matches("HTTP/1.1 200 OK").count(), 3, "{said}");
    assert_eq!(said.matches("x-function: yes").count(), 3, "{said}");
    assert!(closed && said.contains("3\r\nabc\r\n"), "{said}");
    let (said, _) = raw(function.at, "GET /hello HTTP/1.0\r\n\r\n", TIMEOUT);
    assert!(said.starts_with("HTTP/1.0 200 OK"), "{said}");
    let (said, _) = raw(
        function.at,
        "GET /hello HTTP/1.1\r\nConnection: close\r\n\r\n",
        TIMEOUT,
    );
    assert!(said.starts_with("HTTP/1.1 400 "), "{said}");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn what_a_guest_fails_at_ends_its_own_request_and_nothing_else() {
    let (daemon, image) = functions().await;
    let function = run(&daemon, &image, "failing", &[("access-log", "true")]).await;
    let waiting = function.begin("/sleep/1000");
    assert_eq!(function.get("/trap").0, 500);
    assert_eq!(function.get("/silent").0, 500);
    assert_eq!(function.get("/denied").0, 403);
    // Its head was sent already: the body breaks off.
    assert_eq!(function.get("/late-trap").1.trim_end(), "begun");
    assert_eq!(function.get("/hello").0, 200);
    assert_eq!(waiting.answer(), (200, "slept\n".to_owned()));
    let stderr = || {
        daemon
            .output(function.name(), "function", "stderr")
            .unwrap()
    };
    eventually("both traps are in the log", || {
        stderr().matches("unreachable").count() >= 2
    })
    .await;
    let said = stderr();
    let traps: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("unreachable"))
        .collect();
    assert_eq!(traps.len(), 2, "{said}");
    for line in traps {
        assert!(
            line.starts_with("coracle: ") && line.contains("wasm backtrace"),
            "{line}"
        );
    }
    let requests = daemon
        .output(function.name(), "function", "stdout")
        .unwrap();
    for line in ["GET /trap 500 ", "GET /denied 403 ", "GET /hello 200 "] {
        assert!(requests.contains(line), "no {line:?} in {requests}");
    }
    let status = function.pod.cri.status(&function.id).await.unwrap();
    assert_eq!(status.state, 1, "{status:?}");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn lines_of_requests_that_run_at_once_stay_whole() {
    let (daemon, image) = functions().await;
    let function = run(&daemon, &image, "lines", &[]).await;
    let letters = ["a", "b", "c", "d", "e", "f"];
    let asked = letters.map(|letter| function.begin(&format!("/log/{letter}")));
    for asked in asked {
        assert_eq!(asked.answer(), (200, "logged\n".to_owned()));
    }
    let log = || {
        daemon
            .output(function.name(), "function", "stdout")
            .unwrap()
    };
    eventually("all lines are in the log", || log().lines().count() >= 120).await;
    for letter in letters {
        let line = letter.repeat(100);
        let count = log().lines().filter(|own| *own == line).count();
        assert_eq!(count, 20, "{}", log());
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn lines_carry_the_ids_of_their_requests_where_it_is_wanted() {
    let (daemon, image) = functions().await;
    let wanted = [("request-ids", "true"), ("access-log", "true")];
    let function = run(&daemon, &image, "ids", &wanted).await;
    let asked = ["a", "b"].map(|letter| {
        let id = format!("x-request-id: client-{letter}");
        let url = function.url(&format!("/log/{letter}"));
        std::thread::spawn(move || curl(&["-H", &id, &url]))
    });
    for asked in asked {
        assert_eq!(asked.join().unwrap().0, 200);
    }
    let odd = "x-request-id: \"one two\"";
    assert_eq!(curl(&["-H", odd, &function.url("/log/c")]).0, 200);
    assert_eq!(function.get("/trap").0, 500);
    let output = |stream| daemon.output(function.name(), "function", stream).unwrap();
    eventually("the access log has four lines", || {
        output("stdout").matches(" GET /").count() == 4
    })
    .await;
    let out = output("stdout");
    for letter in ["a", "b"] {
        let line = format!("client-{letter} {}", letter.repeat(100));
        assert_eq!(out.lines().filter(|own| *own == line).count(), 20, "{out}");
        assert!(out.contains(&format!("client-{letter} GET /log/{letter} 200 ")));
    }
    // An id that is made is the same in all lines of its request, and never another's words.
    let made: Vec<&str> = out.lines().filter(|line| line.ends_with("ccc")).collect();
    let id = made[0].split(' ').next().unwrap();
    assert!(id.len() == 16 && made.len() == 20, "{out}");
    assert!(made.iter().all(|line| line.starts_with(id)), "{out}");
    assert!(out.contains(&format!("{id} GET /log/c 200 ")), "{out}");
    eventually("the trap is in the log", || !output("stderr").is_empty()).await;
    let trap = output("stderr");
    let words: Vec<&str> = trap.splitn(3, ' ').collect();
    assert_eq!((words[0].len(), words[1]), (16, "coracle:"), "{trap}");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn instances_are_fresh_unless_the_pod_reuses_them() {
    let (daemon, image) = functions().await;
    let fresh = run(&daemon, &image, "fresh", &[]).await;
    for _ in 0..3 {
        assert_eq!(fresh.get("/count"), (200, "1\n".to_owned()));
    }
    let reusing = run(
        &daemon,
        &image,
        "reusing",
        &[("max-instance-requests", "3")],
    )
    .await;
    let counts: Vec<String> = (0..6).map(|_| reusing.get("/count").1).collect();
    assert_eq!(counts, ["1\n", "2\n", "3\n", "1\n", "2\n", "3\n"]);
    // One that trapped is not used again.
    assert_eq!(reusing.get("/count").1, "1\n");
    assert_eq!(reusing.get("/trap").0, 500);
    assert_eq!(reusing.get("/count").1, "1\n");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn the_instance_that_shows_that_a_function_can_begin_answers_its_first_request() {
    let (daemon, image) = functions().await;
    let pod = Pod::run(&daemon, "first").await;
    let mut config = container("function", &image, &[]);
    config.envs = vec![variable("ANNOUNCE", "yes")];
    let function = start(pod, &config, 8080).await;
    let log = || {
        let said = daemon.output(function.name(), "function", "stdout");
        said.unwrap()
    };
    eventually("the first instance is made", || log() == "made\n").await;
    for _ in 0..3 {
        assert_eq!(function.get("/count"), (200, "1\n".to_owned()));
    }
    // The fourth's lines come behind what all of them wrote when they were made.
    assert_eq!(function.get("/log/a").0, 200);
    eventually("its lines are in the log", || log().lines().count() >= 24).await;
    assert_eq!(log().matches("made\n").count(), 4, "{}", log());
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_function_has_environment_files_logs_and_tools_like_any_container() {
    let (daemon, image) = functions().await;
    let pod = Pod::run(&daemon, "tools").await;
    let mut config = container("function", &image, &[]);
    config.envs = vec![variable("GREETING", "hello")];
    let function = start(pod, &config, 8080).await;
    assert_eq!(function.get("/env/GREETING"), (200, "hello".to_owned()));
    assert_eq!(
        function.get("/read/etc/motd"),
        (200, "from the image".to_owned())
    );
    let said = exec(&function.pod, &function.id, &["cat", "/etc/motd"], 10).await;
    let said = said.unwrap();
    assert_eq!((said.code, said.out.as_str()), (0, "from the image"));
    assert_eq!(function.get("/hello").0, 200);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn an_idle_function_does_not_wake() {
    let (daemon, image) = functions().await;
    let function = run(&daemon, &image, "asleep", &[]).await;
    for _ in 0..50 {
        assert_eq!(function.get("/hello").0, 200);
    }
    let guests = daemon.processes(Role::Guest);
    let pid = guests.first().unwrap().pid;
    // Once the last instance's turn is over, and so is the epoch's timer; what wakes by itself wakes in all of them.
    let mut woken = Vec::new();
    while woken.len() < 15 && woken.last().is_none_or(|last| *last > 4) {
        let before = switches(pid);
        tokio::time::sleep(Duration::from_secs(2)).await;
        woken.push(wakes(&before, &switches(pid)));
    }
    let least = woken.iter().min().unwrap();
    assert!(*least <= 4, "it woke {woken:?} times, each in two seconds");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn requests_of_a_function_are_held_to_its_pods_egress_list() {
    let (daemon, image) = functions().await;
    let other = run(&daemon, &image, "other", &[]).await;
    let open = run(&daemon, &image, "open", &[]).await;
    let path = format!("/fetch/{}", other.at);
    assert_eq!(open.get(&path), (200, "asked\n".to_owned()));
    let said = daemon.output("open", "function", "stdout").unwrap();
    assert!(
        said.contains("status 200\nhello from a function\n"),
        "{said}"
    );
    let mut config = daemon.pod("listing");
    let key = "egress.coracle.dev/allow".to_owned();
    config.annotations.insert(key, "203.0.113.1".to_owned());
    let pod = Pod::run_config(&daemon, config).await;
    let listing = start(pod, &container("function", &image, &[]), 8080).await;
    assert_eq!(listing.get(&path), (502, "asked\n".to_owned()));
    let said = daemon.output("listing", "function", "stderr").unwrap();
    assert!(said.contains("destination-IP-prohibited"), "{said}");
    daemon.finish().await.unwrap();
}
