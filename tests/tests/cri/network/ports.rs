//! Host ports.

use std::process::Command;

use coracle_tests::client;
use coracle_tests::guests;
use coracle_tests::push::{Image, Packing, file};
use tonic::Code;

use super::outside::{Outside, fetch};
use super::{addresses, cri, free_ports, held, mapping, web, with_ports};
use crate::linux::shell::{daemon, fresh, on_peer, run, run_sh, security};
use crate::site::{Pod, eventually, images, refused};

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[tokio::test]
async fn a_host_port_leads_to_the_pod_as_long_as_it_lives() {
    let daemon = daemon().await;
    let world = Outside::new(&daemon);
    let port = free_ports(&daemon);
    let ports = vec![mapping(port, ""), mapping(port + 1, "127.0.0.1")];
    let pod = web(&daemon, with_ports(&daemon, "web", ports)).await;
    let node = world.node();
    assert_eq!(fetch(&format!("127.0.0.1:{port}")), some("web"));
    assert_eq!(fetch(&format!("{node}:{port}")), some("web"));
    assert_eq!(world.fetch(&format!("{node}:{port}")), some("web"));
    // A port at one address is at no other.
    assert_eq!(fetch(&format!("127.0.0.1:{}", port + 1)), some("web"));
    assert_eq!(fetch(&format!("{node}:{}", port + 1)), None);
    assert_eq!(world.fetch(&format!("{node}:{}", port + 1)), None);
    // The pod itself and its neighbour.
    let script = format!("wget -q -O - http://{node}:{port}/");
    run_sh(&daemon, &pod, &script).await.says(&["web"]);
    let other = Pod::run(&daemon, "other").await;
    run_sh(&daemon, &other, &script).await.says(&["web"]);
    // It goes with StopPodSandbox, not later.
    pod.cri.stop_pod(&pod.id).await.unwrap();
    assert_eq!(fetch(&format!("127.0.0.1:{port}")), None);
    assert_eq!(world.fetch(&format!("{node}:{port}")), None);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_host_port_that_is_taken_is_refused_by_name_until_it_is_free() {
    if on_peer() {
        return; // containerd leaves it to the plugins, and the last pod wins.
    }
    let daemon = daemon().await;
    let port = free_ports(&daemon);
    let web_at = |name: &str| with_ports(&daemon, name, vec![mapping(port, "")]);
    let first = web(&daemon, web_at("first")).await;
    let second = web_at("second");
    let expected = [&format!("tcp port {port} of every address")[..], &first.id];
    let cri = daemon.cri();
    refused(
        cri.run_pod(&second).await,
        Code::ResourceExhausted,
        &expected,
    );
    assert_eq!(fetch(&format!("127.0.0.1:{port}")), some("first"));
    // The same number of another protocol is another port.
    let udp = cri::PortMapping {
        protocol: cri::Protocol::Udp as i32,
        ..mapping(port, "")
    };
    Pod::run_config(&daemon, with_ports(&daemon, "udp", vec![udp])).await;
    cri.stop_pod(&first.id).await.unwrap();
    web(&daemon, second).await;
    assert_eq!(fetch(&format!("127.0.0.1:{port}")), some("second"));
    let six = with_ports(&daemon, "six", vec![mapping(port + 1, "2001:db8::1")]);
    let expected = ["2001:db8::1", "no address of that family"];
    refused(cri.run_pod(&six).await, Code::InvalidArgument, &expected);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn host_ports_outlive_the_daemon_and_a_flush_is_mended_at_its_start() {
    if on_peer() {
        return; // Its plugins do not mend.
    }
    let mut daemon = daemon().await;
    let port = free_ports(&daemon);
    let pod = web(&daemon, with_ports(&daemon, "web", vec![mapping(port, "")])).await;
    let gone = web(
        &daemon,
        with_ports(&daemon, "gone", vec![mapping(port + 1, "")]),
    )
    .await;
    let before = addresses(&pod).await;
    let (target, other) = (
        format!("127.0.0.1:{port}"),
        format!("127.0.0.1:{}", port + 1),
    );
    daemon.kill();
    assert_eq!(fetch(&target), some("web"), "nobody is there, and it works");
    let table = format!("coracle-{}", daemon.scratch().interface_prefix());
    let mut delete = Command::new("nft");
    delete.args(["delete", "table", "inet", &table]);
    assert!(delete.status().unwrap().success());
    assert_eq!(fetch(&target), None);
    daemon.restart().await.unwrap();
    assert_eq!((fetch(&target), fetch(&other)), (some("web"), some("gone")));
    assert_eq!(addresses(&pod).await, before);
    // What is taken stays taken.
    let again = with_ports(&daemon, "again", vec![mapping(port, "")]);
    let expected = [pod.id.as_str()];
    refused(
        daemon.cri().run_pod(&again).await,
        Code::ResourceExhausted,
        &expected,
    );
    daemon.cri().remove_pod(&gone.id).await.unwrap();
    assert_eq!((fetch(&target), fetch(&other)), (some("web"), None));
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_component_serves_udp_at_a_host_port() {
    if on_peer() {
        return; // It runs no WebAssembly.
    }
    let mut daemon = daemon().await;
    let guest = guests::net().unwrap();
    let files = [file("net.wasm", 0o755, &guest)];
    let image = Image::wasi(&files, Packing::Gzip, &["/net.wasm"]).unwrap();
    let image = image.push(images().registry.host(), "net", "v1").unwrap();
    daemon.cri().pull(&image.reference).await.unwrap();
    daemon.rebase();
    let port = free_ports(&daemon);
    let udp = cri::PortMapping {
        protocol: cri::Protocol::Udp as i32,
        container_port: 5353,
        ..mapping(port, "")
    };
    let pod = Pod::run_config(&daemon, with_ports(&daemon, "udp", vec![udp])).await;
    let server = client::container("udp", &image.reference, &["udp-echo", "5353"]);
    pod.start(&server).await;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let timeout = std::time::Duration::from_millis(100);
    socket.set_read_timeout(Some(timeout)).unwrap();
    let mut answer = [0; 64];
    eventually("an answer", || {
        let sent = socket.send_to(b"ahoy", format!("127.0.0.1:{port}"));
        sent.is_ok()
            && socket
                .recv(&mut answer)
                .is_ok_and(|length| &answer[..length] == b"ahoy")
    })
    .await;
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn every_user_listens_at_every_port_of_a_pod_unless_the_pod_says_otherwise() {
    if on_peer() {
        return; // containerd does so since 2.0.
    }
    let daemon = daemon().await;
    let name = "net.ipv4.ip_unprivileged_port_start".to_owned();
    for (pod_name, sysctl, expected) in [("free", None, "80\n"), ("usual", Some("1024"), "no\n")] {
        let mut config = daemon.pod(pod_name);
        if let Some(value) = sysctl {
            let sysctls = &mut config.linux.as_mut().unwrap().sysctls;
            sysctls.insert(name.clone(), value.to_owned());
        }
        let pod = Pod::run_config(&daemon, config).await;
        let script = "nc -l -p 80 & while kill -0 $!; do grep -q ':0050 ' /proc/net/tcp* && echo 80 && exit; sleep 0.1; done; \
             echo no";
        let mut config = held(&fresh("c"), script);
        security(&mut config).run_as_user = Some(cri::Int64Value { value: 1000 });
        assert_eq!(
            run(&daemon, &pod, &config).await.ok(),
            expected,
            "{pod_name}"
        );
    }
    daemon.finish().await.unwrap();
}
