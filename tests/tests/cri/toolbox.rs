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
    let run = |words: &'static str| {
        let (pod, id) = (&pod, &id);
        async move {
            let words: Vec<&str> = words.split(' ').collect();
            exec(pod, id, &words, 10).await.unwrap()
        }
    };
    assert_eq!(run("ls /").await.out, "data\netc\ntool.wasm\n");
    let said = run("ls -l /data /etc/motd").await;
    assert!(
        said.out
            .contains("/etc/motd\n\n/data:\n-rw-r--r--    1 0     0             12 "),
        "{said:?}"
    );
    assert_eq!(
        run("/bin/cat /data/note /etc/motd").await.out,
        "of a volume\nfrom the image"
    );
    assert!(run("env").await.out.contains("COLOUR=green\n"));
    let said = run("ps").await;
    assert!(said.out.contains("      1 S    "), "{said:?}");
    let said = run("stat /tool.wasm").await;
    assert!(
        said.out.contains("regular file") && said.out.contains("Uid: 0  Gid: 0"),
        "{said:?}"
    );
    let said = run("df -h").await;
    assert_eq!(said.out.lines().skip(1).count(), 2, "{said:?}");
    assert!(
        said.out.contains("overlay") && said.out.ends_with(" /data\n"),
        "{said:?}"
    );
    let said = run("cat /absent").await;
    assert_eq!(
        (said.code, said.err.as_str()),
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
    let said = exec(&pod, &id, &["ls", "/"], 10).await.unwrap();
    assert!(!said.out.contains("tool.wasm"), "{said:?}");
    assert_eq!(said.code, 127, "{said:?}");
    assert!(said.err.starts_with("ls: not found"), "{said:?}");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn only_what_is_named_runs() {
    let daemon = site::daemon().await;
    let pod = Pod::run(&daemon, "named").await;
    let id = pod.start(&container("main", tool(), &["sleep"])).await;
    let run = |words: &'static [&'static str]| {
        let (pod, id) = (&pod, &id);
        async move { exec(pod, id, words, 10).await.unwrap() }
    };
    for own in ["/tool.wasm", "tool.wasm", "tool", "--self"] {
        let said = exec(&pod, &id, &[own, "exit", "9"], 10).await.unwrap();
        assert_eq!(said.code, 9, "{own}: {said:?}");
    }
    let said = run(&["--self", "show"]).await;
    assert!(
        said.out.starts_with("arg 0=/tool.wasm\narg 1=show\n"),
        "{said:?}"
    );
    for other in ["migrate", "/bin/psql", "exit"] {
        let said = exec(&pod, &id, &[other, "exit", "9"], 10).await.unwrap();
        assert_eq!(
            (said.code, said.out.as_str()),
            (127, ""),
            "{other}: {said:?}"
        );
        for word in ["not found", "/tool.wasm", "--self", "nslookup"] {
            assert!(said.err.contains(word), "no {word} in {said:?}");
        }
    }
    // One command of a shell: a tool's, and the module's.
    let said = run(&["sh", "-c", "cat \"/etc/motd\""]).await;
    assert_eq!((said.code, said.out.as_str()), (0, "from the image"));
    assert_eq!(
        run(&["/bin/sh", "-c", "exec /tool.wasm exit 9"]).await.code,
        9
    );
    let said = run(&["sh", "-c", "ls | wc -l"]).await;
    assert!(said.code == 2 && said.err.contains("'|'"), "{said:?}");
    let said = run(&["bash"]).await;
    assert!(said.code == 2 && said.err.contains("-c"), "{said:?}");
    assert_eq!(run(&["sh", "-c", "sh -c ls"]).await.code, 127);
    assert_eq!(run(&["test", "-f", "/etc/motd"]).await.code, 0);
    assert_eq!(run(&["[", "-d", "/etc/motd", "]"]).await.code, 1);
    let said = run(&["sh", "-c", "grep -c image /etc/motd"]).await;
    assert_eq!((said.code, said.out.as_str()), (0, "1\n"));
    assert_eq!(run(&["find", "/etc"]).await.out, "/etc\n/etc/motd\n");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn urls_and_names_are_asked_for_by_the_pods_own_policy() {
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
        let words = [sleeps, "8081"];
        let id = open.start(&container(name, program, &words)).await;
        for get in [&["wget", "-qO-", &url][..], &["curl", "-sS", &url]] {
            let said = exec(&open, &id, get, 20).await.unwrap();
            let seen = (said.code, said.out.trim_end());
            assert_eq!(seen, (0, "served by a component"), "{get:?}: {said:?}");
        }
        let said = exec(&open, &id, &["nslookup", "localhost"], 20)
            .await
            .unwrap();
        assert!(said.code == 0 && said.out.contains("127.0.0.1"), "{said:?}");
        let closed = format!("http://{}:8079/", ip(&web).await);
        let said = exec(&open, &id, &["curl", &closed], 20).await.unwrap();
        assert!(
            said.code == 1 && said.err.contains("connection refused"),
            "{said:?}"
        );

        let id = listing.start(&container(name, program, &words)).await;
        for get in [
            &["wget", "-O-", &url][..],
            &["curl", "http://other.test/"],
            &["nslookup", "other.test"],
        ] {
            let said = exec(&listing, &id, get, 20).await.unwrap();
            assert!(said.code == 1 && said.out.is_empty(), "{get:?}: {said:?}");
            assert!(
                said.err.contains("egress.coracle.dev/allow"),
                "{get:?}: {said:?}"
            );
        }
    }
    // What the guest itself is refused is in its status, with the fix.
    let words = [
        "tcp-connect",
        at.split(':').next().unwrap(),
        "8080",
        "GET /",
    ];
    let (status, _) = listing
        .finish(&daemon, &container("refused", &image, &words))
        .await;
    assert_ne!(status.exit_code, 0);
    for word in [at.as_str(), "egress.coracle.dev/allow"] {
        assert!(
            status.message.contains(word),
            "no {word} in {:?}",
            status.message
        );
    }
    assert_eq!(net(&daemon, &open, &image, &words).await.0, 0);
    daemon.finish().await.unwrap();
}
