//! The command line, for clap.
//!
//! Called by: `main`, which parses a [`Cli`] and executes its [`Command`].
//! Invariants: flags have the names of the settings that they override; the hidden commands are for this program's own
//! processes, take their arguments unparsed, and are not an interface for anybody else.
//! Must not know: what a command does.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use coracle_config::{self as config, Config, Overrides, SettingsByKey};

/// A Kubernetes container runtime for WebAssembly and Linux containers.
#[derive(Debug, Parser)]
#[command(
    name = "coracle",
    version,
    propagate_version = false,
    arg_required_else_help = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon: serve the kubelet on the CRI socket until SIGTERM
    Serve(ServeArgs),
    /// Show a pod's whole life on a daemon, registry and directories of its own
    Demo(DemoArgs),
    /// Look at the node and name what it lacks and the command that mends it
    Check(CheckArgs),
    /// Print or check configuration
    Config {
        /// Which.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// The devices that CDI specifications name
    Cdi {
        /// Which.
        #[command(subcommand)]
        command: CdiCommand,
    },
    /// List, pull, remove, inspect, import, export, push and pack images
    Image(ImageArgs),
    /// The running daemon.
    #[command(flatten)]
    Admin(coracle_admin::client::Command),
    /// Make an image of a WebAssembly module or component; the same as `image pack`
    Pack(coracle_image_cli::PackArgs),
    /// Print the version, and what this build is made of
    Version {
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Print a script that completes this command line in a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Man pages, for packages.
    #[command(hide = true)]
    Man {
        /// An existing directory, which gets them.
        directory: PathBuf,
    },
    /// Every failpoint, for tests of builds that have them.
    #[command(hide = true)]
    Failpoints,
    /// The process that forks keepers; started by `serve`.
    #[command(hide = true, disable_help_flag = true)]
    Spawner(InternalArgs),
    /// The jailed process that compiles one module; started by `serve`.
    #[command(hide = true, disable_help_flag = true)]
    Compiler(InternalArgs),
    /// The jailed process that unpacks one layer; started by `serve`.
    #[command(hide = true, disable_help_flag = true)]
    Unpacker(InternalArgs),
    /// A Wasm container process with an address-space layout of its own; started by a keeper.
    #[command(hide = true, disable_help_flag = true)]
    Guest(InternalArgs),
}

/// Arguments of a hidden command: between our own processes, so without names and help.
#[derive(Debug, Args)]
pub struct InternalArgs {
    /// Everything after the command, untouched.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<OsString>,
}

/// The sources of settings.
#[derive(Clone, Debug, Default, Args)]
pub struct ConfigArgs {
    /// Configuration file; /etc/coracle/config.toml if it exists
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory of drop-ins, read after the file in the order of their names; conf.d beside the file if it exists, "" for
    /// none
    #[arg(long, value_name = "DIR", value_parser = coracle_admin::client::any_path)]
    pub config_dir: Option<PathBuf>,
    /// Directory of images and records, instead of the configured one
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Directory of sockets and process facts, instead of the configured one
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// CRI socket, instead of the configured one
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

impl ConfigArgs {
    /// The file on the command line, if there is one.
    pub fn file(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// The flags that override the file.
    pub fn overrides(&self) -> Overrides {
        Overrides {
            root: self.root.clone(),
            run: self.run.clone(),
            socket: self.socket.clone(),
            config_dir: self.config_dir.clone(),
        }
    }

    /// The same, with all settings by key.
    pub fn load_settings(&self) -> Result<(Config, SettingsByKey), config::Error> {
        SettingsByKey::load(self.file(), &self.overrides())
    }

    /// The configuration from file and flags.
    pub fn load(&self) -> Result<Config, config::Error> {
        config::load(self.file(), &self.overrides())
    }
}

/// Arguments of `coracle serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The sources of settings.
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Arguments of `coracle demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Keep the demo's directories and print where they are
    #[arg(long)]
    pub keep: bool,
}

/// Arguments of `coracle check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The sources of settings.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// As one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `coracle image ...`.
#[derive(Debug, Args)]
pub struct ImageArgs {
    /// Configuration file, which names the CRI socket; /etc/coracle/config.toml if it exists
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Directory of drop-ins; conf.d beside the configuration file if it exists, "" for none
    #[arg(long, value_name = "DIR", global = true, value_parser = coracle_admin::client::any_path)]
    pub config_dir: Option<PathBuf>,
    /// CRI socket, instead of the configured one
    #[arg(long, value_name = "PATH", global = true)]
    pub socket: Option<PathBuf>,
    /// Which.
    #[command(subcommand)]
    pub command: coracle_image_cli::Command,
}

impl ImageArgs {
    /// `coracle pack`.
    pub fn pack(arguments: coracle_image_cli::PackArgs) -> Self {
        Self {
            config: None,
            config_dir: None,
            socket: None,
            command: coracle_image_cli::Command::Pack(arguments),
        }
    }
}

/// `coracle cdi ...`.
#[derive(Debug, Subcommand)]
pub enum CdiCommand {
    /// List devices with their specifications, and say which of them containers cannot have
    List {
        /// The sources of settings.
        #[command(flatten)]
        config: ConfigArgs,
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// `coracle config ...`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print every setting with its default and what it means
    Default,
    /// Check a file, or what the daemon would read, and say what is wrong with it
    Check {
        /// The file, by itself; without it the configuration file and its drop-ins
        file: Option<PathBuf>,
        /// The sources of settings.
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Print the settings in force
    Show {
        /// The sources of settings.
        #[command(flatten)]
        config: ConfigArgs,
        /// One setting a line, with the file and line that set it
        #[arg(long)]
        origin: bool,
    },
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_of_serve_override_the_configuration() {
        let line = [
            "coracle", "serve", "--config", "/c", "--root", "/a", "--run", "/b", "--socket", "/b/s",
        ];
        let Command::Serve(serve) = Cli::try_parse_from(line).unwrap().command else {
            panic!("not serve")
        };
        assert_eq!(serve.config.file(), Some(Path::new("/c")));
        let overrides = serve.config.overrides();
        assert_eq!(overrides.root.as_deref(), Some(Path::new("/a")));
        assert_eq!(overrides.run.as_deref(), Some(Path::new("/b")));
        assert_eq!(overrides.socket.as_deref(), Some(Path::new("/b/s")));
    }

    #[test]
    fn hidden_commands_take_anything_and_are_not_in_the_help() {
        let line = ["coracle", "spawner", "3", "--fd=4", "--help"];
        let Command::Spawner(spawner) = Cli::try_parse_from(line).unwrap().command else {
            panic!("not spawner")
        };
        assert_eq!(spawner.args, ["3", "--fd=4", "--help"]);
        let help = Cli::command().render_long_help().to_string();
        assert!(
            help.contains("serve") && !help.contains("spawner"),
            "{help}"
        );
    }
}
