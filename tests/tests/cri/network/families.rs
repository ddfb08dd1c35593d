//! Two address families, one, or not even a link-local address.

use std::net::IpAddr;

use coracle_tests::daemon::Options;

use super::outside::fetch;
use super::{addresses, free_ports, mapping, web, with_ports};
use crate::linux::shell::{daemon_with, on_peer, run_sh};
use crate::site::Pod;

/// What of the kernel's view a pod without IPv6 may have: nothing.
const LOOK: &str = "cat /proc/net/if_inet6 | wc -l; cat /proc/sys/net/ipv6/conf/eth0/disable_ipv6; \
                    wget -q -O - http://[::1]:1/ 2>&1 | grep -c -i 'assign\\|unreach\\|not support'";

#[tokio::test]
async fn a_pod_has_an_address_of_each_family() {
    if on_peer() {
        return; // Its network is another one.
    }
    // Of this test alone.
    let options = Options {
        network: "subnet_v6 = \"fd00:c0:ac:2::/64\"".to_owned(),
        ..Options::default()
    };
    let mut daemon = daemon_with(options).await;
    let port = free_ports(&daemon);
    let pod = web(&daemon, with_ports(&daemon, "web", vec![mapping(port, "")])).await;
    let other = Pod::run(&daemon, "other").await;
    let ips = addresses(&pod).await;
    let parsed: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
    assert!(
        parsed[0].is_ipv4() && parsed[1].is_ipv6() && parsed.len() == 2,
        "{ips:?}"
    );
    for ip in &ips {
        let host = if ip.contains(':') {
            format!("[{ip}]")
        } else {
            ip.clone()
        };
        assert_eq!(fetch(&format!("{host}:80")).as_deref(), Some("web"), "{ip}");
        let script = format!("wget -q -O - http://{host}/");
        run_sh(&daemon, &other, &script).await.says(&["web"]);
        run_sh(&daemon, &pod, &script).await.says(&["web"]);
    }
    let script = format!("grep -c -e '{}' -e '{}' /etc/hosts", ips[0], ips[1]);
    run_sh(&daemon, &pod, &script).await.says(&["2"]);
    // The kubelet takes a pod without addresses for one to be made anew.
    daemon.restart().await.unwrap();
    assert_eq!(addresses(&pod).await, ips);
    assert_eq!(fetch(&format!("127.0.0.1:{port}")).as_deref(), Some("web"));
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_pod_has_no_ipv6_where_it_is_off() {
    if on_peer() {
        return; // It has no such setting.
    }
    let options = Options {
        network: "ipv6 = \"off\"".to_owned(),
        ..Options::default()
    };
    let daemon = daemon_with(options).await;
    let pod = web(&daemon, daemon.pod("web")).await;
    let ips = addresses(&pod).await;
    assert!(
        ips.len() == 1 && fetch(&format!("{}:80", ips[0])).is_some(),
        "{ips:?}"
    );
    run_sh(&daemon, &pod, LOOK).await.says(&["0", "1", "1"]);
    daemon.finish().await.unwrap();
}
