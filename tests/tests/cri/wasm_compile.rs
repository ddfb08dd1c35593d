//! What compiling costs and who waits for it: limits of CPU time, callers that leave and come back.

use std::time::Duration;

use coracle_tests::client::container;
use coracle_tests::daemon::{Daemon, Options, failpoints_binary};
use coracle_tests::guests;
use coracle_tests::procs::{Process, Role};
use coracle_tests::push::{Image, Packing, file};
use tonic::Code;

use crate::site::{Pod, daemon_with, eventually, failing_daemon, images, refused};

/// A program of so many functions, each some work to compile.
fn large(functions: usize) -> Vec<u8> {
    let body = "(local.set 1 (i64.mul (local.get 0) (i64.load (i32.const 8))))".repeat(20);
    let function = format!("(func (param i64) (result i64) (local i64) {body} (local.get 1))");
    let text = format!(
        "(module (memory (export \"memory\") 1) (func (export \"_start\")) {})",
        function.repeat(functions)
    );
    guests::module(&text).unwrap()
}

/// The reference of an image with a small program that it runs, and a large one beside it that nobody has compiled.
fn pushed(name: &str, functions: usize) -> String {
    let (small, large) = (guests::nothing(name).unwrap(), large(functions));
    let files = [
        file("small.wasm", 0o755, &small),
        file("large.wasm", 0o755, &large),
    ];
    let image = Image::wasi(&files, Packing::Gzip, &["/small.wasm"]).unwrap();
    image
        .push(images().registry.host(), name, "v1")
        .unwrap()
        .reference
}

/// How many compilers there have been.
fn compilers(daemon: &Daemon) -> usize {
    let reached = daemon.reached();
    reached
        .iter()
        .filter(|site| *site == "compile.exec")
        .count()
}

#[tokio::test]
async fn a_compile_out_of_cpu_time_names_the_setting_and_is_not_tried_again() {
    let options = Options {
        config: "[wasm]\ncompile_timeout_s = 1\n".to_owned(),
        binary: Some(failpoints_binary().unwrap()),
        failpoints: Some(String::new()),
        ..Options::default()
    };
    let daemon = daemon_with(options).await;
    let image = Image::artifact(&large(60_000));
    let pushed = image
        .push(images().registry.host(), "too-much", "v1")
        .unwrap();
    // The image is here, and the daemon's log has said what is wrong with it.
    daemon.cri().pull(&pushed.reference).await.unwrap();
    assert!(
        daemon.log().contains("wasm.compile_timeout_s"),
        "{}",
        daemon.log()
    );
    let pod = Pod::run(&daemon, "too-much").await;
    let before = compilers(&daemon);
    for number in 0..3 {
        let config = container(&format!("c{number}"), &pushed.reference, &[]);
        refused(
            pod.create(&config).await,
            Code::ResourceExhausted,
            &["CPU limit", "1 s of CPU", "wasm.compile_timeout_s"],
        );
    }
    assert_eq!(compilers(&daemon), before, "it was compiled again");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn who_comes_back_joins_the_compile_that_is_under_way() {
    let daemon = failing_daemon().await;
    let image = pushed("joined", 6_000);
    daemon.cri().pull(&image).await.unwrap();
    let pod = Pod::run(&daemon, "joined").await;
    // No machine is so fast that nobody can give up.
    daemon.plan("compile.exec delay:3000\n").unwrap();
    let before = compilers(&daemon);
    let mut config = container("c", &image, &[]);
    config.command = vec!["/large.wasm".to_owned()];
    // Callers that give up at once, as a kubelet does after its own time.
    for _ in 0..3 {
        let limit = Duration::from_millis(60);
        let left = tokio::time::timeout(limit, pod.create(&config)).await;
        assert!(left.is_err(), "this compiles too fast to be given up");
    }
    let id = pod.create(&config).await.unwrap();
    assert_eq!(compilers(&daemon) - before, 1, "every try began anew");
    pod.cri.remove(&id).await.unwrap();
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn time_without_the_processor_does_not_count_and_all_processors_compile() {
    let options = Options {
        config: "[wasm]\ncompile_timeout_s = 9\n".to_owned(),
        ..Options::default()
    };
    let daemon = daemon_with(options).await;
    let image = pushed("starved", 6_000);
    daemon.cri().pull(&image).await.unwrap();
    let pod = Pod::run(&daemon, "starved").await;
    let (cri, id, sandbox) = (daemon.cri(), pod.id.clone(), pod.config.clone());
    let mut config = container("c", &image, &[]);
    config.command = vec!["/large.wasm".to_owned()];
    let create = tokio::spawn(async move { cri.create(&id, &config, &sandbox).await });
    let threads = |pid: i32| {
        let listed = std::fs::read_dir(format!("/proc/{pid}/task"));
        listed.map_or(0, Iterator::count)
    };
    // Its own thread, the one that watches the daemon, and at least as many as there are processors.
    let processors = std::thread::available_parallelism().unwrap().get();
    let mut pid = None;
    eventually("a compiler with a thread for each processor", || {
        let compilers = daemon.processes(Role::Compiler);
        let many = |one: &&Process| threads(one.pid) >= processors + 2;
        pid = compilers.iter().find(many).map(|one| one.pid);
        pid.is_some()
    })
    .await;
    let score = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", pid.unwrap()));
    assert_eq!(score.unwrap().trim(), "1000", "pods go before it");
    let pid = rustix::process::Pid::from_raw(pid.unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    let id = create.await.unwrap().unwrap();
    pod.cri.remove(&id).await.unwrap();
    daemon.finish().await.unwrap();
}
