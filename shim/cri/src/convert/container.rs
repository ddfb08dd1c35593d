//! CreateContainer: converts the request into a [`ContainerConfig`].
//!
//! Called by `containers`. Invariants: checks that need the node (image, mount paths, user names) are left to the
//! lifecycle; a request for something that would not be done is refused here.
//! Must not know: rendering, sandboxes.

use coracle_lifecycle::{ContainerConfig, ContainerName, Grants, UserConfig};
use coracle_proto::runtime::v1 as cri;

use super::annotations::Reader;
use super::{BadRequest, check, mount, resources, security, signal};

/// The longest image name, in bytes.
const MAX_IMAGE_BYTES: usize = 1024;

/// Most bytes of all arguments, and of all variables, also of those that a later one of the same name replaces: a record
/// keeps them all.
const MAX_ARGS_BYTES: usize = 1 << 20;

/// Reads CreateContainer except the sandbox's id. `grants` and `handler` are the sandbox's. Errors: [`BadRequest`] that
/// names the first field at fault.
pub(crate) fn container_config(
    request: cri::CreateContainerRequest,
    grants: &Grants,
    handler: &str,
) -> Result<ContainerConfig, BadRequest> {
    let mut config = check::present("config", request.config)?;
    texts(&config)?;
    let reader = Reader::of_container(&mut config, grants, handler)?;
    let cdi_devices = mount::cdi_devices(&config.cdi_devices, &reader)?;
    let wasm_variant = reader.wasm_variant();
    let (annotations, _) = reader.into_parts();
    let name = name(config.metadata.as_ref())?;
    let image = image(config.image)?;
    let linux = config.linux.unwrap_or_default();
    let context = linux.security_context.unwrap_or_default();
    Ok(ContainerConfig {
        name,
        image: image.image,
        user_specified_image: image.user_specified_image,
        command: config.command,
        args: config.args,
        working_dir: config.working_dir,
        env: environment(config.envs)?,
        mounts: mount::mounts(config.mounts)?,
        labels: config.labels,
        annotations,
        log_path: config.log_path,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        resources: resources::resources("config.linux.resources", linux.resources.as_ref())?,
        user: user(&context)?,
        readonly_rootfs: context.readonly_rootfs,
        stop_signal: signal::requested("config.stop_signal", config.stop_signal)?,
        security: security::context("config.linux.security_context", &context)?,
        devices: mount::devices(config.devices)?,
        cdi_devices,
        wasm_variant,
    })
}

fn name(metadata: Option<&cri::ContainerMetadata>) -> Result<ContainerName, BadRequest> {
    let metadata = check::present("config.metadata", metadata)?;
    let name = check::name("config.metadata.name", &metadata.name)?;
    Ok(ContainerName {
        name,
        attempt: metadata.attempt,
    })
}

fn image(image: Option<cri::ImageSpec>) -> Result<cri::ImageSpec, BadRequest> {
    let image = check::present("config.image", image)?;
    check::token("config.image.image", &image.image, MAX_IMAGE_BYTES)?;
    Ok(image)
}

fn texts(config: &cri::ContainerConfig) -> Result<(), BadRequest> {
    not_here(config)?;
    log_path(&config.log_path)?;
    arguments("config.command", &config.command)?;
    arguments("config.args", &config.args)?;
    let arguments = config.command.iter().chain(&config.args);
    let bytes = arguments.map(|argument| argument.len() + 1).sum();
    bounded("config.args", "with config.command ", bytes)?;
    check::absolute_or_empty("config.working_dir", &config.working_dir)?;
    check::entries("config.labels", &config.labels)
}

/// Refuses fields for other operating systems.
fn not_here(config: &cri::ContainerConfig) -> Result<(), BadRequest> {
    if config.windows.is_some() {
        return Err(BadRequest::invalid(
            "config.windows",
            "is set, and this is a Linux node",
        ));
    }
    Ok(())
}

/// A path below the sandbox's log directory, or empty.
fn log_path(path: &str) -> Result<(), BadRequest> {
    if path.starts_with('/') {
        let problem = "is absolute, it must be relative to the sandbox's log directory";
        return Err(BadRequest::invalid("config.log_path", problem));
    }
    check::path("config.log_path", path)
}

/// Refuses a NUL, which would end the argument.
fn arguments(field: &str, arguments: &[String]) -> Result<(), BadRequest> {
    match arguments
        .iter()
        .position(|argument| argument.contains('\0'))
    {
        Some(index) => Err(BadRequest::invalid(
            format!("{field}[{index}]"),
            "holds a NUL",
        )),
        None => Ok(()),
    }
}

/// Refuses more bytes of arguments or variables than any program gets.
fn bounded(field: &str, with: &str, bytes: usize) -> Result<(), BadRequest> {
    if bytes > MAX_ARGS_BYTES {
        let problem = format!(
            "{with}holds {bytes} bytes, no program gets more than {MAX_ARGS_BYTES}; mount files in place of them"
        );
        return Err(BadRequest::invalid(field, problem));
    }
    Ok(())
}

