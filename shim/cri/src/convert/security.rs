//! Security contexts of sandboxes and containers: users, privileges, profiles, labels, paths.
//!
//! Called by `sandbox` and `container`. Invariants: every field is either converted or refused, never dropped; of the
//! two fields that older protocols had for a profile, the newer one wins.
//! Must not know: namespaces, resources; whether the node has a profile, a capability, SELinux.

use coracle_lifecycle::{
    CapabilityConfig, GroupsPolicy, SecurityContext, SecurityProfile, SelinuxOptions, UserConfig,
};
use coracle_proto::runtime::v1 as cri;
use cri::security_profile::ProfileType;

use super::BadRequest;
use super::check;
use super::namespaces;

/// The longest name of a profile, a capability or a part of a label, in bytes.
const MAX_WORD_BYTES: usize = 256;

/// The longest path of a seccomp profile, in bytes.
const MAX_PATH_BYTES: usize = 4096;

/// The most masked, and the most read-only paths.
const MAX_PATHS: usize = 512;

/// The most entries of each list of capabilities.
const MAX_CAPABILITIES: usize = 256;

/// Reads the user of a sandbox or a container. Checks the ranges, and that a group comes with a user.
pub(super) fn user(
    field: &str,
    uid: Option<&cri::Int64Value>,
    gid: Option<&cri::Int64Value>,
    groups: &[i64],
) -> Result<UserConfig, BadRequest> {
    let (uid, gid) = (uid.map(|v| v.value), gid.map(|v| v.value));
    uid.map_or(Ok(()), |uid| {
        check::id(&format!("{field}.run_as_user"), uid)
    })?;
    gid.map_or(Ok(()), |gid| {
        check::id(&format!("{field}.run_as_group"), gid)
    })?;
    for (index, group) in groups.iter().enumerate() {
        check::id(&format!("{field}.supplemental_groups[{index}]"), *group)?;
    }
    Ok(UserConfig {
        uid,
        username: String::new(),
        gid,
        groups: groups.to_vec(),
        policy: GroupsPolicy::Merge,
    })
}

/// Reads which groups of the image are added.
pub(super) fn groups_policy(field: &str, value: i32) -> Result<GroupsPolicy, BadRequest> {
    match cri::SupplementalGroupsPolicy::try_from(value) {
        Ok(cri::SupplementalGroupsPolicy::Merge) => Ok(GroupsPolicy::Merge),
        Ok(cri::SupplementalGroupsPolicy::Strict) => Ok(GroupsPolicy::Strict),
        Err(_) => Err(BadRequest::invalid(
            format!("{field}.supplemental_groups_policy"),
            format!("is {value}, which is not a policy"),
        )),
    }
}

/// Refuses a group that comes without a user.
pub(super) fn group_needs_user(field: &str, user: &UserConfig) -> Result<(), BadRequest> {
    if user.gid.is_some() && user.uid.is_none() && user.username.is_empty() {
        let problem = "is set without run_as_user or run_as_username";
        return Err(BadRequest::invalid(
            format!("{field}.run_as_group"),
            problem,
        ));
    }
    Ok(())
}

/// Reads the security context of a container.
pub(super) fn context(
    field: &str,
    context: &cri::LinuxContainerSecurityContext,
) -> Result<SecurityContext, BadRequest> {
    #[allow(deprecated, reason = "older kubelets and crictl still set these two")]
    let (old_seccomp, old_apparmor) = (&context.seccomp_profile_path, &context.apparmor_profile);
    let mut config = SecurityContext {
        privileged: context.privileged,
        capabilities: capabilities(field, context.capabilities.as_ref())?,
        no_new_privs: context.no_new_privs,
        seccomp: seccomp(field, context.seccomp.as_ref(), old_seccomp)?,
        apparmor: apparmor(field, context.apparmor.as_ref(), old_apparmor)?,
        selinux: selinux(field, context.selinux_options.as_ref())?,
        masked_paths: paths(&format!("{field}.masked_paths"), &context.masked_paths)?,
        readonly_paths: paths(&format!("{field}.readonly_paths"), &context.readonly_paths)?,
        ..SecurityContext::default()
    };
    let options = context.namespace_options.as_ref();
    namespaces::of_container(&format!("{field}.namespace_options"), options, &mut config)?;
    Ok(config)
}

fn capabilities(
    field: &str,
    requested: Option<&cri::Capability>,
) -> Result<CapabilityConfig, BadRequest> {
    let Some(requested) = requested else {
        return Ok(CapabilityConfig::default());
    };
    for (list, names) in [
        ("add_capabilities", &requested.add_capabilities),
        ("drop_capabilities", &requested.drop_capabilities),
        (
            "add_ambient_capabilities",
            &requested.add_ambient_capabilities,
        ),
    ] {
        let field = format!("{field}.capabilities.{list}");
        if names.len() > MAX_CAPABILITIES {
            let problem = format!(
                "has {} entries, the limit is {MAX_CAPABILITIES}",
                names.len()
            );
            return Err(BadRequest::invalid(field, problem));
        }
        for (index, name) in names.iter().enumerate() {
            check::token(&format!("{field}[{index}]"), name, MAX_WORD_BYTES)?;
        }
    }
    Ok(CapabilityConfig {
        add: requested.add_capabilities.clone(),
        drop: requested.drop_capabilities.clone(),
        ambient: requested.add_ambient_capabilities.clone(),
    })
}

