//! Python by componentize-py: components of 18 MB with CPython inside, compiled in the jail and started from the cache.
//!
//! The component is built once into the target directory (`tests/tools/python.sh`, half a minute and a download from
//! PyPI); its source is `tests/guests/python/`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::{TIMEOUT, container};
use coracle_tests::daemon::Daemon;
use coracle_tests::guests;
use coracle_tests::procs::Role;
use coracle_tests::push::{Image, Packing, file};

use crate::functions::{curl, start, variable};
use crate::site::{Pod, daemon, eventually, images};
use crate::sockets::ip;

/// A daemon that has pulled, and so compiled, the component; the image's reference.
async fn pulled(name: &str, component: &[u8]) -> (Daemon, String) {
    let daemon = daemon().await;
    let files = [
        file("app.wasm", 0o755, component),
        file("etc/motd", 0o644, b"from the image"),
    ];
    let image = Image::wasi(&files, Packing::Zstd, &["/app.wasm"]).unwrap();
    let pushed = image.push(images().registry.host(), name, "v1").unwrap();
    daemon.cri().pull(&pushed.reference).await.unwrap();
    (daemon, pushed.reference)
}

/// Proportional and private memory of a process, KiB.
fn memory_of(pid: i32) -> (u64, u64) {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let sum = |names: &[&str]| {
        let lines = rollup.lines().filter_map(|line| line.split_once(':'));
        let own = lines.filter(|(name, _)| names.contains(name));
        own.map(|(_, rest)| rest.trim().trim_end_matches(" kB").parse::<u64>().unwrap())
            .sum()
    };
    (sum(&["Pss"]), sum(&["Private_Clean", "Private_Dirty"]))
}

fn limited(image: &str, mib: i64) -> cri::ContainerConfig {
    let mut config = container("function", image, &[]);
    let linux = config.linux.as_mut().unwrap();
    linux.resources.as_mut().unwrap().memory_limit_in_bytes = mib << 20;
    config.envs = vec![variable("GREETING", "hello")];
    config
}

#[tokio::test]
async fn a_function_in_python_is_served_and_starts_from_the_cache() {
    let component = guests::python("function", "http-function").unwrap();
    let (mut daemon, image) = pulled("python-function", &component).await;
    let pod = Pod::run(&daemon, "python").await;
    let function = start(pod, &limited(&image, 256), 8080).await;
    let hello = (200, "hello from Python\n".to_owned());
    assert_eq!(function.get("/hello"), hello);
    let (status, said) = function.get("/json");
    assert_eq!(status, 200);
    assert!(said.contains(r#""greeting": "hello""#), "{said}");
    let sum = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n";
    let asked = curl(&["-d", "abc", &function.url("/sha256")]);
    assert_eq!(asked, (200, sum.to_owned()));
    assert_eq!(function.get("/file/etc/motd").1.trim(), "from the image");
    // A fresh instance each.
    assert_eq!(function.get("/instance").1, "1\n");
    assert_eq!(function.get("/instance").1, "1\n");
    assert_eq!(function.get("/error").0, 500);
    let stderr = || daemon.output("python", "function", "stderr").unwrap();
    eventually("the exception is in the log", || {
        stderr().contains("ValueError: a mistake of the function")
    })
    .await;
    let at_once: Vec<_> = (0..8).map(|_| function.begin("/hello")).collect();
    for client in at_once {
        assert_eq!(client.answer(), hello);
    }
    let guest = daemon.processes(Role::Guest)[0].pid;
    // Code is shared by all guests of the image; what a guest has for itself is its pool of instances.
    let (pss, private) = memory_of(guest);
    assert!(private < 64 << 10, "private {private} KiB, PSS {pss} KiB");
    starts_from_the_cache(&mut daemon, &image).await;
    daemon.finish().await.unwrap();
}

/// A pod, another, and one after the daemon's restart: nothing is compiled for them.
async fn starts_from_the_cache(daemon: &mut Daemon, image: &str) {
    for round in ["second", "third", "restarted"] {
        if round == "restarted" {
            daemon.kill();
            daemon.restart().await.unwrap();
        }
        let begun = Instant::now();
        let pod = Pod::run(daemon, round).await;
        let id = pod.create(&limited(image, 256)).await.unwrap();
        assert_eq!(daemon.processes(Role::Compiler).len(), 0, "{round}");
        pod.cri.start(&id).await.unwrap();
        let started = begun.elapsed();
        let at = SocketAddr::new(ip(&pod).await, 8080);
        while curl(&[&format!("http://{at}/hello")]).0 != 200 {
            assert!(begun.elapsed() < TIMEOUT, "{round}");
        }
        // Under 0.1 s on a machine of its own; a compile takes many seconds of CPU.
        assert!(started < Duration::from_secs(10), "{round}: {started:?}");
        pod.cri.stop(&id, 5).await.unwrap();
    }
}

#[tokio::test]
async fn a_program_in_python_has_arguments_files_randomness_and_its_exit() {
    let component = guests::python("command", "program").unwrap();
    let (daemon, image) = pulled("python-program", &component).await;
    let pod = Pod::run(&daemon, "python").await;
    let data = daemon.scratch().dir().join("data");
    std::fs::create_dir(&data).unwrap();
    let program = |name: &str, words: &[&str]| {
        let mut config = container(name, &image, words);
        config.envs = vec![variable("GREETING", "hello")];
        config.mounts.push(cri::Mount {
            host_path: data.display().to_string(),
            container_path: "/data".into(),
            ..Default::default()
        });
        config
    };
    let mut drawn = Vec::new();
    for name in ["say-1", "say-2"] {
        let (status, said) = pod
            .finish(&daemon, &program(name, &["say", "a", "b c"]))
            .await;
        assert_eq!(status.exit_code, 0, "{}", status.message);
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!(said["words"], serde_json::json!(["a", "b c"]));
        assert_eq!(said["greeting"], "hello");
        assert!(said["year"].as_u64().unwrap() >= 2026, "{said}");
        drawn.push(said["drawn"].clone());
    }
    assert_ne!(drawn[0], drawn[1]);
    let write = program("write", &["write", "/data/new", "written by Python"]);
    assert_eq!(pod.finish(&daemon, &write).await.0.exit_code, 0);
    let path = data.join("new");
    assert_eq!(std::fs::read_to_string(path).unwrap(), "written by Python");
    let (_, said) = pod
        .finish(&daemon, &program("read", &["read", "/etc/motd"]))
        .await;
    assert_eq!(said, "from the image\n");
    for (name, message) in [("fail", "it failed"), ("raise", "a mistake of the program")] {
        let (status, _) = pod.finish(&daemon, &program(name, &[name])).await;
        assert_ne!(status.exit_code, 0, "{name}");
        let stderr = daemon.output("python", name, "stderr").unwrap();
        assert!(stderr.contains(message), "{name}: {stderr}");
    }
    daemon.finish().await.unwrap();
}
