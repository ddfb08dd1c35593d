//! Functions that sleep while nobody calls them, and everything that goes on meanwhile.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::{TIMEOUT, container};
use coracle_tests::daemon::Daemon;
use coracle_tests::procs::{self, Role};
use tonic::Code;

use super::{Function, annotated, curl, ended, functions, functions_with, raw, start};
use crate::exec::exec;
use crate::site::{Pod, ended_soon, eventually, refused};

const HELLO: &str = "GET /hello HTTP/1.1\r\nHost: f\r\nConnection: close\r\n\r\n";

/// A pod whose functions sleep after `seconds`.
pub fn sleepy(daemon: &Daemon, name: &str, seconds: &str) -> cri::PodSandboxConfig {
    let mut config = annotated(daemon, name, &[]);
    let key = "coracle.dev/idle-seconds".to_owned();
    config.annotations.insert(key, seconds.to_owned());
    config
}

/// Runs the component of `image` so that it sleeps after a second.
async fn run(daemon: &Daemon, image: &str, name: &str) -> Function {
    let pod = Pod::run_config(daemon, sleepy(daemon, name, "1")).await;
    start(pod, &container("function", image, &[]), 8080).await
}

/// The processes of a function: the one that holds its socket, and the one that serves, if there is one.
pub fn processes(daemon: &Daemon, function: &Function) -> Vec<procs::Process> {
    let mut found = daemon.processes(Role::Guest);
    found.retain(|process| process.command.contains(&function.id));
    found
}

pub fn is_asleep(daemon: &Daemon, function: &Function) -> bool {
    let found = processes(daemon, function);
    assert!(!found.is_empty(), "the container has ended");
    found.len() == 1 && found[0].command.contains(" asleep ")
}

pub async fn asleep(daemon: &Daemon, function: &Function) {
    eventually("the function sleeps", || is_asleep(daemon, function)).await;
}

/// Whether it sleeps although somebody has asked it less than its second ago: on a slow machine it may do so later.
fn sleeps_too_early(daemon: &Daemon, function: &Function, asked: Instant) -> bool {
    is_asleep(daemon, function) && asked.elapsed() < Duration::from_secs(1)
}

/// How often it was woken, as the title of the process says that holds its socket.
pub fn wakes(daemon: &Daemon, function: &Function) -> (u64, u64) {
    let found = processes(daemon, function);
    let holder = found.iter().find(|one| one.command.contains("wakes="));
    let command = &holder.unwrap().command;
    let number = |key: &str| {
        let (_, rest) = command.split_once(key).unwrap();
        rest.split(' ').next().unwrap().parse().unwrap()
    };
    (number("wakes="), number("last_wake_us="))
}

#[tokio::test]
async fn a_function_sleeps_and_wakes_for_whoever_calls() {
    let (daemon, image) = functions().await;
    let function = run(&daemon, &image, "sleepy").await;
    for round in 1..4 {
        asleep(&daemon, &function).await;
        let status = function.pod.cri.status(&function.id).await.unwrap();
        assert_eq!(status.state(), cri::ContainerState::ContainerRunning);
        assert_eq!(function.get("/hello").0, 200);
        eventually("the wake is counted and timed", || {
            let (wakes, latency) = wakes(&daemon, &function);
            wakes == round && latency > 0
        })
        .await;
    }
    // What is under way, or was asked just now, keeps it awake, and what it says is in the log.
    let mut asked = function.under_way(&daemon, "/sleep/4000").await;
    tokio::time::sleep(Duration::from_millis(2_000)).await;
    let sleeps = is_asleep(&daemon, &function);
    assert!(!sleeps || !asked.is_waiting());
    assert_eq!(asked.answer(), (200, "slept\n".to_owned()));
    let begun = Instant::now();
    assert_eq!(function.get("/log/a").0, 200);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!sleeps_too_early(&daemon, &function, begun));
    asleep(&daemon, &function).await;
    let text = || {
        let out = daemon.output(function.name(), "function", "stdout");
        out.unwrap()
    };
    eventually("the log has its line", || text().contains("aaaaaaaaaa\n")).await;
    // As fast as it went down before: nothing has to be awake to end.
    let begun = Instant::now();
    function.pod.cri.stop(&function.id, 100).await.unwrap();
    ended_soon(begun);
    let status = function.pod.cri.status(&function.id).await.unwrap();
    ended(&status, 0, "Completed");
    daemon.finish().await.unwrap();
}

