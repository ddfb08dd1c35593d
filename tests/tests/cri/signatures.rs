//! The signature policy: what the kubelet is told of an image that is not signed as the node demands, and `coracle check`.

use std::path::PathBuf;
use std::process::Command;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client;
use coracle_tests::daemon::{Daemon, Options};
use coracle_tests::guests;
use coracle_tests::push::signature::Signer;
use coracle_tests::push::{Image, Pushed};
use tonic::{Code, Status};

use crate::site::{Pod, images, refused};

/// The files of a policy, removed at the end.
struct Policies(PathBuf);

impl Policies {
    fn new(name: &str) -> Self {
        let path = format!("/tmp/coracle-signatures-{}-{name}", std::process::id());
        let path = PathBuf::from(path);
        std::fs::create_dir_all(path.join("namespaces")).unwrap();
        Self(path)
    }

    fn set(&self, file: &str, text: &str) {
        std::fs::write(self.0.join(file), text).unwrap();
    }

    async fn daemon(&self) -> Daemon {
        let dir = self.0.display();
        let options = Options {
            images: format!(
                "signature_policy = \"{dir}/policy.json\"\nsignature_policy_dir = \"{dir}/namespaces\""
            ),
            ..Options::default()
        };
        Daemon::start_with(options).await.unwrap()
    }
}

impl Drop for Policies {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn push(name: &str) -> Pushed {
    let module = guests::nothing(name).unwrap();
    Image::artifact(&module)
        .push(images().registry.host(), name, "v1")
        .unwrap()
}

/// PullImage for a pod of this namespace.
async fn pull_for(daemon: &Daemon, image: &Pushed, namespace: &str) -> Result<String, Status> {
    let metadata = cri::PodSandboxMetadata {
        namespace: namespace.into(),
        ..Default::default()
    };
    let request = cri::PullImageRequest {
        image: Some(client::image(&image.reference)),
        sandbox_config: Some(cri::PodSandboxConfig {
            metadata: Some(metadata),
            ..Default::default()
        }),
        ..Default::default()
    };
    let pulled = daemon.cri().images.clone().pull_image(request).await?;
    Ok(pulled.into_inner().image_ref)
}

fn expect_refusal(pulled: Result<String, Status>, says: &str) {
    let refused = pulled.unwrap_err();
    assert_eq!(refused.code(), Code::Unknown, "{refused}");
    let text = refused.message();
    assert!(text.starts_with("SignatureValidationFailed: "), "{text}");
    assert!(text.contains(says), "{text} does not say {says}");
}

#[tokio::test]
async fn an_unsigned_image_is_refused_as_the_kubelet_reads_it_and_a_signed_one_is_pulled() {
    let policies = Policies::new("pulls");
    let (host, signer) = (
        images().registry.host(),
        Signer::new(&policies.0.join("keys")).unwrap(),
    );
    let signed_by_us = format!(
        r#"{{"type":"sigstoreSigned","keyPath":"{}","signedIdentity":{{"type":"matchRepository"}}}}"#,
        signer.public()
    );
    policies.set("policy.json", &format!(
        r#"{{"default":[{{"type":"reject"}}],"transports":{{"docker":{{"{host}":[{signed_by_us}]}}}}}}"#
    ));
    policies.set(
        "namespaces/lenient.json",
        r#"{"default":[{"type":"insecureAcceptAnything"}]}"#,
    );
    policies.set("namespaces/broken.json", "{");
    let daemon = policies.daemon().await;
    let (signed, unsigned) = (push("signed"), push("unsigned"));
    signer.sign(host, "signed", &signed).unwrap();
    let id = daemon.cri().pull(&signed.reference).await.unwrap();
    assert!(daemon.cri().image(&id).await.unwrap().is_some());
    for reference in [&unsigned.reference, &unsigned.by_digest] {
        expect_refusal(
            daemon.cri().pull(reference).await,
            "the image has no signature",
        );
        assert!(daemon.cri().image(reference).await.unwrap().is_none());
    }
    expect_refusal(
        pull_for(&daemon, &unsigned, "default").await,
        "has no signature",
    );
    expect_refusal(pull_for(&daemon, &signed, "broken").await, "broken.json");
    expect_refusal(
        pull_for(&daemon, &signed, "../broken").await,
        "no name of a namespace",
    );
    assert_eq!(pull_for(&daemon, &signed, "default").await.unwrap(), id);
    pull_for(&daemon, &unsigned, "lenient").await.unwrap();
    // What another namespace has pulled is there, and yet not for a namespace that demands signatures.
    policies.set(
        "namespaces/strict.json",
        &format!(r#"{{"default":[{signed_by_us}]}}"#),
    );
    for (namespace, image, is_allowed) in [
        ("strict", &unsigned, false),
        ("strict", &signed, true),
        ("lenient", &unsigned, true),
    ] {
        let mut config = daemon.pod(&format!("{namespace}-{is_allowed}"));
        config.metadata.as_mut().unwrap().namespace = namespace.into();
        let pod = Pod::run_config(&daemon, config).await;
        let created = pod
            .create(&client::container("c", &image.reference, &[]))
            .await;
        match is_allowed {
            true => drop(created.unwrap()),
            false => refused(
                created,
                Code::InvalidArgument,
                &["signature policy", "strict.json"],
            ),
        }
    }
    daemon.cri().remove_image(&signed.reference).await.unwrap();
    daemon
        .cri()
        .remove_image(&unsigned.reference)
        .await
        .unwrap();
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn check_names_a_policy_that_refuses_every_pull() {
    let policies = Policies::new("check");
    let dir = policies.0.display();
    let config = format!(
        "[images]\nsignature_policy = \"{dir}/policy.json\"\nsignature_policy_dir = \"{dir}/namespaces\"\n"
    );
    policies.set("config.toml", &config);
    let check = || {
        let output = Command::new(coracle_tests::daemon::binary().unwrap())
            .args(["check", "--config", &format!("{dir}/config.toml")])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(
        check().contains("policy.json: it is not there"),
        "{}",
        check()
    );
    policies.set("policy.json", r#"{"default":[{"type":"signedBy"}]}"#);
    policies.set("namespaces/a.json", r#"{"default":[]}"#);
    let found = check();
    for says in [
        "GPG keys are not supported",
        "a.json: its scope \"default\": it has no requirements",
    ] {
        assert!(found.contains(says), "{found} does not say {says}");
    }
    policies.set("policy.json", r#"{"default":[{"type":"reject"}]}"#);
    policies.set("namespaces/a.json", r#"{"default":[{"type":"reject"}]}"#);
    let found = check();
    assert!(found.contains("policy.json is readable"), "{found}");
    assert!(found.contains("1 policies of namespaces"), "{found}");
    std::fs::remove_dir_all(policies.0.join("namespaces")).unwrap();
    let found = check();
    assert!(
        found.contains("every pull and container is refused: images.signature_policy_dir"),
        "{found}"
    );
}
