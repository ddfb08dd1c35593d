//! The one binary: a container runtime for the kubelet, and each of its processes.
//!
//! ```text
//! coracle serve ----> serve: build, recover, announce, wait, drain
//! coracle spawner, compiler, unpacker, guest --> coracle-runtime, exec'd by the daemon or a keeper; nobody else calls them
//! coracle status | ps | why | logs | events --> coracle-admin, which asks the running daemon
//! coracle demo | check | config | image | version | completion --> for people
//! ```
//! Invariants: an internal process is recognised before anything else happens, so that it starts in microseconds and
//! inherits nothing from the parser of the command line; what a process is started with beyond its standard streams goes to none
//! that it executes, unless it is handed on there by number.
//! Must not know: any RPC. `docs/architecture.md` is the place to continue.
#![doc = include_str!("../../docs/architecture.md")]

mod admin;
mod cdi;
mod check;
mod claims;
mod cli;
#[cfg(test)]
mod forking;
mod host_config;
mod logging;
mod manual;
mod memory;
mod metrics;
mod notify;
mod registries;
mod reload;
#[cfg(test)]
mod scratch;
mod serve;
mod tasks;
mod traces;
mod unpackers;
mod version;
mod watchdog;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser as _;
use coracle_config as config;
use coracle_runtime::{keeper, spawner};
use coracle_spec::error::chain;
use coracle_spec::failpoint;
use coracle_wasm as wasm;

use cli::{CdiCommand, Cli, Command, ConfigCommand, ImageArgs};

fn main() -> ExitCode {
    let begun = coracle_runtime::forbid_access();
    if let Err(error) = begun.and_then(|()| coracle_runtime::keep_descriptors()) {
        return internal(Err(error));
    }
    let arguments: Vec<String> = std::env::args_os()
        .map(|a| a.to_string_lossy().into_owned())
        .collect();
    match arguments.get(1).map(String::as_str) {
        Some("spawner") => {
            return internal(spawner::main(
                argument(&arguments, 2),
                argument(&arguments, 3),
                argument(&arguments, 4),
            ));
        }
        Some("engine-hash") => return internal(print_engine_hash()),
        Some("compiler") => return internal(coracle_runtime::compiler_main(&arguments[2..])),
        Some("unpacker") => return internal(unpackers::main(&arguments[2..])),
        Some("guest") => keeper::container_main(
            argument(&arguments, 2),
            argument(&arguments, 3),
            argument(&arguments, 4),
        ),
        _ => {}
    }
    failpoint::arm(std::env::var("CORACLE_FAILPOINTS").ok());
    let ended = command(Cli::parse().command);
    logging::flush();
    match ended {
        Ok(code) => ExitCode::from(code),
        // Whoever read the output has enough of it.
        Err(error) if is_broken_pipe(error.as_ref()) => ExitCode::SUCCESS,
        Err(error) => {
            logging::last_words(&format!("coracle: {}\n", chain(error.as_ref())));
            ExitCode::FAILURE
        }
    }
}

/// Whether a command failed because the reader of its output has left.
fn is_broken_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Used by the daemon, which must not contain a compiler.
fn print_engine_hash() -> coracle_spec::error::Result<()> {
    let hash = wasm::engine_hash()?;
    let printed = writeln!(io::stdout(), "{hash}");
    printed.map_err(|e| {
        coracle_spec::error::Error::with(coracle_spec::error::Kind::Io, "print the engine hash", e)
    })
}

fn argument(arguments: &[String], at: usize) -> &str {
    arguments.get(at).map_or("", String::as_str)
}

fn internal(result: coracle_spec::error::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "coracle: {}", error.chain());
            ExitCode::FAILURE
        }
    }
}

type Outcome = Result<u8, Box<dyn std::error::Error>>;

fn command(command: Command) -> Outcome {
    match command {
        Command::Serve(arguments) => serve::main(&arguments.config).map(|()| 0),
        Command::Demo(arguments) => coracle_demo::main(arguments.keep).map(|()| 0),
        Command::Check(arguments) => {
            let report = check::examine(&arguments.config.load()?);
            let out = &mut io::stdout().lock();
            if arguments.json {
                report.print_json(out)?
            } else {
                report.print_text(out)?
            }
            Ok(report.exit_code())
        }
        Command::Cdi { command } => {
            let CdiCommand::List { config, json } = command;
            cdi::list(&config.load()?, json, &mut io::stdout().lock())?;
            Ok(0)
        }
        Command::Config { command } => configuration(command),
        Command::Image(arguments) => image(arguments),
        Command::Admin(command) => admin::main(command),
        Command::Pack(arguments) => image(ImageArgs::pack(arguments)),
        Command::Version { json } => version::print(json).map(|()| 0),
        Command::Completion { shell } => Ok(manual::print_completion(shell).map(|()| 0)?),
        Command::Man { directory } => Ok(manual::write_pages(&directory).map(|()| 0)?),
        Command::Failpoints => {
            let mut out = io::stdout().lock();
            for site in failpoint::SITES {
                writeln!(out, "{site}")?;
            }
            Ok(0)
        }
        Command::Spawner(_) | Command::Compiler(_) | Command::Unpacker(_) | Command::Guest(_) => {
            Err("this command is for processes of the daemon".into())
        }
    }
}

fn image(arguments: ImageArgs) -> Outcome {
    let overrides = config::Overrides {
        config_dir: arguments.config_dir,
        ..config::Overrides::default()
    };
    let loaded = config::load(arguments.config.as_deref(), &overrides);
    // Whoever packs needs no daemon, and may not even read its configuration; the same holds for whoever names the socket.
    let is_needed = arguments.config.is_some()
        || !matches!(arguments.command, coracle_image_cli::Command::Pack(_))
            && arguments.socket.is_none();
    let config = match loaded {
        Err(error) if is_needed => return Err(error.into()),
        loaded => loaded.ok(),
    };
    let configured = config.as_ref().map(|config| config.socket.clone());
    let socket = arguments.socket.or(configured).unwrap_or_default();
    let registries = registries::configured(config.as_ref());
    Ok(coracle_image_cli::main(
        arguments.command,
        &socket,
        &registries,
    )?)
}

fn configuration(command: ConfigCommand) -> Outcome {
    let mut out = io::stdout().lock();
    match command {
        ConfigCommand::Default => out.write_all(config::DEFAULT_TEXT.as_bytes())?,
        ConfigCommand::Check { file, config } => {
            let mut overrides = config.overrides();
            if file.is_some() {
                overrides.config_dir = Some(PathBuf::new());
            }
            let path = file.as_deref().or(config.file());
            let files = config::files(path, &overrides)?;
            registries::check_proxies(&config::load(path, &overrides)?.images)?;
            for file in &files {
                writeln!(out, "{}: good", file.display())?;
            }
            if files.is_empty() {
                writeln!(
                    out,
                    "there is no configuration file; all settings have their defaults"
                )?;
            }
        }
        ConfigCommand::Show { config, origin } => {
            let show = if origin {
                config::show_origins
            } else {
                config::show
            };
            out.write_all(show(config.file(), &config.overrides())?.as_bytes())?;
        }
    }
    Ok(0)
}
