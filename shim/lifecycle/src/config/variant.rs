//! What the annotations of other runtimes say of how a container is run: by crun's `run.oci.handler`, and by the
//! `module.wasm.image/variant` of those that came after it.
//!
//! Read from pods and containers by `cri/convert`, from images when a container is planned. Stored in records.
//! Invariant: whatever the value, WebAssembly runs as WebAssembly; nothing here lets a container do more.
//! Not here: which programs an image holds.

use serde::{Deserialize, Serialize};

/// How a container's program is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WasmVariant {
    /// By what its image is made for.
    #[default]
    ByImage,
    /// By what the program itself is: a module in an image for Linux is run as one.
    Smart,
    /// The same, and whatever is no module is refused.
    Only,
}

impl WasmVariant {
    /// The annotations' keys.
    pub const KEYS: [&str; 2] = ["module.wasm.image/variant", "run.oci.handler"];

    /// What annotation `key` says by `value`. `None`: it is none of [`Self::KEYS`], or says something else.
    pub fn of(key: &str, value: &str) -> Option<Self> {
        match (key, value) {
            ("module.wasm.image/variant", "compat") | ("run.oci.handler", "wasm") => {
                Some(Self::Only)
            }
            ("module.wasm.image/variant", "compat-smart") | ("run.oci.handler", "wasm-smart") => {
                Some(Self::Smart)
            }
            _ => None,
        }
    }

    /// This one, or `other` if this one says nothing.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        match self {
            Self::ByImage => other,
            explicit => explicit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_four_spellings_are_known_and_the_first_that_says_something_counts() {
        let of = WasmVariant::of;
        assert_eq!(of("run.oci.handler", "wasm"), Some(WasmVariant::Only));
        assert_eq!(
            of("run.oci.handler", "wasm-smart"),
            Some(WasmVariant::Smart)
        );
        let key = "module.wasm.image/variant";
        assert_eq!(of(key, "compat"), Some(WasmVariant::Only));
        assert_eq!(of(key, "compat-smart"), Some(WasmVariant::Smart));
        for (key, value) in [
            (key, "wasm"),
            ("run.oci.handler", "krun"),
            ("other", "compat"),
        ] {
            assert_eq!(of(key, value), None);
        }
        let (image, smart) = (WasmVariant::ByImage, WasmVariant::Smart);
        assert_eq!(image.or(smart).or(WasmVariant::Only), smart);
    }
}
