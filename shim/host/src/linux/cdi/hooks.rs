//! Which programs of the node a specification may have run.
//!
//! Called by [`super`]. Source: the OCI runtime specification, POSIX-platform hooks.
//! Invariants: a path that the operator has not listed is refused by name, with the line that lists it; a program that
//! others than root could replace is refused. A pod chooses neither path nor arguments: all of a hook is its specification's.
//! Must not know: running a hook.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use coracle_spec::Hook;

use super::document::HookEdit;
use crate::config::DeviceSettings;
use crate::paths::Lookup;

/// When a hook runs, as far as one can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// The container's root is complete, and its process inside: in the container's namespaces.
    Created,
    /// Its program runs: on the node.
    Started,
    /// It has ended, and its cgroup is gone: on the node.
    Stopped,
}

impl Moment {
    /// The setting that lists programs for it, and these. Inside of a container a program can do less than on the node.
    fn listed(self, settings: &DeviceSettings) -> (&'static str, &[PathBuf]) {
        match self {
            Moment::Created => ("hooks", &settings.cdi_hooks),
            Moment::Started | Moment::Stopped => ("node_hooks", &settings.cdi_node_hooks),
        }
    }

    /// That of a hook with this name. Errors: why no such hook is run.
    fn of(name: &str) -> Result<Moment, String> {
        let why = match name {
            "createContainer" => return Ok(Moment::Created),
            "poststart" => return Ok(Moment::Started),
            "poststop" => return Ok(Moment::Stopped),
            "prestart" | "createRuntime" => {
                "it would run on the node while the container is half made, whose process is held by nothing meanwhile; \
                 a createContainer hook runs at that moment, inside of the container"
            }
            "startContainer" => {
                "its path is a file of the image, which the operator cannot vouch for"
            }
            _ => "the OCI runtime specification knows none of that name",
        };
        Err(format!(
            "it is for {name:?}, and only createContainer, poststart and poststop hooks are run: {why}"
        ))
    }
}

/// How long a hook may take whose specification does not say. Seconds.
const USUAL_S: u32 = 10;

/// Most hooks of a container.
pub(super) const MOST: usize = 64;

/// The hook of a specification, if it may run. Errors: why not.
pub(super) fn allowed(
    edit: &HookEdit,
    settings: &DeviceSettings,
    lookup: &Lookup<'_>,
) -> Result<(Moment, Hook), String> {
    let path = Path::new(&edit.path);
    let named = |why: String| format!("its hook {:?}: {why}", edit.path);
    let moment = Moment::of(&edit.hook_name).map_err(named)?;
    let (key, listed) = moment.listed(settings);
    if !listed.iter().any(|known| known == path) {
        return Err(named(format!(
            "it is a program that would run on this node as root, and the operator has not listed it: \
             add it to cdi.{key} in the configuration, {key} = [{:?}]",
            edit.path
        )));
    }
    let timeout_s = match edit.timeout {
        None => USUAL_S,
        Some(seconds) => u32::try_from(seconds)
            .ok()
            .filter(|seconds| *seconds > 0)
            .ok_or_else(|| named(format!("its timeout is {seconds}, must be above 0")))?,
    };
    if let Some(odd) = edit.env.iter().find(|entry| !entry.contains('=')) {
        return Err(named(format!("its variable {odd:?} has no `=`")));
    }
    is_roots_alone(path, lookup).map_err(named)?;
    let hook = Hook {
        path: edit.path.clone(),
        args: edit.args.clone(),
        env: edit.env.clone(),
        timeout_s,
    };
    Ok((moment, hook))
}

/// Errors: it is no program, or others than root can write it, or change where its path leads: its path is resolved once more when
/// it is executed, so that every directory and every link on the way counts.
fn is_roots_alone(path: &Path, lookup: &Lookup<'_>) -> Result<(), String> {
    let found = lookup
        .resolve(path)
        .map_err(|error| format!("the node's file cannot be used: {error}"))?;
    let file = &found.metadata;
    if !file.is_file() || file.mode() & 0o111 == 0 {
        return Err("it is not an executable file".to_owned());
    }
    if file.uid() != 0 || file.mode() & 0o022 != 0 {
        return Err("others than root can write it".to_owned());
    }
    match found.changeable {
        Some(entry) => Err(format!(
            "others than root can change {}, which leads to it",
            entry.display()
        )),
        None => Ok(()),
    }
}
