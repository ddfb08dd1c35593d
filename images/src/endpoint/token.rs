//! Gets a token if a registry requires one.
//!
//! Called by: [`super::Endpoint::authenticate`], once, and again when a token has expired.
//! Invariants: credentials go to the registry itself and to the realm that it names, nowhere else; the sizes of a
//! token and a challenge are bounded; no error repeats a response.
//! Not here: which addresses a realm may have ([`super::address_policy`]).

use reqwest::header::WWW_AUTHENTICATE;
use reqwest::{Method, Url};
use serde::Deserialize;

use super::body::{Bound, read_bounded};
use super::error_response::{RequestInfo, error_for_status};
use super::wire::{Auth, Extra, Request, Wire};
use crate::error::Error;

/// Largest token response. Bytes.
const MAX_TOKEN_BYTES: u64 = 1 << 20;
/// Longest challenge that is parsed. Bytes.
const MAX_CHALLENGE_BYTES: usize = 8 << 10;

/// The authentication scheme that a registry requires.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
    },
}

/// The authorization for `repository`; `auth` has the credentials of the pull.
pub(super) async fn fetch(
    wire: &Wire,
    repository: &str,
    auth: &Auth,
    request_info: &RequestInfo<'_>,
) -> Result<Auth, Error> {
    if let Auth::Bearer(_) = auth {
        return Ok(auth.clone());
    }
    let what = request_info.what;
    let answer = wire
        .send(Request {
            method: Method::GET,
            url: wire.url("/", what)?,
            auth: &Auth::None,
            accept: &[],
            extra: Extra::None,
            what,
        })
        .await?;
    let headers = answer.response.headers().get_all(WWW_AUTHENTICATE);
    let challenges: Vec<Challenge> = headers
        .iter()
        .filter_map(|value| value.to_str().ok().and_then(parse))
        .collect();
    let bearer = challenges.iter().find_map(|challenge| match challenge {
        Challenge::Bearer { realm, service } => Some((realm, service.as_deref())),
        Challenge::Basic => None,
    });
    match bearer {
        Some((realm, service)) => {
            let call = token_call(realm, service, repository, auth)
                .ok_or_else(|| wire.refused(what, "the realm it names is no URL".to_owned()))?;
            request(wire, call, auth, request_info).await
        }
        None if challenges.is_empty() => Ok(Auth::None),
        None => Ok(auth.clone()),
    }
}

async fn request(
    wire: &Wire,
    (method, url, extra): (Method, Url, Extra),
    auth: &Auth,
    request_info: &RequestInfo<'_>,
) -> Result<Auth, Error> {
    let what = request_info.what;
    let mut answer = wire
        .send(Request {
            method,
            url,
            auth,
            accept: &[],
            extra,
            what,
        })
        .await?;
    match answer.response.status().as_u16() {
        200..=299 => {}
        // 400 is what OAuth answers to a token that is none.
        400 | 404 => return Err(request_info.unauthorized()),
        _ => return Err(error_for_status(request_info, &answer.response, b"")),
    }
    let bound = Bound {
        what,
        limit: "of a token",
        allowed: MAX_TOKEN_BYTES,
    };
    let body = read_bounded(wire, &mut answer, bound).await?;
    match token(&body) {
        Some(token) => Ok(Auth::Bearer(token)),
        None => Err(Error::Registry {
            registry: request_info.registry.to_owned(),
            what: what.to_owned(),
            problem: "its realm answers without a token".to_owned(),
        }),
    }
}

/// The token in an answer, if it has one.
fn token(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Token {
        token: Option<String>,
        access_token: Option<String>,
    }
    let read: Token = serde_json::from_slice(body).ok()?;
    let token = read.token.or(read.access_token);
    token.filter(|token| !token.is_empty())
}

/// The request for a token: a GET, or for an identity token the POST of OAuth 2. `None`: the realm is no URL.
fn token_call(
    realm: &str,
    service: Option<&str>,
    repository: &str,
    auth: &Auth,
) -> Option<(Method, Url, Extra)> {
    let url = Url::parse(realm).ok()?;
    let mut asked = url.clone();
    if matches!(auth, Auth::Identity(_)) {
        asked.set_query(None);
    }
    let scope = format!("repository:{repository}:pull");
    asked.query_pairs_mut().append_pair("scope", &scope);
    if let Some(service) = service {
        asked.query_pairs_mut().append_pair("service", service);
    }
    let Auth::Identity(token) = auth else {
        return Some((Method::GET, asked, Extra::None));
    };
    let mut pairs = asked.query_pairs_mut();
    pairs.append_pair("grant_type", "refresh_token");
    pairs.append_pair("client_id", "coracle");
    pairs.append_pair("refresh_token", token);
    drop(pairs);
    let form = asked.query().unwrap_or_default().to_owned();
    Some((Method::POST, url, Extra::Form(form)))
}

/// One challenge of a `WWW-Authenticate` field; `None` for an unknown one.
fn parse(field: &str) -> Option<Challenge> {
    if field.len() > MAX_CHALLENGE_BYTES {
        return None;
    }
    let (scheme, rest) = field.trim().split_once(' ').unwrap_or((field.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service) = (None, None);
    let mut rest = rest;
    while let Some((name, value, after)) = parameter(rest) {
        match name.to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value),
            "service" => service = Some(value),
            _ => {}
        }
        rest = after;
    }
    Some(Challenge::Bearer {
        realm: realm?,
        service,
    })
}

/// `name="value"` or `name=value` at the beginning of `text`, and what follows it.
fn parameter(text: &str) -> Option<(&str, String, &str)> {
    let text = text.trim_start_matches([',', ' ', '\t']);
    let (name, rest) = text.split_once('=')?;
    let Some(quoted) = rest.strip_prefix('"') else {
        let end = rest.find(',').unwrap_or(rest.len());
        return Some((name.trim(), rest[..end].trim().to_owned(), &rest[end..]));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((name.trim(), value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            other => value.push(other),
        }
    }
    None
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Option<Challenge> {
        Some(Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
        })
    }

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let whole =
            r#"Bearer realm="https://a.io/t?x=1,2",service="r.io",scope="repository:a:pull""#;
        assert_eq!(parse(whole), bearer("https://a.io/t?x=1,2", Some("r.io")));
        assert_eq!(
            parse("bearer realm=https://a.io/t, service=r"),
            bearer("https://a.io/t", Some("r"))
        );
        assert_eq!(parse(r#"Bearer scope="\"x", realm="r""#), bearer("r", None));
        assert_eq!(parse("Basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(parse("Basic"), Some(Challenge::Basic));
    }

    #[test]
    fn what_is_no_challenge_is_passed_over() {
        let long = format!("Bearer realm=\"{}\"", "x".repeat(MAX_CHALLENGE_BYTES));
        for field in [
            "",
            "Bearer",
            "Bearer realm",
            "Bearer realm=\"open",
            "Negotiate x",
            "Bearer =,\\\"",
            &long,
        ] {
            assert_eq!(parse(field), None, "{field:.40}");
        }
    }
}
