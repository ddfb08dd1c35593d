//! What real programs of several languages do, held against what they get under wasmtime's own command line and on Linux.

mod proposals;

use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;
use coracle_tests::daemon::Daemon;
use coracle_tests::guests;
use coracle_tests::push::{Image, Packing, file};

use crate::site::{Pod, daemon, images};

/// A program in C as a module and as a component, and one in Go, each an image with `/app/here.txt` and
/// `/etc/there.txt`.
async fn programs(daemon: &Daemon) -> Vec<(&'static str, String)> {
    let all = [
        ("c", guests::programs()),
        ("component", guests::programs_component()),
        ("go", guests::programs_go()),
    ];
    let mut pulled = Vec::new();
    for (name, module) in all {
        let module = module.unwrap();
        let files = [
            file("bin/main.wasm", 0o755, &module),
            file("app/here.txt", 0o644, b"of the working directory"),
            file("etc/there.txt", 0o644, b"of the root"),
        ];
        let image = Image::wasi(&files, Packing::Gzip, &["/bin/main.wasm"]).unwrap();
        let name_of = format!("programs-{name}");
        let pushed = image
            .push(images().registry.host(), &name_of, "v1")
            .unwrap();
        daemon.cri().pull(&pushed.reference).await.unwrap();
        pulled.push((name, pushed.reference));
    }
    pulled
}

/// Runs a module of this text; its status.
async fn run_module(daemon: &Daemon, pod: &Pod, name: &str, text: &str) -> cri::ContainerStatus {
    let module = guests::module(text).unwrap();
    let image = Image::artifact(&module);
    let pushed = image.push(images().registry.host(), name, "v1").unwrap();
    daemon.cri().pull(&pushed.reference).await.unwrap();
    let (status, _) = pod
        .finish(daemon, &container(name, &pushed.reference, &[]))
        .await;
    status
}

