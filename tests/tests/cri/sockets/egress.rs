//! Egress lists: sockets, names and requests of components, and a component that calls the kernel itself.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;
use coracle_tests::daemon::Daemon;
use coracle_tests::nameserver::Answer;
use coracle_tests::{guests, tools};
use tonic::Code;

use super::{
    addresses, ip, net, net_daemon, net_daemon_with, pid_of, pod_with, server, with_nameserver,
};
use crate::site::{Pod, daemon, refused};

/// The annotation that lists what a pod may reach.
const ALLOW: &str = "egress.coracle.dev/allow";

#[tokio::test]
async fn a_strict_pod_without_a_list_has_no_network_at_all() {
    let (daemon, image) = net_daemon().await;
    let pod = pod_with(&daemon, daemon.pod("closed"), "coracle-strict").await;
    for (args, expected) in [
        (
            &["tcp-connect", "127.0.0.1", "80"][..],
            "connect 127.0.0.1: access-denied\n",
        ),
        (&["tcp-serve", "8080"], "listen 0.0.0.0: access-denied\n"),
        (&["udp-echo", "9090"], "bind udp: access-denied\n"),
        (
            &["resolve", "localhost"],
            "resolve localhost: access-denied\n",
        ),
        (
            &["http-get", "http://127.0.0.1/"],
            "http-get http://127.0.0.1/: HTTP-request-denied\n",
        ),
    ] {
        let output = net(&daemon, &pod, &image, args).await;
        assert_eq!((output.0, output.2.as_str()), (1, expected), "{args:?}");
    }
    daemon.finish().await.unwrap();
}

/// A pod config with an egress list.
pub fn listing(daemon: &Daemon, name: &str, allow: &str) -> cri::PodSandboxConfig {
    let mut config = daemon.pod(name);
    config.annotations.insert(ALLOW.into(), allow.into());
    config
}

/// What a guest may reach in the test below.
pub const LISTED: &str = "api.example.com:8080,inner.example.com,outer.example.com:8080,absent.example.com:8080,\
                          db.team.svc.cluster.local:8080, 203.0.113.0/24:443";

/// What a guest cannot do in the test below, and the error it gets.
pub const REFUSED: [(&str, &str); 19] = [
    // The address alone is not listed, nor another port of the name.
    ("tcp-connect TARGET 8080 x", "access-denied"),
    ("tcp-connect api.example.com 8081 x", "access-denied"),
    ("http-get http://TARGET:8080/", "destination-IP-prohibited"),
    (
        "http-get http://api.example.com:8081/",
        "destination-IP-prohibited",
    ),
    ("resolve other.example.com", "access-denied"),
    (
        "http-get http://other.example.com:8080/",
        "HTTP-request-denied",
    ),
    ("udp-ask 203.0.113.9 53 x", "access-denied"),
    ("tcp-connect 169.254.169.254 80", "access-denied"),
    (
        "http-get http://169.254.169.254/",
        "destination-IP-prohibited",
    ),
    (
        "http-get http://[::ffff:169.254.169.254]/",
        "destination-IP-prohibited",
    ),
    (
        "http-get http://[fd00:ec2::254]/",
        "destination-IP-prohibited",
    ),
    ("tcp-connect inner.example.com 80", "access-denied"),
    (
        "http-get http://inner.example.com/",
        "destination-IP-prohibited",
    ),
    // Names of somebody outside, pointed at another pod.
    ("tcp-connect outer.example.com 8080 x", "access-denied"),
    (
        "http-get http://outer.example.com:8080/",
        "destination-IP-prohibited",
    ),
    // A name that does not exist, which the pod's own search list would complete to one that does.
    ("tcp-connect absent.example.com 8080 x", "name-unresolvable"),
    ("http-get http://absent.example.com:8080/", "DNS-error"),
    // Not addresses to us, and nobody's names.
    ("http-get http://127.1/", "HTTP-request-denied"),
    ("http-get http://0/", "HTTP-request-denied"),
];

/// A hosts file that a container could write, as the kubelet's is, decides nothing where names do.
async fn expect_own_hosts_ignored(daemon: &Daemon, pod: &Pod, image: &str, target: IpAddr) {
    let hosts = daemon.scratch().dir().join("hosts");
    fs::write(&hosts, "203.0.113.66 api.example.com\n").unwrap();
    let mut config = container("own-hosts", image, &["resolve", "api.example.com"]);
    config.mounts = vec![cri::Mount {
        host_path: hosts.display().to_string(),
        container_path: "/etc/hosts".into(),
        ..Default::default()
    }];
    let (_, output) = pod.finish(daemon, &config).await;
    assert!(
        output.contains(&target.to_string()) && !output.contains("203.0.113.66"),
        "{output}"
    );
}