fn environment(variables: Vec<cri::KeyValue>) -> Result<Vec<(String, String)>, BadRequest> {
    let bytes = variables
        .iter()
        .map(|variable| variable.key.len() + variable.value.len() + 2);
    bounded("config.envs", "", bytes.sum())?;
    let one = |(index, variable): (usize, cri::KeyValue)| {
        let field = format!("config.envs[{index}]");
        let key = variable.key;
        if key.is_empty() || key.contains(['=', '\0']) {
            return Err(BadRequest::invalid(
                format!("{field}.key"),
                "is empty or holds `=` or NUL",
            ));
        }
        // The value may be a secret: it is never shown.
        match String::from_utf8(variable.value) {
            Ok(value) if !value.contains('\0') => Ok((key, value)),
            _ => Err(BadRequest::invalid(
                format!("{field}.value"),
                format!("of {key:?} is not text without NUL"),
            )),
        }
    };
    variables.into_iter().enumerate().map(one).collect()
}

fn user(context: &cri::LinuxContainerSecurityContext) -> Result<UserConfig, BadRequest> {
    let field = "config.linux.security_context";
    let mut user = security::user(
        field,
        context.run_as_user.as_ref(),
        context.run_as_group.as_ref(),
        &context.supplemental_groups,
    )?;
    if !context.run_as_username.is_empty() {
        let username = format!("{field}.run_as_username");
        check::token(&username, &context.run_as_username, 256)?;
        if user.uid.is_some() {
            return Err(BadRequest::invalid(username, "is set beside run_as_user"));
        }
        user.username = context.run_as_username.clone();
    }
    security::group_needs_user(field, &user)?;
    user.policy = security::groups_policy(field, context.supplemental_groups_policy)?;
    Ok(user)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use coracle_lifecycle::{GroupsPolicy, Propagation};

    fn config() -> cri::ContainerConfig {
        cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata {
                name: "c1".into(),
                attempt: 0,
            }),
            image: Some(cri::ImageSpec {
                image: "hello:1".into(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn made(request: cri::CreateContainerRequest) -> Result<ContainerConfig, BadRequest> {
        container_config(request, &Grants::default(), "coracle")
    }

    fn changed(
        change: impl FnOnce(&mut cri::ContainerConfig),
    ) -> Result<ContainerConfig, BadRequest> {
        let mut config = config();
        change(&mut config);
        made(cri::CreateContainerRequest {
            config: Some(config),
            ..Default::default()
        })
    }

    fn context(
        change: impl FnOnce(&mut cri::LinuxContainerSecurityContext),
    ) -> Result<ContainerConfig, BadRequest> {
        let mut context = cri::LinuxContainerSecurityContext::default();
        change(&mut context);
        let linux = cri::LinuxContainerConfig {
            security_context: Some(context),
            resources: None,
        };
        changed(|c| c.linux = Some(linux))
    }

    fn env(key: &str, value: &[u8]) -> cri::KeyValue {
        cri::KeyValue {
            key: key.into(),
            value: value.into(),
        }
    }

    #[test]
    fn a_request_becomes_its_config() {
        let config = changed(|c| {
            c.command = vec!["/app.wasm".into()];
            c.args = vec!["".into(), "--x=ü".into()];
            c.envs = vec![env("A", b"1"), env("B", b""), env("A", b"2")];
            c.log_path = "c1/0.log".into();
            c.stop_signal = cri::Signal::Sigusr1 as i32;
            c.annotations.insert("k".into(), "v\n".into());
            c.mounts.push(cri::Mount {
                container_path: "/data".into(),
                host_path: "/srv".into(),
                readonly: true,
                propagation: 1,
                ..Default::default()
            });
        });
        let config = config.unwrap();
        assert_eq!(
            config.env,
            [("A", "1"), ("B", ""), ("A", "2")].map(|(k, v)| (k.to_owned(), v.to_owned()))
        );
        assert_eq!(config.args, ["", "--x=ü"]);
        assert_eq!(config.stop_signal, Some(libc::SIGUSR1));
        assert_eq!(config.annotations.echo()["k"], "v\n");
        assert_eq!(config.mounts[0].propagation, Propagation::HostToContainer);
        assert!(config.mounts[0].readonly);
    }

    #[test]
    fn missing_fields_are_named() {
        let none = made(cri::CreateContainerRequest::default()).unwrap_err();
        assert_eq!(none.to_string(), "config is missing");
        type Change = fn(&mut cri::ContainerConfig);
        let cases: [(&str, Change); 4] = [
            ("config.metadata is missing", |c| c.metadata = None),
            ("config.metadata.name is empty", |c| {
                c.metadata = Some(Default::default())
            }),
            ("config.image is missing", |c| c.image = None),
            ("config.image.image is empty", |c| {
                c.image = Some(Default::default())
            }),
        ];
        for (want, change) in cases {
            assert_eq!(changed(change).unwrap_err().to_string(), want);
        }
    }

    #[test]
    fn odd_values_are_refused_by_field() {
        type Change = fn(&mut cri::ContainerConfig);
        let cases: [(&str, Change); 9] = [
            ("config.log_path", |c| c.log_path = "../../etc/x".into()),
            ("config.log_path", |c| c.log_path = "/etc/x".into()),
            ("config.args[1]", |c| {
                c.args = vec!["a".into(), "b\0c".into()]
            }),
            ("config.working_dir", |c| c.working_dir = "srv".into()),
            ("config.envs[0].key", |c| c.envs = vec![env("", b"x")]),
            ("config.envs[0].key", |c| c.envs = vec![env("A=B", b"x")]),
            ("config.envs[1].value", |c| {
                c.envs = vec![env("A", b"x"), env("B", b"\xff")]
            }),
            ("config.stop_signal", |c| c.stop_signal = 99),
            ("config.mounts[0].propagation", |c| {
                c.mounts.push(cri::Mount {
                    propagation: 5,
                    ..Default::default()
                });
            }),
        ];
        for (field, change) in cases {
            let refused = changed(change).unwrap_err();
            assert_eq!(refused.invalid_field(), Some(field), "{refused}");
        }
    }

    /// A variable of the same name replaces an earlier one, which the record keeps.
    #[test]
    fn no_request_keeps_more_arguments_or_variables_than_a_program_gets() {
        let text = "x".repeat(MAX_ARGS_BYTES / 8);
        let envs = |count: usize| vec![env("A", text.as_bytes()); count];
        changed(|c| c.envs = envs(7)).unwrap();
        let refused = changed(|c| c.envs = envs(8)).unwrap_err();
        assert_eq!(refused.invalid_field(), Some("config.envs"));
        let said = refused.to_string();
        assert!(
            said.contains("1048600") && said.contains("1048576"),
            "{said}"
        );
        let args = |command: usize, args: usize| {
            changed(|c| {
                c.command = vec![text.clone(); command];
                c.args = vec![text.clone(); args];
            })
        };
        args(3, 4).unwrap();
        let refused = args(4, 4).unwrap_err();
        assert_eq!(refused.invalid_field(), Some("config.args"));
    }

    #[test]
    fn a_refused_variable_keeps_its_secret() {
        let refused = changed(|c| c.envs = vec![env("TOKEN", b"s3cret\0")])
            .unwrap_err()
            .to_string();
        assert!(
            refused.contains("TOKEN") && !refused.contains("s3cret"),
            "{refused}"
        );
    }

    #[test]
    fn users_and_groups_follow_the_protocols_rules() {
        let number = |value| Some(cri::Int64Value { value });
        let config = context(|c| {
            (c.run_as_user, c.run_as_group) = (number(1000), number(2000));
            c.supplemental_groups = vec![3000];
        });
        let user = config.unwrap().user;
        assert_eq!(
            (user.uid, user.gid, user.groups),
            (Some(1000), Some(2000), vec![3000])
        );
        let refused = context(|c| c.run_as_group = number(1))
            .unwrap_err()
            .to_string();
        assert_eq!(
            refused,
            "config.linux.security_context.run_as_group is set without run_as_user or run_as_username"
        );
        assert!(context(|c| (c.run_as_user, c.run_as_username) = (number(1), "x".into())).is_err());
        assert!(context(|c| c.run_as_user = number(1 << 31)).is_err());
    }

    #[test]
    fn settings_beside_the_program_are_converted() {
        let config = context(|c| {
            (c.privileged, c.no_new_privs) = (true, true);
            c.supplemental_groups_policy = 1;
            c.masked_paths = vec!["/proc/kcore".into()];
            c.capabilities = Some(cri::Capability {
                add_capabilities: vec!["NET_ADMIN".into()],
                ..Default::default()
            });
        });
        let config = config.unwrap();
        assert!(config.security.privileged && config.security.no_new_privs);
        assert_eq!(config.security.capabilities.add, ["NET_ADMIN"]);
        assert_eq!(config.security.masked_paths, ["/proc/kcore"]);
        assert_eq!(config.user.policy, GroupsPolicy::Strict);
        let config = changed(|c| {
            c.devices.push(cri::Device {
                container_path: "/dev/fuse".into(),
                host_path: "/dev/fuse".into(),
                permissions: "rw".into(),
            });
            c.cdi_devices.push(cri::CdiDevice {
                name: "v.com/gpu=0".into(),
            });
        });
        let config = config.unwrap();
        assert_eq!(config.devices[0].permissions, "rw");
        assert_eq!(config.cdi_devices, ["v.com/gpu=0"]);
    }
}
