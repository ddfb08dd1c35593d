//! The signature policies of namespaces: each has its own, and no other one lends it an image.

use coracle_images::ErrorKind;
use serde_json::json;

use super::signatures::{Node, accept, attach, digest_of, signed_as, signed_by};
use crate::support::signer::Signer;
use crate::support::{MODULE, Parts, Registry, ScriptedRegistry};

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_has_its_own_policy_and_shares_no_pull_with_others() {
    let registry = Registry::start().await;
    let node = Node::new(&json!({"default": [{"type": "reject"}]})).await;
    let name = format!("{}/app:v1", registry.host);
    registry.image("app", "v1", &Parts::artifact(MODULE)).await;
    node.set("policies/open.json", &accept());
    let signer = Signer::new("P-256");
    node.set("policies/strict.json", &signed_by(&signer.public()));
    let (open, strict, other) = tokio::join!(
        node.pull_in("open", &name),
        node.pull_in("strict", &name),
        node.pull_in("other", &name),
    );
    open.unwrap();
    for (refused, says) in [(strict, "has no signature"), (other, "rejects this image")] {
        let refused = refused.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Signature, "{refused}");
        assert!(refused.to_string().contains(says), "{refused}");
    }
    for odd in [
        "../open",
        "/etc/x",
        ".",
        "OPEN",
        "open\0",
        "a/b",
        &"n".repeat(300),
    ] {
        let refused = node.pull_in(odd, &name).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Signature, "{refused}");
        assert!(
            refused.to_string().contains("no name of a namespace"),
            "{refused}"
        );
    }
}

/// The kubelet does not pull what is there, so that a container's creation asks.
#[tokio::test(flavor = "multi_thread")]
async fn a_stored_image_is_for_namespaces_whose_policy_a_pull_has_met() {
    let registry = Registry::start().await;
    let node = Node::new(&accept()).await;
    let name = format!("{}/app", registry.host);
    let digest = digest_of(&registry.image("app", "v1", &Parts::artifact(MODULE)).await);
    let (signer, other) = (Signer::new("P-256"), Signer::new("P-256"));
    node.set("policies/strict.json", &signed_by(&signer.public()));
    node.set("policies/other.json", &signed_by(&other.public()));
    node.set(
        "policies/none.json",
        &json!({"default": [{"type": "reject"}]}),
    );
    let tag = format!("{name}:v1");
    let image = node.pull(&tag).await.unwrap();
    let may = |namespace: &str, called: &str| {
        let checked = node.images.check_stored(&image.id, called, namespace);
        checked.map_err(|error| assert_eq!(error.kind(), ErrorKind::Signature, "{error}"))
    };
    let id = image.id.to_string();
    for called in [tag.as_str(), id.as_str(), ""] {
        may("default", called).unwrap();
        for namespace in ["strict", "other", "none", "../strict"] {
            may(namespace, called).unwrap_err();
        }
    }
    attach(&registry, "app", &digest, &[signer.simple(&digest, &name)]).await;
    may("strict", &tag).unwrap_err();
    node.pull_in("strict", &tag).await.unwrap();
    // Other pulls take nothing away, and neither does a restart.
    node.pull(&tag).await.unwrap();
    node.pull_in("other", &tag).await.unwrap_err();
    for called in [tag.as_str(), id.as_str(), ""] {
        may("strict", called).unwrap();
        may("other", called).unwrap_err();
        may("none", called).unwrap_err();
    }
    may("strict", "other.example/app:v1").unwrap_err();
    may("strict", &format!("{name}:v2")).unwrap_err();
    // The policy has changed: another key, and then another name.
    node.set("policies/strict.json", &signed_by(&other.public()));
    may("strict", &tag).unwrap_err();
    node.set(
        "policies/strict.json",
        &signed_as(&signer.public(), &json!({"type": "matchExact"})),
    );
    may("strict", &tag).unwrap_err();
    node.set("policies/strict.json", &signed_by(&signer.public()));
    may("strict", &tag).unwrap();
}

/// The kubelet finds it for pods of other namespaces, too, and does not pull.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_namespace_has_pulled_under_its_own_policy_is_not_for_the_others() {
    let registry = Registry::start().await;
    let signer = Signer::new("P-256");
    let node = Node::new(&signed_by(&signer.public())).await;
    node.set("policies/dev.json", &accept());
    let name = format!("{}/app", registry.host);
    let digest = digest_of(&registry.image("app", "v1", &Parts::artifact(MODULE)).await);
    let (tag, by_digest) = (format!("{name}:v1"), format!("{name}@{digest}"));
    let image = node.pull_in("dev", &tag).await.unwrap();
    let id = image.id.to_string();
    let may =
        |namespace: &str, called: &str| node.images.check_stored(&image.id, called, namespace);
    let names = [tag.as_str(), by_digest.as_str(), id.as_str(), ""];
    for called in names {
        may("dev", called).unwrap();
        let refused = may("default", called).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Signature, "{refused}");
        assert!(refused.to_string().contains("pull it again"), "{refused}");
    }
    attach(&registry, "app", &digest, &[signer.simple(&digest, &name)]).await;
    node.pull(&tag).await.unwrap();
    // What the node's policy has accepted stays so.
    node.pull_in("dev", &tag).await.unwrap();
    for called in names {
        may("default", called).unwrap();
    }
    // The same image by another name, which only the namespace's policy has accepted.
    node.pull_in("dev", &by_digest).await.unwrap();
    may("default", &by_digest).unwrap();
    registry
        .image("other", "v1", &Parts::artifact(MODULE))
        .await;
    let other = format!("{}/other:v1", registry.host);
    assert_eq!(node.pull_in("dev", &other).await.unwrap().id, image.id);
    may("default", &other).unwrap_err();
    may("default", &tag).unwrap();
    may("default", &id).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_of_namespaces_that_cannot_be_found_refuse_pulls_and_stored_images() {
    let registry = ScriptedRegistry::start().await;
    registry.serve_image("app", "v1", &Parts::artifact(MODULE));
    let reference = format!("{}/app:v1", registry.host);
    let node = Node::new(&accept()).await;
    let policies = node.scratch.0.join("policies");
    let refused = async |says: &str| {
        let refused = node.pull_in("team", &reference).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Signature, "{refused}");
        assert!(refused.to_string().contains(says), "{refused}");
    };
    let link = policies.join("team.json");
    std::os::unix::fs::symlink("nowhere", &link).unwrap();
    refused("team.json: it is a link").await;
    std::fs::remove_dir_all(&policies).unwrap();
    refused("images.signature_policy_dir cannot be read").await;
    std::os::unix::fs::symlink("nowhere", &policies).unwrap();
    refused("images.signature_policy_dir cannot be read").await;
    std::fs::remove_file(&policies).unwrap();
    std::fs::write(&policies, "").unwrap();
    refused("Not a directory").await;
    assert!(registry.heads().is_empty(), "{:?}", registry.heads());
    std::fs::remove_file(&policies).unwrap();
    std::fs::create_dir(&policies).unwrap();
    let image = node.pull_in("team", &reference).await.unwrap();
    let check = || node.images.check_stored(&image.id, &reference, "team");
    check().unwrap();
    std::os::unix::fs::symlink("nowhere", &link).unwrap();
    assert_eq!(check().unwrap_err().kind(), ErrorKind::Signature);
    std::fs::remove_dir_all(&policies).unwrap();
    assert_eq!(check().unwrap_err().kind(), ErrorKind::Signature);
}
