//! Reads the configuration again when SIGHUP or `coracle reload` says so.
//!
//! Called by `serve`, one task for the life of the daemon. Invariants: SIGHUP never ends the daemon; all or nothing: a
//! configuration that is wrong changes nothing and is named with file and line; each changed setting is said by name, whether
//! it holds at once or waits for a restart; whoever asked gets the answer when it holds.
//! Must not know: what settings mean, except for those that it applies.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use coracle_admin::control::Reloaded;
use coracle_config::{Config, SettingsByKey};
use coracle_cri::policy::Policies;
use coracle_host::LiveConfig;
use coracle_metrics::{Counters, Family, Gauge, Kind, Metric};
use coracle_spec::error::chain;
use coracle_spec::live::Live;
use coracle_streaming::Limits;
use coracle_telemetry::Collector;
use coracle_wasm::{CompileCache, CompileLimits};
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::cli::ConfigArgs;
use crate::host_config::live_config;
use crate::logging;
use crate::notify::{self, notify};

static SUCCESSFUL: Gauge = Gauge::new(Family {
    name: "coracle_config_last_reload_successful",
    help: "1 if the configuration that was read last is good, else 0.",
    kind: Kind::Gauge,
    labels: &[],
});
static SUCCESS_TIME: Gauge = Gauge::new(Family {
    name: "coracle_config_last_reload_success_timestamp_seconds",
    help: "When a good configuration was read last, in seconds since 1970 UTC.",
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
pub fn metrics() -> [&'static dyn Metric; 3] {
    [&SUCCESSFUL, &SUCCESS_TIME, &RELOADS]
}

/// Settings, and tables of settings, that take effect at once; everything else waits for a restart.
const AT_ONCE: [&str; 19] = [
    "log.level",
    "log.targets",
    "network.denied_node_ports",
    "network.name_servers",
    "network.internal_domains",
    "network.internal_networks",
    "network.nat64_prefixes",
    "sandbox.create_host_paths",
    "sandbox.device_ownership_from_security_context",
    "cdi.spec_dirs",
    "cdi.hooks",
    "cdi.node_hooks",
    "wasm.compile_timeout_s",
    "wasm.compile_memory_bytes",
    "wasm.cache_bytes",
    "streaming.idle_timeout_s",
    "streaming.allowed_origins",
    "metrics.processes",
    "handlers",
];

/// The parts of the daemon that a reload changes.
pub struct Targets {
    /// Of effects on the host.
    pub host: Arc<Live<LiveConfig>>,
    /// What pods may do, by handler.
    pub policies: Arc<Live<Policies>>,
    /// The compiler of modules.
    pub compiler: Arc<CompileCache>,
    /// Of streaming sessions.
    pub sessions: Arc<Limits>,
    /// Of metrics.
    pub collector: Arc<Collector>,
}

impl Targets {
    /// Applies what takes effect at once. It cannot fail: every value of a [`Config`] has been checked.
    fn apply(&self, config: &Config) {
        logging::configure(&config.log);
        self.host.set(live_config(config));
        self.policies.set(config.handlers.policies());
        self.compiler.set_limits(compile_limits(config));
        let streaming = &config.streaming;
        self.sessions
            .set(streaming.idle_timeout, &streaming.allowed_origins);
        self.collector.set_open_files(config.metrics.processes);
    }
}

/// The limits of compilations.
pub fn compile_limits(config: &Config) -> CompileLimits {
    CompileLimits {
        cpu: config.wasm.compile_timeout,
        memory_bytes: config.wasm.compile_memory_bytes,
        module_bytes: config.wasm.max_module_bytes,
        cache_bytes: config.wasm.cache_bytes,
    }
}

type Requests = mpsc::UnboundedReceiver<oneshot::Sender<Reloaded>>;

/// Requests reloads.
#[derive(Clone)]
pub struct Reloads(mpsc::UnboundedSender<oneshot::Sender<Reloaded>>);

impl Reloads {
    /// A sender of requests, and what [`start`] takes them from. The configuration that the daemon begins with is good.
    pub fn new() -> (Reloads, Requests) {
        record(true);
        let (sender, requests) = mpsc::unbounded_channel();
        (Reloads(sender), requests)
    }

    /// Has the configuration read again; returns when it holds, or is refused.
    pub async fn reload(self) -> Reloaded {
        let (reply, answer) = oneshot::channel();
        let sent = self.0.send(reply).is_ok();
        match answer.await {
            Ok(reply) if sent => reply,
            _ => Reloaded {
                error: "the daemon is about to end".to_owned(),
                ..Reloaded::default()
            },
        }
    }
}

/// The settings in force, and where they come from.
pub struct Held {
    /// The command line of the daemon.
    pub arguments: ConfigArgs,
    /// The settings that hold.
    pub settings: SettingsByKey,
    /// What a reload changes.
    pub targets: Targets,
}

/// Reads the configuration again at each `hangup` and each request, until the value that it returns is dropped. The daemon must
/// have said that it is ready.
pub fn start(hangup: Signal, requests: Requests, held: Held) -> JoinSet<()> {
    let mut task = JoinSet::new();
    task.spawn(serve(hangup, requests, held));
    task
}

async fn serve(mut hangup: Signal, mut requests: Requests, mut held: Held) {
    loop {
        let reply = tokio::select! {
            signal = hangup.recv() => match signal {
                Some(()) => None,
                None => return,
            },
            Some(reply) = requests.recv() => Some(reply),
        };
        notify(&notify::reloading());
        let outcome = held.reload();
        notify(notify::READY);
        if let Some(reply) = reply {
            // Whoever asked may have gone.
            let _ = reply.send(outcome);
        }
    }
}

impl Held {
    fn reload(&mut self) -> Reloaded {
        let (config, new) = match self.arguments.load_settings() {
            Ok(read) => read,
            Err(error) => {
                record(false);
                RELOADS.count(["refused"]);
                let error = chain(&error);
                tracing::error!(
                    error,
                    "the configuration is wrong; nothing of it was applied"
                );
                return Reloaded {
                    error,
                    ..Reloaded::default()
                };
            }
        };
        self.targets.apply(&config);
        let changed = self.settings.changed_in(&new).into_iter();
        let (applied, waiting): (Vec<String>, Vec<String>) =
            changed.partition(|key| is_at_once(key));
        // What waits for a restart is reported again at the next reload, as it still does not hold.
        applied.iter().for_each(|key| self.settings.take(key, &new));
        record(true);
        RELOADS.count(["ok"]);
        report(&applied, &waiting);
        Reloaded {
            error: String::new(),
            applied,
            waiting,
        }
    }
}

fn is_at_once(key: &str) -> bool {
    let mut known = AT_ONCE.iter();
    known.any(|known| {
        key.strip_prefix(known)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

fn record(is_good: bool) {
    SUCCESSFUL.set(u64::from(is_good));
    if is_good {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        SUCCESS_TIME.set(now.map_or(0, |since| since.as_secs()));
    }
}

fn report(applied: &[String], waiting: &[String]) {
    tracing::info!(?applied, "the configuration was read again");
    if !waiting.is_empty() {
        tracing::warn!(settings = ?waiting, "changed settings wait for a restart of the daemon, which pods do not notice");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn what_holds_at_once_exists_and_is_documented() {
        let manual = include_str!("../../docs/operate/README.md");
        let at_once = manual.split("take effect at once").nth(1).unwrap();
        let at_once = at_once.split("\n\n").nth(1).unwrap();
        for key in AT_ONCE {
            assert!(
                at_once.contains(&format!("`{key}")),
                "{key} is not in {at_once}"
            );
            let name = key.rsplit('.').next().unwrap();
            assert!(
                coracle_config::DEFAULT_TEXT.contains(name),
                "there is no {key}"
            );
        }
    }

    #[test]
    fn a_table_that_holds_at_once_has_all_its_keys() {
        for key in [
            "handlers",
            "handlers.coracle.http.idle_s",
            "log.targets.h2",
            "log.level",
        ] {
            assert!(is_at_once(key), "{key}");
        }
        for key in [
            "root",
            "log.format",
            "log.levels",
            "handler",
            "network.subnet",
        ] {
            assert!(!is_at_once(key), "{key}");
        }
    }
}
