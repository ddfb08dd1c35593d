//! The parts of a config that only a Linux node can grant: id maps, namespaces, privileges, profiles, devices.
//!
//! Made by: `cri/convert`, which checks their form. Read by: the host, which checks them against the node.
//! Invariant: every type has a default that means "not requested", so that older records load.
//! Must not know: how the host applies them.

use serde::{Deserialize, Serialize};

/// One block of ids. Source: cri-api `IDMapping`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// First id as the container sees it.
    pub inside: u32,
    /// First id on the host.
    pub outside: u32,
    /// How many ids; never 0, and both ends fit 32 bits.
    pub count: u32,
}

/// A pod's own user namespace. Source: cri-api `UserNamespace` with mode POD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespaceConfig {
    /// Users; begins at container id 0, never at host id 0.
    pub uid: IdMapping,
    /// Groups; as yet always equal to `uid`.
    pub gid: IdMapping,
}

/// Whose groups a container gets in addition to the requested ones. Source: cri-api `SupplementalGroupsPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GroupsPolicy {
    /// Those in which the image's `/etc/group` lists its user.
    #[default]
    Merge,
    /// None.
    Strict,
}

/// Which processes a container sees. Source: cri-api `NamespaceMode` of `pid`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PidNamespaceConfig {
    /// Not set: its own processes, or the node's in a pod created with the node's pid namespace.
    #[default]
    Unset,
    /// Its pod's.
    Pod,
    /// Its own.
    Container,
    /// The node's.
    Node,
    /// Those of the container with this id.
    Target(String),
}

/// A seccomp or AppArmor profile. Source: cri-api `SecurityProfile`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecurityProfile {
    /// Not set.
    #[default]
    Unset,
    /// The runtime's default profile.
    Default,
    /// No profile.
    Unconfined,
    /// A profile of the node: the path of a file, or the name of a loaded profile; never empty.
    Localhost(String),
}

/// The parts of an SELinux label; parts that were not given are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelinuxOptions {
    /// User.
    pub user: String,
    /// Role.
    pub role: String,
    /// Type.
    pub kind: String,
    /// Level, as `s0:c1,c2`.
    pub level: String,
}

/// Changes to the default capabilities, by name, with or without `CAP_`, or `ALL`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CapabilityConfig {
    /// Capabilities to add.
    pub add: Vec<String>,
    /// Capabilities to drop.
    pub drop: Vec<String>,
    /// Capabilities to add and keep over execve for any user.
    pub ambient: Vec<String>,
}

/// What confines a container. Source: cri-api `LinuxContainerSecurityContext`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SecurityContext {
    /// The container is privileged.
    pub privileged: bool,
    /// Capabilities.
    pub capabilities: CapabilityConfig,
    /// `no_new_privs` is set.
    pub no_new_privs: bool,
    /// System call filter.
    pub seccomp: SecurityProfile,
    /// AppArmor profile.
    pub apparmor: SecurityProfile,
    /// SELinux label; `None` when no part of it was given.
    pub selinux: Option<SelinuxOptions>,
    /// Absolute paths that read as empty.
    pub masked_paths: Vec<String>,
    /// Absolute paths that cannot be written.
    pub readonly_paths: Vec<String>,
    /// Whose processes it sees.
    pub pid: PidNamespaceConfig,
    /// The node's network was requested.
    pub node_network: bool,
    /// The node's ipc namespace was requested.
    pub node_ipc: bool,
    /// Its user namespace; `None` when unset, `Some(None)` for the node's.
    #[serde(with = "double_option")]
    pub userns: Option<Option<UserNamespaceConfig>>,
}

/// One device. Source: cri-api `Device`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceConfig {
    /// Absolute path in the container.
    pub container_path: String,
    /// Absolute path on the host: a device, or a directory of devices.
    pub host_path: String,
    /// Some of `r`, `w` and `m`.
    pub permissions: String,
}

/// An image to be mounted. Source: cri-api `Mount.image`, `Mount.image_sub_path`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageVolume {
    /// An id, tag or digest.
    pub image: String,
    /// Echoed in the status.
    pub user_specified_image: String,
    /// A directory or file in it, relative; empty for all of it.
    pub sub_path: String,
}

/// JSON has only one `null`: an outer list distinguishes "unset" from "the node's".
mod double_option {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::UserNamespaceConfig;

    type Value = Option<Option<UserNamespaceConfig>>;

    pub fn serialize<S: Serializer>(value: &Value, to: S) -> Result<S::Ok, S::Error> {
        value.map(|inner| [inner]).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Value, D::Error> {
        let list: Option<[Option<UserNamespaceConfig>; 1]> = Option::deserialize(from)?;
        Ok(list.map(|[inner]| inner))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn an_unset_and_a_node_user_namespace_differ_on_disk() {
        let map = IdMapping {
            inside: 0,
            outside: 1 << 16,
            count: 1 << 16,
        };
        for userns in [
            None,
            Some(None),
            Some(Some(UserNamespaceConfig { uid: map, gid: map })),
        ] {
            let config = SecurityContext {
                userns,
                pid: PidNamespaceConfig::Target("x".to_owned()),
                ..SecurityContext::default()
            };
            let text = serde_json::to_string(&config).unwrap();
            assert_eq!(
                serde_json::from_str::<SecurityContext>(&text).unwrap(),
                config,
                "{text}"
            );
        }
    }

    #[test]
    fn an_older_record_without_these_fields_reads_as_the_default() {
        let read: SecurityContext = serde_json::from_str("{}").unwrap();
        assert_eq!(read, SecurityContext::default());
    }
}
