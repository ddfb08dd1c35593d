//! Reads the configuration again when SIGHUP says so.
//!
//! Called by `serve`, one task for the life of the daemon. Invariants: SIGHUP never ends the daemon; all or nothing: a file that
//! is wrong changes nothing and is named with its line; each changed setting is said by name, whether it holds at once
//! or waits for a restart.
//! Must not know: what settings mean, except for those that it applies.

use std::error::Error;

use coracle_config::{Config, SettingsByKey};
use coracle_metrics::{Counters, Family, Gauge, Kind, Metric};
use coracle_spec::error::chain;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;

use crate::cli::ConfigArgs;
use crate::logging;

static SUCCESSFUL: Gauge = Gauge::new(Family {
    name: "coracle_config_last_reload_successful",
    help: "1 if the configuration that was read last is good, else 0.",
    kind: Kind::Gauge,
    labels: &[],
});
static RELOADS: Counters<1> = Counters::new(Family {
    name: "coracle_config_reloads_total",
    help: "Reloads of the configuration since the start.",
    kind: Kind::Counter,
    labels: &["result"],
});

/// Everything that is counted here.
pub fn metrics() -> [&'static dyn Metric; 2] {
    [&SUCCESSFUL, &RELOADS]
}

/// What takes effect at once; everything else waits for a restart.
const AT_ONCE: &str = "log.level";

/// Reads the configuration again at each SIGHUP, until the value that it returns is dropped. Errors: the signal cannot be
/// taken; the configuration has just become wrong.
pub fn start(arguments: &ConfigArgs) -> Result<JoinSet<()>, Box<dyn Error>> {
    // From here on SIGHUP does not end the daemon.
    let hangup = signal(SignalKind::hangup())?;
    let (_, held) = read(arguments)?;
    SUCCESSFUL.set(1);
    let mut task = JoinSet::new();
    task.spawn(reload(hangup, arguments.clone(), held));
    Ok(task)
}

/// `held` are the settings that hold.
async fn reload(mut hangup: Signal, arguments: ConfigArgs, mut held: SettingsByKey) {
    while hangup.recv().await.is_some() {
        match read(&arguments) {
            Ok((config, new)) => {
                logging::set_level(config.log.level);
                report(&held.changed_in(&new));
                // What waits for a restart is reported again at the next reload, as it still does not hold.
                held.take(AT_ONCE, &new);
                SUCCESSFUL.set(1);
                RELOADS.count(["ok"]);
            }
            Err(error) => {
                SUCCESSFUL.set(0);
                RELOADS.count(["refused"]);
                let error = chain(&error);
                tracing::error!(
                    error,
                    "the configuration is wrong; nothing of it was applied"
                );
            }
        }
    }
}

fn read(arguments: &ConfigArgs) -> Result<(Config, SettingsByKey), coracle_config::Error> {
    let settings = SettingsByKey::load(arguments.file(), &arguments.overrides())?;
    Ok((arguments.load()?, settings))
}

fn report(changed: &[String]) {
    let (now, later): (Vec<&String>, Vec<&String>) =
        changed.iter().partition(|key| key.as_str() == AT_ONCE);
    tracing::info!(applied = ?now, "the configuration was read again");
    if !later.is_empty() {
        tracing::warn!(settings = ?later, "changed settings wait for a restart of the daemon, which pods do not notice");
    }
}