#[tokio::test]
async fn twenty_megabytes_are_written_and_read_at_once() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "large").await;
    for (name, image) in programs(&daemon).await {
        let config = container(name, &image, &["large", "/etc/large", "20"]);
        let (status, output) = pod.finish(&daemon, &config).await;
        let seen = (status.exit_code, output.as_str());
        assert_eq!(seen, (0, "same\n"), "{name}: {}", status.message);
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn twenty_megabytes_are_allocated_at_once() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "allocate").await;
    for (name, image) in programs(&daemon).await.into_iter().take(2) {
        let config = container(name, &image, &["allocate", "20"]);
        let (status, said) = pod.finish(&daemon, &config).await;
        let seen = (status.exit_code, said.as_str());
        assert_eq!(seen, (0, "20 pieces\n"), "{name}: {}", status.message);
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn relative_paths_begin_at_the_working_directory() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "relative").await;
    let data = daemon.scratch().dir().join("data");
    std::fs::create_dir(&data).unwrap();
    for (name, image) in programs(&daemon).await {
        let run = |verb: &'static str, args: Vec<&'static str>, directory: &'static str| {
            let args: Vec<&str> = std::iter::once(verb).chain(args).collect();
            let label = format!("{name}-{}", args.concat().replace(['/', '.'], "-"));
            let mut config = container(&label, &image, &args);
            config.working_dir = directory.into();
            config.mounts.push(cri::Mount {
                host_path: data.display().to_string(),
                container_path: "/srv/data".into(),
                ..Default::default()
            });
            let (pod, daemon) = (&pod, &daemon);
            async move {
                let (status, output) = pod.finish(daemon, &config).await;
                assert_eq!(status.exit_code, 0, "{label}: {}", status.message);
                output
            }
        };
        for path in ["here.txt", "./here.txt", "/app/here.txt"] {
            let output = run("line", vec![path], "/app").await;
            assert_eq!(
                output,
                format!("{path}: of the working directory\n"),
                "{name}"
            );
        }
        let output = run("line", vec!["/etc/there.txt"], "/app").await;
        assert_eq!(output, "/etc/there.txt: of the root\n", "{name}");
        // In a volume, and in a directory that is not there yet.
        run("create", vec!["made.txt", "relative"], "/srv/data").await;
        let path = data.join("made.txt");
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "relative",
            "{name}"
        );
        std::fs::remove_file(path).unwrap();
        run("create", vec!["made.txt", "new"], "/made/for/this").await;
        if name == "go" {
            assert_eq!(run("directory", vec![], "/srv/data").await, "/srv/data\n");
        }
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_file_is_no_working_directory() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "workdir").await;
    let (_, image) = programs(&daemon).await.swap_remove(0);
    let mut config = container("none", &image, &["line", "here.txt"]);
    config.working_dir = "/app/here.txt".into();
    let id = pod.create(&config).await.unwrap();
    let refusal = pod.cri.start(&id).await.unwrap_err();
    let text = refusal.message();
    assert!(text.contains("working directory /app/here.txt"), "{text}");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn sixty_mebibytes_of_randomness_come_at_once() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "randomness").await;
    for (name, image) in programs(&daemon).await.into_iter().take(2) {
        let begun = Instant::now();
        let config = container(name, &image, &["randomness", "60"]);
        let (status, output) = pod.finish(&daemon, &config).await;
        let seen = (status.exit_code, output.as_str());
        assert_eq!(seen, (0, "random\n"), "{name}: {}", status.message);
        // A system call a byte takes a minute.
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(40), "{name}: {took:?}");
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_program_may_have_thousands_of_files_open() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "many").await;
    let (_, image) = programs(&daemon).await.swap_remove(0);
    let config = container("many", &image, &["many", "/etc/there.txt", "5000"]);
    let (status, output) = pod.finish(&daemon, &config).await;
    assert_eq!((status.exit_code, output.as_str()), (0, "5000 open\n"));
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn exit_codes_are_those_of_wasmtimes_command_line() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "codes").await;
    for (name, image) in programs(&daemon).await {
        for code in [0, 3, 125, 126, 137, 255] {
            let text = code.to_string();
            let config = container(&format!("{name}-{code}"), &image, &["exit", &text]);
            let (status, _) = pod.finish(&daemon, &config).await;
            // The adapter of components tells success or not; preview 1 allows no code of 126 and above.
            let expected = match code {
                1.. if name == "component" => 1,
                126.. => 1,
                code => code,
            };
            assert_eq!(
                status.exit_code, expected,
                "{name} {code}: {}",
                status.message
            );
            if code >= 126 && name != "component" {
                assert_eq!(status.reason, "Error");
                let ended = format!("exit code {code}");
                assert!(status.message.contains(&ended), "{}", status.message);
            }
        }
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn the_unstable_interface_before_preview_1_is_served() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "unstable").await;
    let status = run_module(
        &daemon,
        &pod,
        "unstable",
        r#"(module
             (import "wasi_unstable" "fd_seek" (func $seek (param i32 i64 i32 i32) (result i32)))
             (import "wasi_unstable" "proc_exit" (func $exit (param i32)))
             (import "wasi_unstable" "random_get" (func $random (param i32 i32) (result i32)))
             (memory (export "memory") 1)
             (func (export "_start")
               ;; a pipe cannot be sought: errno spipe is 70
               (call $exit (i32.add
                 (call $seek (i32.const 1) (i64.const 0) (i32.const 0) (i32.const 8))
                 (call $random (i32.const 16) (i32.const 16))))))"#,
    )
    .await;
    assert_eq!(status.exit_code, 70, "{}", status.message);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_component_may_have_hundreds_of_instances() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "instances").await;
    let many = "(core instance (instantiate $empty))\n".repeat(900);
    let text = format!(
        r#"(component
             (core module $empty (memory 0) (table 0 funcref))
             {many}
             (core module $main (func (export "run") (result i32) (i32.const 0)))
             (core instance $main (instantiate $main))
             (func $run (result (result)) (canon lift (core func $main "run")))
             (instance $cli (export "run" (func $run)))
             (export "wasi:cli/run@0.2.0" (instance $cli)))"#
    );
    let status = run_module(&daemon, &pod, "instances", &text).await;
    assert_eq!(status.exit_code, 0, "{}", status.message);
    daemon.finish().await.unwrap();
}

/// Journal, locks, truncation and synchronisation of a real database.
#[tokio::test]
async fn sqlite_keeps_a_database_on_a_volume() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "sqlite").await;
    let module = guests::sqlite().unwrap();
    let image = Image::artifact(&module);
    let pushed = image
        .push(images().registry.host(), "sqlite", "v1")
        .unwrap();
    daemon.cri().pull(&pushed.reference).await.unwrap();
    let data = daemon.scratch().dir().join("database");
    std::fs::create_dir(&data).unwrap();
    for (name, all) in [("first", "2000 2001000"), ("second", "4000 4002000")] {
        let mut config = container(name, &pushed.reference, &["/data/numbers.db", "2000"]);
        config.mounts.push(cri::Mount {
            host_path: data.display().to_string(),
            container_path: "/data".into(),
            ..Default::default()
        });
        let (status, said) = pod.finish(&daemon, &config).await;
        let err = daemon.output("sqlite", name, "stderr").unwrap();
        assert_eq!(status.exit_code, 0, "{}{err}", status.message);
        assert_eq!(said, format!("{all}\nok\n"), "{name}");
    }
    // The header of a database, and no journal left over.
    let file = std::fs::read(data.join("numbers.db")).unwrap();
    assert!(file.starts_with(b"SQLite format 3\0"));
    assert!(!data.join("numbers.db-journal").exists());
    daemon.finish().await.unwrap();
}
