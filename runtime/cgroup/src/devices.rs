//! Which devices a cgroup may use: rules, the policy that they form, and the v1 `devices` hierarchy.
//! Called by: `v1` and `v2`; [`super::bpf`] turns the same [`Policy`] into a program.
//! Invariants: a device that no rule names is denied; a request (such as reading and writing at once) passes
//! only if a single node of the policy allows all of it, on v1 as on v2; while a policy changes, nothing is
//! allowed that neither the old nor the new one allows.
//! Not here: which devices a container has.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::Error;
use super::files;

/// All devices, as the v1 files write it.
const EVERYTHING: &str = "a *:* rwm";

/// One allow rule. Source: OCI runtime-spec `linux.resources.devices`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    /// Character devices, block devices, or both.
    pub kind: DeviceClass,
    /// Upper part of the device number; `None` stands for all.
    pub major: Option<u32>,
    /// Lower part of the device number; `None` stands for all.
    pub minor: Option<u32>,
    /// May be opened for reading.
    pub read: bool,
    /// May be opened for writing.
    pub write: bool,
    /// Nodes of it may be made.
    pub mknod: bool,
}

/// The class of devices of a [`DeviceRule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceClass {
    /// Character and block devices.
    Any,
    /// Character devices.
    Char,
    /// Block devices.
    Block,
}

impl DeviceRule {
    /// A rule from the `rwm` letters that CRI and OCI use; other letters are ignored.
    #[must_use]
    pub fn new(kind: DeviceClass, major: Option<u32>, minor: Option<u32>, access: &str) -> Self {
        Self {
            kind,
            major,
            minor,
            read: access.contains('r'),
            write: access.contains('w'),
            mknod: access.contains('m'),
        }
    }

    /// What every container may do: mknod for all devices, and open null, zero, full, random, urandom, tty, ptmx and
    /// the terminals of `/dev/pts`. Source: runc `specconv.AllowedDevices`. The node's console (5:1) is not among
    /// them: a container's console is a pseudo terminal of its own.
    #[must_use]
    pub fn defaults() -> Vec<Self> {
        let any_node = [DeviceClass::Char, DeviceClass::Block];
        let nodes = any_node.map(|kind| Self::new(kind, None, None, "m"));
        let open = |major, minor| Self::new(DeviceClass::Char, Some(major), minor, "rwm");
        let memory = [3, 5, 7, 8, 9].map(|minor| open(1, Some(minor)));
        let terminals = [open(5, Some(0)), open(5, Some(2)), open(136, None)];
        nodes.into_iter().chain(memory).chain(terminals).collect()
    }

    /// All devices of the node, for privileged containers.
    #[must_use]
    pub fn everything() -> Vec<Self> {
        vec![Self::new(DeviceClass::Any, None, None, "rwm")]
    }
}

/// Access to a device, as bits of `BPF_DEVCG_ACC_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access(pub(super) u32);

impl Access {
    pub(super) const MKNOD: Self = Self(1);
    pub(super) const READ: Self = Self(2);
    pub(super) const WRITE: Self = Self(4);
    pub(super) const ALL: Self = Self(7);

    fn of(rule: &DeviceRule) -> Self {
        let bit = |is_set: bool, access: Self| if is_set { access.0 } else { 0 };
        Self(
            bit(rule.read, Self::READ)
                | bit(rule.write, Self::WRITE)
                | bit(rule.mknod, Self::MKNOD),
        )
    }

    fn parse(letters: &str) -> Self {
        Self::of(&DeviceRule::new(DeviceClass::Any, None, None, letters))
    }

    fn without(self, other: Self) -> Option<Self> {
        Some(Self(self.0 & !other.0)).filter(|left| left.0 != 0)
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (letter, access) in [("r", Self::READ), ("w", Self::WRITE), ("m", Self::MKNOD)] {
            if self.0 & access.0 != 0 {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

/// A device number with wildcards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Node {
    pub(super) is_block: bool,
    pub(super) major: Option<u32>,
    pub(super) minor: Option<u32>,
}

impl fmt::Display for Node {
    /// As in `devices.allow`, without the access: `c 1:3`, `b 8:*`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |part: Option<u32>| part.map_or("*".to_owned(), |part| part.to_string());
        let letter = if self.is_block { 'b' } else { 'c' };
        write!(f, "{letter} {}:{}", number(self.major), number(self.minor))
    }
}

/// The policy that a list of rules forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    /// Nothing is denied.
    Everything,
    /// Only these nodes are allowed, each listed once.
    Only(BTreeMap<Node, Access>),
}

impl Policy {
    /// Rules of the same node are one; a rule for both kinds is two nodes, because `a` with a number
    /// means "everything" to the v1 kernel.
    pub(super) fn of(rules: &[DeviceRule]) -> Self {
        let mut nodes = BTreeMap::new();
        for rule in rules {
            let access = Access::of(rule);
            let is_all = rule.major.is_none() && rule.minor.is_none() && access == Access::ALL;
            if rule.kind == DeviceClass::Any && is_all {
                return Self::Everything;
            }
            let kinds = match rule.kind {
                DeviceClass::Any => vec![false, true],
                DeviceClass::Char => vec![false],
                DeviceClass::Block => vec![true],
            };
            for is_block in kinds.into_iter().filter(|_| access.0 != 0) {
                let (major, minor) = (rule.major, rule.minor);
                let node = Node {
                    is_block,
                    major,
                    minor,
                };
                let known = nodes.entry(node).or_insert(Access(0));
                *known = Access(known.0 | access.0);
            }
        }
        Self::Only(nodes)
    }

