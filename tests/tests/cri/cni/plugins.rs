//! Debian's plugins: addresses, reachability, host ports, limits, and everything given back.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::TIMEOUT;
use coracle_tests::daemon::{Daemon, Options};
use serde_json::json;

use super::{daemon, end};
use crate::linux::shell::{self, run_sh, sh};
use crate::network::free_ports;
use crate::network::outside::Greeter;
use crate::site::{Pod, eventually};

/// A daemon that has pulled the busybox image, too.
async fn linux_daemon() -> Daemon {
    let options = Options {
        cni: Some(30),
        config: super::CHOOSE.to_owned(),
        ..Options::default()
    };
    shell::daemon_with(options).await
}

/// What an HTTP server at this address answers.
fn get(address: &str) -> std::io::Result<String> {
    let address: SocketAddr = address.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

async fn ip(pod: &Pod) -> String {
    let status = pod.cri.pod_status(&pod.id).await.unwrap();
    status.network.unwrap().ip
}

/// Starts a web server on port 8080 that answers with the pod's name.
async fn serve(daemon: &Daemon, pod: &Pod) {
    let name = &pod.config.metadata.as_ref().unwrap().name;
    let script = format!(
        "mkdir /tmp/www; echo I am {name} > /tmp/www/index.html; httpd -p 8080 -h /tmp/www; echo ready; exec sleep 1000"
    );
    pod.start(&sh("server", &script)).await;
    pod.wait_log(daemon, "server", "ready").await;
}

fn tool(command: &str) -> String {
    let out = Command::new("/bin/sh")
        .args(["-c", command])
        .output()
        .unwrap();
    assert!(
        out.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap()
}

#[tokio::test]
async fn pods_on_a_bridge_reach_each_other_and_give_all_of_it_back() {
    let daemon = linux_daemon().await;
    let place = daemon.cni();
    let (a, b) = (Pod::run(&daemon, "a").await, Pod::run(&daemon, "b").await);
    serve(&daemon, &a).await;
    let (first, second) = (ip(&a).await, ip(&b).await);
    let mut given = [first.clone(), second.clone()];
    given.sort();
    assert_eq!(place.addresses(), given);
    assert_eq!(place.ports().len(), 2);
    assert!(
        get(&format!("{first}:8080")).unwrap().contains("I am a"),
        "from the node"
    );
    let seen = run_sh(&daemon, &b, &format!("wget -q -O - http://{first}:8080/")).await;
    seen.says(&["I am a"]);
    // The pod has what it was said to have, and its loopback.
    let own = run_sh(&daemon, &b, "ip -o -4 addr show | awk '{print $2, $4}'")
        .await
        .ok();
    assert!(
        own.contains(&format!("eth0 {second}/20")) && own.contains("lo 127.0.0.1/8"),
        "{own}"
    );
    end(&a).await;
    assert_eq!(place.addresses(), [second]);
    end(&b).await;
    assert!(place.addresses().is_empty() && place.entries().is_empty());
    eventually("the bridge has no ports", || place.ports().is_empty()).await;
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn host_ports_limits_and_addresses_reach_the_plugins_that_can() {
    let daemon = linux_daemon().await;
    let (place, subnet) = (daemon.cni(), daemon.scratch().subnet());
    let wanted = subnet.replace(".0/20", ".77/20");
    let list = json!({
        "cniVersion": "1.0.0", "name": daemon.scratch().interface_prefix(),
        "plugins": [
            {
                "type": "bridge", "bridge": place.bridge(), "isGateway": true, "hairpinMode": true,
                "capabilities": {"ips": true},
                "ipam": {
                    "type": "host-local", "dataDir": daemon.scratch().dir().join("ipam"),
                    "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
            {"type": "bandwidth", "capabilities": {"bandwidth": true}},
            {"type": "tuning", "capabilities": {"mac": true}},
        ],
    });
    place.configure(&list).unwrap();
    let port = free_ports(&daemon);
    let mut config = daemon.pod("asks");
    config.port_mappings = vec![cri::PortMapping {
        protocol: cri::Protocol::Tcp as i32,
        container_port: 8080,
        host_port: port,
        host_ip: String::new(),
    }];
    config.annotations.extend([
        ("kubernetes.io/ingress-bandwidth".into(), "10M".into()),
        ("kubernetes.io/egress-bandwidth".into(), "20M".into()),
        ("cni.coracle.dev/ips".into(), wanted.clone()),
        ("cni.coracle.dev/mac".into(), "02:00:5e:00:53:01".into()),
    ]);
    let pod = Pod::run_config(&daemon, config).await;
    serve(&daemon, &pod).await;
    assert_eq!(format!("{}/20", ip(&pod).await), wanted);
    for node in ["127.0.0.1", wanted.replace(".77/20", ".1").as_str()] {
        assert!(
            get(&format!("{node}:{port}"))
                .unwrap()
                .contains("I am asks"),
            "{node}"
        );
    }
    run_sh(&daemon, &pod, "cat /sys/class/net/eth0/address")
        .await
        .says(&["02:00:5e:00:53:01"]);
    let veth = place.ports().remove(0);
    let shaped = tool(&format!("tc qdisc show dev {veth}"));
    assert!(
        shaped.contains("tbf") && shaped.contains("10Mbit"),
        "{shaped}"
    );
    end(&pod).await;
    assert!(get(&format!("127.0.0.1:{port}")).is_err());
    let rules = tool("iptables -t nat -S");
    assert!(
        !rules.contains(&pod.id) && !rules.contains(&format!("dport {port}")),
        "{rules}"
    );
    assert!(place.addresses().is_empty());
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn both_families_are_told_ipv4_first() {
    let daemon = daemon(30).await;
    let list = json!({
        "cniVersion": "0.3.1", "name": daemon.scratch().interface_prefix(),
        "plugins": [{
            "type": "ptp", "ipam": {
                "type": "host-local", "dataDir": daemon.scratch().dir().join("ipam"),
                "ranges": [[{"subnet": "fd00:96::/64"}], [{"subnet": daemon.scratch().subnet()}]],
            },
        }],
    });
    daemon.cni().configure(&list).unwrap();
    let pod = Pod::run(&daemon, "dual").await;
    let network = pod.cri.pod_status(&pod.id).await.unwrap().network.unwrap();
    assert!(
        network.ip.parse::<IpAddr>().unwrap().is_ipv4(),
        "{}",
        network.ip
    );
    assert_eq!(network.additional_ips.len(), 1);
    assert!(network.additional_ips[0].ip.starts_with("fd00:96::"));
    assert_eq!(daemon.cni().addresses().len(), 2);
    end(&pod).await;
    assert!(daemon.cni().addresses().is_empty());
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn many_pods_come_and_go_at_once() {
    let daemon = daemon(60).await;
    let mut runs = tokio::task::JoinSet::new();
    for number in 0..24 {
        let (cri, config) = (daemon.cri(), daemon.pod(&format!("many-{number}")));
        runs.spawn(async move {
            let id = cri.run_pod(&config).await.unwrap();
            let ip = cri.pod_status(&id).await.unwrap().network.unwrap().ip;
            (id, ip)
        });
    }
    let pods = runs.join_all().await;
    let mut ips: Vec<String> = pods.iter().map(|(_, ip)| ip.clone()).collect();
    ips.sort();
    ips.dedup();
    assert_eq!(ips.len(), 24, "every pod has an address of its own");
    assert_eq!(daemon.cni().addresses(), ips);
    let mut stops = tokio::task::JoinSet::new();
    for (id, _) in pods {
        let cri = daemon.cri();
        stops.spawn(async move { cri.stop_pod(&id).await.unwrap() });
    }
    stops.join_all().await;
    assert!(daemon.cni().addresses().is_empty());
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_list_does_not_open_the_node_at_an_address_that_plugins_give_it() {
    let daemon = linux_daemon().await;
    let mut config = daemon.pod("first");
    let key = "egress.coracle.dev/allow".to_owned();
    config.annotations.insert(key, "0.0.0.0/0".to_owned());
    // The bridge gets its address with the first pod.
    let first = Pod::run_config(&daemon, config).await;
    let own = ip(&first).await;
    let gateway = format!("{}.1", own.rsplit_once('.').unwrap().0);
    // Stands in for the API server.
    let api = Greeter::listen(&gateway, 6443);
    let open = Pod::run(&daemon, "open").await;
    let script = format!("nc -w 20 {gateway} 6443 </dev/null || echo shut");
    for (pod, expected) in [(&open, "open"), (&first, "shut")] {
        let mut client = sh("client", &script);
        shell::security(&mut client).capabilities = Some(cri::Capability {
            drop_capabilities: vec!["NET_RAW".into()],
            ..Default::default()
        });
        shell::run(&daemon, pod, &client).await.says(&[expected]);
    }
    drop(api);
    end(&open).await;
    end(&first).await;
    daemon.finish().await.unwrap();
}
