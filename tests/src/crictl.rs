//! Runs the real crictl, built by `tests/tools/crictl.sh`, against a socket.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::{Outcome, tools};

/// crictl bound to one socket.
#[derive(Debug)]
pub struct Crictl {
    binary: PathBuf,
    socket: PathBuf,
}

impl Crictl {
    /// Finds crictl, building it when it is absent (minutes, once a machine). Errors: the script's own words.
    pub fn new(socket: &Path) -> Outcome<Self> {
        let binary = tools::build("crictl.sh", &[])?;
        Ok(Self {
            binary,
            socket: socket.to_owned(),
        })
    }

    /// Runs a command, whatever its exit code.
    pub fn output(&self, args: &[&str]) -> Outcome<Output> {
        let endpoint = format!("unix://{}", self.socket.display());
        let mut command = Command::new(&self.binary);
        command.args([
            "--runtime-endpoint",
            &endpoint,
            "--image-endpoint",
            &endpoint,
            "--timeout",
            "60s",
        ]);
        Ok(command.args(args).output()?)
    }

    /// Runs a command and gives its standard output without the last newline. Errors: it failed, with what it said.
    pub fn run(&self, args: &[&str]) -> Outcome<String> {
        let output = self.output(args)?;
        if !output.status.success() {
            return Err(format!(
                "crictl {args:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            )
            .into());
        }
        Ok(String::from_utf8_lossy(&output.stdout)
            .trim_end()
            .to_owned())
    }
}
