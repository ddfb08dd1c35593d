//! Host ports of SCTP. On a kernel without the protocol only the tests that do not need it run. The kernel of
//! `make test-v2` has it, so there all must run.

use std::path::{Path, PathBuf};
use std::process::Command;

use coracle_tests::client;
use coracle_tests::daemon::Daemon;
use coracle_tests::push::{Image, Pushed, file};
use coracle_tests::{guests, tools};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, ipproto, socket};
use tonic::Code;

use super::outside::Outside;
use super::{addresses, cri, free_ports, mapping, with_ports};
use crate::linux::shell::{daemon, on_peer, push};
use crate::site::{Pod, refused};

/// Bytes of a message that fits into one packet of a pod. The node's own clients send no larger ones: the kernel takes
/// their way for one of loopback's packet size, and finds out otherwise only from errors that may come late.
const SMALL: u32 = 1_000;
/// Bytes of a message that has to be cut.
const LARGE: u32 = 4_000;

/// Whether this kernel has SCTP.
fn kernel_has_it() -> bool {
    match socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::SCTP)) {
        Ok(_) => true,
        Err(Errno::PROTONOSUPPORT) if std::env::var_os("CORACLE_IN_GUEST").is_none() => false,
        Err(e) => panic!("an SCTP socket: {e}"),
    }
}

/// The guest as an image that the daemon has, and as a program of the node.
async fn program(daemon: &mut Daemon) -> (Pushed, PathBuf) {
    let program = guests::sctp().unwrap();
    let files = [file("sctp", 0o755, &program)];
    let image = push("sctp", &Image::linux(&files, &["/sctp"]).unwrap());
    daemon.cri().pull(&image.reference).await.unwrap();
    let path = daemon.scratch().dir().join("sctp");
    tools::install(&path, &program).unwrap();
    daemon.rebase();
    (image, path)
}

fn sctp_mapping(host_port: i32, host_ip: &str) -> cri::PortMapping {
    cri::PortMapping {
        protocol: cri::Protocol::Sctp as i32,
        container_port: 5000,
        ..mapping(host_port, host_ip)
    }
}

/// What the server at the end of a way says to a client at its beginning, once it has sent everything back; else what went wrong.
/// The client has one address: of several it would name all in its first message, where no translation reaches.
fn ask(program: &Path, way: (&str, &str), port: i32, size: u32) -> Result<String, String> {
    let (from, address) = way;
    let (port, size) = (port.to_string(), size.to_string());
    let mut command = Command::new(program);
    let run = command
        .args(["ask", from, address, &port, &size])
        .output()
        .unwrap();
    match run.status.success() {
        true => Ok(String::from_utf8(run.stdout).unwrap().trim().to_owned()),
        false => Err(format!(
            "{}: {}",
            run.status,
            String::from_utf8_lossy(&run.stderr)
        )),
    }
}

#[tokio::test]
async fn a_host_port_of_sctp_carries_associations() {
    if on_peer() {
        return; // Its plugins' matter.
    }
    let mut daemon = daemon().await;
    let (image, program) = program(&mut daemon).await;
    let world = Outside::new(&daemon);
    let port = free_ports(&daemon);
    let ports = vec![sctp_mapping(port, ""), sctp_mapping(port + 1, "127.0.0.1")];
    let pod = Pod::run_config(&daemon, with_ports(&daemon, "sctp", ports)).await;
    let again = with_ports(&daemon, "again", vec![sctp_mapping(port, "")]);
    let expected = [&format!("sctp port {port} of every address")[..], &pod.id];
    refused(
        daemon.cri().run_pod(&again).await,
        Code::ResourceExhausted,
        &expected,
    );
    if !kernel_has_it() {
        daemon.finish().await.unwrap();
        return;
    }
    let server = client::container("sctp", &image.reference, &["serve", "5000", "ahoy"]);
    pod.start(&server).await;
    pod.wait_log(&daemon, "sctp", "ready").await;
    let output = Ok("ahoy".to_owned());
    let (node, own) = (world.node(), world.own());
    let pod_ip = addresses(&pod).await.remove(0);
    let (direct, from_outside) = ((&node[..], &pod_ip[..]), (&own[..], &node[..]));
    let (loopback, itself) = (("127.0.0.1", "127.0.0.1"), (&node[..], &node[..]));
    // The pod itself, so that what follows is about the ports of the node.
    assert_eq!(ask(&program, direct, 5000, LARGE), output);
    assert_eq!(ask(&program, loopback, port, SMALL), output);
    assert_eq!(ask(&program, itself, port, SMALL), output);
    let outside = |port| world.inside(|| ask(&program, from_outside, port, LARGE));
    assert_eq!(outside(port), output);
    // A port at one address is at no other.
    assert_eq!(ask(&program, loopback, port + 1, SMALL), output);
    ask(&program, itself, port + 1, SMALL).unwrap_err();
    outside(port + 1).unwrap_err();
    // It goes with StopPodSandbox.
    pod.cri.stop_pod(&pod.id).await.unwrap();
    ask(&program, loopback, port, SMALL).unwrap_err();
    outside(port).unwrap_err();
    daemon.finish().await.unwrap();
}
