//! The base64 of tokens and of the oldest WebSocket protocols. Source: RFC 4648, sections 4 and 5.
//!
//! Called by: `tokens`, `send`, `websocket::channels`. Invariant: pure; the padding is optional, as clients in Go may
//! leave it out. Must not know: line breaks, which no client sends.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{
    DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::URL_SAFE_NO_PAD,
};

const STANDARD: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Appends `bytes` in the standard alphabet, padded.
pub fn encode(bytes: &[u8], into: &mut String) {
    STANDARD.encode_string(bytes, into);
}

/// Encodes `bytes` in the alphabet for URLs, without padding.
pub fn url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Decodes `text` in the standard alphabet, padded or not; `None` if it is invalid.
pub fn decode(text: &[u8]) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
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
        for odd in ["Z", "Zm9=v", "Zg===", "Zm 9", "Zm9v\n", "-_-_"] {
            assert_eq!(decode(odd.as_bytes()), None, "{odd:?}");
        }
    }
}
