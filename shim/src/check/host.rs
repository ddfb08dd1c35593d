//! Checks the set-up of the node: our privileges, its cgroups, its names and its routes.
//!
//! Called by: `check::examine`, after the kernel's checks. Invariant: reads only files of /proc, /sys and /etc; each
//! text is judged by a pure function that a test can call.
//! Must not know: directories and file systems.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use coracle_config::{CgroupDriver, Config, Subnet};
use rustix::process::Resource;

use super::Finding;

/// Controllers that limits of pods need.
const CONTROLLERS: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];
/// Capabilities that the daemon uses: number and name, as in capability.h.
const CAPABILITIES: [(u32, &str); 9] = [
    (0, "CAP_CHOWN"),
    (1, "CAP_DAC_OVERRIDE"),
    (3, "CAP_FOWNER"),
    (5, "CAP_KILL"),
    (6, "CAP_SETGID"),
    (7, "CAP_SETUID"),
    (12, "CAP_NET_ADMIN"),
    (21, "CAP_SYS_ADMIN"),
    (27, "CAP_MKNOD"),
];
const CAP_SYS_RESOURCE: u32 = 24;
/// A full node's pods need about ten descriptors each in the daemon.
const WANTED_FILES: u64 = 65_536;

/// Every finding about the set-up of the node.
pub(super) fn findings(config: &Config) -> Vec<Finding> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let held = effective_capabilities(&status);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let mut findings = vec![
        capabilities(held),
        oom_score(held),
        open_files(),
        cgroups(&Cgroups::read(&mounts)),
        cgroup_driver(config.cgroup.driver, &Cgroups::read(&mounts)),
        resolver(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
    ];
    let network = &config.network;
    // The addresses of plugins' pods are theirs.
    if super::network::is_builtin(config) {
        findings.push(subnet(network.subnet, &network.interface_prefix, &routes));
    }
    findings
}

/// The bits of CapEff in `/proc/self/status`.
fn effective_capabilities(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}

fn capabilities(held: u64) -> Finding {
    let lacking: Vec<&str> = CAPABILITIES
        .iter()
        .filter(|(bit, _)| held & (1 << bit) == 0)
        .map(|(_, name)| *name)
        .collect();
    if lacking.is_empty() {
        return Finding::ok("capabilities", "all that are used");
    }
    Finding::missing(
        "capabilities",
        format!("not held: {}", lacking.join(" ")),
        "run as root, outside of a container",
    )
}

fn oom_score(held: u64) -> Finding {
    let subject = "CAP_SYS_RESOURCE";
    if held & (1 << CAP_SYS_RESOURCE) != 0 {
        return Finding::ok(subject, "keepers can be kept from the OOM killer");
    }
    Finding::warning(
        subject,
        "not held: an oom_score_adj below our own is clamped, for keepers and for pods",
        "run as root of the host (systemd: no CapabilityBoundingSet=), or start us with the lowest score",
    )
}

fn open_files() -> Finding {
    let limit = rustix::process::getrlimit(Resource::Nofile).maximum;
    match limit {
        Some(most) if most < WANTED_FILES => Finding::warning(
            "open files",
            format!("at most {most}, a full node needs {WANTED_FILES}"),
            "LimitNOFILE=1048576 in the unit, or ulimit -n 1048576",
        ),
        Some(most) => Finding::ok("open files", format!("at most {most}")),
        None => Finding::ok("open files", "no limit"),
    }
}

/// The cgroup trees of the node.
#[derive(Debug, Default, PartialEq, Eq)]
struct Cgroups {
    /// Controllers on the v2 tree.
    v2: BTreeSet<String>,
    /// Controllers on v1 trees.
    v1: BTreeSet<String>,
}

impl Cgroups {
    fn read(mountinfo: &str) -> Self {
        let mut found = Self::default();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let mut right = right.split(' ');
            match (left.split(' ').nth(4), right.next(), right.nth(1)) {
                (Some(at), Some("cgroup2"), _) => {
                    let file = Path::new(at).join("cgroup.controllers");
                    found
                        .v2
                        .extend(names(&fs::read_to_string(file).unwrap_or_default()));
                }
                (Some(_), Some("cgroup"), Some(options)) => {
                    found.v1.extend(options.split(',').map(str::to_owned));
                }
                _ => {}
            }
        }
        found
    }

    /// Whether limits are set on the v2 tree.
    fn unified(&self) -> bool {
        self.v2.contains("memory")
    }
}

fn names(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split_whitespace().map(str::to_owned)
}

fn cgroups(found: &Cgroups) -> Finding {
    let subject = "cgroups";
    let lacking: Vec<&str> = CONTROLLERS
        .into_iter()
        .filter(|name| !found.v2.contains(*name) && !found.v1.contains(*name))
        .collect();
    if !lacking.is_empty() {
        let remedy = match lacking.contains(&"memory") {
            true => {
                "boot with cgroup_enable=memory, and mount the trees: mount -t cgroup2 none /sys/fs/cgroup"
            }
            false => "mount the trees: mount -t cgroup2 none /sys/fs/cgroup",
        };
        return Finding::missing(
            subject,
            format!("no controller for {}", lacking.join(" ")),
            remedy,
        );
    }
    match found.unified() {
        true => Finding::ok(subject, "v2, with cpu cpuset memory pids"),
        false => Finding::warning(
            subject,
            "v1, which the kubelet refuses from 1.35 on unless failCgroupV1 is false",
            "boot with systemd.unified_cgroup_hierarchy=1, or set failCgroupV1: false for the kubelet",
        ),
    }
}

