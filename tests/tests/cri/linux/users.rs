//! Who a container runs as: numbers and names, primary and supplementary groups, user namespaces.

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client;
use coracle_tests::daemon::Daemon;
use coracle_tests::procs::Role;
use cri::{NamespaceMode, SupplementalGroupsPolicy};
use tonic::Code;

use super::shell::{
    daemon, fresh, host_dir, host_pid, look, mount, on_peer, pod_security, program, run, security,
    sh,
};
use crate::site::{Pod, refused, tool};

const IDS: &str = "id -u; id -g; id -G | tr ' ' '\\n' | sort -n | tr '\\n' ' '";

/// The lines of [`IDS`] for a container whose security context is changed so.
async fn ids(
    daemon: &Daemon,
    pod: &Pod,
    change: impl Fn(&mut cri::LinuxContainerSecurityContext),
) -> String {
    let mut config = sh(&fresh("ids"), IDS);
    change(security(&mut config));
    let out = run(daemon, pod, &config).await.ok();
    out.trim().replace('\n', "|")
}

fn value(value: i64) -> Option<cri::Int64Value> {
    Some(cri::Int64Value { value })
}

#[tokio::test]
async fn users_and_groups_are_numbers_or_names_of_the_image() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "users").await;
    assert_eq!(ids(&daemon, &pod, |_| {}).await, "0|0|0");
    let name = ids(&daemon, &pod, |s| s.run_as_username = "app".into()).await;
    assert_eq!(name, "1000|1001|1001 1002 1004");
    let number = ids(&daemon, &pod, |s| s.run_as_user = value(1000)).await;
    assert_eq!(number, "1000|1001|1001 1002 1004");
    let stranger = ids(&daemon, &pod, |s| s.run_as_user = value(4321)).await;
    assert_eq!(stranger, "4321|0|0");
    let group = ids(&daemon, &pod, |s| {
        s.run_as_user = value(1000);
        s.run_as_group = value(77);
    })
    .await;
    assert_eq!(group, "1000|77|77 1002 1004");
    let more = ids(&daemon, &pod, |s| {
        s.run_as_user = value(1000);
        s.supplemental_groups = vec![2000, 1004];
    })
    .await;
    assert_eq!(more, "1000|1001|1001 1002 1004 2000");
    if !on_peer() {
        let strict = ids(&daemon, &pod, |s| {
            s.run_as_user = value(1000);
            s.supplemental_groups = vec![2000];
            s.supplemental_groups_policy = SupplementalGroupsPolicy::Strict as i32;
        })
        .await;
        assert_eq!(strict, "1000|1001|1001 2000");
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn the_status_has_the_user_and_its_groups() {
    if on_peer() {
        return;
    }
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "fields").await;
    let mut config = program("c", &["/bin/true"]);
    security(&mut config).run_as_user = value(1000);
    security(&mut config).supplemental_groups = vec![9];
    let user = run(&daemon, &pod, &config).await.status.user.unwrap();
    let user = user.linux.unwrap();
    let mut groups = user.supplemental_groups;
    groups.sort_unstable();
    assert_eq!((user.uid, user.gid), (1000, 1001));
    assert_eq!(groups, [9, 1001, 1002, 1004]);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn an_unknown_name_and_a_group_alone_are_refused() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "unknown").await;
    let mut nobody = program("nobody", &["/bin/true"]);
    security(&mut nobody).run_as_username = "nobody-here".into();
    let refusal = match pod.create(&nobody).await {
        Ok(id) => pod.cri.start(&id).await.unwrap_err(),
        Err(refusal) => refusal,
    };
    assert!(
        refusal.message().contains("nobody-here") || on_peer(),
        "{refusal}"
    );
    if !on_peer() {
        let mut group = program("group", &["/bin/true"]);
        security(&mut group).run_as_group = value(5);
        refused(
            pod.create(&group).await,
            Code::InvalidArgument,
            &["run_as_group"],
        );
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn set_uid_takes_effect_unless_no_new_privileges_forbids() {
    let daemon = daemon().await;
    let pod = Pod::run(&daemon, "setuid").await;
    for (no_new_privs, euid) in [(false, "0"), (true, "1000")] {
        let mut config = program(&fresh("c"), &["/bin/set-uid-probe", "look"]);
        security(&mut config).run_as_user = value(1000);
        security(&mut config).no_new_privs = no_new_privs;
        let facts = super::shell::facts(&run(&daemon, &pod, &config).await.ok());
        let uids: Vec<_> = facts["status.Uid"].split_whitespace().collect();
        assert_eq!(uids, ["1000", euid, euid, euid]);
        assert_eq!(
            facts["status.NoNewPrivs"],
            u8::from(no_new_privs).to_string()
        );
    }
    daemon.finish().await.unwrap();
}

/// A pod in a user namespace whose root is `host`.
pub fn in_userns(daemon: &Daemon, name: &str, host: u32) -> cri::PodSandboxConfig {
    let map = cri::IdMapping {
        host_id: host,
        container_id: 0,
        length: 65_536,
    };
    let mut config = daemon.pod(name);
    let options = pod_security(&mut config)
        .namespace_options
        .as_mut()
        .unwrap();
    options.userns_options = Some(cri::UserNamespace {
        mode: NamespaceMode::Pod as i32,
        uids: vec![map],
        gids: vec![map],
    });
    config
}

#[tokio::test]
async fn a_user_namespace_makes_root_nobody_and_keeps_owners() {
    if on_peer() {
        return;
    }
    use std::os::unix::fs::MetadataExt;
    let daemon = daemon().await;
    let config = in_userns(&daemon, "userns", 700_000);
    let pod = Pod::run_config(&daemon, config.clone()).await;
    let options = config
        .linux
        .as_ref()
        .unwrap()
        .security_context
        .as_ref()
        .unwrap();
    let options = options.namespace_options.clone();
    let dir = host_dir(&daemon, "owned");
    std::os::unix::fs::chown(&dir, Some(0), Some(0)).unwrap();
    let inside = |mut config: cri::ContainerConfig| {
        security(&mut config).namespace_options = options.clone();
        config
    };
    let facts = look(&daemon, &pod, inside(program("probe", &[]))).await;
    let fields = |name: &str| facts[name].split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(fields("uid_map.0"), "0 700000 65536");
    assert_eq!(fields("gid_map.0"), "0 700000 65536");
    assert_eq!(fields("status.Uid"), "0 0 0 0");
    let mut owner = inside(sh(
        "owner",
        "stat -c '%u %g' /etc/motd /data; touch /data/mine /mine; stat -c %u /mine; sethost() { hostname x; }; \
         sethost && echo is root of its pod; ls -ln /dev/null | awk '{print $3, $4}'",
    ));
    owner.mounts = vec![mount(&dir, "/data", false)];
    security(&mut owner).capabilities = Some(cri::Capability {
        add_capabilities: vec!["SYS_ADMIN".into()],
        ..Default::default()
    });
    let out = run(&daemon, &pod, &owner).await.ok();
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines[..4], ["0 0", "0 0", "0", "is root of its pod"]);
    assert_eq!(
        std::fs::metadata(dir.join("mine")).unwrap().uid(),
        0,
        "an idmapped volume keeps owners"
    );
    pod.start(&inside(program("sleeper", &["sleep", "4321"])))
        .await;
    let pid = host_pid(&daemon, "sleep 4321");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("Uid:\t700000\t700000"), "{status}");
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn two_user_namespaces_do_not_meet() {
    if on_peer() {
        return;
    }
    let daemon = daemon().await;
    let mut links = Vec::new();
    for (name, host) in [("one", 700_000), ("two", 800_000)] {
        let pod = Pod::run_config(&daemon, in_userns(&daemon, name, host)).await;
        let mut config = program("c", &["/bin/readlink", "/proc/self/ns/user"]);
        let options = pod
            .config
            .linux
            .as_ref()
            .unwrap()
            .security_context
            .as_ref()
            .unwrap();
        security(&mut config).namespace_options = options.namespace_options.clone();
        links.push(run(&daemon, &pod, &config).await.ok());
    }
    assert_ne!(links[0], links[1]);
    daemon.finish().await.unwrap();
}

