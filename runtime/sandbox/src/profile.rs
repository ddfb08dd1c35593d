//! Seccomp profiles of Linux containers: the system calls that a payload may make.
//!
//! ```text
//! Docker-format JSON --Profile::parse--> Profile --compile(capabilities)--> ready BPF --ProfileCache--> sealed memfd
//! runtime default   --Profile::runtime_default--^                      (the container process only loads it)
//! ```
//! The daemon calls it when a container is created, so that a profile that cannot be applied fails there, with its
//! name.
//! Invariant: a profile is applied completely or refused; nothing falls back to "unconfined". Only system calls that
//! this libseccomp or architecture does not have are ignored, as in other runtimes.
//! It must not know where profiles are on the node, or which one a container has.

mod cache;
mod compile;
mod default;
mod document;
mod floor;

use std::sync::OnceLock;

use libseccomp::{ScmpAction, ScmpArch, ScmpCompareOp};
use sha2::{Digest as _, Sha256};

use coracle_spec::error::Result;

pub use cache::ProfileCache;

/// The largest JSON that is read as a profile, in bytes.
pub const PROFILE_BYTES: usize = 1 << 20;

/// `SECCOMP_FILTER_FLAG_LOG`: the kernel logs every action but "allow".
const FLAG_LOG: u32 = 2;

/// `SECCOMP_FILTER_FLAG_SPEC_ALLOW`: no mitigation of speculative stores for filtered processes.
const FLAG_SPEC_ALLOW: u32 = 4;

/// The host's architecture as in `includes` and `excludes` of profiles. Source: Go's GOARCH.
const HOST_ARCHITECTURE: &str = if cfg!(target_arch = "x86_64") {
    "amd64"
} else if cfg!(target_arch = "aarch64") {
    "arm64"
} else if cfg!(target_arch = "powerpc64") {
    "ppc64le"
} else {
    std::env::consts::ARCH
};

/// A checked profile. It has all rules of its source; [`Profile::compile`], which gets the capabilities, decides which
/// of them apply.
#[derive(Debug)]
pub struct Profile {
    digest: [u8; 32],
    default: ScmpAction,
    arches: Vec<ScmpArch>,
    flags: u32,
    rules: Vec<Rule>,
}

/// One entry of `syscalls`.
#[derive(Debug)]
struct Rule {
    names: Vec<String>,
    action: ScmpAction,
    conditions: Vec<Condition>,
    includes: RuleFilter,
    excludes: RuleFilter,
}

/// A comparison of one argument.
#[derive(Clone, Copy, Debug)]
struct Condition {
    argument: u32,
    op: ScmpCompareOp,
    value: u64,
}

/// When a rule applies; an empty list is no condition.
#[derive(Debug, Default)]
struct RuleFilter {
    capabilities: u64,
    arches: Vec<String>,
    min_kernel: Option<(u32, u32)>,
}

/// Fuzz target: a profile is accepted or refused.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz_document(input: &[u8]) {
    if let Err(error) = Profile::parse(input) {
        assert!(!error.to_string().is_empty());
    }
}

impl Profile {
    /// Reads a profile in Docker's JSON format, of which the OCI runtime format is a part.
    ///
    /// Unknown fields are ignored; so is `listenerPath`, because there is no agent.
    /// Errors: more than [`PROFILE_BYTES`]; not JSON; a field of the wrong type; an action, architecture, operator,
    /// capability or flag that is unknown; SCMP_ACT_NOTIFY. The text names the entry.
    pub fn parse(json: &[u8]) -> Result<Self> {
        document::parse(json)
    }