fn cgroup_driver(driver: CgroupDriver, found: &Cgroups) -> Finding {
    let systemd = Path::new("/run/systemd/system").is_dir();
    let subject = "cgroup driver";
    match driver {
        CgroupDriver::Systemd if !systemd => Finding::missing(
            subject,
            "systemd is configured, but is not process 1",
            "set cgroup.driver to \"auto\" or \"cgroupfs\"",
        ),
        CgroupDriver::Systemd => Finding::ok(subject, "systemd"),
        CgroupDriver::Auto if systemd && found.unified() => Finding::ok(subject, "auto: systemd"),
        CgroupDriver::Auto => Finding::ok(subject, "auto: cgroupfs"),
        CgroupDriver::Cgroupfs => Finding::ok(subject, "cgroupfs"),
    }
}

fn resolver(text: &str) -> Finding {
    let servers: Vec<&str> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver "))
        .map(str::trim)
        .collect();
    if servers.is_empty() {
        return Finding::warning(
            "resolv.conf",
            "names no nameserver: registries and pods that use the node's DNS find no names",
            "add a line `nameserver ADDRESS` to /etc/resolv.conf",
        );
    }
    Finding::ok("resolv.conf", servers.join(" "))
}

/// Whether a route other than ours leads into the subnet of pods.
fn subnet(subnet: Subnet<Ipv4Addr>, prefix: &str, routes: &str) -> Finding {
    let foreign = routes.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (interface, target, mask) = (
            fields.first()?,
            hex_address(fields.get(1)?)?,
            hex_address(fields.get(7)?)?,
        );
        let overlaps = subnet.contains(target) || (subnet.base & mask) == target;
        let default = mask.is_unspecified();
        (overlaps && !default && !interface.starts_with(prefix))
            .then(|| format!("{target}/{} by {interface}", mask.to_bits().count_ones()))
    });
    match foreign {
        None => Finding::ok("pod subnet", format!("{subnet} is free")),
        Some(route) => Finding::warning(
            "pod subnet",
            format!("{subnet} overlaps the route to {route}"),
            "choose another network.subnet in the configuration",
        ),
    }
}

/// An address in /proc/net/route: hexadecimal, in little-endian order.
fn hex_address(text: &str) -> Option<Ipv4Addr> {
    u32::from_str_radix(text, 16)
        .ok()
        .map(|address| Ipv4Addr::from(address.to_le_bytes()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn the_subnet_of_pods_matters_to_the_built_in_network_alone() {
        let mut config = Config::default();
        let has_subnet = |config: &Config| {
            let found = findings(config);
            found.iter().any(|finding| finding.subject == "pod subnet")
        };
        assert!(has_subnet(&config));
        config.network.mode = coracle_config::NetworkMode::Cni;
        assert!(!has_subnet(&config));
    }

    #[test]
    fn capabilities_are_read_and_named() {
        let held = effective_capabilities("Name:\tx\nCapEff:\t00000000002000c0\n");
        assert_eq!(held, 1 << 21 | 1 << 7 | 1 << 6);
        let finding = capabilities(held);
        assert_eq!(finding.level, Level::Missing);
        assert!(
            finding.found.contains("CAP_NET_ADMIN") && !finding.found.contains("CAP_SYS_ADMIN"),
            "{finding:?}"
        );
        assert_eq!(oom_score(held).level, Level::Warning);
        assert_eq!(oom_score(u64::MAX).level, Level::Ok);
    }

    #[test]
    fn controllers_of_both_trees_count_and_the_lacking_one_is_named() {
        let v1 = "30 25 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                  31 25 0:28 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
                  32 25 0:29 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n";
        let finding = cgroups(&Cgroups::read(v1));
        assert_eq!(
            (finding.level, finding.found.as_str()),
            (Level::Missing, "no controller for pids")
        );
        let whole = format!("{v1}33 25 0:30 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n");
        assert_eq!(cgroups(&Cgroups::read(&whole)).level, Level::Warning);
        let v2 = Cgroups {
            v2: CONTROLLERS.map(str::to_owned).into(),
            v1: BTreeSet::new(),
        };
        assert_eq!(cgroups(&v2).level, Level::Ok);
        let none = cgroups(&Cgroups::default());
        assert!(none.remedy.unwrap().contains("cgroup_enable=memory"));
    }

    #[test]
    fn a_resolver_without_servers_is_warned_about() {
        assert_eq!(
            resolver("search a\n# nameserver 1.1.1.1\n").level,
            Level::Warning
        );
        assert_eq!(
            resolver("nameserver 10.0.0.1\nnameserver ::1\n").found,
            "10.0.0.1 ::1"
        );
    }

    #[test]
    fn routes_into_the_pod_subnet_are_found_but_for_our_own_and_the_default() {
        let head = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n";
        let judged = |rows: &str| {
            let pods = Subnet::parse("10.88.0.0/16").unwrap();
            subnet(pods, "cor", &format!("{head}{rows}")).level
        };
        assert_eq!(
            judged("eth0 00000000 010011AC 3 0 0 0 00000000 0 0 0\n"),
            Level::Ok
        );
        assert_eq!(
            judged("cor7 0700580A 00000000 5 0 0 0 FFFFFFFF 0 0 0\n"),
            Level::Ok
        );
        assert_eq!(
            judged("eth0 0000590A 00000000 1 0 0 0 0000FFFF 0 0 0\n"),
            Level::Ok
        );
        assert_eq!(
            judged("cni0 0001580A 00000000 1 0 0 0 00FFFFFF 0 0 0\n"),
            Level::Warning
        );
        assert_eq!(
            judged("vpn0 0000000A 00000000 1 0 0 0 000000FF 0 0 0\n"),
            Level::Warning
        );
    }
}
