//! The annotations about a pod's network: bandwidth as Kubernetes defines it, addresses as this runtime does.
//!
//! Called by: [`super::sandbox`]. Pure. Source of the first two: Kubernetes, "Network Plugins", "Support traffic
//! shaping", and k8s.io/apimachinery `resource.Quantity`.
//! Invariant: the result is numbers and addresses, never text of a user's.
//! Must not know: who enforces a limit or assigns an address.

use std::net::IpAddr;

use coracle_network::Bandwidth;

use super::BadRequest;
use super::annotations::{Narrows, Opens, Reader, field};

/// Bits per second into the pod.
const INGRESS: Narrows = Narrows("kubernetes.io/ingress-bandwidth");
/// Bits per second out of the pod.
const EGRESS: Narrows = Narrows("kubernetes.io/egress-bandwidth");
/// Addresses with prefix lengths, separated by commas. It grants something: rules for other pods may match addresses.
const IPS: Opens = Opens("cni.coracle.dev/ips");
/// A hardware address; it grants something, too.
const MAC: Opens = Opens("cni.coracle.dev/mac");
/// The smallest and the largest bandwidth that Kubernetes accepts: 1k and 1P.
const RATES: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;
/// Most addresses in one annotation.
const MAX_IPS: usize = 16;

/// The limits of a pod's traffic. Errors: [`BadRequest`] that names the annotation.
pub(super) fn bandwidth(reader: &Reader) -> Result<Bandwidth, BadRequest> {
    let rate = |key: &Narrows| match reader.narrowing(key) {
        None => Ok(None),
        Some(text) => match quantity(text) {
            Some(rate) if RATES.contains(&rate) => Ok(Some(rate)),
            _ => Err(refused(key.0, text, "must be a quantity from 1k to 1P")),
        },
    };
    Ok(Bandwidth {
        ingress: rate(&INGRESS)?,
        egress: rate(&EGRESS)?,
    })
}

/// The addresses that a pod requests. Errors: as [`bandwidth`], or the handler does not honour the annotation.
pub(super) fn ips(reader: &Reader) -> Result<Vec<String>, BadRequest> {
    let Some(text) = reader.opening(&IPS)? else {
        return Ok(Vec::new());
    };
    let wanted = "must be addresses with prefix lengths, such as 10.1.2.3/24, separated by commas";
    let address = |entry: &str| {
        let (ip, bits) = entry.trim().split_once('/')?;
        let (ip, bits) = (ip.parse::<IpAddr>().ok()?, bits.parse::<u8>().ok()?);
        let most = if ip.is_ipv6() { 128 } else { 32 };
        (bits <= most).then(|| format!("{ip}/{bits}"))
    };
    let requested: Option<Vec<String>> = text.split(',').map(address).collect();
    requested
        .filter(|requested| requested.len() <= MAX_IPS)
        .ok_or_else(|| refused(IPS.0, text, wanted))
}

/// The hardware address that a pod requests. Errors: as [`ips`].
pub(super) fn mac(reader: &Reader) -> Result<Option<String>, BadRequest> {
    let Some(text) = reader.opening(&MAC)? else {
        return Ok(None);
    };
    let is_octet =
        |part: &str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_good = text.split(':').count() == 6 && text.split(':').all(is_octet);
    match is_good {
        true => Ok(Some(text.to_ascii_lowercase())),
        false => Err(refused(
            MAC.0,
            text,
            "must be six octets, such as 02:00:5e:00:53:01",
        )),
    }
}

fn refused(key: &str, text: &str, wanted: &str) -> BadRequest {
    let shown: String = text.chars().take(64).collect();
    BadRequest::invalid(field(key), format!("is {shown:?}, {wanted}"))
}

/// A Kubernetes quantity as a whole number, rounded up; `None` if it is invalid, negative or beyond 64 bits.
fn quantity(text: &str) -> Option<u64> {
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    let end = text.find(|c| !is_number(c)).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    // Eighteen digits and 2^60 together stay below 2^127.
    if (whole.is_empty() && part.is_empty()) || part.contains('.') || number.len() > 19 {
        return None;
    }
    let digits: u128 = format!("{whole}{part}").parse().ok()?;
    let (up, down) = scale(suffix)?;
    let below = 10_u128
        .checked_pow(u32::try_from(part.len()).ok()?)?
        .checked_mul(down)?;
    u64::try_from(digits.checked_mul(up)?.div_ceil(below)).ok()
}

