//! The parts of a spec for Wasm payloads alone: their network access, and the toolbox programs for an exec.
//!
//! Part of [`super::WasmSpec`]. Invariant: a field that is missing in an older daemon's spec grants nothing.
//! Not here: enforcement, the output of the tools.

use serde::{Deserialize, Serialize};

use super::{WasmKind, WasmSpec};
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Toolbox {
    /// Which one.
    pub tool: Tool,
    /// The container's processes, for `ps`: the jail has no procfs.
    #[serde(default)]
    pub processes: Vec<ProcessRow>,
    /// What [`Tool::Message`] says.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Its exit code.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub code: i32,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(number: &i32) -> bool {
    *number == 0
}

impl Toolbox {
    /// The tool that `program` names: `ls` as well as `/bin/ls`. `None` if there is none of that name.
    pub fn named(program: &str) -> Option<Self> {
        let name = program.rsplit('/').next().unwrap_or(program);
        let (_, tool) = Tool::ALL.into_iter().find(|(own, _)| *own == name)?;
        Some(Self {
            tool,
            ..Self::default()
        })
    }

    /// Says `text` on standard error and ends with `code`.
    pub fn message(code: i32, text: String) -> Self {
        Self {
            tool: Tool::Message,
            message: text,
            code,
            ..Self::default()
        }
    }
}

/// The programs of the toolbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tool {
    /// Lists directories.
    #[default]
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
    /// Prints its arguments.
    Echo,
    /// Prints the beginning of files.
    Head,
    /// Prints the end of files.
    Tail,
    /// Prints the lines of files that a pattern is in.
    Grep,
    /// Prints the paths below directories.
    Find,
    /// Counts lines, words and bytes.
    Wc,
    /// Waits.
    Sleep,
    /// Compares strings and numbers, and checks files.
    Test,
    /// Looks up names.
    Nslookup,
    /// Gets a URL.
    Wget,
    /// Gets a URL.
    Curl,
    /// Says why there is nothing to run; nobody can name it.
    Message,
}

impl Tool {
    /// Every tool by its name, those first that keepers of every build have.
    pub const ALL: [(&'static str, Self); 18] = [
        ("ls", Self::Ls),
        ("cat", Self::Cat),
        ("env", Self::Env),
        ("ps", Self::Ps),
        ("stat", Self::Stat),
        ("df", Self::Df),
        ("echo", Self::Echo),
        ("head", Self::Head),
        ("tail", Self::Tail),
        ("grep", Self::Grep),
        ("find", Self::Find),
        ("wc", Self::Wc),
        ("sleep", Self::Sleep),
        ("test", Self::Test),
        ("[", Self::Test),
        ("nslookup", Self::Nslookup),
        ("wget", Self::Wget),
        ("curl", Self::Curl),
    ];

    /// What it is called.
    pub fn name(self) -> &'static str {
        let named = Self::ALL.into_iter().find(|(_, tool)| *tool == self);
        named.map_or("coracle", |(name, _)| name)
    }

    /// Whether keepers of protocol 4 know it, whatever their build.
    pub fn is_in_every_build(self) -> bool {
        let first = Self::ALL.iter().take(6);
        first.into_iter().any(|(_, tool)| *tool == self)
    }

    /// Whether it makes connections.
    pub fn uses_network(self) -> bool {
        matches!(self, Self::Nslookup | Self::Wget | Self::Curl)
    }
}

impl WasmSpec {
    /// Whether what runs can make sockets, if its policy lets it: components and the tools for the network. Preview 1
    /// cannot, nor can the other tools.
    pub fn has_sockets(&self) -> bool {
        match &self.toolbox {
            Some(toolbox) => toolbox.tool.uses_network(),
            None => self.kind == WasmKind::Component,
        }
    }
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
        for other in ["", "/", "ls/", "lsx", "LS", "sh", "message"] {
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
