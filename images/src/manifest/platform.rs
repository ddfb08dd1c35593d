//! Platforms: of images, of this node, and which entry of an index a pull takes.
//!
//! Called by: the parent, and by whoever holds an index. Pure. Not here: reading documents.

use super::{Blob, Entry, is_index_type};
use crate::error::Error;

/// The platform of an entry or a config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Platform {
    pub os: String,
    pub architecture: String,
    pub variant: Option<String>,
}

impl Platform {
    /// This node's Linux.
    pub(crate) fn native() -> Self {
        Self {
            os: "linux".to_owned(),
            architecture: native_architecture().to_owned(),
            variant: None,
        }
    }

    /// True for every platform name under which WebAssembly is published.
    pub(crate) fn is_wasm(&self) -> bool {
        matches!(self.os.as_str(), "wasi" | "wasip1" | "wasip2")
            || self.architecture.starts_with("wasm")
    }

    /// For messages: its names without control characters.
    pub(crate) fn shown(&self) -> String {
        self.to_string().escape_debug().to_string()
    }

    /// True for what this node's processor runs.
    pub(crate) fn is_native(&self) -> bool {
        self.os == "linux" && self.architecture == native_architecture()
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant
            .as_ref()
            .map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

/// This node's architecture, as images name it.
pub(crate) fn native_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// Which platforms of an index a pull wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum PlatformPreference {
    /// A WebAssembly entry if there is one, else this node's Linux.
    #[default]
    WasmThenLinux,
    /// WebAssembly only.
    Wasm,
    /// This node's Linux only.
    Linux,
}

/// Chooses the entry of an index that this node wants. Errors: none fits; the message lists what is offered.
pub(crate) fn choose(
    what: &str,
    entries: &[Entry],
    preference: PlatformPreference,
) -> Result<Blob, Error> {
    let first = |fits: fn(&Platform) -> bool| {
        entries
            .iter()
            .find(|entry| entry.platform.as_ref().is_some_and(fits))
    };
    let wasm = || first(Platform::is_wasm);
    let linux = || first(Platform::is_native);
    let chosen = match preference {
        PlatformPreference::Wasm => wasm(),
        PlatformPreference::Linux => linux(),
        PlatformPreference::WasmThenLinux => wasm().or_else(linux),
    };
    let chosen = chosen
        .or_else(|| unnamed(entries))
        .map(|entry| entry.blob.clone());
    chosen.ok_or_else(|| no_entry(what, entries, preference))
}

/// The entry to follow when none states a fitting platform: the only one there is, or the only nested index.
fn unnamed(entries: &[Entry]) -> Option<&Entry> {
    if let [only] = entries {
        return Some(only).filter(|only| only.platform.is_none());
    }
    let is_nested =
        |entry: &&Entry| entry.platform.is_none() && is_index_type(&entry.blob.media_type);
    let mut nested = entries.iter().filter(is_nested);
    nested.next().filter(|_| nested.next().is_none())
}

fn no_entry(what: &str, entries: &[Entry], preference: PlatformPreference) -> Error {
    let name = |entry: &Entry| {
        entry
            .platform
            .as_ref()
            .map_or("unnamed".into(), Platform::shown)
    };
    let offered: Vec<String> = entries.iter().take(32).map(name).collect();
    let linux = format!("linux/{}", native_architecture());
    let wanted = match preference {
        PlatformPreference::Wasm => "wasi/wasm".to_owned(),
        PlatformPreference::Linux => linux,
        PlatformPreference::WasmThenLinux => format!("wasi/wasm or {linux}"),
    };
    Error::invalid(
        what,
        format!("no entry for {wanted}, it offers [{}]", offered.join(", ")),
    )
}