/// The status of one request on a connection of its own; 0 without one.
pub fn status(at: std::net::SocketAddr) -> u16 {
    let ask = || {
        let mut stream = TcpStream::connect(at)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(HELLO.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        std::io::Result::Ok(answer)
    };
    match ask() {
        Ok(answer) => answer
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .unwrap_or(0),
        Err(_) => 0,
    }
}

#[tokio::test]
async fn a_storm_during_a_wake_is_queued_and_none_of_it_is_lost() {
    let (daemon, image) = functions().await;
    let function = run(&daemon, &image, "storm").await;
    asleep(&daemon, &function).await;
    let at = function.at;
    // All of them are there before the first is answered.
    let mut streams: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(at).unwrap()).collect();
    for stream in &mut streams {
        stream.write_all(HELLO.as_bytes()).unwrap();
    }
    for mut stream in streams {
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    assert_eq!(wakes(&daemon, &function).0, 1);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_request_at_the_moment_of_falling_asleep_has_its_answer() {
    let (daemon, image) = functions().await;
    let function = run(&daemon, &image, "racing").await;
    let at = function.at;
    let mut slept = 0;
    // Around the moment at which the limit of a second is over.
    for round in 0..60_u64 {
        assert_eq!(status(at), 200, "round {round}");
        let idle = 985 + round % 30;
        tokio::time::sleep(Duration::from_millis(idle)).await;
        // Several at once, on connections of which some meet the old server and some the next one.
        let clients: Vec<_> = (0..4)
            .map(|_| std::thread::spawn(move || status(at)))
            .collect();
        for client in clients {
            assert_eq!(client.join().unwrap(), 200, "round {round}, {idle} ms");
        }
        slept = wakes(&daemon, &function).0;
        if round >= 14 && slept > 3 {
            break;
        }
    }
    assert!(slept > 0, "it never slept");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn connections_that_stay_open_neither_keep_it_awake_nor_lose_a_first_request() {
    let (daemon, image) = functions().await;
    let function = run(&daemon, &image, "open").await;
    let at = function.at;
    // One that has had its answer and waits for more is closed, and so is one that only ever speaks HTTP/2's first words.
    let kept = std::thread::spawn(move || {
        let request = "GET /hello HTTP/1.1\r\nHost: f\r\n\r\n";
        raw(at, request, TIMEOUT)
    });
    asleep(&daemon, &function).await;
    let (answer, closed) = kept.join().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && closed, "{answer}");
    // One that has connected and takes its time is waited for.
    let mut slow = TcpStream::connect(at).unwrap();
    eventually("it is woken", || !is_asleep(&daemon, &function)).await;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert!(!is_asleep(&daemon, &function));
    slow.write_all(HELLO.as_bytes()).unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    asleep(&daemon, &function).await;
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn probes_wake_a_function_and_do_not_keep_it_awake_unless_that_is_set() {
    let config = "[handlers.coracle.http]\nidle_s = 4\n[handlers.coracle-wasm.http]\nidle_s = 1\nprobes_keep_awake = true\n";
    let (daemon, image) = functions_with(config).await;
    let pod = Pod::run(&daemon, "probed").await;
    let function = start(pod, &container("function", &image, &[]), 8080).await;
    asleep(&daemon, &function).await;
    let url = function.url("/hello");
    let probe = |url: &str| curl(&["-A", "kube-probe/1.36", url]).0;
    // A probe that finds it asleep is answered, and it sleeps again long before the four seconds are over. A machine that has
    // other things to do, too, is slow now and then.
    let mut shortest = Duration::MAX;
    for _ in 0..10 {
        let begun = Instant::now();
        assert_eq!(probe(&url), 200);
        asleep(&daemon, &function).await;
        shortest = shortest.min(begun.elapsed());
        if shortest < Duration::from_secs(3) {
            break;
        }
    }
    assert!(shortest < Duration::from_secs(3), "{shortest:?}");
    // A request that counts does keep it, and probes do not prolong that.
    let begun = Instant::now();
    assert_eq!(function.get("/hello").0, 200);
    while !is_asleep(&daemon, &function) {
        assert!(begun.elapsed() < TIMEOUT, "it never slept");
        if begun.elapsed() < Duration::from_millis(3_800) {
            assert_eq!(probe(&url), 200);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(begun.elapsed() >= Duration::from_secs(4));

    let cri = daemon.cri();
    let config = daemon.pod("kept-awake");
    let id = cri.run_pod_with(&config, "coracle-wasm").await.unwrap();
    let pod = Pod { cri, config, id };
    let kept = start(pod, &container("function", &image, &[]), 8080).await;
    let url = kept.url("/hello");
    for _ in 0..10 {
        let begun = Instant::now();
        assert_eq!(probe(&url), 200);
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!sleeps_too_early(&daemon, &kept, begun));
    }
    asleep(&daemon, &kept).await;
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_sleeping_function_outlives_its_daemon_and_takes_execs_updates_and_a_new_log() {
    let (mut daemon, image) = functions().await;
    let function = run(&daemon, &image, "kept").await;
    asleep(&daemon, &function).await;
    daemon.kill();
    daemon.restart().await.unwrap();
    assert!(is_asleep(&daemon, &function));
    let function = Function {
        pod: Pod {
            cri: daemon.cri(),
            ..function.pod
        },
        ..function
    };
    let (pod, id) = (&function.pod, &function.id);
    let said = exec(pod, id, &["cat", "/etc/motd"], 10).await.unwrap();
    assert_eq!((said.out.as_str(), said.code), ("from the image", 0));
    assert!(is_asleep(&daemon, &function), "an exec is no call");
    let update = cri::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(cri::LinuxContainerResources {
            memory_limit_in_bytes: 128 << 20,
            cpu_period: 100_000,
            cpu_quota: 50_000,
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut runtime = pod.cri.runtime.clone();
    runtime.update_container_resources(update).await.unwrap();
    let log = daemon.container_log(function.name(), "function");
    std::fs::rename(&log, log.with_extension("old")).unwrap();
    pod.cri.reopen_log(id).await.unwrap();
    assert_eq!(function.get("/log/n").0, 200);
    pod.wait_log(&daemon, "function", "nnnnnnnnnn").await;
    eventually("the wake is counted", || wakes(&daemon, &function).0 == 1).await;
    // Awake, it outlives the daemon as well.
    daemon.kill();
    assert_eq!(function.get("/hello").0, 200);
    daemon.restart().await.unwrap();
    assert_eq!(function.get("/hello").0, 200);
    asleep(&daemon, &function).await;
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_killed_ends_its_container_as_it_ended_itself() {
    let (daemon, image) = functions().await;
    // Long enough to be found awake.
    let pod = Pod::run_config(&daemon, sleepy(&daemon, "killed", "8")).await;
    let killed = start(pod, &container("function", &image, &[]), 8080).await;
    asleep(&daemon, &killed).await;
    assert_eq!(killed.get("/hello").0, 200);
    let found = processes(&daemon, &killed);
    let server = found.iter().find(|one| one.command.ends_with(" server"));
    procs::kill(server.unwrap().pid);
    let status = killed.pod.cri.wait_exit(&killed.id).await.unwrap();
    ended(&status, 137, "Error");
    // Whoever holds the socket takes its server along.
    let pod = Pod::run_config(&daemon, sleepy(&daemon, "holder", "60")).await;
    let holder = start(pod, &container("function", &image, &[]), 8080).await;
    let found = processes(&daemon, &holder);
    let is_server = |one: &procs::Process| one.command.ends_with(" server");
    let (servers, holders): (Vec<_>, Vec<_>) = found.into_iter().partition(is_server);
    assert_eq!((servers.len(), holders.len()), (1, 1), "{servers:?}");
    let pids = [servers[0].pid, holders[0].pid];
    procs::kill(holders[0].pid);
    let status = holder.pod.cri.wait_exit(&holder.id).await.unwrap();
    assert_eq!(status.exit_code, 137, "{status:?}");
    eventually("both are gone", || {
        pids.iter().all(|pid| !procs::is_alive(*pid))
    })
    .await;
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn running_out_of_memory_is_reported_of_a_server_that_was_woken() {
    let (daemon, image) = functions().await;
    let pod = Pod::run_config(&daemon, sleepy(&daemon, "greedy", "1")).await;
    let mut config = container("function", &image, &[]);
    let linux = config.linux.as_mut().unwrap();
    linux.resources.as_mut().unwrap().memory_limit_in_bytes = 48 << 20;
    let function = start(pod, &config, 8080).await;
    asleep(&daemon, &function).await;
    // Each within the limit of an instance, and together beyond that of the container, once they come at the same time.
    let end = Instant::now() + TIMEOUT;
    let status = loop {
        let asked: Vec<_> = (0..6).map(|_| function.begin("/alloc/40")).collect();
        asked.into_iter().for_each(|asked| drop(asked.answer()));
        let status = function.pod.cri.status(&function.id).await.unwrap();
        if status.state() == cri::ContainerState::ContainerExited {
            break status;
        }
        assert!(Instant::now() < end, "they never came at the same time");
    };
    ended(&status, 137, "OOMKilled");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_component_that_cannot_begin_ends_its_container_also_if_it_may_sleep() {
    let (daemon, image) = functions().await;
    let mut config = sleepy(&daemon, "cramped", "1");
    let key = "http.coracle.dev/request-memory-bytes".to_owned();
    config.annotations.insert(key, "65536".to_owned());
    let pod = Pod::run_config(&daemon, config).await;
    let id = pod.start(&container("function", &image, &[])).await;
    let status = pod.cri.wait_exit(&id).await.unwrap();
    ended(&status, 134, "WasmTrap");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_strict_function_sleeps_and_a_busy_one_drains() {
    let config = "[handlers.coracle-strict.http]\nidle_s = 1\n";
    let (daemon, image) = functions_with(config).await;
    let cri = daemon.cri();
    let config = daemon.pod("strict");
    let id = cri.run_pod_with(&config, "coracle-strict").await.unwrap();
    let pod = Pod { cri, config, id };
    let function = start(pod, &container("function", &image, &[]), 8080).await;
    for _ in 0..2 {
        asleep(&daemon, &function).await;
        assert_eq!(function.get("/hello").0, 200);
    }
    let mut asked = function.under_way(&daemon, "/sleep/5000").await;
    let (at, cri, id) = (function.at, daemon.cri(), function.id.clone());
    let stopping = tokio::spawn(async move { cri.stop(&id, 100).await });
    // Nobody can connect any more, though two processes had the socket.
    eventually("the socket is shut", || TcpStream::connect(at).is_err()).await;
    assert!(asked.is_waiting(), "it was shut behind the last answer");
    assert_eq!(asked.answer(), (200, "slept\n".to_owned()));
    stopping.await.unwrap().unwrap();
    let status = function.pod.cri.status(&function.id).await.unwrap();
    assert_eq!(status.exit_code, 0, "{status:?}");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_pod_says_sooner_and_later_only_where_that_is_allowed() {
    let config = "[handlers.coracle.http]\nidle_s = 2\n[handlers.coracle-wasm]\nannotations = [\"coracle.dev/idle-seconds\"]\n[handlers.coracle-wasm.http]\nidle_s = 1\n";
    let (daemon, image) = functions_with(config).await;
    let cri = daemon.cri();
    let odd = sleepy(&daemon, "odd", "soon");
    let words = ["coracle.dev/idle-seconds", "soon"];
    refused(cri.run_pod(&odd).await, Code::InvalidArgument, &words);
    for later in ["3", "0"] {
        let name = format!("later-{later}");
        let pod = Pod::run_config(&daemon, sleepy(&daemon, &name, later)).await;
        let words = [
            "coracle.dev/idle-seconds",
            "handlers.coracle.http.idle_s",
            "1 to 2",
        ];
        let created = pod.create(&container("c", &image, &[])).await;
        refused(created, Code::InvalidArgument, &words);
    }
    let config = sleepy(&daemon, "never", "0");
    let id = cri.run_pod_with(&config, "coracle-wasm").await.unwrap();
    let pod = Pod { cri, config, id };
    let awake = start(pod, &container("function", &image, &[]), 8080).await;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(processes(&daemon, &awake).len(), 1);
    assert!(!is_asleep(&daemon, &awake), "it has no other process");
    daemon.finish().await.unwrap();
}
