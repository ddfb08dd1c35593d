//! Base64, as tokens and the oldest WebSocket protocols need it. Source: RFC 4648, sections 4 and 5.
//!
//! Invariant: pure. Not here: line breaks, which nobody sends.

const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

fn push(alphabet: &[u8; 64], bytes: &[u8], into: &mut String) -> usize {
    for three in bytes.chunks(3) {
        let mut padded = [0_u8; 4];
        padded[1..=three.len()].copy_from_slice(three);
        let bits = u32::from_be_bytes(padded);
        for digit in 0..=three.len() {
            let value = bits >> (18 - 6 * digit) & 63;
            into.push(char::from(alphabet[value as usize]));
        }
    }
    (3 - bytes.len() % 3) % 3
}

/// Appends `bytes` in the standard alphabet, padded.
pub fn encode(bytes: &[u8], into: &mut String) {
    let missing = push(STANDARD, bytes, into);
    into.extend(std::iter::repeat_n('=', missing));
}

/// `bytes` in the alphabet for URLs, without padding.
pub fn url(bytes: &[u8]) -> String {
    let mut text = String::new();
    push(URL, bytes, &mut text);
    text
}

/// The bytes that `text` stands for, in the standard alphabet, padded or not; `None` for anything else.
pub fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let padding = text.iter().rev().take_while(|byte| **byte == b'=').count();
    let digits = &text[..text.len() - padding];
    if padding > 2 || digits.len() % 4 == 1 || (padding > 0 && !text.len().is_multiple_of(4)) {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    for four in digits.chunks(4) {
        let mut bits = 0_u32;
        for digit in four {
            bits = bits << 6 | u32::from(value(*digit)?);
        }
        bits <<= 6 * (4 - four.len());
        bytes.extend_from_slice(&bits.to_be_bytes()[1..four.len()]);
    }
    Some(bytes)
}

fn value(digit: u8) -> Option<u8> {
    match digit {
        b'A'..=b'Z' => Some(digit - b'A'),
        b'a'..=b'z' => Some(digit - b'a' + 26),
        b'0'..=b'9' => Some(digit - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_rfc_go_both_ways() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            let mut encoded = String::new();
            encode(bytes.as_bytes(), &mut encoded);
            assert_eq!(encoded, text);
            assert_eq!(decode(text.as_bytes()).as_deref(), Some(bytes.as_bytes()));
            assert_eq!(
                decode(text.trim_end_matches('=').as_bytes()).as_deref(),
                Some(bytes.as_bytes())
            );
        }
        assert_eq!(url(&[0xfb, 0xff, 0xfe, 0xff]), "-__-_w");
    }

    #[test]
    fn what_is_not_base64_is_refused() {
        for odd in ["Z", "Zm9=v", "Zg===", "Zm 9", "Zm9v\n", "Zg=", "-_-_"] {
            assert_eq!(decode(odd.as_bytes()), None, "{odd:?}");
        }
    }
}