/// The multiplier and the divisor of a suffix.
fn scale(suffix: &str) -> Option<(u128, u128)> {
    let decimal = |power: u32| Some((10_u128.pow(power), 1));
    let binary = |power: u32| Some((1_u128 << power, 1));
    match suffix {
        "" => decimal(0),
        "n" => Some((1, 1_000_000_000)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1_000)),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let power: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let size = 10_u128.pow(Some(power.unsigned_abs()).filter(|power| *power <= 18)?);
            Some(if power < 0 { (1, size) } else { (size, 1) })
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::super::annotations::tests::reader;
    use super::*;

    fn annotated(key: &str, value: &str) -> Reader {
        reader(&[(key, value)], &[IPS.0, MAC.0])
    }

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        let cases = [
            ("1000", Some(1_000)),
            ("1k", Some(1_000)),
            ("10M", Some(10_000_000)),
            ("1.5Gi", Some(1_610_612_736)),
            ("0.0000015G", Some(1_500)),
            (".5k", Some(500)),
            ("5.k", Some(5_000)),
            ("1e6", Some(1_000_000)),
            ("15E-1", Some(2)),
            ("1001m", Some(2)),
            ("1P", Some(1_000_000_000_000_000)),
            ("", None),
            (".", None),
            ("-1k", None),
            ("1 k", None),
            ("1kk", None),
            ("1.2.3", None),
            ("1e99", None),
            ("99999E", None),
            ("99999999999999999999", None),
            ("k", None),
            ("\u{661}k", None),
        ];
        for (text, expected) in cases {
            assert_eq!(quantity(text), expected, "{text}");
        }
    }

    #[test]
    fn bandwidth_stays_within_the_range_of_kubernetes() {
        assert_eq!(bandwidth(&reader(&[], &[])), Ok(Bandwidth::default()));
        let read = bandwidth(&annotated(INGRESS.0, "10M")).unwrap();
        assert_eq!((read.ingress, read.egress), (Some(10_000_000), None));
        for bad in ["0", "999", "1001T", "10Mbit", "1; tc qdisc"] {
            let refusal = bandwidth(&annotated(EGRESS.0, bad))
                .unwrap_err()
                .to_string();
            assert!(refusal.contains("egress-bandwidth"), "{refusal}");
        }
    }

    #[test]
    fn only_valid_addresses_are_accepted() {
        let read = ips(&annotated(IPS.0, "10.1.2.3/24, fd00::5/64")).unwrap();
        assert_eq!(read, ["10.1.2.3/24", "fd00::5/64"]);
        assert!(ips(&reader(&[], &[])).unwrap().is_empty());
        for bad in [
            "",
            "10.1.2.3",
            "10.1.2.3/33",
            "10.1.2.3/24,",
            "1.2.3.4/8 -j ACCEPT",
        ] {
            assert!(ips(&annotated(IPS.0, bad)).is_err(), "{bad}");
        }
        let read = mac(&annotated(MAC.0, "02:00:5E:00:53:01")).unwrap();
        assert_eq!(read.as_deref(), Some("02:00:5e:00:53:01"));
        for bad in [
            "",
            "02:00:5e:00:53",
            "02:00:5e:00:53:1",
            "02-00-5e-00-53-01",
            "02:00:5e:00:53:0g",
        ] {
            assert!(mac(&annotated(MAC.0, bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pod_chooses_addresses_only_where_the_operator_allows_it() {
        let closed = reader(&[(IPS.0, "10.1.2.3/24"), (MAC.0, "02:00:5e:00:53:01")], &[]);
        for (refusal, key) in [
            (ips(&closed).unwrap_err(), IPS.0),
            (mac(&closed).unwrap_err(), MAC.0),
        ] {
            let text = refusal.to_string();
            let is_named = text.contains(key) && text.contains("handlers.coracle.annotations");
            assert!(is_named, "{text}");
        }
    }
}
