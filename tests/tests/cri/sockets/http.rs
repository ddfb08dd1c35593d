//! Outgoing HTTP: certificates, and the times that a component sets.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use coracle_tests::client::{TIMEOUT, container};
use coracle_tests::nameserver::Answer;
use coracle_tests::procs::Role;
use coracle_tests::push::file;

use super::{addresses, net, net_daemon, net_image, with_nameserver};
use crate::site::{Pod, ended_soon};

/// Runs openssl; it comes with the package ca-certificates.
fn openssl(directory: &Path, arguments: &str) {
    let run = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(run.status.success(), "openssl {arguments}: {run:?}");
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
    let mut output = (1, String::new(), String::new());
    // The server takes a moment to listen.
    let end = Instant::now() + TIMEOUT;
    while Instant::now() < end {
        output = net(
            &daemon,
            &pod,
            &knowing,
            &["http-get", "https://web.example.com:8443/"],
        )
        .await;
        if !output.2.ends_with(": connection-refused\n") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(
        output.0 == 0 && output.1.starts_with("status 200\n"),
        "{output:?}"
    );
    assert!(output.1.contains("TLSv1.3"), "{output:?}");
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
        let output = net(&daemon, &pod, image, &["http-get", url]).await;
        assert_eq!(
            output.2,
            format!("http-get {url}: {expected}\n"),
            "{output:?}"
        );
    }
    // What is there speaks no TLS.
    let output = net(
        &daemon,
        &pod,
        &knowing,
        &["http-get", "https://web.example.com:8088/"],
    )
    .await;
    assert!(
        output.0 == 1 && output.2.contains("TLS-protocol-error"),
        "{output:?}"
    );
    drop((names, tls));
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_request_ends_at_the_timeout_that_the_guest_has_set() {
    let (daemon, image) = net_daemon().await;
    let pod = Pod::run(&daemon, "late").await;
    // Takes connections and says nothing.
    let silent = container("silent", &image, &["tcp-hold", "8080"]);
    pod.start(&silent).await;
    pod.wait_log(&daemon, "silent", "listening\n").await;
    let begun = Instant::now();
    let output = net(
        &daemon,
        &pod,
        &image,
        &["http-get", "http://127.0.0.1:8080/", "300"],
    )
    .await;
    assert_eq!(
        output.2,
        "http-get http://127.0.0.1:8080/: connection-read-timeout\n"
    );
    ended_soon(begun);
    daemon.finish().await.unwrap();
}
