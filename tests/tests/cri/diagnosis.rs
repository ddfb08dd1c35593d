//! Files that containers write about their guests: core dumps of traps, profiles.

use std::fs;
use std::path::{Path, PathBuf};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;
use coracle_tests::daemon::Daemon;
use coracle_tests::guests;
use coracle_tests::procs::Role;
use coracle_tests::push::{Image, Packing, file};

use crate::bounds::ticks;
use crate::functions::start;
use crate::site::{Pod, daemon, eventually, images};

const CORE_DUMP: &str = "coracle.dev/core-dump";
const PROFILE: &str = "coracle.dev/guest-profile";

/// What a core module does after it has filled `pages` of memory with a mark.
fn module(pages: u32, end: &str) -> Vec<u8> {
    let text = format!(
        r#"(module
             (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
             (memory (export "memory") {pages})
             (data (i32.const 1024) "a mark in memory")
             (func $spin (param $times i64)
               (loop $again
                 (local.set $times (i64.sub (local.get $times) (i64.const 1)))
                 (br_if $again (i64.ne (local.get $times) (i64.const 0)))))
             (func $end {end})
             (func (export "_start")
               (memory.fill (i32.const 65536) (i32.const 7) (i32.sub (i32.mul (i32.const {pages}) (i32.const 65536)) (i32.const 65536)))
               (call $end)))"#
    );
    guests::module(&text).unwrap()
}

/// The same mark in a component.
fn component() -> Vec<u8> {
    guests::module(
        r#"(component
             (core module $main
               (memory 1)
               (data (i32.const 1024) "a mark in memory")
               (func $end (unreachable))
               (func (export "run") (result i32) (call $end) (i32.const 0)))
             (core instance $main (instantiate $main))
             (func $run (result (result)) (canon lift (core func $main "run")))
             (instance $cli (export "run" (func $run)))
             (export "wasi:cli/run@0.2.0" (instance $cli)))"#,
    )
    .unwrap()
}

/// A pod with these annotations.
async fn pod(daemon: &Daemon, name: &str, annotations: &[(&str, &str)]) -> Pod {
    let mut config = daemon.pod(name);
    let all = annotations.iter();
    config
        .annotations
        .extend(all.map(|(key, value)| (key.to_string(), value.to_string())));
    Pod::run_config(daemon, config).await
}

/// A container of this program with the directory `place` of the host at `/dumps`.
async fn with_place(
    daemon: &Daemon,
    name: &str,
    program: &[u8],
    place: &Path,
) -> cri::ContainerConfig {
    let image = Image::artifact(program);
    let repository = format!("diagnosis/{name}");
    let pushed = image
        .push(images().registry.host(), &repository, "v1")
        .unwrap();
    daemon.cri().pull(&pushed.reference).await.unwrap();
    let mut config = container(name, &pushed.reference, &[]);
    config.mounts.push(mount(place));
    config
}

fn mount(place: &Path) -> cri::Mount {
    cri::Mount {
        host_path: place.display().to_string(),
        container_path: "/dumps".into(),
        ..Default::default()
    }
}

fn place(daemon: &Daemon, name: &str) -> PathBuf {
    let place = daemon.scratch().dir().join(name);
    fs::create_dir(&place).unwrap();
    place
}

fn has(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|own| own == part)
}

/// Holds a file to the format of a core dump of a guest with the mark in its memory.
#[track_caller]
fn is_core_dump(path: &Path) {
    let bytes = fs::read(path).unwrap();
    assert!(bytes.starts_with(b"\0asm\x01\0\0\0"), "{}", path.display());
    let sections = [
        "\x04core",
        "\x0bcoremodules",
        "\x0dcoreinstances",
        "\x09corestack",
    ];
    for section in sections {
        assert!(has(&bytes, section.as_bytes()), "no {section:?}");
    }
    assert!(has(&bytes, b"a mark in memory"));
}

