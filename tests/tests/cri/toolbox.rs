//! The toolbox of Wasm containers: programs for an exec that the image does not have.

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;

use crate::exec::exec;
use crate::site::{self, Pod, tool};

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
    // A name that is no tool is an argument of the container's own module.
    assert_eq!(run("tool exit 9").await.code, 9);
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
    assert_eq!(said.code, 64, "{said:?}");
    daemon.finish().await.unwrap();
}
