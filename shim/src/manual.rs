//! Man pages, shell completion and the reference pages of the documentation, all made of the two things that decide: the
//! clap definition of the command line and the commented default configuration.
//!
//! Called by `main` for `coracle completion` and for the hidden `coracle man`, which packaging uses; the tests compare
//! `docs/reference` with what is made here. Invariant: hidden commands are in none of it.
//! Must not know: what a command or a setting does.

mod settings;

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, roman};
use coracle_config::DEFAULT_TEXT;

use crate::cli::Cli;

/// Where a package puts pages about programs for administrators.
const COMMANDS: &str = "8";
/// The name of all pages together.
const MANUAL: &str = "Coracle";

/// The command line without hidden commands, and without clap's `help` beside each.
fn command_line() -> Command {
    fn visible(command: &Command) -> Command {
        let mut shown = Command::new(lasting(command.get_name()))
            .disable_help_subcommand(true)
            .args(command.get_arguments().cloned())
            .subcommands(
                command
                    .get_subcommands()
                    .filter(|sub| !sub.is_hide_set())
                    .map(visible),
            );
        if let Some(about) = command.get_about() {
            shown = shown.about(about.clone());
        }
        if let Some(long) = command.get_long_about() {
            shown = shown.long_about(long.clone());
        }
        if let Some(version) = command.get_version() {
            shown = shown.version(lasting(version));
        }
        shown
            .subcommand_required(command.is_subcommand_required_set())
            .arg_required_else_help(command.is_arg_required_else_help_set())
    }
    let mut command = visible(&Cli::command());
    command.build();
    command
}

/// The text for as long as the program runs, which ends when it has printed what it makes of it.
fn lasting(text: &str) -> &'static str {
    text.to_owned().leak()
}

/// Prints the completion of the command line for a shell. Errors: standard output fails.
pub fn print_completion(shell: Shell) -> io::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command_line(), "coracle", &mut script);
    io::stdout().lock().write_all(&script)
}

/// Writes `coracle.8`, a page for each command, and `coracle.toml.5` to an existing directory. Errors: a file cannot be
/// written.
pub fn write_pages(directory: &Path) -> io::Result<()> {
    write_commands(&command_line(), directory)?;
    let mut page = Vec::new();
    settings_page().to_writer(&mut page)?;
    fs::write(directory.join("coracle.toml.5"), page)
}

fn write_commands(command: &Command, directory: &Path) -> io::Result<()> {
    for sub in command.get_subcommands() {
        write_commands(sub, directory)?;
    }
    let mut page = Vec::new();
    let man = Man::new(command.clone())
        .section(COMMANDS)
        .source(source())
        .manual(MANUAL);
    man.render(&mut page)?;
    let mut more = Roff::new();
    more.control("SH", ["SEE ALSO"]);
    more.text([
        bold("coracle"),
        roman("(8), "),
        bold("coracle.toml"),
        roman("(5)"),
    ]);
    more.to_writer(&mut page)?;
    fs::write(directory.join(man.get_filename()), page)
}

fn source() -> String {
    format!("coracle {}", env!("CARGO_PKG_VERSION"))
}

/// The page of the configuration file.
fn settings_page() -> Roff {
    let mut page = Roff::new();
    let source = source();
    page.control("TH", ["coracle.toml", "5", "", source.as_str(), MANUAL]);
    page.control("SH", ["NAME"]);
    page.text([roman("coracle.toml - configuration of the coracle daemon")]);
    page.control("SH", ["SYNOPSIS"]);
    page.text([roman("/etc/coracle/config.toml")]);
    for section in settings::parse(DEFAULT_TEXT) {
        page.control("SH", [section.heading().as_str()]);
        if !section.text.is_empty() {
            page.text([roman(section.text)]);
        }
        for setting in section.settings {
            page.control("TP", []);
            let head: [Inline; 3] = [bold(setting.key), roman(" = "), roman(setting.default)];
            page.text(head);
            page.text([roman(setting.text)]);
        }
    }
    page.control("SH", ["SEE ALSO"]);
    page.text([bold("coracle"), roman("(8)")]);
    page
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests;
