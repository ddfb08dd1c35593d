//! The command line of the commands for the running daemon, for clap.
//!
//! Called by: the command line of the shim, which has it beside its own. Must not know: what a command does.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Where the daemon is.
#[derive(Clone, Debug, Default, Args)]
pub struct Place {
    /// Configuration file, which names the run directory; /etc/coracle/config.toml if it exists
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory of drop-ins; conf.d beside the configuration file if it exists, "" for none
    #[arg(long, value_name = "DIR", value_parser = super::any_path)]
    pub config_dir: Option<PathBuf>,
    /// Directory of the daemon's sockets, instead of the configured one
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say whether the node can run pods, and what it has; exit code 0 ready, 1 not ready, 2 no daemon
    Status {
        /// Where the daemon is.
        #[command(flatten)]
        place: Place,
    },
    /// List running containers with their pods
    Ps {
        /// Where the daemon is.
        #[command(flatten)]
        place: Place,
        /// Also containers that have ended and sandboxes that are not ready
        #[arg(short, long)]
        all: bool,
    },
    /// Tell the life of a pod or container: what it waits for, what happened, what failed last
    Why {
        /// Where the daemon is.
        #[command(flatten)]
        place: Place,
        /// NAMESPACE/POD, POD, or the id of a sandbox or container, or its beginning
        name: String,
    },
    /// Print what a container wrote
    Logs {
        /// Where the daemon is.
        #[command(flatten)]
        place: Place,
        /// Go on with what it writes from now on
        #[arg(short, long)]
        follow: bool,
        /// NAMESPACE/POD, POD, or the id of a sandbox or container, or its beginning
        name: String,
        /// The container's name, if the pod has several
        container: Option<String>,
    },
    /// Print what happened to pods and containers
    Events {
        /// Where the daemon is.
        #[command(flatten)]
        place: Place,
        /// Only the last so many seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 0)]
        since: u64,
        /// Go on with what happens from now on
        #[arg(short, long)]
        follow: bool,
    },
    /// Read the configuration again; print which changed settings hold now, and which wait for a restart
    Reload {
        /// Where the daemon is.
        #[command(flatten)]
        place: Place,
    },
    /// Change which lines the daemon logs, for a time or until it ends
    LogLevel {
        /// Where the daemon is.
        #[command(flatten)]
        place: Place,
        /// error, warn, info, debug or trace; "configured" ends earlier changes
        #[arg(value_parser = ["error", "warn", "info", "debug", "trace", "configured"])]
        level: String,
        /// Only lines of modules whose path begins so, as coracle_network::cni, or of a library, as h2
        #[arg(long, value_name = "MODULE", default_value = "")]
        target: String,
        /// How long, as 30s, 10m or 2h; until the daemon ends unless set
        #[arg(long = "for", value_name = "TIME", value_parser = super::control::seconds)]
        duration: Option<u64>,
    },
    /// Look into the daemon, to find what hangs or to report a bug
    Debug {
        /// Which.
        #[command(subcommand)]
        command: Debug,
    },
}

/// `coracle debug ...`.
#[derive(Debug, Subcommand)]
pub enum Debug {
    /// List what the driver of each pod does and waits for
    Tasks {
        /// Where the daemon is.
        #[command(flatten)]
        place: Place,
    },
    /// Write what a bug report needs to an archive: status, containers, events, log, metrics, configuration, the node. It has
    /// no environment, arguments, annotations or credentials of pods
    Dump {
        /// Where the daemon is.
        #[command(flatten)]
        place: Place,
        /// The file, which must not exist; - for standard output; coracle-dump-TIME.tar.zst unless set
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

impl Command {
    /// Where the daemon is.
    #[must_use]
    pub fn place(&self) -> &Place {
        match self {
            Command::Reload { place }
            | Command::LogLevel { place, .. }
            | Command::Debug {
                command: Debug::Tasks { place } | Debug::Dump { place, .. },
            } => place,
            Command::Status { place }
            | Command::Ps { place, .. }
            | Command::Why { place, .. }
            | Command::Logs { place, .. }
            | Command::Events { place, .. } => place,
        }
    }
}
