use serde_json::{Value, json};

use super::*;

const DIGEST: &str = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

fn simple() -> Value {
    json!({"critical": {
        "identity": {"docker-reference": "r.io/a"},
        "image": {"docker-manifest-digest": DIGEST},
        "type": SIMPLE_TYPE,
    }, "optional": null})
}

fn statement() -> Value {
    let (_, hex) = DIGEST.split_once(':').unwrap();
    json!({"_type": STATEMENT_TYPES[0], "predicateType": SIGN_PREDICATE, "predicate": {},
           "subject": [{"digest": {"sha256": hex}, "annotations": {}}]})
}

/// `document` with `value` at `pointer`.
fn with(mut document: Value, pointer: &str, value: Value) -> String {
    *document.pointer_mut(pointer).unwrap() = value;
    document.to_string()
}

#[test]
fn a_simple_signing_document_claims_its_digest_and_name() {
    let claim = simple_claim(simple().to_string().as_bytes()).unwrap();
    assert_eq!(
        (claim.digest.as_str(), claim.name.as_deref()),
        (DIGEST, Some("r.io/a"))
    );
    let twice = simple().to_string().replace(
        r#""docker-manifest-digest""#,
        r#""docker-manifest-digest":"sha256:0","docker-manifest-digest""#,
    );
    let mut more = simple();
    more["critical"]["image"]["also"] = json!(1);
    for bad in [
        with(
            simple(),
            "/critical/type",
            json!("atomic container signature"),
        ),
        with(
            simple(),
            "/critical/image/docker-manifest-digest",
            json!("sha512:00"),
        ),
        with(simple(), "/critical/image", json!({})),
        with(simple(), "/critical/identity", json!(null)),
        with(simple(), "/critical", json!({})),
        more.to_string(),
        twice,
        "[]".to_owned(),
        "[".repeat(100_000),
        String::new(),
    ] {
        assert!(
            simple_claim(bad.as_bytes()).is_err(),
            "{}",
            &bad[..bad.len().min(200)]
        );
    }
}

#[test]
fn a_statement_claims_its_subjects_and_other_statements_claim_nothing() {
    let claims = statement_claims(statement().to_string().as_bytes()).unwrap();
    assert_eq!(
        (claims[0].digest.as_str(), &claims[0].name),
        (DIGEST, &None)
    );
    let named = with(
        statement(),
        "/subject/0",
        json!({"name": "r.io/a", "digest": {"sha256": &DIGEST[7..]}}),
    );
    let claims = statement_claims(named.as_bytes()).unwrap();
    assert_eq!(claims[0].name.as_deref(), Some("r.io/a"));
    let other = with(statement(), "/subject/0/digest", json!({"sha512": "00"}));
    assert_eq!(statement_claims(other.as_bytes()).unwrap(), []);
    let many = vec![statement()["subject"][0].clone(); MAX_SUBJECTS + 1];
    for bad in [
        with(
            statement(),
            "/predicateType",
            json!("https://slsa.dev/provenance/v1"),
        ),
        with(statement(), "/_type", json!("https://example.org")),
        with(statement(), "/subject", json!(many)),
        with(statement(), "/subject", json!(null)),
    ] {
        assert!(statement_claims(bad.as_bytes()).is_err());
    }
}

#[test]
fn a_bundle_is_a_signed_statement_and_nothing_else() {
    let bundle = json!({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": "x"}, "tlogEntries": []},
        "dsseEnvelope": {"payload": STANDARD.encode(statement().to_string()), "payloadType": STATEMENT,
                         "signatures": [{"sig": "AAAA"}]},
    });
    let read = Signature::bundle(bundle.to_string().as_bytes()).unwrap();
    let text = statement().to_string();
    let message = format!(
        "DSSEv1 28 application/vnd.in-toto+json {} {text}",
        text.len()
    );
    assert_eq!(read.message(), message.as_bytes());
    let mut both = bundle.clone();
    both["messageSignature"] = json!({});
    let many = vec![json!({"sig": ""}); MAX_SIGNATURES + 1];
    for bad in [
        both.to_string(),
        with(bundle.clone(), "/mediaType", json!("application/json")),
        with(bundle.clone(), "/dsseEnvelope", json!(null)),
        with(
            bundle.clone(),
            "/dsseEnvelope/payloadType",
            json!("text/plain"),
        ),
        with(bundle.clone(), "/dsseEnvelope/payload", json!("?")),
        with(bundle.clone(), "/dsseEnvelope/signatures", json!(many)),
        with(bundle, "/dsseEnvelope/signatures/0/sig", json!("?")),
    ] {
        assert!(Signature::bundle(bad.as_bytes()).is_err());
    }
}