/// Reads a seccomp profile; the path of a profile is absolute and clean.
pub(super) fn seccomp(
    field: &str,
    profile: Option<&cri::SecurityProfile>,
    old: &str,
) -> Result<SecurityProfile, BadRequest> {
    let fields = ["seccomp", "seccomp_profile_path"].map(|name| format!("{field}.{name}"));
    let (config, at) = of_either(fields, profile, old)?;
    if let SecurityProfile::Localhost(path) = &config {
        check::absolute_or_empty(&at, path)?;
        if path.len() > MAX_PATH_BYTES {
            let problem = format!(
                "is {} bytes long, the limit is {MAX_PATH_BYTES}",
                path.len()
            );
            return Err(BadRequest::invalid(at, problem));
        }
    }
    Ok(config)
}

/// Reads an AppArmor profile; a profile of the node is a name.
pub(super) fn apparmor(
    field: &str,
    profile: Option<&cri::SecurityProfile>,
    old: &str,
) -> Result<SecurityProfile, BadRequest> {
    let fields = ["apparmor", "apparmor_profile"].map(|name| format!("{field}.{name}"));
    let (config, at) = of_either(fields, profile, old)?;
    if let SecurityProfile::Localhost(name) = &config {
        check::token(&at, name, MAX_WORD_BYTES)?;
    }
    Ok(config)
}

/// Reads a profile from its field or, if that is absent, from the text field of older protocols. Returns the profile
/// and the field with its path or name.
fn of_either(
    [field, old_field]: [String; 2],
    profile: Option<&cri::SecurityProfile>,
    old: &str,
) -> Result<(SecurityProfile, String), BadRequest> {
    match profile {
        Some(profile) => Ok((of_type(&field, profile)?, format!("{field}.localhost_ref"))),
        None => Ok((of_text(&old_field, old)?, old_field)),
    }
}

fn of_type(field: &str, profile: &cri::SecurityProfile) -> Result<SecurityProfile, BadRequest> {
    match ProfileType::try_from(profile.profile_type) {
        Ok(ProfileType::RuntimeDefault) => Ok(SecurityProfile::Default),
        Ok(ProfileType::Unconfined) => Ok(SecurityProfile::Unconfined),
        Ok(ProfileType::Localhost) if profile.localhost_ref.is_empty() => Err(BadRequest::invalid(
            format!("{field}.localhost_ref"),
            "is empty for a Localhost profile",
        )),
        Ok(ProfileType::Localhost) => {
            check::printable(&format!("{field}.localhost_ref"), &profile.localhost_ref)?;
            Ok(SecurityProfile::Localhost(profile.localhost_ref.clone()))
        }
        Err(_) => {
            let problem = format!("is {}, which is not a profile type", profile.profile_type);
            Err(BadRequest::invalid(
                format!("{field}.profile_type"),
                problem,
            ))
        }
    }
}

/// The text form of older protocols.
fn of_text(field: &str, text: &str) -> Result<SecurityProfile, BadRequest> {
    check::printable(field, text)?;
    match text {
        "" => Ok(SecurityProfile::Unset),
        "runtime/default" | "docker/default" => Ok(SecurityProfile::Default),
        "unconfined" => Ok(SecurityProfile::Unconfined),
        _ => match text.strip_prefix("localhost/") {
            Some("") => Err(BadRequest::invalid(
                field,
                "names no profile after localhost/",
            )),
            Some(name) => Ok(SecurityProfile::Localhost(name.to_owned())),
            None => Err(BadRequest::invalid(
                field,
                "is not one of runtime/default, docker/default, unconfined, localhost/NAME",
            )),
        },
    }
}

