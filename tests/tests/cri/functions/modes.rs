//! Which of its exports a component is run by.

use coracle_tests::client::container;
use coracle_tests::guests;
use coracle_tests::push::Image;
use serde_json::json;
use tonic::Code;

use super::{annotated, functions, start};
use crate::site::{Pod, images, refused};

/// A component that is a program, which ends at once, and handles requests, which it leaves without an answer: one of
/// the two parts if `only` names it.
fn component(only: Option<&str>) -> Vec<u8> {
    let part = |name: &str, text: &'static str| match only {
        Some(only) if only != name => "",
        _ => text,
    };
    let run = part(
        "run",
        r#"(func $run (result (result)) (canon lift (core func $i "run")))
           (instance $cli (export "run" (func $run)))
           (export "wasi:cli/run@0.2.0" (instance $cli))"#,
    );
    let handler = part(
        "handler",
        r#"(func $handle (param "request" (own $request)) (param "response-out" (own $out))
             (canon lift (core func $i "handle")))
           (instance $handler (export "handle" (func $handle)))
           (export "wasi:http/incoming-handler@0.2.0" (instance $handler))"#,
    );
    let text = format!(
        r#"(component
             (import "wasi:http/types@0.2.0" (instance $types
               (export "incoming-request" (type (sub resource)))
               (export "response-outparam" (type (sub resource)))))
             (alias export $types "incoming-request" (type $request))
             (alias export $types "response-outparam" (type $out))
             (core module $m
               (func (export "run") (result i32) (i32.const 0))
               (func (export "handle") (param i32 i32)))
             (core instance $i (instantiate $m))
             {run} {handler})"#
    );
    guests::module(&text).unwrap()
}

#[tokio::test]
async fn a_component_that_can_be_both_is_what_its_image_or_its_pod_says() {
    let (daemon, _) = functions().await;
    let both = component(None);
    let push = |name: &str, target: Option<&str>| {
        let mut image = Image::artifact(&both);
        if let Some(target) = target {
            image.config["component"] = json!({"exports": [], "imports": [], "target": target});
        }
        let pushed = image.push(images().registry.host(), name, "v1").unwrap();
        pushed.reference
    };
    let usual = push("both", None);
    let proxy = push("both-proxy", Some("wasi:http/proxy@0.2.0"));
    let command = push("both-command", Some("wasi:cli/command@0.2.3"));
    let own = push("both-own", Some("acme:shop/till@1.0.0"));
    for image in [&usual, &proxy, &command, &own] {
        daemon.cri().pull(image).await.unwrap();
    }
    for (name, image, annotation, is_served) in [
        ("usual", &usual, None, false),
        ("own", &own, None, false),
        ("command", &command, None, false),
        ("proxy", &proxy, None, true),
        ("annotated", &usual, Some("true"), true),
        ("told-off", &proxy, Some("false"), false),
    ] {
        let annotations: Vec<_> = annotation
            .map(|value| ("serve", value))
            .into_iter()
            .collect();
        let pod = Pod::run_config(&daemon, annotated(&daemon, name, &annotations)).await;
        let config = container("function", image, &[]);
        if is_served {
            let function = start(pod, &config, 8080).await;
            // It handles the request, badly.
            assert_eq!(function.get("/").0, 500, "{name}");
        } else {
            let (status, _) = pod.finish(&daemon, &config).await;
            let seen = (status.exit_code, status.reason.as_str());
            assert_eq!(seen, (0, "Completed"), "{name}: {}", status.message);
        }
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_mode_that_a_component_does_not_have_is_refused_by_name() {
    let (daemon, _) = functions().await;
    for (only, annotation, target, export, source) in [
        (
            "run",
            Some("true"),
            None,
            "wasi:http/incoming-handler",
            "http.coracle.dev/serve",
        ),
        (
            "run",
            None,
            Some("wasi:http/proxy@0.2.0"),
            "wasi:http/incoming-handler",
            "component.target",
        ),
        (
            "handler",
            Some("false"),
            None,
            "wasi:cli/run",
            "http.coracle.dev/serve",
        ),
    ] {
        let mut image = Image::artifact(&component(Some(only)));
        if let Some(target) = target {
            image.config["component"] = json!({"target": target});
        }
        let name = format!("only-{only}-{}", target.is_some());
        let pushed = image.push(images().registry.host(), &name, "v1").unwrap();
        daemon.cri().pull(&pushed.reference).await.unwrap();
        let annotations: Vec<_> = annotation
            .map(|value| ("serve", value))
            .into_iter()
            .collect();
        let pod = Pod::run_config(&daemon, annotated(&daemon, &name, &annotations)).await;
        let created = pod.create(&container("c", &pushed.reference, &[])).await;
        refused(created, Code::InvalidArgument, &[export, source]);
    }
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn an_image_of_several_components_is_refused_with_what_to_do() {
    let (daemon, _) = functions().await;
    let mut image = Image::artifact(&component(None));
    let dependency = component(Some("run"));
    image.layers.push(("application/wasm".into(), dependency));
    let pushed = image
        .push(images().registry.host(), "composed", "v1")
        .unwrap();
    let pulled = daemon.cri().pull(&pushed.reference).await;
    refused(
        pulled,
        Code::InvalidArgument,
        &["2 among 2 layers", "compose"],
    );
    daemon.finish().await.unwrap();
}
