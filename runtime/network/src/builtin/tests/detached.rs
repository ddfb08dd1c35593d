//! What becomes of the interface of a pod that is gone, while somebody still holds a socket of it.

use std::net::UdpSocket;

use super::*;

/// As a process of another pod does that was sent a socket.
#[test]
fn who_holds_a_socket_of_a_removed_pod_reaches_nobody_and_its_interface_goes() {
    let node = Node::new();
    let pod = node.pod("pod");
    let attachment = node.attach(&pod);
    let bound = |at: &str| UdpSocket::bind(at).unwrap();
    let held = inside(&pod.netns, || bound("0.0.0.0:0"));
    let at = SocketAddr::new(attachment.addresses[0], held.local_addr().unwrap().port());
    let outside = bound("0.0.0.0:0");
    outside
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    held.set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    outside.send_to(b"ahoy", at).unwrap();
    let mut line = [0; 4];
    let (_, node_address) = held.recv_from(&mut line).unwrap();
    held.send_to(b"ahoy", node_address).unwrap();
    assert_eq!(outside.recv_from(&mut line).unwrap().1, at);

    node.network.detach(&attachment).unwrap();
    unpin(&pod.pin).unwrap();
    drop(pod);
    let _ = held.send_to(b"ahoy", node_address);
    outside.recv_from(&mut line).unwrap_err();
    let _ = outside.send_to(b"ahoy", at);
    held.recv_from(&mut line).unwrap_err();
    let begun = Instant::now();
    while !node.interfaces().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(15));
        thread::sleep(Duration::from_millis(20));
    }
    drop(held);
}

/// A daemon that ended before the interface was deleted has left it down.
#[test]
fn the_sweep_takes_what_was_detached_and_is_held() {
    let node = Node::new();
    let pod = node.pod("pod");
    let attachment = node.attach(&pod);
    let held = inside(&pod.netns, || UdpSocket::bind("0.0.0.0:0").unwrap());
    assert!(node.network.shut(&attachment).unwrap().is_some());
    node.network.lock_leases().release("pod").unwrap();
    assert_eq!(
        node.network.shut(&attachment).unwrap(),
        None,
        "a second time"
    );
    unpin(&pod.pin).unwrap();
    drop(pod);
    let removed = node.reopened().sweep(&[], &HashSet::new()).unwrap();
    let expected = format!("interface {}", attachment.host_interface);
    assert!(removed.contains(&expected), "{removed:?}");
    assert!(node.interfaces().is_empty());
    drop(held);
}
