//! The parts of a spec for Wasm payloads alone: their network access, and the toolbox programs for an exec.
//!
//! Part of [`super::WasmSpec`]. Invariant: a field that is missing in an older daemon's spec grants nothing.
//! Not here: enforcement, the output of the tools.

use serde::{Deserialize, Serialize};

use crate::egress::Egress;

/// A guest's access to its pod's network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WasmNetwork {
    /// Nothing: it cannot make a socket.
    #[default]
    Off,
    /// It may listen, and connect to what is allowed.
    On(Egress),
}

/// A program that is part of Coracle and runs in the jail of an exec instead of a module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Toolbox {
    /// Which one.
    pub tool: Tool,
    /// The container's processes, for `ps`: the jail has no procfs.
    #[serde(default)]
    pub processes: Vec<ProcessRow>,
}

impl Toolbox {
    /// The tool that `program` names: `ls` as well as `/bin/ls`. `None` if there is none of that name.
    pub fn named(program: &str) -> Option<Self> {
        let name = program.rsplit('/').next().unwrap_or(program);
        let (_, tool) = Tool::ALL.into_iter().find(|(own, _)| *own == name)?;
        Some(Self {
            tool,
            processes: Vec::new(),
        })
    }
}

/// The programs of the toolbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tool {
    /// Lists directories.
    Ls,
    /// Prints files.
    Cat,
    /// Prints the environment.
    Env,
    /// Prints the container's processes.
    Ps,
    /// Prints the metadata of files.
    Stat,
    /// Prints the space of file systems.
    Df,
}

impl Tool {
    /// Every tool by its name.
    pub const ALL: [(&'static str, Self); 6] = [
        ("ls", Self::Ls),
        ("cat", Self::Cat),
        ("env", Self::Env),
        ("ps", Self::Ps),
        ("stat", Self::Stat),
        ("df", Self::Df),
    ];
}

/// One process of a container, as `ps` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRow {
    /// Its number in the container's pid namespace.
    pub pid: i32,
    /// State letter of proc(5): `R`, `S`, `D`, `T`, `Z`.
    pub state: char,
    /// CPU time used, whole seconds.
    pub cpu_s: u64,
    /// What runs, one line.
    pub command: String,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn tools_go_by_their_last_name() {
        assert_eq!(Toolbox::named("ls").unwrap().tool, Tool::Ls);
        assert_eq!(Toolbox::named("/usr/bin/env").unwrap().tool, Tool::Env);
        for other in ["", "/", "ls/", "lsx", "LS", "sh"] {
            assert_eq!(Toolbox::named(other), None, "{other:?}");
        }
    }

    #[test]
    fn an_older_spec_grants_no_network() {
        let old = r#"{"kind":"module","args":[],"env":[],"working_dir":"/","stdin":false}"#;
        let spec: crate::WasmSpec = serde_json::from_str(old).unwrap();
        assert_eq!((spec.network, spec.toolbox), (WasmNetwork::Off, None));
    }
}
