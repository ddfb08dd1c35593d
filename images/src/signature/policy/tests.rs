use super::*;

fn scope_of(policy: &Policy, image: &str) -> String {
    policy.requirements(&image.parse().unwrap()).0.to_owned()
}

#[test]
fn the_most_specific_scope_decides() {
    let all = [
        "",
        "*.example.com",
        "*.com",
        "r.example.com:5000",
        "r.example.com:5000/a",
        "r.example.com:5000/a/b",
        "r.example.com:5000/a/b:1",
        "docker.io/library/busybox",
    ];
    let scopes: Vec<String> = all
        .iter()
        .map(|scope| format!(r#""{scope}":[{{"type":"reject"}}]"#))
        .collect();
    let text = format!(
        r#"{{"default":[{{"type":"reject"}}],"transports":{{"docker":{{{}}},"atomic":{{}}}}}}"#,
        scopes.join(",")
    );
    let policy = Policy::parse(text.as_bytes()).unwrap();
    let digest = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    for (image, scope) in [
        ("r.example.com:5000/a/b:1", "r.example.com:5000/a/b:1"),
        ("r.example.com:5000/a/b:2", "r.example.com:5000/a/b"),
        (
            &format!("r.example.com:5000/a/b@{digest}"),
            "r.example.com:5000/a/b",
        ),
        ("r.example.com:5000/a/bc:1", "r.example.com:5000/a"),
        ("r.example.com:5000/ab", "r.example.com:5000"),
        ("r.example.com/a/b:1", "*.example.com"),
        ("x.y.example.com:1/a", "*.example.com"),
        ("example.com/a", "*.com"),
        ("example.org/a", ""),
        ("[::1]:5000/a", ""),
        ("busybox", "docker.io/library/busybox"),
        ("alpine", ""),
    ] {
        assert_eq!(scope_of(&policy, image), scope, "{image}");
    }
    let policy = Policy::parse(br#"{"default":[{"type":"insecureAcceptAnything"}]}"#).unwrap();
    assert_eq!(scope_of(&policy, "busybox"), "default");
}

#[test]
fn a_policy_that_is_not_understood_whole_is_refused() {
    let sigstore =
        |fields: &str| format!(r#"{{"default":[{{"type":"sigstoreSigned",{fields}}}]}}"#);
    for bad in [
        String::new(),
        "{}".to_owned(),
        r#"{"default":[]}"#.to_owned(),
        r#"{"default":[{"type":"accept"}]}"#.to_owned(),
        r#"{"default":[{"type":"reject","type":"reject"}]}"#.to_owned(),
        r#"{"default":[{"type":"reject","more":1}]}"#.to_owned(),
        r#"{"default":[{"type":"reject"}],"default":[{"type":"insecureAcceptAnything"}]}"#.to_owned(),
        r#"{"default":[{"type":"reject"}],"transport":{}}"#.to_owned(),
        r#"{"default":[{"type":"reject"}],"transports":{"docker":{"a":[{"type":"reject"}],"a":[{"type":"insecureAcceptAnything"}]}}}"#.to_owned(),
        r#"{"default":[{"type":"reject"}],"transports":{"docker":{},"docker":{}}}"#.to_owned(),
        r#"{"default":[{"type":"reject"}],"transports":{"docker":{"a":[]}}}"#.to_owned(),
        sigstore(r#""signedIdentity":{"type":"matchRepository"}"#),
        sigstore(r#""keyPath":"/a","keyData":"aaaa""#),
        sigstore(r#""keyPath":"/a","keyPath":"/b""#),
        sigstore(r#""keyPath":"relative""#),
        sigstore(r#""keyPath":"/a","signedIdentity":{"type":"matchNothing"}"#),
        sigstore(r#""keyPath":"/a","key":"/b""#),
    ] {
        assert!(Policy::parse(bad.as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn what_this_node_cannot_verify_is_read_and_named() {
    let policy = |requirement: &str| {
        let text = format!(r#"{{"default":[{requirement}]}}"#);
        Policy::parse(text.as_bytes()).unwrap()
    };
    for (requirement, says) in [
        (
            r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k","signedIdentity":{"type":"matchExact"}}"#,
            "GPG",
        ),
        (
            r#"{"type":"sigstoreSigned","fulcio":{"caPath":"/c"},"rekorPublicKeyPath":"/r"}"#,
            "fulcio",
        ),
        (r#"{"type":"sigstoreSigned","pki":{}}"#, "pki"),
        (
            r#"{"type":"sigstoreSigned","keyPath":"/k","rekorPublicKeyData":"aaaa"}"#,
            "rekor",
        ),
    ] {
        let policy = policy(requirement);
        let why = policy.default[0].unsupported().unwrap();
        assert!(why.contains(says), "{why}");
    }
    let usable = policy(r#"{"type":"sigstoreSigned","keyPath":"/no/such/key"}"#);
    assert_eq!(usable.default[0].unsupported(), None);
    let Requirement::SigstoreSigned(signed) = &usable.default[0] else {
        panic!("another requirement was read");
    };
    assert_eq!(
        signed.signed_identity,
        SignedIdentity::MatchRepoDigestOrExact {}
    );
    assert!(signed.keys().unwrap_err().contains("/no/such/key"));
}
