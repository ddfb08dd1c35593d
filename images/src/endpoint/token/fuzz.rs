//! The target that reads challenges and tokens, by which a registry directs credentials to a realm.

use reqwest::Url;

use super::{Challenge, MAX_CHALLENGE_BYTES, parse, token, token_call};
use crate::endpoint::address_policy::AddressPolicy;
use crate::endpoint::wire::Auth;

const REPOSITORY: &str = "library/app";

/// The first line is a challenge, the rest the realm's response. A parsed challenge is no longer than its field; the
/// token request goes to the realm's host for this repository alone, and never to a forbidden address.
pub(crate) fn challenge(input: &[u8]) {
    let end = input.iter().position(|byte| *byte == b'\n');
    let (line, body) = input.split_at(end.unwrap_or(input.len()));
    if let Some(token) = token(body) {
        assert!(!token.is_empty() && token.len() <= body.len());
    }
    let Ok(field) = std::str::from_utf8(line) else {
        return;
    };
    let Some(Challenge::Bearer { realm, service }) = parse(field) else {
        return;
    };
    assert!(field.len() <= MAX_CHALLENGE_BYTES);
    let held = realm.len() + service.as_ref().map_or(0, String::len);
    assert!(held <= field.len(), "{held} bytes of {}", field.len());
    let call = token_call(&realm, service.as_deref(), REPOSITORY, &Auth::None);
    let Some((_, url, _)) = call else {
        return;
    };
    let named = Url::parse(&realm).expect("it was read just now");
    let place = |url: &Url| {
        let host = url.host_str().map(str::to_owned);
        (url.scheme().to_owned(), host, url.port())
    };
    assert_eq!(place(&named), place(&url), "{realm}");
    let scopes: Vec<_> = url
        .query_pairs()
        .filter(|(key, _)| key == "scope")
        .collect();
    let own = format!("repository:{REPOSITORY}:pull");
    assert!(scopes.iter().any(|(_, scope)| *scope == own), "{url}");
    leads_nowhere_forbidden(&url);
}

/// Checks that a realm the policy allows is no address of this machine, of its link or of a cloud's metadata service.
fn leads_nowhere_forbidden(url: &Url) {
    let rule = AddressPolicy {
        loopback: false,
        link_local: false,
    };
    if !matches!(url.scheme(), "http" | "https") || rule.check(url).is_err() {
        return;
    }
    let host = url.host_str().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let Ok(address) = bare.parse::<std::net::IpAddr>() else {
        return;
    };
    match address.to_canonical() {
        std::net::IpAddr::V4(v4) => assert!(
            !(v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || v4.is_multicast()),
            "{url}"
        ),
        std::net::IpAddr::V6(v6) => assert!(
            !(v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_unicast_link_local()
                || v6.is_multicast()),
            "{url}"
        ),
    }
}
