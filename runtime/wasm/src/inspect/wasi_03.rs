//! What a component has of WASI 0.3, which a handler may have on.
//!
//! Called by [`super`]. Must not know: whether a handler has it on.

/// How an import or export of WASI 0.3 says so.
const VERSION: &str = "0.3.";

/// The interfaces of WASI 0.3 that components are offered.
pub(super) const OFFERED: [&str; 23] = [
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stderr",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stderr",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:cli/types",
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/system-clock",
    "wasi:clocks/types",
    "wasi:filesystem/preopens",
    "wasi:filesystem/types",
    "wasi:http/client",
    "wasi:http/types",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:random/random",
    "wasi:sockets/ip-name-lookup",
    "wasi:sockets/types",
];

/// Whether the import or export `name` is of WASI 0.3.
pub(super) fn is_of(name: &str) -> bool {
    let version = name.split_once('@').map(|(_, version)| version);
    name.starts_with("wasi:") && version.is_some_and(is_version)
}

/// Whether it is 0.3, and no draft of it, which nobody reads any more.
pub(super) fn is_version(version: &str) -> bool {
    version.starts_with(VERSION) && !version.contains('-')
}
