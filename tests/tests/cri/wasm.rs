//! What only WebAssembly has: modules and components, traps, engines, randomness, the ways to pack a module.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;
use coracle_tests::guests;
use coracle_tests::procs::Role;
use coracle_tests::push::{Image, Packing, file, push_index};

use crate::site::{Pod, daemon, ended_soon, images, tool};

#[tokio::test]
async fn modules_and_components_run_side_by_side_in_one_pod() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "mixed").await;
    let site = images();
    for image in [&site.hello, &site.component_hello] {
        pod.cri.pull(&image.reference).await.unwrap();
    }
    let module = pod
        .start(&container("module", &site.hello.reference, &[]))
        .await;
    pod.wait_log(&daemon, "module", "hello\n").await;
    let (status, text) = pod
        .finish(
            &daemon,
            &container("component", &site.component_hello.reference, &[]),
        )
        .await;
    assert_eq!(
        (status.exit_code, text.as_str()),
        (0, "hello from a component\n"),
        "{status:?}"
    );
    assert_eq!(
        pod.cri.status(&module).await.unwrap().state(),
        cri::ContainerState::ContainerRunning
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_components_exit_and_its_stop_are_reported_like_a_modules() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "components").await;
    let registry = images().registry.host();
    for name in ["component-exit", "component-sleep"] {
        let pushed = Image::artifact(&guests::wat(name).unwrap())
            .push(registry, name, "v1")
            .unwrap();
        pod.cri.pull(&pushed.reference).await.unwrap();
    }
    let exit = container("exit", &format!("{registry}/component-exit:v1"), &[]);
    let (status, _) = pod.finish(&daemon, &exit).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (1, "Error"));
    let sleeping = pod
        .start(&container(
            "sleep",
            &format!("{registry}/component-sleep:v1"),
            &[],
        ))
        .await;
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    pod.cri.stop(&sleeping, 10).await.unwrap();
    assert_eq!(pod.cri.status(&sleeping).await.unwrap().exit_code, 143);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_component_knows_whether_it_has_a_terminal() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "terminals").await;
    let pushed = Image::artifact(&guests::net().unwrap())
        .push(images().registry.host(), "terminals", "v1")
        .unwrap();
    pod.cri.pull(&pushed.reference).await.unwrap();
    let mut config = container("with", &pushed.reference, &["isatty"]);
    config.tty = true;
    let (_, output) = pod.finish(&daemon, &config).await;
    assert_eq!(
        output.replace('\r', ""),
        "0 terminal\n1 terminal\n2 terminal\n"
    );
    config = container("without", &pushed.reference, &["isatty"]);
    config.stdin = true;
    let (_, output) = pod.finish(&daemon, &config).await;
    assert_eq!(output, "0 other\n1 other\n2 other\n");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_component_that_waits_for_input_is_stopped_at_once() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "waiting").await;
    let pushed = Image::artifact(&guests::net().unwrap())
        .push(images().registry.host(), "waiting", "v1")
        .unwrap();
    pod.cri.pull(&pushed.reference).await.unwrap();
    let mut config = container("cat", &pushed.reference, &["cat"]);
    config.stdin = true;
    let id = pod.start(&config).await;
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    let begun = std::time::Instant::now();
    pod.cri.stop(&id, 100).await.unwrap();
    ended_soon(begun);
    assert_eq!(pod.cri.status(&id).await.unwrap().exit_code, 143);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_trap_exits_134_and_tells_where() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "trap").await;
    let (status, _) = pod
        .finish(&daemon, &container("trap", tool(), &["trap"]))
        .await;
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (134, "WasmTrap")
    );
    let stderr = daemon.output("trap", "trap", "stderr").unwrap();
    for text in [&status.message, &stderr] {
        for expected in ["unreachable", "fall_over", "stumble"] {
            assert!(text.contains(expected), "no {expected} in {text:?}");
        }
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn siblings_of_a_spawner_and_of_a_keeper_draw_different_random_bytes() {
    let daemon = daemon().await;
    let mut seen = BTreeSet::new();
    for pod_name in ["a", "b", "c"] {
        let pod = Pod::run(&daemon, pod_name).await;
        for name in ["first", "second"] {
            let (status, text) = pod
                .finish(&daemon, &container(name, tool(), &["random"]))
                .await;
            assert_eq!((status.exit_code, text.trim().len()), (0, 32), "{text}");
            assert!(
                seen.insert(text.clone()),
                "{pod_name}/{name} repeats {text}"
            );
        }
    }
    assert_eq!(seen.len(), 6);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn every_packing_of_a_module_runs() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "packed").await;
    let registry = images().registry.host();
    let guest = guests::tool().unwrap();
    for (tag, packing) in [
        ("plain", Packing::Plain),
        ("gzip", Packing::Gzip),
        ("zstd", Packing::Zstd),
    ] {
        let files = [
            file("app/main.wasm", 0o644, &guest),
            file(tag, 0o644, tag.as_bytes()),
        ];
        let image = Image::wasi(&files, packing, &["/app/main.wasm"]).unwrap();
        let pushed = image.push(registry, "packed", tag).unwrap();
        pod.cri.pull(&pushed.reference).await.unwrap();
        let (status, text) = pod
            .finish(
                &daemon,
                &container(tag, &pushed.reference, &["read", &format!("/{tag}")]),
            )
            .await;
        assert_eq!((status.exit_code, text), (0, format!("{tag}\n")));
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn upper_layers_win_and_whiteouts_delete() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "layers").await;
    let guest = guests::tool().unwrap();
    let bottom = [
        file("t.wasm", 0o644, &guest),
        file("a", 0o644, b"old"),
        file("b", 0o644, b"gone"),
    ];
    let mut image = Image::wasi(&bottom, Packing::Gzip, &["/t.wasm"]).unwrap();
    image
        .add_layer(&[file("a", 0o644, b"new"), file(".wh.b", 0o644, b"")])
        .unwrap();
    let pushed = image
        .push(images().registry.host(), "layers", "v1")
        .unwrap();
    pod.cri.pull(&pushed.reference).await.unwrap();
    let (_, text) = pod
        .finish(&daemon, &container("a", &pushed.reference, &["read", "/a"]))
        .await;
    assert_eq!(text, "new\n");
    let (status, _) = pod
        .finish(&daemon, &container("b", &pushed.reference, &["stat", "/b"]))
        .await;
    assert_eq!(status.exit_code, 1);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn an_index_gives_its_wasm_image_also_beside_linux() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "index").await;
    let guest = guests::tool().unwrap();
    let wasm = Image::wasi(
        &[file("t.wasm", 0o644, &guest)],
        Packing::Gzip,
        &["/t.wasm"],
    )
    .unwrap();
    let arm = Image::linux(&[file("x", 0o755, b"\x7fELF")], &["/x"]).unwrap();
    let registry = images().registry.host();
    let platforms = [("linux", "arm64", &arm), ("wasi", "wasm", &wasm)];
    let pushed = push_index(registry, "index", "v1", &platforms).unwrap();
    pod.cri.pull(&pushed.reference).await.unwrap();
    let (status, _) = pod
        .finish(&daemon, &container("c", &pushed.reference, &["exit", "5"]))
        .await;
    assert_eq!(status.exit_code, 5);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn every_handler_runs_wasm() {
    let daemon = daemon().await;
    for handler in ["", "coracle", "coracle-wasm", "coracle-strict"] {
        let config = daemon.pod(&format!("h{handler}"));
        let cri = daemon.cri();
        let id = cri.run_pod_with(&config, handler).await.unwrap();
        let pod = Pod { cri, config, id };
        let (status, _) = pod
            .finish(&daemon, &container("c", tool(), &["exit", "9"]))
            .await;
        assert_eq!(status.exit_code, 9, "{handler}");
        assert_eq!(
            pod.cri.pod_status(&pod.id).await.unwrap().runtime_handler,
            handler
        );
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn idle_guests_and_keepers_do_not_wake() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "idle").await;
    pod.tool(&["sleep"]).await;
    pod.wait_log(&daemon, "sleep", "sleeping").await;
    let watched = || {
        let roles = [Role::Keeper, Role::Guest, Role::Spawner];
        let pids = roles
            .into_iter()
            .flat_map(|role| daemon.processes(role))
            .map(|process| process.pid);
        pids.map(|pid| (pid, switches(pid)))
            .collect::<BTreeMap<_, _>>()
    };
    // What wakes by itself wakes in all of these times; what a start leaves to do, in the first of them.
    let mut busy = Vec::new();
    for _ in 0..15 {
        let before = watched();
        assert!(before.len() >= 3, "{before:?}");
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        let woken = watched()
            .into_iter()
            .map(|(pid, after)| (pid, wakes(&before[&pid], &after)));
        busy = woken.filter(|(_, woke)| *woke > 2).collect();
        if busy.is_empty() {
            break;
        }
    }
    assert!(busy.is_empty(), "processes woke in two seconds: {busy:?}");
    daemon.finish().await.unwrap();
}

/// How often each thread of a process was put on a processor.
pub fn switches(pid: i32) -> BTreeMap<OsString, u64> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let count = |text: String| -> u64 {
        let lines = text.lines().filter(|line| line.contains("ctxt_switches"));
        lines
            .filter_map(|line| line.split('\t').nth(1)?.trim().parse::<u64>().ok())
            .sum()
    };
    tasks
        .filter_map(|task| {
            let status = std::fs::read_to_string(task.path().join("status")).ok()?;
            Some((task.file_name(), count(status)))
        })
        .collect()
}

/// How often the threads that are there after a while were put on a processor in it; those that ended are not counted.
pub fn wakes(before: &BTreeMap<OsString, u64>, after: &BTreeMap<OsString, u64>) -> u64 {
    let since = |(thread, count): (&OsString, &u64)| count - before.get(thread).unwrap_or(&0);
    after.iter().map(since).sum()
}
