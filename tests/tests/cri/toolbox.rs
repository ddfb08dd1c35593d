//! The toolbox of Wasm containers: programs for an exec that the image does not have.

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;

use crate::exec::exec;
use crate::site::{self, Pod, tool};
use crate::sockets::{ip, net_daemon, server};

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
async fn a_url_is_got_from_beside_a_core_module() {
    let (daemon, image) = net_daemon().await;
    daemon.cri().pull(tool()).await.unwrap();
    let web = Pod::run(&daemon, "web").await;
    server(&daemon, &web, &image, &["tcp-serve", "8080"]).await;
    let url = format!("http://{}:8080/", ip(&web).await);
    let pod = Pod::run(&daemon, "open").await;
    let id = pod.start(&container("module", tool(), &["sleep"])).await;
    for get in [&["wget", "-qO-", &url][..], &["curl", "-sS", &url]] {
        let said = exec(&pod, &id, get, 20).await.unwrap();
        let seen = (said.code, said.out.trim_end());
        assert_eq!(seen, (0, "served by a component"), "{get:?}: {said:?}");
    }
    daemon.finish().await.unwrap();
}