/// The kubelet may be told wrongly which ids are free: what another pod has, or may get from us, it cannot give.
#[tokio::test]
async fn ids_of_another_pod_are_given_to_nobody_else() {
    if on_peer() {
        return;
    }
    let mut daemon = daemon().await;
    let first = Pod::run_config(&daemon, in_userns(&daemon, "first", 700_000)).await;
    let settings = daemon.scratch().host_ids(false);
    let base = settings
        .lines()
        .find_map(|line| line.strip_prefix("id_base = "));
    let base: u32 = base.unwrap().parse().unwrap();
    for _ in 0..2 {
        for (name, host, fact) in [
            ("same", 700_000, "700000 to 765535"),
            ("behind", 765_535, "700000 to 765535"),
            ("before", 634_465, "700000 to 765535"),
            ("ours", base - 1, "sandbox.id_base"),
        ] {
            let config = in_userns(&daemon, &fresh(name), host);
            let refusal = daemon.cri().run_pod(&config).await.expect_err(name);
            assert_eq!(refusal.code(), Code::InvalidArgument, "{name}: {refusal}");
            let text = refusal.message();
            let both = text.contains(fact) && text.contains(&format!("{host} to "));
            assert!(both, "{name}: {text}");
        }
        // Nor after a restart.
        daemon.restart().await.unwrap();
    }
    // The next sandbox of the same pod has its ids.
    let mut config = first.config.clone();
    config.metadata.as_mut().unwrap().attempt += 1;
    Pod::run_config(&daemon, config).await;
    Pod::run_config(&daemon, in_userns(&daemon, "beside", 765_536)).await;
    first.cri.stop_pod(&first.id).await.unwrap();
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn maps_that_cannot_be_are_refused() {
    if on_peer() {
        return;
    }
    let daemon = daemon().await;
    type Change = fn(&mut cri::UserNamespace);
    let cases: [(&str, Change); 4] = [
        ("no map", |u| u.uids.clear()),
        ("an empty range", |u| u.uids[0].length = 0),
        ("maps that differ", |u| u.gids[0].host_id += 1),
        ("beyond the last id", |u| {
            u.uids[0].host_id = u32::MAX - 5;
            u.gids[0].host_id = u32::MAX - 5;
        }),
    ];
    for (what, change) in cases {
        let mut config = in_userns(&daemon, &fresh("bad"), 700_000);
        let options = pod_security(&mut config)
            .namespace_options
            .as_mut()
            .unwrap();
        change(options.userns_options.as_mut().unwrap());
        let refusal = daemon.cri().run_pod(&config).await.expect_err(what);
        // Maps that are valid and not offered are another refusal than those that cannot be.
        let codes = [Code::InvalidArgument, Code::Unimplemented];
        assert!(codes.contains(&refusal.code()), "{what}: {refusal}");
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_wasm_pod_gets_the_ids_that_the_kubelet_assigned_under_every_handler() {
    if on_peer() {
        return;
    }
    let daemon = daemon().await;
    let mut runtime = daemon.cri().runtime;
    let status = runtime.status(cri::StatusRequest::default()).await;
    let offered = status.unwrap().into_inner().runtime_handlers;
    for (at, handler) in ["coracle", "coracle-wasm", "coracle-strict"]
        .iter()
        .enumerate()
    {
        let named = offered.iter().find(|offered| offered.name == *handler);
        assert!(
            named.unwrap().features.unwrap().user_namespaces,
            "{handler}"
        );
        let first = 700_000 + 100_000 * at as u32;
        let config = in_userns(&daemon, handler, first);
        let cri = daemon.cri();
        let id = cri.run_pod_with(&config, handler).await.unwrap();
        let pod = Pod { cri, config, id };
        let before = daemon.processes(Role::Guest);
        let before: Vec<i32> = before.iter().map(|guest| guest.pid).collect();
        let own = pod.config.linux.as_ref().unwrap();
        let own = own.security_context.as_ref().unwrap();
        let mut wanted = client::container("main", tool(), &["sleep"]);
        security(&mut wanted).namespace_options = own.namespace_options.clone();
        pod.start(&wanted).await;
        let guests = daemon.processes(Role::Guest).into_iter();
        let mut guests = guests.filter(|guest| !before.contains(&guest.pid));
        let guest = guests.next().unwrap().pid;
        for kind in ["Uid:", "Gid:"] {
            let status = std::fs::read_to_string(format!("/proc/{guest}/status")).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix(kind));
            for id in line.unwrap().split_whitespace() {
                let id: u32 = id.parse().unwrap();
                assert!(
                    (first..first + 65_536).contains(&id),
                    "{handler}: {kind} {id}"
                );
            }
        }
    }
    daemon.finish().await.unwrap();
}