/// Who answers for a name decides which address it means.
#[tokio::test]
async fn a_pod_does_not_choose_the_name_servers_of_its_operators_list() {
    let (daemon, _) = net_daemon_with(
        "[handlers.coracle-strict]\negress = [\".example.com\", \"203.0.113.0/24\"]\n\
         [handlers.open]\nkind = \"wasm\"\nannotations = [\"egress.coracle.dev/*\"]\n",
    )
    .await;
    let other = "198.51.100.53";
    let asking = |name: &str, servers: &[&str]| {
        let mut config = daemon.pod(name);
        config.dns_config = Some(cri::DnsConfig {
            servers: servers.iter().map(|server| (*server).to_owned()).collect(),
            ..Default::default()
        });
        config
    };
    let cri = daemon.cri();
    for servers in [&[other][..], &["127.0.0.1", other]] {
        let config = asking("chooses", servers);
        let refused = cri.run_pod_with(&config, "coracle-strict").await;
        let text = refused.unwrap_err().message().to_owned();
        assert!(
            text.contains(other) && text.contains("network.name_servers"),
            "{text}"
        );
    }
    let mut pods = Vec::new();
    for (name, handler, allow, server) in [
        ("known", "coracle-strict", None, "127.0.0.1"),
        // Without names nobody is asked.
        (
            "addresses",
            "coracle-strict",
            Some("203.0.113.9:443"),
            other,
        ),
        // A list of the pod's own.
        ("own", "open", Some("api.example.com"), other),
    ] {
        let mut config = asking(name, &[server]);
        let allow = allow.map(|list| ("egress.coracle.dev/allow".to_owned(), list.to_owned()));
        config.annotations.extend(allow);
        pods.push(cri.run_pod_with(&config, handler).await.unwrap());
    }
    for pod in pods {
        cri.stop_pod(&pod).await.unwrap();
        cri.remove_pod(&pod).await.unwrap();
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn only_what_is_listed_is_reached_by_sockets_names_and_requests_alike() {
    let (daemon, image) = net_daemon_with(
        "[handlers.coracle-strict]\negress = [\".example.com\", \".svc.cluster.local\", \"203.0.113.0/24\"]\n",
    )
    .await;
    let other = Pod::run(&daemon, "target").await;
    let target = ip(&other).await;
    for port in ["8080", "8081"] {
        server(&daemon, &other, &image, &["tcp-serve", port]).await;
    }
    let at = target.to_string();
    let zone = move |name: &str, nth: usize| match name {
        "api.example.com" => Answer::Addresses(vec![target]),
        // Public when it is checked, the metadata service when it is used.
        "rebind.example.com" if nth.is_multiple_of(2) => Answer::Addresses(vec![target]),
        "rebind.example.com" => Answer::Addresses(addresses(&["169.254.169.254"])),
        "inner.example.com" => Answer::Addresses(addresses(&["169.254.169.254"])),
        "absent.example.com" => Answer::Absent,
        _ => Answer::Addresses(vec![target]),
    };
    let allow = format!("rebind.example.com,{LISTED}");
    let config = listing(&daemon, "listed", &allow);
    let (pod, names) = with_nameserver(&daemon, &image, (config, "coracle-strict"), zone).await;
    let run = |args: &'static str| {
        let args = args.replace("TARGET", &at);
        let (daemon, pod, image) = (&daemon, &pod, &image);
        async move {
            let args: Vec<&str> = args.split(' ').collect();
            net(daemon, pod, image, &args).await
        }
    };
    let served = "served by a component\n";
    // A service of the cluster, by its name in full and by one that the search list completes.
    for args in [
        "tcp-connect api.example.com 8080 x",
        "tcp-connect db.team.svc.cluster.local 8080 x",
        "tcp-connect db.team.svc 8080 x",
    ] {
        let output = run(args).await;
        assert!(output.0 == 0 && output.1.ends_with(served), "{output:?}");
    }
    let output = run("http-get http://api.example.com:8080/").await;
    assert!(output.0 == 0 && output.1.contains(served), "{output:?}");
    for (args, expected) in REFUSED {
        let output = run(args).await;
        assert_eq!(output.0, 1, "{args}: {output:?}");
        assert!(
            output.2.ends_with(&format!(": {expected}\n")),
            "{args}: {output:?}"
        );
    }
    expect_own_hosts_ignored(&daemon, &pod, &image, target).await;
    // Whichever answer it gets, a request goes to an address that was checked.
    let mut ends = Vec::new();
    for _ in 0..4 {
        ends.push(run("http-get http://rebind.example.com:8080/").await.2);
    }
    let prohibited = "http-get http://rebind.example.com:8080/: destination-IP-prohibited\n";
    assert_eq!(ends, ["", prohibited, "", prohibited]);
    // What is not listed was not even looked up.
    let queries = names.queries();
    let mut listed = ["absent", "api", "inner", "outer", "rebind"]
        .map(|name| format!("{name}.example.com"))
        .to_vec();
    listed.push("db.team.svc.cluster.local".to_owned());
    listed.sort_unstable();
    assert_eq!(queries, listed);
    drop(names);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_list_lets_others_in_and_the_pod_talk_to_itself() {
    let (daemon, image) = net_daemon_with("[handlers.coracle-strict]\negress = []\n").await;
    let pod = pod_with(&daemon, daemon.pod("inbound"), "coracle-strict").await;
    server(&daemon, &pod, &image, &["tcp-serve", "8080"]).await;
    let at = SocketAddr::new(ip(&pod).await, 8080);
    let mut stream = TcpStream::connect(at).unwrap();
    stream.write_all(b"x\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("served by a component\n"), "{answer}");
    let output = net(
        &daemon,
        &pod,
        &image,
        &["tcp-connect", "127.0.0.1", "8080", "x"],
    )
    .await;
    assert_eq!(output.0, 0, "{output:?}");
    daemon.finish().await.unwrap();
}

/// What the program of `inject.c` says. With the pid of a guest: what connect(2) answers to one that asks the kernel
/// itself, past everything that WebAssembly's host functions hold.
fn inject(daemon: &Daemon, arguments: &[String]) -> String {
    let program = daemon.scratch().dir().join("inject");
    if !program.exists() {
        tools::install(&program, &guests::inject().unwrap()).unwrap();
    }
    let printed = Command::new(program).args(arguments).output().unwrap();
    assert!(printed.status.success(), "{printed:?}");
    String::from_utf8(printed.stdout).unwrap().trim().to_owned()
}

/// Over loopback, which nftables leaves alone.
#[tokio::test]
async fn a_guest_that_has_broken_out_is_held_to_the_listed_ports() {
    let (daemon, image) = net_daemon().await;
    let version: u32 = inject(&daemon, &[]).parse().unwrap();
    if version < 4 {
        daemon.finish().await.unwrap();
        return;
    }
    for (name, allow, neighbour) in [
        ("ports", Some("203.0.113.7:8080"), "EACCES"),
        ("everywhere", Some("203.0.113.7"), "ok"),
        ("open", None, "ok"),
    ] {
        let mut config = daemon.pod(name);
        if let Some(allow) = allow {
            config.annotations.insert(ALLOW.into(), allow.into());
        }
        config.port_mappings = vec![cri::PortMapping {
            container_port: 8082,
            ..Default::default()
        }];
        let pod = pod_with(&daemon, config, "coracle").await;
        let mut first = None;
        for port in ["8080", "8081", "8082"] {
            let id = server(&daemon, &pod, &image, &["tcp-serve", port]).await;
            first.get_or_insert(id);
        }
        let guest = pid_of(&daemon, &first.unwrap());
        let connect = |port: &str| {
            inject(
                &daemon,
                &[&guest.to_string(), "127.0.0.1", port].map(str::to_owned),
            )
        };
        let answers = ["8080", "8081", "8082"].map(connect);
        assert_eq!(answers, ["ok", neighbour, "ok"], "{name}");
        // The host functions say the same, and no less.
        let args = ["tcp-connect", "127.0.0.1", "8081", "x"];
        let output = net(&daemon, &pod, &image, &args).await;
        assert_eq!(output.0 == 0, neighbour == "ok", "{name}: {output:?}");
        let args = ["tcp-connect", "127.0.0.1", "8082", "x"];
        assert_eq!(net(&daemon, &pod, &image, &args).await.0, 0, "{name}");
        pod.cri.stop_pod(&pod.id).await.unwrap();
        pod.cri.remove_pod(&pod.id).await.unwrap();
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn an_invalid_egress_list_refuses_the_pod() {
    let daemon = daemon().await;
    for (allow, expected) in [
        ("10.0.0.1/8", "10.0.0.1/8"),
        ("good.example,*", "\"*\""),
        ("http://x", "http://x"),
    ] {
        let config = listing(&daemon, "bad", allow);
        let run = daemon.cri().run_pod_with(&config, "coracle-strict").await;
        refused(run, Code::InvalidArgument, &[ALLOW, expected]);
    }
    daemon.finish().await.unwrap();
}
