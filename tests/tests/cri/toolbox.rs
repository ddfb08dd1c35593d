//! The toolbox of Wasm containers: programs for an exec that the image does not have.

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;

use crate::exec::exec;
use crate::site::{self, Pod, tool};
use crate::sockets::{ip, net, net_daemon, server};

#[tokio::test]
async fn tools_see_what_the_guest_sees() {
    let daemon = site::daemon().await;
    let pod = Pod::run(&daemon, "toolbox").await;
    let mut config = container("main", tool(), &["sleep"]);
    config.envs.push(cri::KeyValue {
        key: "COLOUR".into(),
        value: b"green".to_vec(),
    });
    let data = daemon.scratch().dir().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("note"), "of a volume\n").unwrap();
    config.mounts.push(cri::Mount {
        host_path: data.display().to_string(),
        container_path: "/data".into(),
        readonly: true,
        ..Default::default()
    });
    let id = pod.start(&config).await;
    let run = |args: &'static str| {
        let (pod, id) = (&pod, &id);
        async move {
            let args: Vec<&str> = args.split(' ').collect();
            exec(pod, id, &args, 10).await.unwrap()
        }
    };
    assert_eq!(run("ls /").await.out, "data\netc\ntool.wasm\n");
    let output = run("ls -l /data /etc/motd").await;
    assert!(
        output
            .out
            .contains("/etc/motd\n\n/data:\n-rw-r--r--    1 0     0             12 "),
        "{output:?}"
    );
    assert_eq!(
        run("/bin/cat /data/note /etc/motd").await.out,
        "of a volume\nfrom the image"
    );
    assert!(run("env").await.out.contains("COLOUR=green\n"));
    let output = run("ps").await;
    assert!(output.out.contains("      1 S    "), "{output:?}");
    let output = run("stat /tool.wasm").await;
    assert!(
        output.out.contains("regular file") && output.out.contains("Uid: 0  Gid: 0"),
        "{output:?}"
    );
    let output = run("df -h").await;
    assert_eq!(output.out.lines().skip(1).count(), 2, "{output:?}");
    assert!(
        output.out.contains("overlay") && output.out.ends_with(" /data\n"),
        "{output:?}"
    );
    let output = run("cat /absent").await;
    assert_eq!(
        (output.code, output.err.as_str()),
        (1, "cat: /absent: No such file or directory\n")
    );
    // Nothing of the node.
    assert_eq!(
        run("ls /proc").await.err,
        "ls: /proc: No such file or directory\n"
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_strict_container_has_no_toolbox() {
    let daemon = site::daemon().await;
    let config = daemon.pod("no-tools");
    let cri = daemon.cri();
    let id = cri.run_pod_with(&config, "coracle-strict").await.unwrap();
    let pod = Pod { cri, config, id };
    let id = pod.start(&container("main", tool(), &["sleep"])).await;
    let output = exec(&pod, &id, &["ls", "/"], 10).await.unwrap();
    assert!(!output.out.contains("tool.wasm"), "{output:?}");
    assert_eq!(output.code, 127, "{output:?}");
    assert!(output.err.starts_with("ls: not found"), "{output:?}");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn only_what_is_named_runs() {
    let daemon = site::daemon().await;
    let pod = Pod::run(&daemon, "named").await;
    let id = pod.start(&container("main", tool(), &["sleep"])).await;
    let run = |args: &'static [&'static str]| {
        let (pod, id) = (&pod, &id);
        async move { exec(pod, id, args, 10).await.unwrap() }
    };
    for own in ["/tool.wasm", "tool.wasm", "tool", "--self"] {
        let output = exec(&pod, &id, &[own, "exit", "9"], 10).await.unwrap();
        assert_eq!(output.code, 9, "{own}: {output:?}");
    }
    let output = run(&["--self", "show"]).await;
    assert!(
        output.out.starts_with("arg 0=/tool.wasm\narg 1=show\n"),
        "{output:?}"
    );
    for other in ["migrate", "/bin/psql", "exit"] {
        let output = exec(&pod, &id, &[other, "exit", "9"], 10).await.unwrap();
        assert_eq!(
            (output.code, output.out.as_str()),
            (127, ""),
            "{other}: {output:?}"
        );
        for expected in ["not found", "/tool.wasm", "--self", "nslookup"] {
            assert!(output.err.contains(expected), "no {expected} in {output:?}");
        }
    }
    // One command of a shell: a tool's, and the module's.
    let output = run(&["sh", "-c", "cat \"/etc/motd\""]).await;
    assert_eq!((output.code, output.out.as_str()), (0, "from the image"));
    assert_eq!(
        run(&["/bin/sh", "-c", "exec /tool.wasm exit 9"]).await.code,
        9
    );
    let output = run(&["sh", "-c", "ls | wc -l"]).await;
    assert!(output.code == 2 && output.err.contains("'|'"), "{output:?}");
    let output = run(&["bash"]).await;
    assert!(output.code == 2 && output.err.contains("-c"), "{output:?}");
    assert_eq!(run(&["sh", "-c", "sh -c ls"]).await.code, 127);
    assert_eq!(run(&["test", "-f", "/etc/motd"]).await.code, 0);
    assert_eq!(run(&["[", "-d", "/etc/motd", "]"]).await.code, 1);
    let output = run(&["sh", "-c", "grep -c image /etc/motd"]).await;
    assert_eq!((output.code, output.out.as_str()), (0, "1\n"));
    assert_eq!(run(&["find", "/etc"]).await.out, "/etc\n/etc/motd\n");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn urls_and_names_are_subject_to_the_egress_policy_of_the_pod() {
    let (daemon, image) = net_daemon().await;
    daemon.cri().pull(tool()).await.unwrap();
    let web = Pod::run(&daemon, "web").await;
    server(&daemon, &web, &image, &["tcp-serve", "8080"]).await;
    let at = format!("{}:8080", ip(&web).await);
    let url = format!("http://{at}/");
    let open = Pod::run(&daemon, "open").await;
    let mut config = daemon.pod("listing");
    let key = "egress.coracle.dev/allow".to_owned();
    config
        .annotations
        .insert(key, "192.0.2.1:80,api.test".into());
    let listing = Pod::run_config(&daemon, config).await;
    // Beside a core module, which has no network itself, and beside a component.
    for (name, program, sleeps) in [
        ("module", tool(), "sleep"),
        ("component", image.as_str(), "tcp-serve"),
    ] {
        let args = [sleeps, "8081"];
        let id = open.start(&container(name, program, &args)).await;
        for get in [&["wget", "-qO-", &url][..], &["curl", "-sS", &url]] {
            let output = exec(&open, &id, get, 20).await.unwrap();
            let seen = (output.code, output.out.trim_end());
            assert_eq!(seen, (0, "served by a component"), "{get:?}: {output:?}");
        }
        let output = exec(&open, &id, &["nslookup", "localhost"], 20)
            .await
            .unwrap();
        assert!(
            output.code == 0 && output.out.contains("127.0.0.1"),
            "{output:?}"
        );
        let closed = format!("http://{}:8079/", ip(&web).await);
        let output = exec(&open, &id, &["curl", &closed], 20).await.unwrap();
        assert!(
            output.code == 1 && output.err.contains("connection refused"),
            "{output:?}"
        );

        let id = listing.start(&container(name, program, &args)).await;
        for get in [
            &["wget", "-O-", &url][..],
            &["curl", "http://other.test/"],
            &["nslookup", "other.test"],
        ] {
            let output = exec(&listing, &id, get, 20).await.unwrap();
            assert!(
                output.code == 1 && output.out.is_empty(),
                "{get:?}: {output:?}"
            );
            assert!(
                output.err.contains("egress.coracle.dev/allow"),
                "{get:?}: {output:?}"
            );
        }
    }
    // What the guest itself is refused is in its status, with the fix.
    let args = [
        "tcp-connect",
        at.split(':').next().unwrap(),
        "8080",
        "GET /",
    ];
    let (status, _) = listing
        .finish(&daemon, &container("refused", &image, &args))
        .await;
    assert_ne!(status.exit_code, 0);
    for expected in [at.as_str(), "egress.coracle.dev/allow"] {
        assert!(
            status.message.contains(expected),
            "no {expected} in {:?}",
            status.message
        );
    }
    assert_eq!(net(&daemon, &open, &image, &args).await.0, 0);
    daemon.finish().await.unwrap();
}
