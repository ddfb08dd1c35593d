//! The scripts of `tests/tools`: each builds one foreign program unless it is there already, and prints its path. And
//! programs that a test makes.
//!
//! Not here: what the programs are for.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Outcome;

/// Makes a program, in place of one that is there. Errors: it cannot be written.
///
/// Another process writes it. Of this one a child that another test has just forked would hold the file open for writing until
/// it executes its own program, and the kernel executes no file that is open for writing.
pub fn install(path: &Path, program: &[u8]) -> Outcome<()> {
    let mut writer = Command::new("install");
    let writer = writer.args(["-m", "755", "/dev/stdin"]).arg(path);
    let mut writer = writer.stdin(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = writer.stdin.take() {
        stdin.write_all(program)?;
    }
    match writer.wait()? {
        status if status.success() => Ok(()),
        status => Err(format!("install {}: {status}", path.display()).into()),
    }
}

/// Runs a script and gives the path that it prints; minutes the first time. Errors: it failed, in its own words.
pub fn build(name: &str, args: &[&str]) -> Outcome<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tools")
        .join(name);
    let run = Command::new(&script).args(args).output()?;
    if !run.status.success() {
        return Err(format!(
            "{}: {}",
            script.display(),
            String::from_utf8_lossy(&run.stderr)
        )
        .into());
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&run.stdout).trim()))
}
