//! What components do with their pod's network: sockets, names, HTTP, and what an egress list leaves of it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::container;
use coracle_tests::daemon::{Daemon, Options};
use coracle_tests::guests;
use coracle_tests::nameserver::{Answer, NameServer};
use coracle_tests::procs::Role;
use coracle_tests::push::{File, Image, Packing, file};
use tonic::Code;

use crate::site::{Pod, daemon, daemon_with, images, refused};

/// The annotation that lists what a pod may reach.
const ALLOW: &str = "egress.coracle.dev/allow";

/// A daemon that has pulled the component of `net.c`, and the image's reference.
pub async fn net_daemon() -> (Daemon, String) {
    net_daemon_with("").await
}

/// The same, with further tables in its configuration.
pub async fn net_daemon_with(config: &str) -> (Daemon, String) {
    let options = Options {
        config: config.to_owned(),
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
pub async fn net(daemon: &Daemon, pod: &Pod, image: &str, words: &[&str]) -> (i32, String, String) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("run-{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let (status, out) = pod.finish(daemon, &container(&name, image, words)).await;
    let pod = &pod.config.metadata.as_ref().unwrap().name;
    let err = daemon.output(pod, &name, "stderr").unwrap();
    (status.exit_code, out, err)
}

/// Starts a verb that goes on, and waits until it says that it listens.
pub async fn server(daemon: &Daemon, pod: &Pod, image: &str, words: &[&str]) -> String {
    let name = words.join("-").replace(['.', ':'], "");
    let id = pod.start(&container(&name, image, words)).await;
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
    let said = net(
        &daemon,
        &two,
        &image,
        &["tcp-connect", &at, "8080", "GET /"],
    )
    .await;
    assert_eq!(said.0, 0, "{said:?}");
    assert!(said.1.ends_with("served by a component\n"), "{said:?}");
    let said = net(&daemon, &two, &image, &["udp-ask", &at, "9090", "ping"]).await;
    assert_eq!((said.0, said.1.as_str()), (0, "answer ping\n"), "{said:?}");
    let url = format!("http://{at}:8080/x?y");
    let said = net(&daemon, &two, &image, &["http-get", &url]).await;
    assert_eq!(said.1, "status 200\nserved by a component\n", "{said:?}");
    // Each pod has a loopback of its own, shared by its containers.
    let said = net(
        &daemon,
        &one,
        &image,
        &["tcp-connect", "127.0.0.1", "8080", "x"],
    )
    .await;
    assert_eq!(said.0, 0, "{said:?}");
    let said = net(
        &daemon,
        &two,
        &image,
        &["tcp-connect", "127.0.0.1", "8080", "x"],
    )
    .await;
    assert_eq!(
        (said.0, said.2.as_str()),
        (1, "connect 127.0.0.1: connection-refused\n")
    );
    // A server that waits for somebody is stopped at once.
    let begun = Instant::now();
    one.cri.stop(&web, 10).await.unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
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
        options: vec!["ndots:2".into(), "timeout:1".into(), "attempts:1".into()],
    });
    let pod = pod_with(daemon, config, handler).await;
    let holder = server(daemon, &pod, image, &["tcp-serve", "8088", "127.0.0.1"]).await;
    let names = NameServer::start(pid_of(daemon, &holder), zone).unwrap();
    (pod, names)
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[tokio::test]
async fn names_are_looked_up_as_the_pods_own_files_say() {
    let (daemon, image) = net_daemon().await;
    let zone = |name: &str, _: usize| match name {
        "db.test.svc.cluster.local" => Answer::Addresses(addresses(&["192.0.2.1", "192.0.2.2"])),
        "six.example.com" => Answer::Addresses(addresses(&["2001:db8::6"])),
        "long.example.com" => Answer::Long(addresses(&["192.0.2.3"])),
        "web.local.test" => Answer::Addresses(addresses(&["127.0.0.1"])),
        "broken.example.com" => Answer::Failure,
        "silent.example.com" => Answer::Silence,
        _ => Answer::Absent,
    };
    let config = daemon.pod("names");
    let (pod, names) = with_nameserver(&daemon, &image, (config, ""), zone).await;
    let own = ip(&pod).await.to_string();
    for (name, expected) in [
        ("db", "address 192.0.2.1\naddress 192.0.2.2\n"),
        ("six.example.com", "address 2001:db8:0:0:0:0:0:6\n"),
        ("long.example.com", "address 192.0.2.3\n"),
        ("localhost", "address 127.0.0.1\naddress 0:0:0:0:0:0:0:1\n"),
        ("198.51.100.9", "address 198.51.100.9\n"),
        ("names", &format!("address {own}\n")),
    ] {
        let said = net(&daemon, &pod, &image, &["resolve", name]).await;
        assert_eq!((said.0, said.1.as_str()), (0, expected), "{name}: {said:?}");
    }
    for (name, expected) in [
        ("absent.example.com", "name-unresolvable"),
        ("broken.example.com", "temporary-resolver-failure"),
        ("silent.example.com", "temporary-resolver-failure"),
        // The image's own hosts file is not the pod's.
        ("from-the-image", "name-unresolvable"),
        ("no name", "invalid-argument"),
    ] {
        let said = net(&daemon, &pod, &image, &["resolve", name]).await;
        assert_eq!(said.2, format!("resolve {name}: {expected}\n"), "{said:?}");
    }
    // A name with fewer dots than ndots goes through the search list first.
    let asked = names.asked();
    let has = |name: &str| asked.iter().any(|one| one == name);
    assert!(has("db.test.svc.cluster.local") && !has("db"), "{asked:?}");
    let said = net(
        &daemon,
        &pod,
        &image,
        &["http-get", "http://web.local.test:8088/"],
    )
    .await;
    assert_eq!(said.1, "status 200\nserved by a component\n", "{said:?}");
    let said = net(
        &daemon,
        &pod,
        &image,
        &["http-get", "http://absent.example.com/"],
    )
    .await;
    assert_eq!(said.2, "http-get http://absent.example.com/: DNS-error\n");
    drop(names);
    daemon.finish().await.unwrap();
}

/// Runs openssl; it comes with the package ca-certificates.
fn openssl(directory: &Path, words: &str) {
    let run = Command::new("openssl")
        .args(words.split(' '))
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(run.status.success(), "openssl {words}: {run:?}");
}

/// An authority (`ca.pem`) and a certificate of `web.example.com` that it signed (`web.pem`, `web.key`).
fn certify(directory: &Path) {
    fs::write(
        directory.join("san"),
        "subjectAltName=DNS:web.example.com\n",
    )
    .unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(
        directory,
        &format!("req -x509 {key} -subj /CN=authority -days 2 -keyout ca.key -out ca.pem"),
    );
    openssl(
        directory,
        &format!("req {key} -subj /CN=web -keyout web.key -out web.csr"),
    );
    openssl(
        directory,
        "x509 -req -in web.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile san -out web.pem",
    );
}

/// A server that ends with the test.
struct TlsServer(Child);

impl Drop for TlsServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A web server for TLS at port 8443 of 127.0.0.1 in the network namespace of process `pid`.
fn serve_tls(directory: &Path, pid: i32) -> TlsServer {
    let mut command = Command::new("nsenter");
    command.args(["-t", &pid.to_string(), "-n", "openssl", "s_server", "-www"]);
    command.args([
        "-accept",
        "127.0.0.1:8443",
        "-cert",
        "web.pem",
        "-key",
        "web.key",
    ]);
    command.current_dir(directory);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    TlsServer(command.spawn().unwrap())
}

#[tokio::test]
async fn requests_over_tls_trust_whom_the_image_trusts() {
    let (mut daemon, unknowing) = net_daemon().await;
    let place = daemon.scratch().dir().join("tls");
    fs::create_dir(&place).unwrap();
    certify(&place);
    let authority = fs::read(place.join("ca.pem")).unwrap();
    let bundle = file("etc/ssl/certs/ca-certificates.crt", 0o644, &authority);
    let knowing = net_image(&daemon, "net-tls", &[bundle]).await;
    daemon.rebase();
    let zone = |_: &str, _: usize| Answer::Addresses(addresses(&["127.0.0.1"]));
    let config = daemon.pod("tls");
    let (pod, names) = with_nameserver(&daemon, &knowing, (config, ""), zone).await;
    let guest = daemon.processes(Role::Guest)[0].pid;
    let tls = serve_tls(&place, guest);
    let mut said = (1, String::new(), String::new());
    // The server takes a moment to listen.
    for _ in 0..50 {
        said = net(
            &daemon,
            &pod,
            &knowing,
            &["http-get", "https://web.example.com:8443/"],
        )
        .await;
        if !said.2.ends_with(": connection-refused\n") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(
        said.0 == 0 && said.1.starts_with("status 200\n"),
        "{said:?}"
    );
    assert!(said.1.contains("TLSv1.3"), "{said:?}");
    for (image, url, expected) in [
        (
            &knowing,
            "https://other.example.com:8443/",
            "TLS-certificate-error",
        ),
        (&knowing, "https://127.0.0.1:8443/", "TLS-certificate-error"),
        (
            &unknowing,
            "https://web.example.com:8443/",
            "TLS-certificate-error",
        ),
    ] {
        let said = net(&daemon, &pod, image, &["http-get", url]).await;
        assert_eq!(said.2, format!("http-get {url}: {expected}\n"), "{said:?}");
    }
    // What is there speaks no TLS.
    let said = net(
        &daemon,
        &pod,
        &knowing,
        &["http-get", "https://web.example.com:8088/"],
    )
    .await;
    assert!(
        said.0 == 1 && said.2.contains("TLS-protocol-error"),
        "{said:?}"
    );
    drop((names, tls));
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_request_is_given_up_when_the_guest_says() {
    let (daemon, image) = net_daemon().await;
    let pod = Pod::run(&daemon, "late").await;
    // Takes connections and says nothing.
    let silent = container("silent", &image, &["tcp-hold", "8080"]);
    pod.start(&silent).await;
    pod.wait_log(&daemon, "silent", "listening\n").await;
    let begun = Instant::now();
    let said = net(
        &daemon,
        &pod,
        &image,
        &["http-get", "http://127.0.0.1:8080/", "300"],
    )
    .await;
    assert_eq!(
        said.2,
        "http-get http://127.0.0.1:8080/: connection-read-timeout\n"
    );
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_strict_pod_without_a_list_has_no_network_at_all() {
    let (daemon, image) = net_daemon().await;
    let pod = pod_with(&daemon, daemon.pod("closed"), "coracle-strict").await;
    for (words, expected) in [
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
        let said = net(&daemon, &pod, &image, words).await;
        assert_eq!((said.0, said.2.as_str()), (1, expected), "{words:?}");
    }
    daemon.finish().await.unwrap();
}

/// A pod config with an egress list.
fn listing(daemon: &Daemon, name: &str, allow: &str) -> cri::PodSandboxConfig {
    let mut config = daemon.pod(name);
    config.annotations.insert(ALLOW.into(), allow.into());
    config
}

#[tokio::test]
async fn only_what_is_listed_is_reached_by_sockets_names_and_requests_alike() {
    let (daemon, image) = net_daemon_with(
        "[handlers.coracle-strict]\negress = [\".example.com\", \"203.0.113.0/24\"]\n",
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
        _ => Answer::Addresses(vec![target]),
    };
    let allow = "api.example.com:8080,rebind.example.com,inner.example.com, 203.0.113.0/24:443";
    let config = listing(&daemon, "listed", allow);
    let (pod, names) = with_nameserver(&daemon, &image, (config, "coracle-strict"), zone).await;
    let run = |words: &'static str| {
        let words = words.replace("TARGET", &at);
        let (daemon, pod, image) = (&daemon, &pod, &image);
        async move {
            let words: Vec<&str> = words.split(' ').collect();
            net(daemon, pod, image, &words).await
        }
    };
    let served = "served by a component\n";
    let said = run("tcp-connect api.example.com 8080 x").await;
    assert!(said.0 == 0 && said.1.ends_with(served), "{said:?}");
    let said = run("http-get http://api.example.com:8080/").await;
    assert!(said.0 == 0 && said.1.contains(served), "{said:?}");
    for (words, expected) in [
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
        // Not addresses to us, and nobody's names.
        ("http-get http://127.1/", "HTTP-request-denied"),
        ("http-get http://0/", "HTTP-request-denied"),
    ] {
        let said = run(words).await;
        assert_eq!(said.0, 1, "{words}: {said:?}");
        assert!(
            said.2.ends_with(&format!(": {expected}\n")),
            "{words}: {said:?}"
        );
    }
    // A hosts file that a container could write, as the kubelet's is, decides nothing where names do.
    let hosts = daemon.scratch().dir().join("hosts");
    fs::write(&hosts, "203.0.113.66 api.example.com\n").unwrap();
    let mut config = container("own-hosts", &image, &["resolve", "api.example.com"]);
    config.mounts = vec![cri::Mount {
        host_path: hosts.display().to_string(),
        container_path: "/etc/hosts".into(),
        ..Default::default()
    }];
    let (_, said) = pod.finish(&daemon, &config).await;
    assert!(
        said.contains(&target.to_string()) && !said.contains("203.0.113.66"),
        "{said}"
    );
    // Whichever answer it gets, a request goes to an address that was checked.
    let mut ends = Vec::new();
    for _ in 0..4 {
        ends.push(run("http-get http://rebind.example.com:8080/").await.2);
    }
    let prohibited = "http-get http://rebind.example.com:8080/: destination-IP-prohibited\n";
    assert_eq!(ends, ["", prohibited, "", prohibited]);
    // What is not listed was not even asked for.
    let asked = names.asked();
    let listed = ["api.example.com", "inner.example.com", "rebind.example.com"];
    assert_eq!(asked, listed, "{asked:?}");
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
    let said = net(
        &daemon,
        &pod,
        &image,
        &["tcp-connect", "127.0.0.1", "8080", "x"],
    )
    .await;
    assert_eq!(said.0, 0, "{said:?}");
    daemon.finish().await.unwrap();
}

/// What the program of `inject.c` says. With the pid of a guest: what connect(2) answers to one that asks the kernel
/// itself, past everything that WebAssembly's host functions hold.
fn inject(daemon: &Daemon, words: &[String]) -> String {
    use std::os::unix::fs::PermissionsExt as _;
    let program = daemon.scratch().dir().join("inject");
    if !program.exists() {
        fs::write(&program, guests::inject().unwrap()).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let said = Command::new(program).args(words).output().unwrap();
    assert!(said.status.success(), "{said:?}");
    String::from_utf8(said.stdout).unwrap().trim().to_owned()
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
        let words = ["tcp-connect", "127.0.0.1", "8081", "x"];
        let said = net(&daemon, &pod, &image, &words).await;
        assert_eq!(said.0 == 0, neighbour == "ok", "{name}: {said:?}");
        let words = ["tcp-connect", "127.0.0.1", "8082", "x"];
        assert_eq!(net(&daemon, &pod, &image, &words).await.0, 0, "{name}");
        pod.cri.stop_pod(&pod.id).await.unwrap();
        pod.cri.remove_pod(&pod.id).await.unwrap();
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_list_that_is_none_refuses_the_pod_by_name() {
    let daemon = daemon().await;
    for (allow, word) in [
        ("10.0.0.1/8", "10.0.0.1/8"),
        ("good.example,*", "\"*\""),
        ("http://x", "http://x"),
    ] {
        let config = listing(&daemon, "bad", allow);
        let run = daemon.cri().run_pod_with(&config, "coracle-strict").await;
        refused(run, Code::InvalidArgument, &[ALLOW, word]);
    }
    daemon.finish().await.unwrap();
}