#[tokio::test]
async fn a_trap_leaves_a_core_dump_and_other_ends_leave_none() {
    let daemon = daemon().await;
    let pod = pod(&daemon, "dumping", &[(CORE_DUMP, "/dumps")]).await;
    for (name, program) in [
        ("module", module(2, "(unreachable)")),
        ("component", component()),
    ] {
        let place = place(&daemon, name);
        let config = with_place(&daemon, name, &program, &place).await;
        let (status, _) = pod.finish(&daemon, &config).await;
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (134, "WasmTrap")
        );
        for said in ["core dump: /dumps/core-0.wasm", "unreachable", "end"] {
            assert!(status.message.contains(said), "{name}: {status:?}");
        }
        // What was collected is in the file and not in the message.
        assert!(!status.message.contains("memories:"), "{status:?}");
        is_core_dump(&place.join("core-0.wasm"));
    }
    for (name, end, code) in [
        ("exits", "(call $exit (i32.const 3))", 3),
        ("returns", "", 0),
    ] {
        let place = place(&daemon, name);
        let config = with_place(&daemon, name, &module(2, end), &place).await;
        let (status, _) = pod.finish(&daemon, &config).await;
        assert_eq!(status.exit_code, code, "{status:?}");
        assert_eq!(fs::read_dir(&place).unwrap().count(), 0, "{name}");
    }
    let place = place(&daemon, "stopped");
    let spinning = module(2, "(call $spin (i64.const 0))");
    let config = with_place(&daemon, "stopped", &spinning, &place).await;
    let id = pod.start(&config).await;
    pod.cri.stop(&id, 5).await.unwrap();
    let status = pod.cri.status(&id).await.unwrap();
    assert_eq!(status.exit_code, 143, "{status:?}");
    assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_trap_without_room_for_its_dump_is_still_a_trap() {
    let daemon = daemon().await;
    let pod = pod(&daemon, "roomless", &[(CORE_DUMP, "/dumps")]).await;
    let place = place(&daemon, "roomless");
    let trapping = module(512, "(unreachable)");
    let mut config = with_place(&daemon, "small", &trapping, &place).await;
    config.linux = Some(cri::LinuxContainerConfig {
        resources: Some(cri::LinuxContainerResources {
            memory_limit_in_bytes: 64 << 20,
            ..Default::default()
        }),
        ..Default::default()
    });
    let (status, _) = pod.finish(&daemon, &config).await;
    assert_eq!(status.reason, "WasmTrap", "{status:?}");
    for said in ["no core dump", "resources.limits.memory"] {
        assert!(status.message.contains(said), "{status:?}");
    }
    let mut config = with_place(&daemon, "locked", &module(2, "(unreachable)"), &place).await;
    config.mounts[0].readonly = true;
    let (status, _) = pod.finish(&daemon, &config).await;
    assert_eq!(status.reason, "WasmTrap", "{status:?}");
    assert!(
        status.message.contains("no core dump in /dumps"),
        "{status:?}"
    );
    assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
    // What the format has no words for.
    let odd = guests::module(
        r#"(module (global (mut exnref) (ref.null exn)) (memory (export "memory") 1)
             (func (export "_start") (unreachable)))"#,
    );
    let mut config = with_place(&daemon, "exception", &odd.unwrap(), &place).await;
    let (status, _) = pod.finish(&daemon, &config).await;
    assert_eq!(status.reason, "WasmTrap", "{status:?}");
    assert!(
        status.message.contains("the engine cannot encode it"),
        "{status:?}"
    );
    assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
    // A directory that is not there is said before anything runs.
    config.mounts.clear();
    config.metadata.as_mut().unwrap().name = "placeless".into();
    let id = pod.create(&config).await.unwrap();
    let refused = pod.cri.start(&id).await.unwrap_err();
    assert!(refused.message().contains(CORE_DUMP), "{refused:?}");
    daemon.finish().await.unwrap();
}

/// Waits until the one guest has computed for half a second.
async fn spins(daemon: &Daemon) {
    let guest = daemon.processes(Role::Guest).pop().unwrap().pid;
    let before = ticks(guest);
    eventually("the guest spins", || ticks(guest) >= before + 50).await;
}

#[tokio::test]
async fn a_profile_counts_the_stacks_of_a_program() {
    let daemon = daemon().await;
    let pod = pod(&daemon, "profiled", &[(PROFILE, "/dumps")]).await;
    let place = place(&daemon, "profiled");
    let spinning = module(2, "(call $spin (i64.const 2000000000))");
    let config = with_place(&daemon, "spinning", &spinning, &place).await;
    let (status, _) = pod.finish(&daemon, &config).await;
    assert_eq!(status.exit_code, 0, "{status:?}");
    let said = daemon.output("profiled", "spinning", "stderr").unwrap();
    assert!(
        said.contains("guest profile: /dumps/profile-0.folded"),
        "{said}"
    );
    let text = fs::read_to_string(place.join("profile-0.folded")).unwrap();
    let (stack, count) = text.lines().next().unwrap().rsplit_once(' ').unwrap();
    assert!(stack.ends_with("end;spin"), "{text}");
    assert!(count.parse::<u64>().unwrap() >= 10, "{text}");
    // A stop still ends it, and leaves what was seen until then.
    let endless = module(2, "(call $spin (i64.const 0))");
    let config = with_place(&daemon, "endless", &endless, &place).await;
    let id = pod.start(&config).await;
    spins(&daemon).await;
    pod.cri.stop(&id, 60).await.unwrap();
    assert_eq!(pod.cri.status(&id).await.unwrap().exit_code, 143);
    assert!(place.join("profile-1.folded").exists());
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_function_leaves_core_dumps_and_a_profile_and_serves_on() {
    let daemon = daemon().await;
    let both = [(CORE_DUMP, "/dumps"), (PROFILE, "/dumps")];
    let pod = pod(&daemon, "watched", &both).await;
    let place = place(&daemon, "watched");
    let guest = guests::function().unwrap();
    let files = [file("function.wasm", 0o755, &guest)];
    let image = Image::wasi(&files, Packing::Gzip, &["/function.wasm"]).unwrap();
    let pushed = image
        .push(images().registry.host(), "watched", "v1")
        .unwrap();
    daemon.cri().pull(&pushed.reference).await.unwrap();
    let mut config = container("function", &pushed.reference, &[]);
    config.mounts.push(mount(&place));
    let function = start(pod, &config, 8080).await;
    for number in 0..9 {
        assert_eq!(function.get("/trap").0, 500);
        let said = match number {
            8 => "no core dump in /dumps: it has 8 of them already".to_owned(),
            number => format!("core dump: /dumps/core-{number}.wasm"),
        };
        eventually("the dump is told of", || {
            let log = daemon.output("watched", "function", "stderr");
            log.unwrap().contains(&said)
        })
        .await;
    }
    let bytes = fs::read(place.join("core-7.wasm")).unwrap();
    assert!(bytes.starts_with(b"\0asm") && has(&bytes, b"\x09corestack"));
    assert_eq!(function.get("/hello").0, 200);
    let spinning = function.under_way(&daemon, "/spin").await;
    spins(&daemon).await;
    function.pod.cri.stop(&function.id, 10).await.unwrap();
    spinning.answer();
    let text = fs::read_to_string(place.join("profile-0.folded")).unwrap();
    assert!(text.contains("handle"), "{text}");
    daemon.finish().await.unwrap();
}
