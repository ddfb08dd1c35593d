//! Where a function listens.

use std::net::{SocketAddr, TcpStream};

use coracle_tests::client::container;
use tonic::Code;

use super::{annotated, functions, push, start, variable};
use crate::site::{Pod, refused};

#[tokio::test]
async fn the_port_is_the_pods_then_the_environments_then_the_images_then_8080() {
    let (daemon, image) = functions().await;
    let exposing = push("exposing", |config| {
        config["config"]["ExposedPorts"] =
            serde_json::json!({"53/udp": {}, "9002/tcp": {}, "9001": {}});
    });
    daemon.cri().pull(&exposing).await.unwrap();
    for (name, annotation, port, image, expected) in [
        ("usual", None, "", &image, 8080),
        ("exposed", None, "", &exposing, 9001),
        ("env", None, "9003", &exposing, 9003),
        ("annotated", Some(("port", "80")), "9003", &exposing, 80),
        ("low", None, "443", &image, 443),
    ] {
        let annotations = annotation.as_slice();
        let pod = Pod::run_config(&daemon, annotated(&daemon, name, annotations)).await;
        let mut config = container("function", image, &[]);
        if !port.is_empty() {
            config.envs = vec![variable("PORT", port)];
        }
        let function = start(pod, &config, expected).await;
        assert_eq!(function.get("/hello").0, 200, "{name}");
        if expected != 8080 {
            let other = SocketAddr::new(function.at.ip(), 8080);
            assert!(TcpStream::connect(other).is_err(), "{name}");
        }
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_port_that_is_taken_or_none_is_told() {
    let (daemon, image) = functions().await;
    let pod = Pod::run(&daemon, "taken").await;
    let mut odd = container("odd", &image, &[]);
    odd.envs = vec![variable("PORT", "http")];
    refused(
        pod.create(&odd).await,
        Code::InvalidArgument,
        &["PORT", "http"],
    );
    let first = start(pod, &container("first", &image, &[]), 8080).await;
    let second = first.pod.create(&container("second", &image, &[])).await;
    let second = second.unwrap();
    let failed = first.pod.cri.start(&second).await.unwrap_err();
    let words = ["8080", "http.coracle.dev/port"];
    assert!(
        words.iter().all(|word| failed.message().contains(word)),
        "{failed}"
    );
    assert_eq!(first.get("/hello").0, 200);
    // A container that starts again has its port at once.
    first.pod.cri.stop(&first.id, 5).await.unwrap();
    let again = start(first.pod, &container("again", &image, &[]), 8080).await;
    assert_eq!(again.get("/hello").0, 200);
    daemon.finish().await.unwrap();
}