    /// Parses `devices.list` of a v1 cgroup. Lines of another form are ignored.
    fn parse(list: &str) -> Self {
        let number = |part: &str| part.parse().ok();
        let mut nodes = BTreeMap::new();
        for line in list.lines() {
            let mut fields = line.split_ascii_whitespace();
            let (kind, device, access) = (fields.next(), fields.next(), fields.next());
            let device = device.and_then(|device| device.split_once(':'));
            let is_block = match kind {
                Some("a") => return Self::Everything,
                Some("b") => true,
                _ => false,
            };
            if let (Some((major, minor)), Some(access)) = (device, access) {
                let (major, minor) = (number(major), number(minor));
                let node = Node {
                    is_block,
                    major,
                    minor,
                };
                nodes.insert(node, Access::parse(access));
            }
        }
        Self::Only(nodes)
    }

    /// Lines for `devices.deny` and `devices.allow` that change `self` to `wanted`. They name the differences only: the
    /// kernel refuses `a` once there are child cgroups.
    fn change_to(&self, wanted: &Self) -> (Vec<String>, Vec<String>) {
        let none = BTreeMap::new();
        let (now, mut deny) = match (self, wanted) {
            (Self::Everything, Self::Everything) => return (vec![], vec![]),
            (_, Self::Everything) => return (vec![], vec![EVERYTHING.to_owned()]),
            (Self::Everything, _) => (&none, vec![EVERYTHING.to_owned()]),
            (Self::Only(now), _) => (now, vec![]),
        };
        let Self::Only(wanted) = wanted else {
            return (deny, vec![]);
        };
        let line = |node: &Node, access: Access| format!("{node} {access}");
        let granted = |nodes: &BTreeMap<Node, Access>, node: &Node| {
            nodes.get(node).copied().unwrap_or(Access(0))
        };
        deny.extend(now.iter().filter_map(|(node, access)| {
            let surplus = access.without(granted(wanted, node))?;
            Some(line(node, surplus))
        }));
        let lacking = wanted.iter().filter_map(|(node, access)| {
            let lacking = access.without(granted(now, node))?;
            Some(line(node, lacking))
        });
        (deny, lacking.collect())
    }
}

/// Sets the policy of the cgroup `dir` in the v1 `devices` hierarchy.
/// Errors: a device that the parent cgroup denies (EPERM).
pub(super) fn apply_v1(dir: &Path, wanted: &Policy) -> Result<(), Error> {
    let now = Policy::parse(&files::read(&dir.join("devices.list"))?);
    let (deny, allow) = now.change_to(wanted);
    for line in deny {
        files::write(&dir.join("devices.deny"), &line)?;
    }
    let file = dir.join("devices.allow");
    for line in allow {
        match files::write(&file, &line) {
            // The kernel cannot return to "everything" while there are child cgroups; this has the same effect.
            Err(error) if line == EVERYTHING && error.raw_os_error() == Some(libc::EINVAL) => {
                files::write(&file, "c *:* rwm")?;
                files::write(&file, "b *:* rwm")?;
            }
            written => written?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use DeviceClass::{Any, Block, Char};

    fn rule(kind: DeviceClass, major: u32, minor: u32, access: &str) -> DeviceRule {
        DeviceRule::new(kind, Some(major), Some(minor), access)
    }

    #[test]
    fn rules_add_up() {
        let policy = Policy::of(&[
            rule(Char, 1, 3, "r"),
            rule(Char, 1, 3, "w"),
            rule(Any, 7, 0, "r"),
            rule(Block, 9, 9, ""),
        ]);
        let none = Policy::Only(BTreeMap::new());
        let (deny, allow) = none.change_to(&policy);
        assert_eq!(deny, Vec::<String>::new());
        assert_eq!(allow, ["c 1:3 rw", "c 7:0 r", "b 7:0 r"]);
        assert_eq!(Policy::of(&DeviceRule::everything()), Policy::Everything);
        let most = DeviceRule::new(Any, None, None, "rw");
        assert_ne!(Policy::of(&[most]), Policy::Everything);
    }

    #[test]
    fn only_what_differs_is_written() {
        let old = Policy::of(&[rule(Char, 1, 3, "rwm"), rule(Block, 8, 0, "r")]);
        let new = Policy::of(&[rule(Char, 1, 3, "rm"), rule(Char, 5, 0, "rw")]);
        assert_eq!(
            old.change_to(&new),
            (
                vec!["c 1:3 w".to_owned(), "b 8:0 r".to_owned()],
                vec!["c 5:0 rw".to_owned()]
            )
        );
        assert_eq!(old.change_to(&old), (vec![], vec![]));
        let (deny, allow) = Policy::Everything.change_to(&new);
        assert_eq!(deny, ["a *:* rwm"]);
        assert_eq!(allow, ["c 1:3 rm", "c 5:0 rw"]);
        let all = Policy::Everything;
        assert_eq!(old.change_to(&all).1, ["a *:* rwm"]);
    }

    #[test]
    fn the_kernels_list_is_understood() {
        let list = "c *:* m\nb *:* m\nc 1:3 rwm\nc 136:* rw\n";
        let policy = Policy::parse(list);
        let Policy::Only(nodes) = &policy else {
            panic!("{policy:?}")
        };
        let lines: Vec<String> = nodes
            .iter()
            .map(|(node, access)| format!("{node} {access}"))
            .collect();
        assert_eq!(lines, ["c *:* m", "c 1:3 rwm", "c 136:* rw", "b *:* m"]);
        assert_eq!(Policy::parse("a *:* rwm\n"), Policy::Everything);
    }
}
