//! Results of ADD: parses a plugin's result, and the pod's addresses in the last one.
//!
//! Called by: [`super::invoke`]. Pure. Source: CNI specification 1.1.0, "ADD Success", and the results of 0.3.0 to
//! 1.0.0, which do not differ in what is read here.
//! Invariant: a result is passed on but not trusted: it is JSON of bounded size, and each address in it parses.
//! Not here: its routes, and its `dns`, because the kubelet sets the pod's resolver.

use std::net::IpAddr;

use serde_json::Value;

/// Most addresses of one result.
const MAX_ADDRESSES: usize = 64;

/// Parses the output of ADD. Errors: what is wrong with it, as text that follows "its answer".
pub fn result(answer: &[u8]) -> Result<Value, String> {
    if answer.iter().all(u8::is_ascii_whitespace) {
        return Err("is empty".to_owned());
    }
    match serde_json::from_slice::<Value>(answer) {
        Ok(result) if result.is_object() => Ok(result),
        Ok(_) => Err("is JSON, and no object".to_owned()),
        Err(error) => Err(format!("is no JSON: {error}")),
    }
}

/// The addresses of the pod's `interface`, IPv4 first, else in the result's order. An address that names no interface
/// belongs to it. Errors: as [`result`]; a result without an address is an error, too.
pub fn addresses(result: &Value, interface: &str) -> Result<Vec<IpAddr>, String> {
    let none = Vec::new();
    let listed = match result.get("ips") {
        None | Some(Value::Null) => &none,
        Some(Value::Array(listed)) if listed.len() <= MAX_ADDRESSES => listed,
        Some(Value::Array(listed)) => return Err(format!("has {} addresses", listed.len())),
        Some(_) => return Err("has ips that are no list".to_owned()),
    };
    let mut found = Vec::new();
    for (at, entry) in listed.iter().enumerate() {
        let address = address(entry).map_err(|why| format!("has ips[{at}], which {why}"))?;
        let is_pods = match entry.get("interface") {
            None | Some(Value::Null) => true,
            Some(index) => is_interface(result, index, interface)
                .ok_or_else(|| format!("has ips[{at}] of an interface that it does not list"))?,
        };
        if is_pods && !found.contains(&address) {
            found.push(address);
        }
    }
    if found.is_empty() {
        return Err(format!("has no address of {interface}"));
    }
    found.sort_by_key(IpAddr::is_ipv6);
    Ok(found)
}

fn address(entry: &Value) -> Result<IpAddr, String> {
    let text = entry.get("address").and_then(Value::as_str);
    let text = text.ok_or("has no address")?;
    let shown: String = text.chars().take(64).collect();
    let (ip, bits) = text
        .split_once('/')
        .ok_or_else(|| format!("is {shown:?}, without a prefix length"))?;
    let most = if text.contains(':') { 128 } else { 32 };
    match (ip.parse::<IpAddr>(), bits.parse::<u8>()) {
        (Ok(ip), Ok(bits)) if bits <= most && !ip.is_unspecified() && !ip.is_multicast() => Ok(ip),
        _ => Err(format!("is {shown:?}, no address of a host")),
    }
}

/// Whether the interface at this index is the pod's; `None` if there is none.
fn is_interface(result: &Value, index: &Value, name: &str) -> Option<bool> {
    let index = usize::try_from(index.as_i64()?).ok()?;
    let listed = result.get("interfaces")?.as_array()?.get(index)?;
    let of = |key: &str| listed.get(key).and_then(Value::as_str).unwrap_or("");
    Some(of("name") == name && !of("sandbox").is_empty())
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Result<Vec<String>, String> {
        let found = addresses(&result(text.as_bytes())?, "eth0")?;
        Ok(found.into_iter().map(|ip| ip.to_string()).collect())
    }

    #[test]
    fn results_of_every_version_give_the_pods_addresses() {
        let old = json!({
            "cniVersion": "0.3.1",
            "interfaces": [
                {"name": "br0", "mac": "02:00:00:00:00:01"}, {"name": "veth1"},
                {"name": "eth0", "sandbox": "/run/netns/x"}, {"name": "net1", "sandbox": "/run/netns/x"},
            ],
            "ips": [
                {"version": "6", "address": "fd00::5/64", "interface": 2},
                {"version": "4", "address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 2},
                {"version": "4", "address": "10.9.0.5/16", "interface": 3},
                {"version": "4", "address": "10.1.0.1/16", "interface": 0},
            ],
            "routes": [{"dst": "0.0.0.0/0"}], "dns": {"nameservers": ["1.1.1.1"]},
        });
        assert_eq!(read(&old.to_string()).unwrap(), ["10.1.0.5", "fd00::5"]);
        let new = json!({"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.7/32"}, {"address": "10.1.0.7/24"}]});
        assert_eq!(read(&new.to_string()).unwrap(), ["10.1.0.7"]);
    }

    #[test]
    fn errors_name_what_is_wrong_with_a_result() {
        let eth0 = r#""interfaces": [{"name": "eth0", "sandbox": ""}]"#;
        let cases = [
            (" \n".to_owned(), "is empty"),
            ("OK".to_owned(), "is no JSON"),
            ("[1]".to_owned(), "no object"),
            ("{}".to_owned(), "no address of eth0"),
            (r#"{"ips": {}}"#.to_owned(), "no list"),
            (r#"{"ips": [1]}"#.to_owned(), "ips[0], which has no address"),
            (
                r#"{"ips": [{"address": "10.0.0.1"}]}"#.to_owned(),
                "without a prefix length",
            ),
            (
                r#"{"ips": [{"address": "10.0.0.1/33"}]}"#.to_owned(),
                "no address of a host",
            ),
            (
                r#"{"ips": [{"address": "0.0.0.0/0"}]}"#.to_owned(),
                "no address of a host",
            ),
            (
                r#"{"ips": [{"address": "10.0.0.1 -j ACCEPT/8"}]}"#.to_owned(),
                "no address of a host",
            ),
            (
                r#"{"ips": [{"address": "10.0.0.1/8", "interface": 0}]}"#.to_owned(),
                "does not list",
            ),
            (
                r#"{"ips": [{"address": "10.0.0.1/8", "interface": -1}]}"#.to_owned(),
                "does not list",
            ),
            (
                format!(r#"{{"ips": [{{"address": "10.0.0.1/8", "interface": 0}}], {eth0}}}"#),
                "no address of eth0",
            ),
            (
                json!({"ips": vec![json!({"address": "10.0.0.1/8"}); 65]}).to_string(),
                "65 addresses",
            ),
        ];
        for (text, expected) in cases {
            let refused = read(&text).unwrap_err();
            assert!(refused.contains(expected), "{text}: {refused}");
        }
    }
}
