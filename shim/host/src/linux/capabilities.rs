//! Capabilities of a Linux container, from names to masks.
//!
//! Called by [`super`]. Source: capabilities(7); the sets are containerd's and CRI-O's: bounding and permitted are
//! equal, the inheritable set is empty except for the ambient one.
//! Invariants: no capability is granted that this process lacks; an unknown name is refused.
//! Must not know: how they are set.

use coracle_lifecycle::{Error, SecurityContext};
use coracle_spec::Capabilities;

use crate::errors::invalid;
use crate::io_error;

/// All names by number, without `CAP_`. Source: linux/capability.h.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The capability that mounts and namespaces need.
pub(super) const SYS_ADMIN: u64 = 1 << 21;

/// The default capabilities of a container: containerd's list.
const USUAL: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

const ALL: &str = "ALL";

/// The default capabilities as a mask: the seccomp filter for these is built in advance.
pub fn usual() -> u64 {
    USUAL
        .iter()
        .filter_map(|name| bit(name))
        .fold(0, |set, bit| set | bit)
}

/// The capabilities of this process, as a mask. Errors: procfs cannot be read.
pub(super) fn own() -> Result<u64, Error> {
    let failed = |error| io_error("read this process's capabilities", error);
    let status = std::fs::read_to_string("/proc/self/status").map_err(failed)?;
    let field = status
        .lines()
        .find_map(|line| line.strip_prefix("CapPrm:"))
        .and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    field.ok_or_else(|| failed(std::io::ErrorKind::InvalidData.into()))
}

/// The sets of a container; `own` are the capabilities of this process.
/// Errors: Invalid for a name that is unknown or not in `own`.
pub(super) fn sets(config: &SecurityContext, own: u64) -> Result<Capabilities, Error> {
    if config.privileged {
        return Ok(Capabilities {
            bounding: own,
            permitted: own,
            ambient: 0,
        });
    }
    let requested = &config.capabilities;
    let mut set = usual() & own;
    if has_all(&requested.add) {
        set = own;
    }
    if has_all(&requested.drop) {
        set = 0;
    }
    for name in singles(&requested.add) {
        set |= available(name, own)?;
    }
    for name in singles(&requested.drop) {
        set &= !known(name)?;
    }
    let mut ambient = if has_all(&requested.ambient) { own } else { 0 };
    for name in singles(&requested.ambient) {
        ambient |= available(name, own)?;
    }
    // A capability that is kept over an execve must be present before it.
    set |= ambient;
    Ok(Capabilities {
        bounding: set,
        permitted: set,
        ambient,
    })
}

fn has_all(names: &[String]) -> bool {
    names.iter().any(|name| name.eq_ignore_ascii_case(ALL))
}

fn singles(names: &[String]) -> impl Iterator<Item = &str> {
    let is_single = |name: &&String| !name.eq_ignore_ascii_case(ALL);
    names.iter().filter(is_single).map(String::as_str)
}

fn bit(name: &str) -> Option<u64> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    let number = NAMES.iter().position(|known| *known == bare)?;
    Some(1 << number)
}

fn known(name: &str) -> Result<u64, Error> {
    bit(name).ok_or_else(|| invalid(format!("there is no capability {name:?}")))
}

fn available(name: &str, own: u64) -> Result<u64, Error> {
    let bit = known(name)?;
    if bit & own == 0 {
        return Err(invalid(format!(
            "capability {name:?} is requested, but this runtime does not have it itself"
        )));
    }
    Ok(bit)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use coracle_lifecycle::CapabilityConfig;

    /// All 41 except SYS_RESOURCE.
    const OWN: u64 = ((1 << 41) - 1) & !(1 << 24);
    /// containerd's list as `capsh --decode` prints it.
    const DEFAULT: u64 = 0xa804_25fb;

    fn owned(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn requested(add: &[&str], drop: &[&str], ambient: &[&str]) -> Result<Capabilities, Error> {
        let capabilities = CapabilityConfig {
            add: owned(add),
            drop: owned(drop),
            ambient: owned(ambient),
        };
        let config = SecurityContext {
            capabilities,
            ..SecurityContext::default()
        };
        sets(&config, OWN)
    }

    #[test]
    fn lists_are_applied_as_containerd_applies_them() {
        let net_admin = 1 << 12;
        for (add, drop, expected) in [
            (&[][..], &[][..], DEFAULT),
            (&["NET_ADMIN"], &[], DEFAULT | net_admin),
            (&["CAP_NET_ADMIN"], &[], DEFAULT | net_admin),
            (&["net_admin"], &[], DEFAULT | net_admin),
            (&[], &["CHOWN"], DEFAULT & !1),
            (&["ALL"], &[], OWN),
            (&["all"], &["CAP_CHOWN"], OWN & !1),
            (&[], &["ALL"], 0),
            (&["NET_ADMIN"], &["ALL"], net_admin),
            (&["ALL"], &["ALL"], 0),
            (&["CHOWN"], &["CHOWN"], DEFAULT & !1),
        ] {
            let sets = requested(add, drop, &[]).unwrap();
            assert_eq!(
                (sets.bounding, sets.permitted, sets.ambient),
                (expected, expected, 0),
                "{add:?} {drop:?}"
            );
        }
    }

    #[test]
    fn an_ambient_capability_is_in_every_set() {
        let sets = requested(&[], &["ALL"], &["NET_BIND_SERVICE"]).unwrap();
        assert_eq!(
            (sets.bounding, sets.permitted, sets.ambient),
            (1 << 10, 1 << 10, 1 << 10)
        );
    }

    #[test]
    fn unknown_and_unavailable_names_are_refused_by_name() {
        for (add, drop, ambient, name) in [
            (
                &["NET_ADMINISTRATOR"][..],
                &[][..],
                &[][..],
                "NET_ADMINISTRATOR",
            ),
            (&[], &["CAP_"], &[], "CAP_"),
            (&[], &[], &["41"], "41"),
            (&["SYS_RESOURCE"], &[], &[], "SYS_RESOURCE"),
        ] {
            let text = requested(add, drop, ambient).unwrap_err().to_string();
            assert!(text.contains(name), "{text}");
        }
        assert!(requested(&[], &["SYS_RESOURCE"], &[]).is_ok());
    }

    #[test]
    fn privileged_gets_all_capabilities_of_this_process() {
        let config = SecurityContext {
            privileged: true,
            ..SecurityContext::default()
        };
        let sets = sets(&config, OWN).unwrap();
        assert_eq!((sets.permitted, sets.ambient), (OWN, 0));
    }

    #[test]
    fn the_capabilities_of_this_process_are_read() {
        let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap();
        let last: u32 = last.trim().parse().unwrap();
        assert_eq!(own().unwrap() >> (last + 1), 0);
        assert_eq!(DEFAULT, DEFAULT & ((1 << (last + 1)) - 1));
    }
}
