//! What an attach that fails leaves: nothing.

use super::*;

#[test]
fn failed_attach_leaves_nothing() {
    let node = Node::new();
    let (one, two) = (node.pod("one"), node.pod("two"));
    let attachment = node.attach(&one);
    // Its eth0 is taken.
    let error = node
        .network
        .attach(&pod_config("other"), one.netns.as_fd())
        .unwrap_err();
    assert!(error.to_string().starts_with("create veth c"), "{error}");
    let file = std::fs::File::open("/proc/self/cmdline").unwrap();
    let error = node
        .network
        .attach(&pod_config("nowhere"), file.as_fd())
        .unwrap_err();
    assert_eq!(error.to_string(), "enter the pod's network namespace");
    assert_eq!(node.network.leases(), 1);
    assert_eq!(node.interfaces(), [attachment.host_interface.as_str()]);
    node.end(one, &attachment);
    unpin(&two.pin).unwrap();
}

#[test]
fn failed_configuration_takes_the_veth_back() {
    let node = Node::new();
    let pod = node.pod("pod");
    let v6_is_off = |off: &str| {
        inside(&pod.netns, || {
            std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", off).unwrap()
        });
    };
    v6_is_off("1");
    let error = node
        .network
        .attach(&pod_config("pod"), pod.netns.as_fd())
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("add pod address fd00:c0:ac:"), "{error}");
    assert_eq!((node.network.leases(), node.interfaces().len()), (0, 0));
    v6_is_off("0");
    let attachment = node.attach(&pod);
    node.end(pod, &attachment);
}
