//! Names: what a pod's resolver files say, and who answers.

use coracle_tests::nameserver::Answer;

use super::{addresses, ip, net, net_daemon, with_nameserver};

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
        let output = net(&daemon, &pod, &image, &["resolve", name]).await;
        assert_eq!(
            (output.0, output.1.as_str()),
            (0, expected),
            "{name}: {output:?}"
        );
    }
    for (name, expected) in [
        ("absent.example.com", "name-unresolvable"),
        ("broken.example.com", "temporary-resolver-failure"),
        ("silent.example.com", "temporary-resolver-failure"),
        // The image's own hosts file is not the pod's.
        ("from-the-image", "name-unresolvable"),
        ("no name", "invalid-argument"),
    ] {
        let output = net(&daemon, &pod, &image, &["resolve", name]).await;
        assert_eq!(
            output.2,
            format!("resolve {name}: {expected}\n"),
            "{output:?}"
        );
    }
    // A name with fewer dots than ndots goes through the search list first.
    let queries = names.queries();
    let has = |name: &str| queries.iter().any(|one| one == name);
    assert!(
        has("db.test.svc.cluster.local") && !has("db"),
        "{queries:?}"
    );
    let output = net(
        &daemon,
        &pod,
        &image,
        &["http-get", "http://web.local.test:8088/"],
    )
    .await;
    assert_eq!(
        output.1, "status 200\nserved by a component\n",
        "{output:?}"
    );
    let output = net(
        &daemon,
        &pod,
        &image,
        &["http-get", "http://absent.example.com/"],
    )
    .await;
    assert_eq!(output.2, "http-get http://absent.example.com/: DNS-error\n");
    drop(names);
    daemon.finish().await.unwrap();
}
