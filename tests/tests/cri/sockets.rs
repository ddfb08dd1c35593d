//! What components do with their pod's network: sockets, names, HTTP, and what an egress list leaves of it.

mod egress;
mod http;
mod names;
mod wasi_p3;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpStream};
use std::time::Instant;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;
use coracle_tests::daemon::{Daemon, Options};
use coracle_tests::guests;
use coracle_tests::nameserver::{Answer, NameServer};
use coracle_tests::procs::Role;
use coracle_tests::push::{File, Image, Packing, file};

use crate::site::{Pod, daemon_with, ended_soon, images};

/// The names of tests that lead to another pod.
const INTERNAL: &str =
    "internal_domains = [\"cluster.local\", \"api.example.com\", \"rebind.example.com\"]";

/// A daemon that has pulled the component of `net.c`, and the image's reference.
pub async fn net_daemon() -> (Daemon, String) {
    net_daemon_with("").await
}

/// The same, with further tables in its configuration.
pub async fn net_daemon_with(config: &str) -> (Daemon, String) {
    let options = Options {
        config: config.to_owned(),
        // Where the tests have theirs.
        network: format!("name_servers = [\"127.0.0.1\"]\n{INTERNAL}"),
        ..Options::default()
    };
    let mut daemon = daemon_with(options).await;
    let hosts = file("etc/hosts", 0o644, b"192.0.2.66 from-the-image\n");
    let image = net_image(&daemon, "net", &[hosts]).await;
    daemon.rebase();
    (daemon, image)
}

/// Has `daemon` pull an image of that component with further files; its reference.
async fn net_image(daemon: &Daemon, name: &str, files: &[File<'_>]) -> String {
    let guest = guests::net().unwrap();
    let mut all = vec![file("net.wasm", 0o755, &guest)];
    all.extend_from_slice(files);
    let image = Image::wasi(&all, Packing::Gzip, &["/net.wasm"]).unwrap();
    let pushed = image.push(images().registry.host(), name, "v1").unwrap();
    daemon.cri().pull(&pushed.reference).await.unwrap();
    pushed.reference
}

/// Runs a pod by this handler.
pub async fn pod_with(daemon: &Daemon, config: cri::PodSandboxConfig, handler: &str) -> Pod {
    let cri = daemon.cri();
    let id = cri.run_pod_with(&config, handler).await.unwrap();
    Pod { cri, config, id }
}

/// A pod's first address.
pub async fn ip(pod: &Pod) -> IpAddr {
    let status = pod.cri.pod_status(&pod.id).await.unwrap();
    status.network.unwrap().ip.parse().unwrap()
}

/// Runs one verb to its end: exit code, standard output, standard error.
pub async fn net(daemon: &Daemon, pod: &Pod, image: &str, args: &[&str]) -> (i32, String, String) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("run-{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let (status, out) = pod.finish(daemon, &container(&name, image, args)).await;
    let pod = &pod.config.metadata.as_ref().unwrap().name;
    let err = daemon.output(pod, &name, "stderr").unwrap();
    (status.exit_code, out, err)
}

/// Starts a verb that goes on, and waits until it says that it listens.
pub async fn server(daemon: &Daemon, pod: &Pod, image: &str, args: &[&str]) -> String {
    let name = args.join("-").replace(['.', ':'], "");
    let id = pod.start(&container(&name, image, args)).await;
    pod.wait_log(daemon, &name, "listening\n").await;
    id
}

/// The host's pid of a container's guest.
fn pid_of(daemon: &Daemon, container: &str) -> i32 {
    let guests = daemon.processes(Role::Guest);
    let own = guests
        .iter()
        .find(|guest| guest.command.contains(container));
    own.unwrap().pid
}

#[tokio::test]
async fn components_serve_and_reach_each_other_in_their_pods_networks() {
    let (daemon, image) = net_daemon().await;
    let (one, two) = (
        Pod::run(&daemon, "serving").await,
        Pod::run(&daemon, "asking").await,
    );
    let at = ip(&one).await.to_string();
    let web = server(&daemon, &one, &image, &["tcp-serve", "8080"]).await;
    server(&daemon, &one, &image, &["udp-echo", "9090"]).await;
    // From the node, as a probe would.
    let mut stream = TcpStream::connect((at.as_str(), 8080)).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(
        answer.ends_with("\r\n\r\nserved by a component\n"),
        "{answer}"
    );
    let output = net(
        &daemon,
        &two,
        &image,
        &["tcp-connect", &at, "8080", "GET /"],
    )
    .await;
    assert_eq!(output.0, 0, "{output:?}");
    assert!(output.1.ends_with("served by a component\n"), "{output:?}");
    let output = net(&daemon, &two, &image, &["udp-ask", &at, "9090", "ping"]).await;
    assert_eq!(
        (output.0, output.1.as_str()),
        (0, "answer ping\n"),
        "{output:?}"
    );
    let url = format!("http://{at}:8080/x?y");
    let output = net(&daemon, &two, &image, &["http-get", &url]).await;
    assert_eq!(
        output.1, "status 200\nserved by a component\n",
        "{output:?}"
    );
    // Each pod has a loopback of its own, shared by its containers.
    let output = net(
        &daemon,
        &one,
        &image,
        &["tcp-connect", "127.0.0.1", "8080", "x"],
    )
    .await;
    assert_eq!(output.0, 0, "{output:?}");
    let output = net(
        &daemon,
        &two,
        &image,
        &["tcp-connect", "127.0.0.1", "8080", "x"],
    )
    .await;
    assert_eq!(
        (output.0, output.2.as_str()),
        (1, "connect 127.0.0.1: connection-refused\n")
    );
    // A server that waits for somebody is stopped at once.
    let begun = Instant::now();
    one.cri.stop(&web, 100).await.unwrap();
    ended_soon(begun);
    assert_eq!(one.cri.status(&web).await.unwrap().exit_code, 143);
    daemon.finish().await.unwrap();
}

/// A pod whose name server is in its own network namespace, and the container that keeps that alive.
async fn with_nameserver(
    daemon: &Daemon,
    image: &str,
    (mut config, handler): (cri::PodSandboxConfig, &str),
    zone: impl Fn(&str, usize) -> Answer + Send + Sync + 'static,
) -> (Pod, NameServer) {
    config.dns_config = Some(cri::DnsConfig {
        servers: vec!["127.0.0.1".into()],
        searches: vec!["test.svc.cluster.local".into(), "cluster.local".into()],
        options: vec!["ndots:2".into(), "timeout:5".into(), "attempts:1".into()],
    });
    let pod = pod_with(daemon, config, handler).await;
    let holder = server(daemon, &pod, image, &["tcp-serve", "8088", "127.0.0.1"]).await;
    let names = NameServer::start(pid_of(daemon, &holder), zone).unwrap();
    (pod, names)
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}