    /// The profile of a container with `RuntimeDefault`.
    pub fn runtime_default() -> &'static Self {
        static DEFAULT: OnceLock<Profile> = OnceLock::new();
        DEFAULT.get_or_init(|| default::profile(compile::companions()))
    }

    /// Builds the filter for a payload whose bounding set is `capabilities` (bit 0 is CAP_CHOWN), as an array of
    /// `struct sock_filter` in this host's byte order. Takes 10 ms for some hundred rules; see [`ProfileCache`].
    ///
    /// Calls newer than every call that the profile names return ENOSYS instead of the default action, so that programs
    /// fall back to older calls; except where the default allows calls.
    /// Errors: libseccomp refuses an architecture or a rule, or the filter is longer than the kernel accepts.
    pub fn compile(&self, capabilities: u64) -> Result<Vec<u8>> {
        compile::compile(self, capabilities)
    }

    /// Flags for seccomp(2) besides TSYNC: `SECCOMP_FILTER_FLAG_LOG` (2) and `_SPEC_ALLOW` (4). The latter is set if
    /// the profile has no `flags` field, as in runc, and for a floor without a profile.
    pub fn flags(profile: Option<&Self>) -> u32 {
        profile.map_or(FLAG_SPEC_ALLOW, |profile| profile.flags)
    }

    /// A profile of checked parts without a `flags` field; `source` distinguishes it from others.
    fn assemble(
        source: &[u8],
        default: ScmpAction,
        arches: Vec<ScmpArch>,
        rules: Vec<Rule>,
    ) -> Self {
        Self {
            digest: Sha256::digest(source).into(),
            default,
            arches,
            flags: FLAG_SPEC_ALLOW,
            rules,
        }
    }

    /// The capabilities that some rule depends on; others make no difference to the filter.
    fn relevant_capabilities(&self) -> u64 {
        (self.rules.iter()).fold(0, |all, rule| {
            all | rule.includes.capabilities | rule.excludes.capabilities
        })
    }
}

impl Rule {
    /// Whether it applies to a payload with these capabilities. Source: moby `profiles/seccomp`, `setupSeccomp`.
    fn applies(&self, capabilities: u64, kernel: (u32, u32)) -> bool {
        let (only, never) = (&self.includes, &self.excludes);
        let here = |rule_filter: &RuleFilter| {
            rule_filter
                .arches
                .iter()
                .any(|arch| arch == HOST_ARCHITECTURE)
        };
        let excluded = here(never)
            || never.capabilities & capabilities != 0
            || never.min_kernel.is_some_and(|least| kernel >= least);
        let included = (only.arches.is_empty() || here(only))
            && only.capabilities & !capabilities == 0
            && only.min_kernel.is_none_or(|least| kernel >= least);
        included && !excluded
    }
}

/// The number of capability `name`. Source: linux/capability.h.
fn capability(name: &str) -> Option<usize> {
    const NAMES: &str = "
        CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
        NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT
        SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL
        SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE";
    let short = name.strip_prefix("CAP_")?;
    NAMES.split_ascii_whitespace().position(|n| n == short)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn rule(includes: RuleFilter, excludes: RuleFilter) -> Rule {
        Rule {
            names: vec!["mount".into()],
            action: ScmpAction::Allow,
            conditions: Vec::new(),
            includes,
            excludes,
        }
    }

    #[test]
    fn includes_need_all_and_excludes_any() {
        let two = || RuleFilter {
            capabilities: 0b110,
            ..RuleFilter::default()
        };
        let none = RuleFilter::default;
        for (includes, excludes, capabilities, applies) in [
            (none(), none(), 0, true),
            (two(), none(), 0b010, false),
            (two(), none(), 0b111, true),
            (none(), two(), 0b001, true),
            (none(), two(), 0b010, false),
        ] {
            assert_eq!(
                rule(includes, excludes).applies(capabilities, (6, 1)),
                applies
            );
        }
    }

    #[test]
    fn kernels_compare_as_numbers_and_architectures_by_name() {
        let since = |min_kernel| RuleFilter {
            min_kernel: Some(min_kernel),
            ..RuleFilter::default()
        };
        let on = |arch: &str| RuleFilter {
            arches: vec![arch.into()],
            ..RuleFilter::default()
        };
        assert!(rule(since((4, 8)), RuleFilter::default()).applies(0, (4, 18)));
        assert!(!rule(since((4, 18)), RuleFilter::default()).applies(0, (4, 8)));
        assert!(!rule(RuleFilter::default(), since((4, 8))).applies(0, (5, 0)));
        assert!(rule(on(HOST_ARCHITECTURE), RuleFilter::default()).applies(0, (6, 1)));
        assert!(!rule(on("mips"), RuleFilter::default()).applies(0, (6, 1)));
        assert!(!rule(RuleFilter::default(), on(HOST_ARCHITECTURE)).applies(0, (6, 1)));
    }

    #[test]
    fn capabilities_have_the_kernels_numbers() {
        assert_eq!(capability("CAP_CHOWN"), Some(0));
        assert_eq!(capability("CAP_SYS_ADMIN"), Some(21));
        assert_eq!(capability("CAP_CHECKPOINT_RESTORE"), Some(40));
        assert_eq!(capability("SYS_ADMIN"), None);
    }
}