/// Reads an SELinux label; `None` when all parts are empty. Allows only characters of labels, and `:` only in the
/// level.
pub(super) fn selinux(
    field: &str,
    options: Option<&cri::SeLinuxOption>,
) -> Result<Option<SelinuxOptions>, BadRequest> {
    let Some(options) = options else {
        return Ok(None);
    };
    for (part, text) in [
        ("user", &options.user),
        ("role", &options.role),
        ("type", &options.r#type),
        ("level", &options.level),
    ] {
        let field = format!("{field}.selinux_options.{part}");
        let good = |b: u8| {
            b.is_ascii_alphanumeric()
                || matches!(b, b'_' | b'-' | b'.')
                || (part == "level" && matches!(b, b':' | b','))
        };
        if text.len() > MAX_WORD_BYTES || !text.bytes().all(good) {
            return Err(BadRequest::invalid(field, "is not part of a label"));
        }
    }
    let config = SelinuxOptions {
        user: options.user.clone(),
        role: options.role.clone(),
        kind: options.r#type.clone(),
        level: options.level.clone(),
    };
    Ok((config != SelinuxOptions::default()).then_some(config))
}

/// Absolute clean paths in a container.
fn paths(field: &str, paths: &[String]) -> Result<Vec<String>, BadRequest> {
    if paths.len() > MAX_PATHS {
        let problem = format!("has {} entries, the limit is {MAX_PATHS}", paths.len());
        return Err(BadRequest::invalid(field, problem));
    }
    for (index, path) in paths.iter().enumerate() {
        let field = format!("{field}[{index}]");
        check::given(&field, path)?;
        check::absolute_or_empty(&field, path)?;
    }
    Ok(paths.to_vec())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn profile(profile_type: i32, localhost_ref: &str) -> cri::SecurityProfile {
        cri::SecurityProfile {
            profile_type,
            localhost_ref: localhost_ref.into(),
        }
    }

    #[test]
    fn a_profile_is_read_from_its_type_or_from_the_older_text() {
        let path = |text: &str| Ok(SecurityProfile::Localhost(text.to_owned()));
        assert_eq!(seccomp("s", None, ""), Ok(SecurityProfile::Unset));
        assert_eq!(
            seccomp("s", None, "runtime/default"),
            Ok(SecurityProfile::Default)
        );
        assert_eq!(
            seccomp("s", None, "docker/default"),
            Ok(SecurityProfile::Default)
        );
        assert_eq!(
            seccomp("s", None, "unconfined"),
            Ok(SecurityProfile::Unconfined)
        );
        assert_eq!(seccomp("s", None, "localhost//p/a.json"), path("/p/a.json"));
        assert_eq!(
            seccomp("s", Some(&profile(0, "")), "unconfined"),
            Ok(SecurityProfile::Default)
        );
        assert_eq!(
            seccomp("s", Some(&profile(1, "")), ""),
            Ok(SecurityProfile::Unconfined)
        );
        assert_eq!(
            seccomp("s", Some(&profile(2, "/a.json")), ""),
            path("/a.json")
        );
        assert_eq!(apparmor("a", Some(&profile(2, "web")), ""), path("web"));
        assert_eq!(apparmor("a", None, "localhost/web"), path("web"));
    }

    #[test]
    fn an_empty_profile_is_never_unconfined() {
        for (given, old) in [
            (Some(profile(2, "")), ""),
            (Some(profile(2, "../../etc/passwd")), ""),
            (Some(profile(2, "/p/../../etc/passwd")), ""),
            (Some(profile(2, "relative.json")), ""),
            (Some(profile(2, "/p\n")), ""),
            (Some(profile(7, "")), ""),
            (None, "localhost/"),
            (None, "localhost/relative.json"),
            (None, "/p/a.json"),
            (None, "Unconfined"),
        ] {
            let refused = seccomp("s", given.as_ref(), old).unwrap_err();
            assert!(matches!(refused, BadRequest::Invalid { .. }), "{refused}");
        }
        assert!(apparmor("a", Some(&profile(2, "")), "").is_err());
        assert!(apparmor("a", Some(&profile(2, "a b")), "").is_err());
        assert!(apparmor("a", None, "localhost/").is_err());
    }

    #[test]
    fn a_label_contains_only_characters_of_labels() {
        let option = |user: &str, level: &str| cri::SeLinuxOption {
            user: user.into(),
            level: level.into(),
            ..Default::default()
        };
        assert_eq!(selinux("s", None).unwrap(), None);
        assert_eq!(selinux("s", Some(&option("", ""))).unwrap(), None);
        let config = selinux("s", Some(&option("u", "s0:c1,c2"))).unwrap();
        assert_eq!(config.unwrap().level, "s0:c1,c2");
        for odd in ["a:b", "a b", "a\n", "a,context=x"] {
            assert!(selinux("s", Some(&option(odd, ""))).is_err(), "{odd:?}");
        }
    }

    #[test]
    fn masked_paths_are_clean_paths() {
        let requested = |path: &str| cri::LinuxContainerSecurityContext {
            masked_paths: vec!["/proc/kcore".into(), path.into()],
            ..Default::default()
        };
        assert_eq!(
            context("s", &requested("/proc/keys"))
                .unwrap()
                .masked_paths
                .len(),
            2
        );
        for odd in ["", "proc/keys", "/proc/../etc", "/a\0"] {
            let refused = context("s", &requested(odd)).unwrap_err().to_string();
            assert!(refused.starts_with("s.masked_paths[1]"), "{refused}");
        }
    }

    #[test]
    fn a_group_needs_a_user() {
        let group = cri::Int64Value { value: 1 };
        let mut config = user("s", None, Some(&group), &[]).unwrap();
        assert!(group_needs_user("s", &config).is_err());
        config.username = "nobody".into();
        assert!(group_needs_user("s", &config).is_ok());
        let too_large = cri::Int64Value { value: 1 << 31 };
        assert!(user("s", Some(&too_large), None, &[]).is_err());
        assert!(
            user("s", None, None, &[0, -1])
                .unwrap_err()
                .to_string()
                .contains("supplemental_groups[1]")
        );
        assert_eq!(groups_policy("s", 1).unwrap(), GroupsPolicy::Strict);
        assert!(groups_policy("s", 2).is_err());
    }
}
