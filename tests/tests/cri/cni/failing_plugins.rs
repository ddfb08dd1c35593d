//! Plugins that fail, hang or return garbage, and requests that try to misuse plugins.

use std::time::Instant;

use coracle_tests::cni::condition;
use coracle_tests::procs;
use serde_json::json;
use tonic::Code;

use super::{end, scripted};
use crate::site::{Pod, ended_soon, eventually, refused};

#[tokio::test]
async fn a_pod_whose_plugins_fail_is_refused_by_name_and_leaves_nothing() {
    let daemon = scripted(10, "1.0.0").await;
    let (place, cri) = (daemon.cni(), daemon.cri());
    // Each takes its lease before it fails, so only a DEL gives it back.
    let leased = ": > $dir/leases/$name-$CNI_CONTAINERID;";
    for (script, expected) in [
        (
            r#"echo '{"code": 11, "msg": "pool is empty"}'; exit 1"#,
            "pool is empty (code 11)",
        ),
        (
            "printf 'it \\033[31mbroke' >&2; exit 7",
            "it [31mbroke (exit status: 7)",
        ),
        ("kill -SEGV $$", "SIGSEGV"),
        ("echo 'not JSON'; exit 0", "its answer is no JSON"),
        ("exit 0", "its answer is empty"),
        (
            r#"echo '{"ips": [{"address": "10.0.0.1 -j ACCEPT/8"}]}'; exit 0"#,
            "no address of a host",
        ),
        ("head -c 3000000 /dev/zero; exit 0", "longer than"),
        ("sleep 1000", "no answer within 10 s, killed"),
    ] {
        place
            .does("two", "ADD", &format!("{leased} {script}"))
            .unwrap();
        let refusal = cri.run_pod(&daemon.pod("fails")).await;
        refused(
            refusal,
            Code::Internal,
            &["ADD of plugin two for network scripted", expected],
        );
        assert_eq!(
            place.commands(),
            ["ADD one", "ADD two", "DEL two", "DEL one"],
            "{expected}"
        );
        assert!(
            place.leases().is_empty() && place.entries().is_empty(),
            "{expected}"
        );
        assert!(cri.list_pods(None).await.unwrap().is_empty());
    }
    daemon.expect_no_leak().await.unwrap();
    place.does("two", "ADD", "").unwrap();
    let pod = Pod::run(&daemon, "fails").await;
    assert_eq!(place.leases().len(), 2);
    end(&pod).await;
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_start_that_failed_is_undone_in_the_background_when_it_cannot_be_at_once() {
    let daemon = scripted(10, "1.0.0").await;
    let (place, cri) = (daemon.cni(), daemon.cri());
    place.does("two", "ADD", "exit 1").unwrap();
    place.does("one", "DEL", "exit 1").unwrap();
    refused(
        cri.run_pod(&daemon.pod("twice")).await,
        Code::Internal,
        &["ADD of plugin two"],
    );
    assert_eq!(place.leases().len(), 1);
    place.does("two", "ADD", "").unwrap();
    let pod = Pod::run(&daemon, "twice").await;
    place.does("one", "DEL", "").unwrap();
    eventually("the failed start is undone", || place.leases().len() == 2).await;
    end(&pod).await;
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn the_namespace_of_a_failed_start_stays_until_plugins_have_let_go_of_it() {
    let daemon = scripted(20, "1.0.0").await;
    let (place, cri) = (daemon.cni(), daemon.cri());
    place.does("two", "ADD", "exit 1").unwrap();
    // Longer than a failed start waits for it; the next plugin is asked after that.
    let slow = r#"until [ -e "$dir/go" ]; do sleep 0.1; done"#;
    place.does("two", "DEL", slow).unwrap();
    let look = r#"[ -e "$CNI_NETNS" ] && : > "$dir/seen""#;
    place.does("one", "DEL", look).unwrap();
    refused(
        cri.run_pod(&daemon.pod("slow-to-go")).await,
        Code::Internal,
        &["ADD of plugin two"],
    );
    let pins = daemon.scratch().dir().join("run/netns");
    let pinned = || std::fs::read_dir(&pins).unwrap().count();
    assert_eq!((pinned(), place.leases().len()), (1, 1));
    std::fs::write(place.plugins().join("go"), "").unwrap();
    eventually("the namespace is unpinned", || pinned() == 0).await;
    assert!(place.plugins().join("seen").exists(), "unpinned too early");
    assert!(place.leases().is_empty() && place.entries().is_empty());
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_detach_that_fails_is_repeated_and_one_that_succeeded_is_not() {
    let daemon = scripted(10, "1.0.0").await;
    let place = daemon.cni();
    let pod = Pod::run(&daemon, "stops").await;
    place.calls();
    for (script, expected) in [
        ("exit 3", "DEL of plugin one"),
        ("sleep 1000", "no answer within 10 s"),
    ] {
        place.does("one", "DEL", script).unwrap();
        let stopped = pod.cri.stop_pod(&pod.id).await;
        refused(
            stopped,
            Code::Internal,
            &["detach the network of sandbox", expected],
        );
        let calls = place.calls();
        let pin = daemon.scratch().dir().join("run/netns").join(&pod.id);
        assert_eq!(calls.len(), 2);
        assert!(
            calls
                .iter()
                .all(|call| call.ends_with(&pin.display().to_string())),
            "{calls:?}"
        );
    }
    place.does("one", "DEL", "").unwrap();
    pod.cri.stop_pod(&pod.id).await.unwrap();
    assert_eq!(place.commands(), ["DEL two", "DEL one"]);
    assert!(place.leases().is_empty() && place.entries().is_empty());
    end(&pod).await;
    assert!(place.commands().is_empty(), "detached exactly once");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_namespace_deleted_under_a_live_pod_wedges_nothing() {
    let daemon = scripted(10, "1.0.0").await;
    let place = daemon.cni();
    let pod = Pod::run(&daemon, "robbed").await;
    let sleeping = pod.tool(&["sleep"]).await;
    place.calls();
    let pin = daemon.scratch().dir().join("run/netns").join(&pod.id);
    // What `ip netns delete` does.
    rustix::mount::unmount(&pin, rustix::mount::UnmountFlags::DETACH).unwrap();
    std::fs::remove_file(&pin).unwrap();
    pod.cri.pod_status(&pod.id).await.unwrap();
    pod.cri.status(&sleeping).await.unwrap();
    pod.cri.stop_pod(&pod.id).await.unwrap();
    let expected = [
        format!("DEL two {} ", pod.id),
        format!("DEL one {} ", pod.id),
    ];
    assert_eq!(place.calls(), expected, "without a namespace");
    assert!(place.leases().is_empty());
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn names_that_would_become_arguments_are_refused_before_any_plugin_runs() {
    let daemon = scripted(10, "1.0.0").await;
    let (place, cri) = (daemon.cni(), daemon.cri());
    for (field, value) in [
        ("name", "a;K8S_POD_NAME=b;IgnoreUnknown=1"),
        ("namespace", "a;K8S_POD_NAMESPACE=kube-system"),
        ("uid", "a=b"),
        ("name", "a\nb"),
        ("name", "$(reboot)"),
    ] {
        let mut config = daemon.pod("injected");
        let metadata = config.metadata.as_mut().unwrap();
        match field {
            "name" => metadata.name = value.into(),
            "namespace" => metadata.namespace = value.into(),
            _ => metadata.uid = value.into(),
        }
        refused(cri.run_pod(&config).await, Code::InvalidArgument, &[]);
    }
    for (key, value) in [
        ("kubernetes.io/ingress-bandwidth", "10M -j ACCEPT"),
        ("cni.coracle.dev/ips", "1.2.3.4 -j ACCEPT"),
        ("cni.coracle.dev/mac", "02:00:5e:00:53:01; reboot"),
    ] {
        let mut config = daemon.pod("injected");
        config.annotations.insert(key.into(), value.into());
        refused(cri.run_pod(&config).await, Code::InvalidArgument, &[key]);
    }
    assert!(place.commands().is_empty(), "nothing was executed");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_plugin_gets_the_arguments_of_its_pod_and_nothing_else() {
    let daemon = scripted(10, "1.0.0").await;
    let place = daemon.cni();
    let pod = Pod::run(&daemon, "honest").await;
    let environment = place.environment("one", "ADD").unwrap();
    let mut keys: Vec<&str> = environment
        .lines()
        .filter_map(|line| line.split('=').next())
        .collect();
    // What the shell adds by itself.
    keys.retain(|key| !["PWD", "OLDPWD", "SHLVL", "_"].contains(key));
    keys.sort_unstable();
    let fixed = [
        "CNI_ARGS",
        "CNI_COMMAND",
        "CNI_CONTAINERID",
        "CNI_IFNAME",
        "CNI_NETNS",
        "CNI_PATH",
        "PATH",
    ];
    assert_eq!(keys, fixed);
    let args = format!(
        "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=test;K8S_POD_NAME=honest;K8S_POD_INFRA_CONTAINER_ID={};\
         K8S_POD_UID=uid-honest",
        pod.id
    );
    assert!(
        environment.lines().any(|line| line == args),
        "{environment}"
    );
    end(&pod).await;
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_list_that_names_a_program_outside_of_the_plugins_directories_is_refused() {
    let daemon = scripted(10, "1.0.0").await;
    let (place, cri) = (daemon.cni(), daemon.cri());
    let evil =
        json!({"cniVersion": "1.0.0", "name": "evil", "plugins": [{"type": "../../bin/sh"}]});
    place.configure(&evil).unwrap();
    let (ready, _, message) = condition(&cri).await.unwrap();
    assert!(
        !ready && message.contains("20-test.conflist") && message.contains("../../bin/sh"),
        "{message}"
    );
    refused(
        cri.run_pod(&daemon.pod("evil")).await,
        Code::Internal,
        &["../../bin/sh"],
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_hanging_plugin_delays_no_other_pod_and_no_status() {
    let daemon = scripted(50, "1.0.0").await;
    let (place, cri) = (daemon.cni(), daemon.cri());
    let patient = Pod::run(&daemon, "patient").await;
    place
        .does(
            "one",
            "ADD",
            "case $CNI_ARGS in *K8S_POD_NAME=slow*) sleep 1000 ;; esac",
        )
        .unwrap();
    place.calls();
    let mut slow = tokio::task::JoinSet::new();
    // More than the daemon has threads for work that blocks; an emulated machine starts fewer in time.
    let many = match std::env::var_os("CORACLE_IN_GUEST") {
        None => 80,
        Some(_) => 16,
    };
    for number in 0..many {
        let (cri, config) = (daemon.cri(), daemon.pod(&format!("slow-{number}")));
        slow.spawn(async move { cri.run_pod(&config).await.map(drop).is_err() });
    }
    eventually("all of them hang", || {
        std::fs::read_to_string(place.plugins().join("calls"))
            .is_ok_and(|calls| calls.matches("ADD one").count() == many)
    })
    .await;
    let begun = Instant::now();
    let pod = Pod::run(&daemon, "quick").await;
    assert!(condition(&cri).await.unwrap().0);
    end(&pod).await;
    end(&patient).await;
    assert!(slow.try_join_next().is_none(), "they did not hang for long");
    ended_soon(begun);
    assert_eq!(slow.join_all().await, vec![true; many]);
    // A pod that failed is torn down behind its answer.
    eventually("the pods that failed hold nothing", || {
        place.leases().is_empty() && place.entries().is_empty()
    })
    .await;
    let plugins = procs::of_scratch(daemon.scratch());
    let left: Vec<_> = plugins
        .iter()
        .filter(|process| process.command.contains("sleep"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    daemon.finish().await.unwrap();
}
