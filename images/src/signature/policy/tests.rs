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

/// A policy that rejects images of these scopes, and all others too.
fn with_scopes(scopes: &[&str]) -> Result<Policy, String> {
    let scopes: Vec<String> = scopes
        .iter()
        .map(|scope| format!(r#""{scope}":[{{"type":"reject"}}]"#))
        .collect();
    let text = format!(
        r#"{{"default":[{{"type":"reject"}}],"transports":{{"docker":{{{}}}}}}}"#,
        scopes.join(",")
    );
    Policy::parse(text.as_bytes())
}

#[test]
fn another_spelling_of_a_host_is_in_the_same_scopes() {
    let scopes = [
        "prod.io",
        "prod.io/app:1",
        "r.io:443/team",
        "*.corp.io",
        "docker.io",
        "[::1]",
    ];
    let policy = with_scopes(&scopes).unwrap();
    for (image, scope) in [
        ("prod.io/app:1", "prod.io/app:1"),
        ("PROD.io/app:1", "prod.io/app:1"),
        ("prod.io:443/app:1", "prod.io/app:1"),
        ("Prod.IO:443/other", "prod.io"),
        ("prod.io:0443/other", "prod.io"),
        ("prod.io:80/other", "prod.io"),
        ("prod.io:5000/other", "default"),
        ("r.io/team/app", "r.io:443/team"),
        ("R.io:443/team/app", "r.io:443/team"),
        ("A.CORP.io:9/x", "*.corp.io"),
        ("INDEX.docker.io/busybox", "docker.io"),
        ("[0:0::1]/x", "[::1]"),
        ("[::1]:443/x", "[::1]"),
        ("[::1]:5000/x", "default"),
    ] {
        assert_eq!(scope_of(&policy, image), scope, "{image}");
    }
}

#[test]
fn a_scope_that_no_image_can_be_in_is_refused_by_its_name() {
    for scope in [
        "https://r.io",
        "r.io/",
        "R.io",
        "R.io/app",
        "r.io/App",
        "r.io:0443",
        "busybox",
        "docker.io/busybox:1",
        "index.docker.io/library/busybox",
        "*",
        "*.R.io",
        "*.r.io/app",
        "*.r.io:5000",
    ] {
        let refused = with_scopes(&["r.io", scope]).unwrap_err();
        assert!(refused.contains(&format!("{scope:?}")), "{refused}");
    }
    for scope in [
        "docker.io/team",
        "docker.io/library/busybox:1",
        "localhost",
        "localhost:5000/a",
        "r.io:443",
        "*.io",
        "r.io/a@sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    ] {
        with_scopes(&[scope]).unwrap();
    }
}
