//! Runs the fuzz targets of the whole daemon under libFuzzer: `CORACLE_FUZZ=TARGET fuzz [libFuzzer's options]
//! CORPUS...`.
//!
//! Called by `make fuzz`. Built only with the feature `fuzzing`; the daemon does not contain it.
//! See docs/security/fuzzing.md. Must not know: what the targets check.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

/// The function that takes one input.
type Target = fn(&[u8]);

static TARGET: OnceLock<Target> = OnceLock::new();

/// The target named in the environment. Panics when no target has this name.
fn chosen() -> Target {
    let name = std::env::var("CORACLE_FUZZ").unwrap_or_default();
    let all = || {
        let own = coracle_lifecycle::fuzz::TARGETS.iter();
        let images = coracle_images::fuzz::TARGETS.iter();
        let runtime = coracle_control::fuzz::TARGETS
            .iter()
            .chain(coracle_network::fuzz::TARGETS)
            .chain(coracle_sandbox::fuzz::TARGETS)
            .chain(coracle_spec::fuzz::TARGETS)
            .chain(coracle_wasm::fuzz::TARGETS);
        let own = own.chain(coracle_streaming::fuzz::TARGETS);
        own.chain(images).chain(runtime)
    };
    let found = all().find(|(known, _)| *known == name);
    let names: Vec<_> = all().map(|(name, _)| *name).collect();
    let (_, target) =
        found.unwrap_or_else(|| panic!("CORACLE_FUZZ={name} is not one of {}", names.join(" ")));
    *target
}

fuzz_target!(init: { TARGET.get_or_init(chosen); }, |input: &[u8]| {
    TARGET.get_or_init(chosen)(input);
});
